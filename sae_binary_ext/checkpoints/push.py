"""Publishes coders on the Hub, with a model card for each."""

import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from sae_binary_ext.checkpoints import files, runs, saelens, sources, stock, stock_forms
from sae_binary_ext.checkpoints.describe import Description, describe_folder
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.hook_names import is_hookpoint
from sae_binary_ext.checkpoints.load import placed
from sae_binary_ext.checkpoints.portable import PortableCoder
from sae_binary_ext.checkpoints.sources import FORMATS

logger = logging.getLogger(__name__)

LIBRARY_OF_FORMAT = {"saelens": "saelens", "sparsify": "sparsify", "quirke2025": "sparsify"}
# A host's name, the line that imports the host's class, and the call that loads a coder.
OWN_LOADERS = {
    "saelens": ("SAELens", "from sae_lens import SAE", "sae = SAE.from_pretrained"),
    "sparsify": (
        "sparsify", "from sparsify import SparseCoder", "coder = SparseCoder.load_from_hub"
    ),
}  # fmt: skip
PAPERS = {
    "quirke2025": "Binary Sparse Coding for Interpretability, arXiv:2509.25596",
    "cho2025": (
        "Binary Autoencoder for Mechanistic Interpretability of Large Language Models, "
        "arXiv:2509.20997"
    ),
}
# The label in the card and the number format for each figure of a coder in metrics.json.
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
SAELENS_RUN_CONFIG = "runner_cfg.json"
CARD = "README.md"


@dataclass(frozen=True)
class Facts:
    """Facts for a model card that a coder's own files do not tell. An unknown fact is None."""

    model: str | None = None
    training_tokens: str | None = None
    dataset: str | None = None
    licence: str | None = None
    figures: list[tuple[str, str]] | None = None  # pairs of label and text
    measured_on: str = ""


@dataclass(frozen=True)
class Upload:
    """What push uploads: the size of each file in bytes and the text of each card, by path."""

    repo_id: str
    files: dict[str, int]
    cards: dict[str, str]


