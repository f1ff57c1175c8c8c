"""The model card of published coders."""

from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCardData

from sae_binary_ext.checkpoints.describe import Description

LIBRARY_OF_FORMAT = {"saelens": "saelens", "sparsify": "sparsify", "quirke2025": "sparsify"}
PAPERS = {
    "quirke2025": "Binary Sparse Coding for Interpretability, arXiv:2509.25596",
    "cho2025": (
        "Binary Autoencoder for Mechanistic Interpretability of Large Language Models, "
        "arXiv:2509.20997"
    ),
}
# Keys of a coder's figures in metrics.json, and how the card calls and writes them.
FIGURES = {
    "fvu": ("FVU", "{:.4f}"),
    "l0": ("L0, mean active latents a token", "{:.1f}"),
    "latents": ("latents", "{}"),
    "dead": ("dead latents", "{}"),
    "dense": ("latents active on more than 10% of tokens", "{}"),
    "ultra_high_frequency": ("latents active on more than 50% of tokens", "{}"),
    "entropy_bits": ("entropy of the firing rates, bits a token", "{:.0f}"),
    "recovered_of_zero_ablation": ("share of cross-entropy recovered", "{:.1%}"),
}


@dataclass(frozen=True)
class Facts:
    """What a card says beside what the coder's files do; None where it is not known.

    Attributes:
        model: Hub id of the model it was trained on.
        training_tokens: number of tokens, as text.
        dataset: what they came from.
        licence: identifier as the Hub knows it (mit, apache-2.0).
        figures: of metrics.json, by FIGURES' keys.
        measured_on: what they were measured on.
    """

    model: str | None = None
    training_tokens: str | None = None
    dataset: str | None = None
    licence: str | None = None
    figures: dict[str, Any] | None = None
    measured_on: str = ""


def repository_card(
    repo_id: str, names: list[str], described: list[Description], facts: Facts
) -> str:
    """README.md of a repository of coders.

    Args:
        repo_id: user/name.
        names: folders of all coders in it.
        described: those of them that are published now.
        facts: what holds for all of them: model and licence.
    """
    data = ModelCardData(
        license=facts.licence,
        base_model=facts.model,
        library_name=LIBRARY_OF_FORMAT.get(described[0].format),
        tags=["sparse-autoencoder", "binary-codes", "interpretability", "sae_binary_ext"],
    )
    links = "\n".join(f"- [{name}]({name}/README.md)" for name in names)
    model = f" of {facts.model}" if facts.model else ""
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {repo_id.split('/')[-1]}\n\n"
        f"Sparse coders{model}, one a folder:\n\n{links}\n\n"
        "## How to load\n\n"
        f"{_how_to_load(repo_id, described[0])}\n\n## Licence\n\n{_licence(facts)}\n"
    )


def coder_card(repo_id: str, described: Description, facts: Facts) -> str:
    """README.md of a coder's folder."""
    rows = [
        *described.lines(),
        ("trained on", facts.dataset),
        ("training tokens", facts.training_tokens),
    ]
    table = "\n".join(f"| {label} | {value} |" for label, value in rows if value is not None)
    return (
        f"# {described.name}\n\n{_what_it_is(described)}\n\n| | |\n|---|---|\n{table}\n\n"
        f"## Measured\n\n{_measured(facts)}\n\n"
        f"## How to load\n\n{_how_to_load(repo_id, described)}\n\n## Licence\n\n{_licence(facts)}\n"
    )


def _what_it_is(described: Description) -> str:
    binary = described.coder is not None and described.coder.shape.binary
    codes = " Its latents are exactly 0 or 1." if binary else ""
    paper = f" In the files of {PAPERS[described.format]}." if described.format in PAPERS else ""
    return f"Sparse coder: {described.architecture}.{codes}{paper}"


def _measured(facts: Facts) -> str:
    if facts.figures is None:
        return "Nothing was measured."
    rows = [
        f"| {label} | {form.format(facts.figures[key])} |"
        for key, (label, form) in FIGURES.items()
        if key in facts.figures
    ]
    return "\n".join([f"On {facts.measured_on}:", "", "| | |", "|---|---|", *rows])


def _how_to_load(repo_id: str, described: Description) -> str:
    """Code blocks for each host that can have it."""
    name, form = described.name, described.format
    load = f'load_coder("{repo_id}", "{name}"'
    either = [
        "from sae_binary_ext.checkpoints import load_coder",
        "",
        f'coder = {load}, host="saelens")  # a sae_lens.SAE',
        f'coder = {load}, host="sparsify")  # a sparsify.SparseCoder',
    ]
    if described.coder is None:
        # An architecture that only its host knows.
        either = [*either[:2], f'coder = {load}, host="{form}")']
    blocks = [("With `pip install sae_binary_ext`:", either)]
    if form == "saelens":
        lines = ["import sae_binary_ext", "from sae_lens import SAE", ""]
        lines.append(f'sae = SAE.from_pretrained("{repo_id}", "{name}")')
        blocks.append(("SAELens, by its own loader:", lines))
    elif form in ("sparsify", "quirke2025"):
        lines = ["import sae_binary_ext", "from sparsify import SparseCoder", ""]
        lines.append(f'coder = SparseCoder.load_from_hub("{repo_id}", "{name}")')
        blocks.append(("sparsify, by its own loader:", lines))
    return "\n\n".join(
        f"{title}\n\n```python\n" + "\n".join(lines) + "\n```" for title, lines in blocks
    )


def _licence(facts: Facts) -> str:
    return facts.licence or "Not stated."
