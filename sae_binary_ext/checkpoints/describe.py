"""What a coder on disk or on the Hub is, without a host."""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from sae_binary_ext.checkpoints import saelens, stock
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import Fields, has_values, read_tensors
from sae_binary_ext.checkpoints.formats import format_of
from sae_binary_ext.checkpoints.headers import described_folders
from sae_binary_ext.checkpoints.portable import PortableCoder, Shape
from sae_binary_ext.checkpoints.sources import SPARSITY_FILE, read_coder, stated_place
from sae_binary_ext.coding.entropy import bernoulli_entropy
from sae_binary_ext.coding.paper_names import STOCK_ACTIVATIONS

# SAELens writes the decimal logarithm of a rate plus this.
SPARSITY_OFFSET = 1e-10
DENSE_RATE = 0.1


@dataclass(frozen=True)
class Firing:
    """How a coder's latents fired when that was recorded, in training or after it.

    Attributes:
        l0: mean active latents a token.
        dead: latents that never fired.
        dense: latents active on more than 10% of the tokens.
        entropy_bits: entropy of the firing rates, summed over latents, in bits a token.
    """

    l0: float
    dead: int
    dense: int
    entropy_bits: float


@dataclass(frozen=True)
class Description:
    """A coder in words and numbers.

    Attributes:
        name: of its folder in the source.
        format: a key of FORMATS.
        architecture: in a few words.
        coder: what it is and how it is built; None for an architecture that only its host knows. Of
            a repository its tensors are on the meta device, without values.
        firing: recorded statistics, or None.
        details: lines on a coder that only its host knows, each with its label.
        normalization: likewise, what happens to activations before they are encoded.
        unread: its weights are on the Hub, and only their header was read.
    """

    name: str
    format: str
    architecture: str
    coder: PortableCoder | None = None
    firing: Firing | None = None
    details: tuple[tuple[str, str], ...] = ()
    normalization: tuple[tuple[str, str], ...] = ()
    unread: bool = False

    def lines(self) -> list[tuple[str, str]]:
        """What to show, each with its label."""
        lines = [("format", self.format), ("architecture", self.architecture)]
        if self.coder is not None:
            lines += [*_shape_lines(self.coder), *self.normalization, *_place_lines(self.coder)]
        lines += self.details
        if self.unread:
            lines.append(("weights", "names, sizes and dtypes checked; values not downloaded"))
        if self.firing is not None:
            firing = self.firing
            lines.append(
                (
                    "recorded firing",
                    f"L0 {firing.l0:.1f}, {firing.dead} dead, {firing.dense} denser than "
                    f"{DENSE_RATE:.0%}, {firing.entropy_bits:.0f} bits a token",
                )
            )
        return lines


def describe(source: str | Path, hookpoint: str | None = None) -> list[Description]:
    """The coders of a source; it and hookpoint are as load_coder takes them.

    Of a repository on the Hub only configs and the headers of weights are downloaded.

    Raises:
        CheckpointError: there are none, or a coder's files are damaged.
    """
    with described_folders(source, hookpoint) as found:
        return [
            replace(
                describe_folder(name, folder, hookpoint),
                unread=not all(map(has_values, folder.glob("*.safetensors"))),
            )
            for name, folder in found.items()
        ]


def describe_folder(name: str, folder: Path, hookpoint: str | None = None) -> Description:
    """The coder of a folder that every_coder found under this name.

    Raises:
        CheckpointError: its files are damaged, or belong at another place than hookpoint.
    """
    stated = stated_place(name, hookpoint)
    name = folder.resolve().name if name == "." else name
    form = format_of(folder)
    if form is None:
        raise CheckpointError(f"{folder}: holds no coder.")
    if form == "saelens" and saelens.is_stock(folder):
        return _describe_stock(name, form, folder)
    coder = read_coder(folder, stated)
    scaling = saelens.scaling(folder) if form == "saelens" else None
    return Description(
        name,
        form,
        in_words(coder.shape),
        coder,
        _recorded_firing(folder, coder.shape.latents, coder.firing_rates),
        normalization=tuple(stock.normalization_lines(coder.shape.normalize_activations, scaling)),
    )


def _describe_stock(name: str, form: str, folder: Path) -> Description:
    config = stock.current_config(folder)
    fields = Fields(config, folder / "cfg.json")
    details = tuple(stock.lines(folder, config))
    architecture = fields.take("architecture", str)
    return Description(
        name,
        form,
        stock.in_words(architecture),
        firing=_recorded_firing(folder, fields.take_size("d_sae"), None),
        details=details,
    )


def _recorded_firing(folder: Path, latents: int, rates: Tensor | None) -> Firing | None:
    if (folder / SPARSITY_FILE).is_file():
        rates = _saelens_rates(folder / SPARSITY_FILE, latents)
    # Rates of a coder that never trained are all zero.
    recorded = rates is not None and not rates.is_meta and rates.any()
    return _firing(rates) if rates is not None and recorded else None


def in_words(shape: Shape) -> str:
    """What kind of coder it is."""
    kind = "transcoder" if shape.transcoder else "autoencoder"
    skip = " with skip connection" if shape.skip else ""
    codes = "binary" if shape.binary else STOCK_ACTIVATIONS[shape.rule.selection]
    return f"{codes} {kind}{skip}"


def _shape_lines(coder: PortableCoder) -> list[tuple[str, str]]:
    shape, rule = coder.shape, coder.shape.rule
    selection = f"{rule.selection}, k={rule.k}" if rule.kind.uses_k else rule.selection
    lines = [
        ("sizes", f"{shape.d_in} -> {shape.latents} latents -> {shape.d_out}"),
        ("dtype", str(coder.dtype).removeprefix("torch.")),
        ("selection", selection),
    ]
    if shape.binary:
        temperature = f"temperature {rule.surrogate_temperature:g}"
        lines.append(("surrogate", f"{rule.surrogate}, {temperature}"))
    if not shape.transcoder:
        lines.append(("encodes", "input - b_dec" if shape.subtracts_decoder_bias else "input"))
    return lines


def _place_lines(coder: PortableCoder) -> list[tuple[str, str]]:
    place = coder.place
    named = {
        "model": place.model_name,
        "hookpoint (sparsify)": place.hookpoint,
        "hook (SAELens)": place.hook_name,
        "output hook (SAELens)": place.hook_name_out,
    }
    return [(label, name) for label, name in named.items() if name is not None]


def _saelens_rates(path: Path, latents: int) -> Tensor:
    logarithms = read_tensors(path, {"sparsity": (latents,)})["sparsity"].double()
    if not logarithms.isfinite().all():
        raise CheckpointError(f"{path}: holds values that are not finite.")
    return (10**logarithms - SPARSITY_OFFSET).clamp(0, 1)


def _firing(rates: Tensor) -> Firing:
    rates = rates.double()
    return Firing(
        l0=rates.sum().item(),
        # The offset's own rounding is no firing.
        dead=int((rates < SPARSITY_OFFSET).sum()),
        dense=int((rates > DENSE_RATE).sum()),
        entropy_bits=bernoulli_entropy(rates).sum().item(),
    )
