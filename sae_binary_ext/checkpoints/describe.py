"""Describes coders without SAELens or sparsify, and without downloading weights from the Hub."""

import json
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, snapshot_download
from torch import Tensor

from sae_binary_ext.checkpoints import files, releases, saelens, sources, stock
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.normalization import STORE_STATE, normalization_lines
from sae_binary_ext.checkpoints.portable import Place, PortableCoder, Shape, finetuning_lines
from sae_binary_ext.checkpoints.published import Published, find_published, load_published
from sae_binary_ext.checkpoints.sources import format_of
from sae_binary_ext.coding.entropy import bernoulli_entropy
from sae_binary_ext.coding.paper_names import STOCK_ACTIVATIONS

# SAELens stores log10(firing rate + this offset).
SPARSITY_OFFSET = 1e-10
DENSE_RATE = 0.1
# Small safetensors files, with at most a number a latent, which are downloaded whole.
SMALL_FILES = (sources.SPARSITY_FILE, STORE_STATE)

Lines = list[tuple[str, str]]


class Firing(NamedTuple):
    """Firing statistics of a coder's latents that were recorded in training or after it.

    l0 is the mean number of active latents a token. dead latents never fired. dense latents were
    active on more than 10% of the tokens. entropy_bits is the sum of the entropies of the firing
    rates, in bits a token.
    """

    l0: float
    dead: int
    dense: int
    entropy_bits: float


@dataclass(frozen=True)
class Description:
    """A coder in words and numbers.

    Attributes:
        name: name of the coder's folder in the source.
        format: format of its files, a key of FORMATS or the name of SAELens' converter.
        architecture: its architecture in a few words.
        coder: the coder itself, or None for an architecture that only its host knows. For a
            repository, the coder's tensors are on the meta device, without values.
        firing: recorded firing statistics, or None if there are none.
        details: labelled lines about a coder that only its host knows.
        normalization: the line that says how activations are scaled before encoding, if any.
        unread: whether its weights are on the Hub, so that only their header was read.
    """

    name: str
    format: str
    architecture: str
    coder: PortableCoder | None = None
    firing: Firing | None = None
    details: tuple[tuple[str, str], ...] = ()
    normalization: tuple[tuple[str, str], ...] = ()
    unread: bool = False

    def lines(self) -> Lines:
        """The lines that `inspect` shows, each with its label."""
        lines = [("format", self.format), ("architecture", self.architecture)]
        if self.coder is not None:
            place = _place_lines(self.coder.place)
            lines += [*_shape_lines(self.coder), *self.normalization, *place]
            lines += finetuning_lines(self.coder.settings)
        lines += self.details
        if self.unread:
            lines.append(("weights", "names, sizes and dtypes checked; values not downloaded"))
        if (firing := self.firing) is not None:
            told = f"L0 {firing.l0:.1f}, {firing.dead} dead, {firing.dense} denser than "
            told += f"{DENSE_RATE:.0%}, {firing.entropy_bits:.0f} bits a token"
            lines.append(("recorded firing", told))
        return lines


def describe(source: str | Path, hookpoint: str | None = None) -> list[Description]:
    """Describe the coders of a source. The arguments are those of load_coder.

    For a repository on the Hub, only configs and the headers of weights are downloaded. For a
    release of SAELens, and for files of another library, the weights are downloaded too, and
    SAELens loads them.

    Raises:
        CheckpointError: the source has no coder, or a coder's files are damaged.
    """
    if (published := find_published(source, hookpoint)) is not None:
        return [_describe_published(published)]
    source, hookpoint = sources.split(source, hookpoint)
    with _described_folders(source, hookpoint) as found:
        return [describe_folder(name, folder, hookpoint) for name, folder in found.items()]


def describe_folder(name: str, folder: Path, hookpoint: str | None = None) -> Description:
    """Describe the coder of a folder that find_coders found under this name.

    CheckpointError if its files are damaged, or name another place than hookpoint.
    """
    stated = sources.stated_place(name, hookpoint)
    name = folder.resolve().name if name == sources.ROOT else name
    form = format_of(folder)
    if form is None:
        raise CheckpointError(f"{folder}: holds no coder.")
    unread = not all(map(files.has_values, folder.glob("*.safetensors")))
    if form == "saelens" and saelens.is_stock(folder):
        words, latents, details = stock.described(folder)
        firing = _recorded_firing(folder, latents, None)
        return Description(name, form, words, None, firing, tuple(details), unread=unread)
    coder = sources.read_coder(folder, stated)
    firing = _recorded_firing(folder, coder.shape.latents, coder.firing_rates)
    scaling = saelens.scaling(folder) if form == "saelens" else None
    scaled = tuple(normalization_lines(coder.shape.normalize_activations, scaling))
    return Description(name, form, _in_words(coder.shape), coder, firing, (), scaled, unread)


