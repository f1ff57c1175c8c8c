"""Publishing coders on the Hub."""

import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from sae_binary_ext.checkpoints import saelens, stock
from sae_binary_ext.checkpoints.card import FIGURES, Facts, coder_card, repository_card
from sae_binary_ext.checkpoints.describe import Description, describe_folder
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import read_json
from sae_binary_ext.checkpoints.formats import FORMATS
from sae_binary_ext.checkpoints.hook_names import is_hookpoint
from sae_binary_ext.checkpoints.portable import PortableCoder
from sae_binary_ext.checkpoints.runs import SEED, completed_by_run, run_config
from sae_binary_ext.checkpoints.sources import (
    METRICS_FILE,
    SPARSITY_FILE,
    check_name,
    errors_of_hub,
    find_coders,
    repository_files,
)

logger = logging.getLogger(__name__)

SAELENS_RUN_CONFIG = "runner_cfg.json"
CARD = "README.md"


@dataclass(frozen=True)
class Upload:
    """What push puts into a repository.

    Attributes:
        repo_id: user/name.
        files: bytes of each file by its path in the repository.
        cards: the model cards among them, by path.
    """

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
    private: bool = False,
    dry_run: bool = False,
) -> Upload:
    """Publish a coder, or a folder of coders, each in a folder of its own with a model card.

    Uploads a coder's weights, config and firing statistics, and nothing else that lies beside
    them. Figures come from metrics.json in the coder's folder, as the demo puts it there. Run
    again after an interruption, it goes on: what the Hub has already is not sent twice.

    Args:
        path: a coder's folder, which keeps its name in the repository, or a folder of such folders.
        repo_id: user/name; made if it does not exist.
        model: Hub id of the model that the coders are for. None takes what their files say.
        licence: as the Hub names licences (mit, apache-2.0).
        dataset: what they were trained on. None takes what their training run noted.
        training_tokens: how many. None takes what their training run noted.
        private: make the repository private.
        dry_run: return what would be uploaded, and upload nothing.

    Raises:
        CheckpointError: a coder is damaged, its model has no Hub id, or the Hub refused.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CheckpointError(f"repo_id={repo_id!r}: {error}") from error
    if not Path(path).is_dir():
        raise CheckpointError(f"{path}: is no folder.")
    given = Facts(model, training_tokens, dataset, licence)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        upload = _stage(Path(path), repo_id, given, staged, online=not dry_run)
        if not dry_run:
            _send(staged, repo_id, private)
    return upload


def _stage(path: Path, repo_id: str, given: Facts, staged: Path, online: bool) -> Upload:
    """Lay out what is uploaded: a coder's own files, and the cards."""
    folders = find_coders(path, None)
    described = [
        _with_place_in_name(describe_folder(name, folder), folder)
        for name, folder in folders.items()
    ]
    facts = [
        _facts(folder, one, given) for folder, one in zip(folders.values(), described, strict=True)
    ]
    cards: dict[str, str] = {}
    for folder, one, known in zip(folders.values(), described, facts, strict=True):
        check_name(one.name)
        one = _stage_coder(folder, one, known, staged / one.name)
        cards[f"{one.name}/{CARD}"] = coder_card(repo_id, one, known)
    names = {one.name for one in described} | (_published(repo_id) if online else set())
    common = replace(facts[0], model=_common([known.model for known in facts]))
    cards[CARD] = repository_card(repo_id, sorted(names), described, common)
    for name, text in cards.items():
        (staged / name).write_text(text)
    files = [file for file in sorted(staged.rglob("*")) if file.is_file()]
    sizes = {file.relative_to(staged).as_posix(): file.stat().st_size for file in files}
    return Upload(repo_id, sizes, cards)


def _with_place_in_name(described: Description, folder: Path) -> Description:
    """The coder under a name that tells its place: a seed's alone does not."""
    above = folder.resolve().parent.name
    if SEED.fullmatch(described.name) and is_hookpoint(above):
        return replace(described, name=f"{above}/{described.name}")
    return described