def push(
    path: str | Path,
    repo_id: str,
    *,
    model: str | None = None,
    licence: str | None = None,
    dataset: str | None = None,
    training_tokens: str | None = None,
    host: str | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> Upload:
    """Publish a coder, or a folder of coders, each in a folder of its own with a model card.

    Uploads a coder's weights, config and firing statistics, and no other files. The card's figures
    come from metrics.json in the coder's folder, which the demo writes. After an interruption, run
    push again: files that the Hub already has are not sent twice.

    Args:
        path: a coder's folder, which keeps its name in the repository, or a folder of them.
        repo_id: user/name. The repository is made if it does not exist.
        model: Hub id of the model that the coders are for. None takes the model that files name.
        licence: the Hub's name of the licence (mit, apache-2.0).
        dataset: the training text. None takes the text that the training run noted.
        training_tokens: the number of tokens. None takes the number that the run noted.
        host: "stock" also publishes, in the folder stock of each coder, its form that SAELens loads
            without this package. A coder whose stock form has other codes needs it made before:
            sae-binary convert CODER CODER/stock --host stock.
        private: whether to make the repository private.
        dry_run: whether to return the planned upload without uploading.

    Raises:
        CheckpointError: a coder is damaged, its model has no Hub id, or the Hub refused.
    """
    with files.errors_told(f"repo_id={repo_id!r}"):
        validate_repo_id(repo_id)
    if not Path(path).is_dir():
        raise CheckpointError(f"{path}: is not a folder.")
    if host not in (None, sources.STOCK):
        raise CheckpointError(f"host={host!r}: push takes {sources.STOCK!r} alone.")
    given = Facts(model, training_tokens, dataset, licence)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        upload = _stage(Path(path), repo_id, given, staged, host, online=not dry_run)
        if not dry_run:
            failed = f"{repo_id}: the upload did not end, run the same again to go on"
            with files.errors_told(failed):
                api = HfApi()
                api.create_repo(repo_id, private=private, exist_ok=True)
                message = "Add sparse coders"
                api.upload_folder(repo_id=repo_id, folder_path=staged, commit_message=message)
    return upload


def _stage(
    path: Path, repo_id: str, given: Facts, staged: Path, host: str | None, online: bool
) -> Upload:
    """Put the coders' own files and their cards into the folder `staged`."""
    found = sources.find_coders(path, None)
    described = [_described(name, folder) for name, folder in found.items()]
    folders = list(found.values())
    facts = [_facts(folder, one, given) for folder, one in zip(folders, described, strict=True)]
    cards: dict[str, str] = {}
    for folder, one, known in zip(folders, described, facts, strict=True):
        sources.check_name(one.name)
        one = _stage_coder(folder, one, known, staged / one.name)
        made = None if host is None else _stock_form(folder, one, known)
        if made is not None:
            made.save_model(staged / one.name / sources.STOCK)
        cards[f"{one.name}/{CARD}"] = _coder_card(repo_id, one, known, made)
    names = {one.name for one in described} | (_published(repo_id) if online else set())
    models = {known.model for known in facts}
    common = replace(facts[0], model=models.pop() if len(models) == 1 else None)
    cards[CARD] = _repository_card(repo_id, sorted(names), described[0], common)
    for name, text in cards.items():
        (staged / name).write_text(text)
    paths = [path for path in sorted(staged.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(staged).as_posix(): path.stat().st_size for path in paths}
    return Upload(repo_id, sizes, cards)


def _described(name: str, folder: Path) -> Description:
    described = describe_folder(name, folder)
    above = folder.resolve().parent.name
    # The folder name of a seed does not tell the hookpoint.
    of_seed = runs.SEED.fullmatch(described.name) and is_hookpoint(above)
    return replace(described, name=f"{above}/{described.name}") if of_seed else described


def _stage_coder(folder: Path, described: Description, facts: Facts, target: Path) -> Description:
    """Put a coder's files into `target`. Returns a description of the coder in `target`."""
    target.mkdir(parents=True)
    form, coder = FORMATS[described.format], described.coder
    scaled = described.format == "saelens" and saelens.scaling(folder) is not None
    # The second paper's script puts times into file names, and training curves into its log.
    named = (folder / form.weights).is_file() and (folder / form.config).is_file()
    # The run's config is not uploaded, so facts that only it has must enter the coder's config.
    anew = scaled or not named or runs.completed_by_run(folder)
    renamed = None if coder is None else _with_names(coder, facts)
    if renamed is not None and (renamed is not coder or anew):
        form.write(renamed, target)
        described = replace(described, coder=renamed)
    elif described.format == "saelens" and saelens.is_stock(folder):
        stock.refuse_training_only(folder, stock.current_config(folder))
        if scaled:
            stock.load(folder).save_model(target)
    for file in (form.config, form.weights, sources.SPARSITY_FILE):
        if (folder / file).is_file() and not (target / file).exists():
            (target / file).symlink_to((folder / file).resolve())
    return described


def _stock_form(folder: Path, described: Description, facts: Facts) -> Any:
    """The stock form of a coder: that in its folder stock, or one with the same codes."""
    if not (folder / sources.STOCK).is_dir():
        if described.coder is None:
            raise CheckpointError(f"{described.name}: is stock already. Leave host out.")
        return stock_forms.exact(placed(described.coder, "saelens"), None)
    made = stock.load(folder / sources.STOCK)
    names = {"model_name": facts.model, "dataset_path": facts.dataset}
    for name, value in names.items():
        if made.cfg.metadata[name] is not None:
            made.cfg.metadata[name] = value
    return made


def _with_names(coder: PortableCoder, facts: Facts) -> PortableCoder:
    """The coder, with the Hub's names of its model and dataset if its config names them."""
    metadata = coder.settings.get("saelens", {})
    before = {"model_name": coder.place.model_name, "dataset_path": metadata.get("dataset_path")}
    after = {"model_name": facts.model, "dataset_path": facts.dataset}
    changed = {key: after[key] for key, value in before.items() if value not in (None, after[key])}
    if not changed:
        return coder
    place = replace(coder.place, model_name=facts.model)
    told = {"saelens": {**metadata, **changed}} if metadata else {}
    return replace(coder, place=place, settings=coder.settings | told)


def _published(repo_id: str) -> set[str]:
    """Folders of the coders that the repository already has."""
    weights = {form.weights for form in FORMATS.values()}
    with files.errors_told(f"{repo_id}: cannot be reached"):
        try:
            paths = [path.rpartition("/") for path in sources.repository_files(repo_id)]
        except RepositoryNotFoundError:
            return set()
    found = {folder for folder, _, name in paths if folder and name in weights}
    return set(sources.without_stock_forms(found))


def _facts(folder: Path, described: Description, given: Facts) -> Facts:
    coder, notes = described.coder, folder / SAELENS_RUN_CONFIG
    run = files.read_json(notes) if notes.is_file() else runs.run_config(folder)
    stated = None if coder is None else coder.place.model_name
    model = given.model or stated or run.get("model_name") or run.get("model")
    metadata = {} if coder is None else coder.settings.get("saelens", {})
    noted = (run.get("dataset_path"), run.get("dataset"), metadata.get("dataset_path"))
    dataset = given.dataset or next(filter(None, noted), None)
    for name, value in (("model", model), ("dataset", dataset)):
        if value is not None and _is_local(str(value)):
            raise CheckpointError(
                f"{name}={str(value)!r} of {described.name}: is a folder of this machine. Say "
                f"what it is on the Hub: {name}='user/name'."
            )
    tokens = given.training_tokens or run.get("training_tokens")
    figures, measured_on = _figures(folder / sources.METRICS_FILE)
    tokens = None if tokens is None else str(tokens)
    return Facts(model, tokens, dataset, given.licence, figures, measured_on)


def _is_local(name: str) -> bool:
    return Path(name).exists() or Path(name).is_absolute()


def _figures(path: Path) -> tuple[list[tuple[str, str]] | None, str]:
    """The figures of a coder's metrics.json, and the text that they were measured on."""
    if not path.is_file():
        logger.warning("%s: no %s beside it, so its card has no figures.", path.parent, path.name)
        return None, ""
    document = files.read_json(path)
    try:
        (coder,) = document["coders"]
        figures = [
            (label, form.format(coder[key]["value"]))
            for key, (label, form) in FIGURES.items()
            if key in coder and coder[key]["value"] is not None
        ]
        text = document["run"]["dataset"]
        # A path on the user's machine is private.
        text = "a local text" if _is_local(text) else text
        return figures, f"{coder['tokens']:,} tokens of {text}"
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: holds no figures of one coder: {error}.") from error


def _repository_card(repo_id: str, names: list[str], described: Description, facts: Facts) -> str:
    """README.md of a repository: links to coders by name, and how to load one of them."""
    data = ModelCardData(
        license=facts.licence,
        base_model=facts.model,
        library_name=LIBRARY_OF_FORMAT.get(described.format),
        tags=["sparse-autoencoder", "binary-codes", "interpretability", "sae_binary_ext"],
    )
    links = "\n".join(f"- [{name}]({name}/README.md)" for name in names)
    model = f" of {facts.model}" if facts.model else ""
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {repo_id.split('/')[-1]}\n\n"
        f"Sparse coders{model}, one a folder:\n\n{links}\n\n{_ending(repo_id, described, facts)}"
    )


def _coder_card(repo_id: str, described: Description, facts: Facts, made: Any) -> str:
    """README.md of a coder's folder. `made` is the coder's stock form, or None."""
    trained = (("trained on", facts.dataset), ("training tokens", facts.training_tokens))
    rows = [row for row in (*described.lines(), *trained) if row[1] is not None]
    binary = described.coder is not None and described.coder.shape.binary
    codes = " Its latents are exactly 0 or 1." if binary else ""
    paper = f" In the files of {PAPERS[described.format]}." if described.format in PAPERS else ""
    measured = "Nothing was measured."
    if facts.figures is not None:
        measured = f"On {facts.measured_on}:\n\n{_table(facts.figures)}"
    return (
        f"# {described.name}\n\nSparse coder: {described.architecture}.{codes}{paper}\n\n"
        f"{_table(rows)}\n\n## Measured\n\n{measured}\n\n{_ending(repo_id, described, facts, made)}"
    )


def _table(rows: list[tuple[str, Any]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows)])


