"""Apply a coder to another layer, give its latents more bits, and measure small coders of its kind.

python examples/study_coders.py MODEL DATASET CODER
    MODEL    a Hugging Face model or folder, the one that the coder was trained on
    DATASET  a Hugging Face dataset, a file or a local folder of text
    CODER    a folder or Hub id of a binary autoencoder of selection threshold (binary_entropy)
"""

import sys
from pathlib import Path

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.commands import (
    EntropyProfileConfig,
    GradientsConfig,
    MultiBitConfig,
    TransferConfig,
    run_entropy_profile,
    run_gradients,
    run_multi_bit,
    run_transfer,
)

model, dataset, coder = sys.argv[1:4]
settings = {"model": model, "dataset": dataset, "context_size": 64}
hook = load_coder(coder).cfg.metadata.hook_name
layer = int(hook.split(".")[1])

# Measure the coder's error at the next layer, and with a second threshold for each latent.
transfer = TransferConfig(output=Path("transfer"), layers=[layer + 1], tokens=6000, **settings)
print(run_transfer([coder], transfer))
more_bits = MultiBitConfig(output=Path("multi-bit"), levels=[1, 2], tokens=6000, **settings)
print(f"\n{run_multi_bit([coder], more_bits)}")

# These commands train small coders here. With the default settings they take minutes.
small = {"tokens": 6000, "training_states": 5120, "latents": 256}
surrogates = GradientsConfig(
    output=Path("gradients"), hook=hook, surrogates=["sigmoid", "identity"], probes=2, **small,
    **settings,
)  # fmt: skip
print(f"\n{run_gradients(surrogates)}")
profile = EntropyProfileConfig(
    output=Path("profile"), layers=[layer, layer + 1], **small, **settings
)
print(f"\n{run_entropy_profile(profile)}")