def _stage_coder(folder: Path, described: Description, facts: Facts, target: Path) -> Description:
    """Lay out a coder's files; returns the coder as it is there."""
    target.mkdir(parents=True)
    form = FORMATS[described.format]
    coder = described.coder
    scaled = described.format == "saelens" and saelens.scaling(folder) is not None
    # A training script's own names of its files carry its clock, and its log the run's curves.
    named = (folder / form.weights).is_file() and (folder / form.config).is_file()
    # The run's config stays behind, and what it alone says goes into the coder's own.
    anew = scaled or not named or completed_by_run(folder)
    renamed = None if coder is None else _with_names(coder, facts)
    if renamed is not None and (renamed is not coder or anew):
        form.write(renamed, target)
        described = replace(described, coder=renamed)
    elif described.format == "saelens" and saelens.is_stock(folder):
        stock.refuse_training_only(folder, stock.current_config(folder))
        if scaled:
            stock.load(folder).save_model(target)
    for file in (form.config, form.weights, SPARSITY_FILE):
        if (folder / file).is_file() and not (target / file).exists():
            (target / file).symlink_to((folder / file).resolve())
    return described


def _with_names(coder: PortableCoder, facts: Facts) -> PortableCoder:
    """The coder with the model and data that its config names called as on the Hub."""
    metadata = coder.settings.get("saelens", {})
    before = {"model_name": coder.place.model_name, "dataset_path": metadata.get("dataset_path")}
    after = {"model_name": facts.model, "dataset_path": facts.dataset}
    changed = {key: after[key] for key, value in before.items() if value not in (None, after[key])}
    if not changed:
        return coder
    place = replace(coder.place, model_name=facts.model)
    settings = (
        {**coder.settings, "saelens": {**metadata, **changed}} if metadata else coder.settings
    )
    return replace(coder, place=place, settings=settings)


def _common(values: list[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None


def _send(staged: Path, repo_id: str, private: bool) -> None:
    api = HfApi()
    with errors_of_hub(f"{repo_id}: the upload did not end, run the same again to go on"):
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=staged, commit_message="Add sparse coders")


def _published(repo_id: str) -> set[str]:
    """Folders of coders that the repository has already."""
    weights = {form.weights for form in FORMATS.values()}
    with errors_of_hub(f"{repo_id}: cannot be reached"):
        try:
            files = repository_files(repo_id)
        except RepositoryNotFoundError:
            return set()
    return {file.rpartition("/")[0] for file in files if file.rpartition("/")[2] in weights} - {""}


def _facts(folder: Path, described: Description, given: Facts) -> Facts:
    run = _run_of(folder)
    stated = described.coder.place.model_name if described.coder is not None else None
    model = given.model or stated or run.get("model_name") or run.get("model")
    metadata = described.coder.settings.get("saelens", {}) if described.coder is not None else {}
    noted = (run.get("dataset_path"), run.get("dataset"), metadata.get("dataset_path"))
    dataset = given.dataset or next(filter(None, noted), None)
    for name, value in (("model", model), ("dataset", dataset)):
        if value is not None and (Path(str(value)).exists() or Path(str(value)).is_absolute()):
            raise CheckpointError(
                f"{name}={str(value)!r} of {described.name}: is a folder of this machine. Say "
                f"what it is on the Hub: {name}='user/name'."
            )
    tokens = given.training_tokens or run.get("training_tokens")
    figures, measured_on = _figures(folder)
    if figures is None:
        logger.warning("%s: no %s beside it, so its card has no figures.", folder, METRICS_FILE)
    return replace(
        given,
        model=model,
        training_tokens=None if tokens is None else str(tokens),
        dataset=dataset,
        figures=figures,
        measured_on=measured_on,
    )


def _run_of(folder: Path) -> dict[str, Any]:
    """What the hosts' runners write down beside a coder, or in the folder of a run."""
    path = folder / SAELENS_RUN_CONFIG
    return read_json(path) if path.is_file() else run_config(folder)


def _figures(folder: Path) -> tuple[dict[str, Any] | None, str]:
    path = folder / METRICS_FILE
    if not path.is_file():
        return None, ""
    document = read_json(path)
    try:
        (coder,) = document["coders"]
        found = {key: coder[key]["value"] for key in FIGURES if key in coder}
        figures = {key: value for key, value in found.items() if value is not None}
        for key, value in figures.items():
            FIGURES[key][1].format(value)
        text = document["run"]["dataset"]
        # A folder of this machine is nobody else's business.
        text = "a local text" if Path(text).exists() or Path(text).is_absolute() else text
        measured_on = f"{coder['tokens']:,} tokens of {text}"
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: holds no figures of one coder: {error}.") from error
    return figures, measured_on