def _ending(repo_id: str, described: Description, facts: Facts, made: Any = None) -> str:
    """The end of a card: a code block for each loader that can load the coder, and its licence."""
    name, form = described.name, described.format
    load = f'coder = load_coder("{repo_id}", "{name}"'
    calls = [
        f'{load}, host="saelens")  # a sae_lens.SAE',
        f'{load}, host="sparsify")  # a sparsify.SparseCoder',
    ]
    if described.coder is None:
        # Only the format's host knows this architecture.
        calls = [f'{load}, host="{form}")']
    lines = ["from sae_binary_ext.checkpoints import load_coder", "", *calls]
    blocks = [("With `pip install sae_binary_ext`:", lines)]
    if form in LIBRARY_OF_FORMAT:
        host, imported, call = OWN_LOADERS[LIBRARY_OF_FORMAT[form]]
        lines = ["import sae_binary_ext", imported, "", f'{call}("{repo_id}", "{name}")']
        blocks.append((f"{host}, by its own loader:", lines))
    if made is not None:
        form = f"SAELens alone loads the coder as {made.cfg.architecture()}"
        dtype = "" if made.cfg.dtype == "float32" else f', dtype="{made.cfg.dtype}"'
        call = f'sae = SAE.from_pretrained("{repo_id}", "{name}/{sources.STOCK}"{dtype})'
        told = stock_forms.in_words(made.cfg.metadata[stock_forms.CONVERTED_KEY])
        blocks.append((f"{form}: {told}.", ["from sae_lens import SAE", "", call]))
    code = [f"{title}\n\n```python\n" + "\n".join(lines) + "\n```" for title, lines in blocks]
    licence = facts.licence or "Not stated."
    return "\n\n".join(["## How to load", *code, "## Licence", licence]) + "\n"
