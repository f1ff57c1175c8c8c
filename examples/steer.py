"""Turn latents of a coder on while a model of transformers generates, everywhere or by a rule.

python examples/steer.py MODEL DATASET CODER LATENT
    MODEL    a Hugging Face model or folder, the one that the coder was trained on
    DATASET  not read; other examples read it
    CODER    a folder or Hub id of a binary coder, in any format that load_coder reads
    LATENT   number of a latent
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.steering import CodeChange, Steering

model_name, _, coder_name, latent = sys.argv[1:5]
tokenizer = AutoTokenizer.from_pretrained(model_name)
model = AutoModelForCausalLM.from_pretrained(model_name)
coder = load_coder(coder_name)
prompt = tokenizer("The best thing about the city is", return_tensors="pt")


def continuation() -> str:
    tokens = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    return tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :])


print(f"as it is: {continuation()!r}")
with Steering(model, CodeChange(coder, set=[int(latent)])):
    print(f"latent {latent} on: {continuation()!r}")
# Only where another latent is silent, and from the eighth token of a row on.
rule = f"!{(int(latent) + 1) % coder.cfg.d_sae}"
with Steering(model, CodeChange(coder, flip=[int(latent)], where=rule, first_position=8)):
    print(f"latent {latent} flipped where {rule}: {continuation()!r}")
print(f"as it was: {continuation()!r}")
