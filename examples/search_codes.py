"""Index the codes of a text, and search it: by latents, by what fires with them, and by a prompt.

python examples/search_codes.py MODEL DATASET CODER
    MODEL    a Hugging Face model or folder, the one that the coder was trained on
    DATASET  a Hugging Face dataset, a file or a local folder of text
    CODER    a folder or Hub id of one coder, in any format that load_coder reads
"""

import sys
from pathlib import Path

from sae_binary_ext.commands import CodeIndex, IndexConfig, latents_of_prompt, run_index

model, dataset, coder = sys.argv[1:4]
folder = Path("index")
config = IndexConfig(model=model, dataset=dataset, tokens=4000, context_size=128)
print(run_index(folder, coder, config))

index = CodeIndex.open(folder)
# The two latents that fire most often. The last of the counts is of the tokens without a code.
first, second = (-index.folder.firings[:-1]).argsort()[:2].tolist()
for within in ("token", "window", "document"):
    answer = index.query(f"{first} & !{second}", within)
    print(f"\n{answer}")
    for passage in index.passages(answer, show=2):
        print(passage)

answer = index.query(str(first))
print(f"\nLatents that fire with {first}, by lift:")
for other in index.cofiring(answer, show=3):
    print(f"    {other.latent}: {other.lift:.1f} times as often, on {other.together} tokens")

prompt = "The capital of France"
latents = latents_of_prompt(index.folder, prompt, within="token")
print(f"\nTokens with a code like that of the end of {prompt!r}:")
for neighbour in index.nearest(latents, show=3, distance="jaccard"):
    print(f"{neighbour.distance:.2f}  {neighbour.passage}")
