"""Find Boolean rules over a coder's latents for labels of tokens, and latents that imply others.

python examples/find_rules.py MODEL DATASET CODER
    MODEL    a Hugging Face model or folder, the one that the coder was trained on
    DATASET  a Hugging Face dataset, a file or a local folder of text
    CODER    a folder or Hub id of a coder, in any format that load_coder reads
"""

import sys
from pathlib import Path

from sae_binary_ext.commands import RulesConfig, run_rules

model, dataset, coder = sys.argv[1:4]
found = run_rules(
    [coder],
    RulesConfig(
        model=model,
        dataset=dataset,
        tokens=8000,
        labels=["token:^ (the|a|an)$", "next:^,$"],
        associations=True,
        output=Path("rules"),
    ),
)
# print() shows the tables. The attribute `results` has all counts, unrounded.
print(found)
for rule in found.results["rules"]:
    counts = (
        f"holds for {rule['holds']} of {rule['rows']} tokens, and {rule['hits']} have the label"
    )
    print(f"\n{rule['label']}: {rule['rule']} {counts}")