def _describe_published(published: Published) -> Description:
    """Load a published coder, which checks its weights, and describe it."""
    loaded: Any = load_published(published)
    config = loaded.cfg.to_dict()
    words, lines = stock.in_words(config, Path(published.name))
    form = f"{published.converter}, which SAE.from_pretrained reads"
    return Description(published.name, form, words, details=tuple(lines))


@contextmanager
def _described_folders(source: str | Path, hookpoint: str | None) -> Generator[dict[str, Path]]:
    """The folders of coders by name. A repository's folders hold only configs and headers."""
    listed = None
    if sources.is_repository(source):
        with files.errors_told(releases.not_downloaded(source)):
            listed = sources.reachable_files(source)
    if listed is None:
        yield sources.find_coders(source, hookpoint, checkpoints=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / str(source).rpartition("/")[2]
        with files.errors_told(releases.not_downloaded(source)):
            names = sources.choose(str(source), hookpoint, listed, checkpoints=True)
            headers = _download(str(source), names, set(listed), root)
        with files.headers_alone(headers):
            yield {name: root / name for name in names}


def _download(repository: str, names: list[str], listed: set[str], root: Path) -> list[Path]:
    """Write a repository's configs and headers below `root`. Returns the header-only files."""
    paths = sources.beside(names) & listed
    weights = {path for path in paths if path.endswith(".safetensors")}
    headers = sorted(path for path in weights if not path.endswith(SMALL_FILES))
    small = paths.difference(headers) | sources.run_configs(names) & listed
    snapshot = Path(snapshot_download(repository, allow_patterns=sorted(small)))
    for path in small.union(headers):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
    for path in small:
        shutil.copyfile(snapshot / path, root / path)
    for path in headers:
        _write_header(repository, path, root / path)
    return [root / path for path in headers]


def _write_header(repository: str, name: str, path: Path) -> None:
    """Write a safetensors file with a header, and a hole that takes no space for the values."""
    header = HfApi().parse_safetensors_file_metadata(repository, name)
    entries = {
        name: {"dtype": one.dtype, "shape": one.shape, "data_offsets": one.data_offsets}
        for name, one in header.tensors.items()
    }
    text = json.dumps(entries).encode()
    size = max((one.data_offsets[1] for one in header.tensors.values()), default=0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)


def _recorded_firing(folder: Path, latents: int, rates: Tensor | None) -> Firing | None:
    """Firing statistics from SAELens' file, or else from the coder's rates, float [latents]."""
    path = folder / sources.SPARSITY_FILE
    if path.is_file():
        logarithms = files.read_tensors(path, {"sparsity": (latents,)})["sparsity"].double()
        if not logarithms.isfinite().all():
            raise CheckpointError(f"{path}: holds values that are not finite.")
        rates = (10**logarithms - SPARSITY_OFFSET).clamp(0, 1)
    # The rates of a coder that never trained are all zero.
    if rates is None or rates.is_meta or not rates.any():
        return None
    rates = rates.double()
    return Firing(
        l0=rates.sum().item(),
        # SAELens adds an offset, whose rounding leaves dead latents a tiny rate.
        dead=int((rates < SPARSITY_OFFSET).sum()),
        dense=int((rates > DENSE_RATE).sum()),
        entropy_bits=bernoulli_entropy(rates).sum().item(),
    )


def _in_words(shape: Shape) -> str:
    """The architecture of a coder in words."""
    kind = "transcoder" if shape.transcoder else "autoencoder"
    skip = " with skip connection" if shape.skip else ""
    codes = "binary" if shape.binary else STOCK_ACTIVATIONS[shape.rule.selection]
    return f"{codes} {kind}{skip}"


def _shape_lines(coder: PortableCoder) -> Lines:
    shape, rule = coder.shape, coder.shape.rule
    lines = [
        ("sizes", f"{shape.d_in} -> {shape.latents} latents -> {shape.d_out}"),
        ("dtype", str(coder.dtype).removeprefix("torch.")),
        ("selection", f"{rule.selection}, k={rule.k}" if rule.kind.uses_k else rule.selection),
    ]
    if shape.binary:
        surrogate = f"{rule.surrogate}, temperature {rule.surrogate_temperature:g}"
        lines.append(("surrogate", surrogate))
    if shape.refine_passes:
        lines.append(("refines codes", f"{shape.refine_passes} passes"))
    if not shape.transcoder:
        lines.append(("encodes", "input - b_dec" if shape.subtracts_decoder_bias else "input"))
    return lines


def _place_lines(place: Place) -> Lines:
    labels = ("model", "hookpoint (sparsify)", "hook (SAELens)", "output hook (SAELens)")
    names = (place.model_name, place.hookpoint, place.hook_name, place.hook_name_out)
    return [(label, name) for label, name in zip(labels, names, strict=True) if name is not None]
