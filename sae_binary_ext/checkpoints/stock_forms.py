"""Binary coders as coders of SAELens' own architectures, which load without this package.

A gated coder fires if product + gate bias > 0, and its value is that of a second encoder. If this
encoder is zero and its bias is 1, the gated coder is a binary coder with thresholds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.checkpoints import saelens
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.portable import PortableCoder
from sae_binary_ext.saving import NOTES_KEY

# A gated coder's second encoder is W_enc * exp(r_mag). This exponential is 0 in every dtype.
R_MAG = -1000.0
# Values of jumprelu and topk are 1 + scale * margin. A smaller scale gives values closer to 1, and
# rounds margins more coarsely, to 2^-23 / scale. On text, the scale is this number over the mean
# margin of active latents.
SCALE = 2.0**-10
# The key in SAELens' metadata of what a coder was converted from.
CONVERTED_KEY = "converted_from"


@dataclass(frozen=True)
class StockForm:
    """A stock architecture that can hold a binary coder.

    Attributes:
        tensors: makes the tensors besides decoder and skip connection, by SAELens' names, of a
            coder and a scale.
        selection: the selection that the architecture computes.
        exact: whether codes are exactly 0 or 1, and those of the coder.
        transcodes: whether SAELens has transcoders of the architecture.
        fits_others: whether thresholds can be fitted for a coder of another selection.
    """

    tensors: Callable[[PortableCoder, float], dict[str, Tensor]]
    selection: str
    exact: bool = False
    transcodes: bool = False
    fits_others: bool = True

    def keeps_codes(self, coder: PortableCoder) -> bool:
        """Whether the stock form has the same codes, so that no text need tell the difference."""
        return self.exact and self.selection == coder.shape.rule.selection


def gate_biases(coder: PortableCoder) -> Tensor:
    """Biases [latents] with which product + bias > 0 is true exactly where a latent fires.

    A latent fires if round(product + encoder bias) exceeds its threshold. Rounding keeps order, so
    the products that do not fire end at one number of the dtype. The bias is minus this number.
    """
    bias = coder.tensors["encoder_bias"]
    wide = torch.promote_types(bias.dtype, torch.float32)
    threshold = coder.tensors["log_threshold"].to(bias.dtype).to(wide).exp()
    # Bisect the dtype's numbers by their bit patterns, which order numbers of one sign.
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[bias.dtype.itemsize]
    limit = torch.tensor(torch.finfo(bias.dtype).max, dtype=bias.dtype).view(kind).item()

    def number(key: Tensor) -> Tensor:
        return key.abs().to(kind).view(bias.dtype) * key.sign().to(bias.dtype)

    silent = torch.full(bias.shape, -limit, dtype=torch.int64, device=bias.device)
    firing = torch.full_like(silent, limit)
    for _ in range(8 * bias.dtype.itemsize + 1):
        # The mean, rounded down, without overflow.
        middle = (silent & firing) + ((silent ^ firing) >> 1)
        fires = (number(middle) + bias).to(wide) > threshold
        silent, firing = torch.where(fires, silent, middle), torch.where(fires, middle, firing)
    return -number(silent)


def _gated(coder: PortableCoder, _scale: float) -> dict[str, Tensor]:
    bias = gate_biases(coder)
    return {
        "W_enc": coder.tensors["encoder_weight"].T,
        "b_gate": bias,
        "r_mag": torch.full_like(bias, R_MAG),
        "b_mag": torch.ones_like(bias),
    }


def _scaled(coder: PortableCoder, scale: float) -> dict[str, Tensor]:
    """Tensors of an encoder whose pre-activations are 1 + scale * margin."""
    weight = coder.tensors["encoder_weight"].T * scale
    bias = 1 + scale * gate_biases(coder).double()
    return {"W_enc": weight, "b_enc": bias.to(weight.dtype)}


def _jumprelu(coder: PortableCoder, scale: float) -> dict[str, Tensor]:
    tensors = _scaled(coder, scale)
    return tensors | {"threshold": torch.ones_like(tensors["b_enc"])}


FORMS = {
    "gated": StockForm(_gated, "threshold", exact=True),
    "jumprelu": StockForm(_jumprelu, "threshold", transcodes=True),
    "topk": StockForm(_scaled, "topk", fits_others=False),
}


def check_form(coder: PortableCoder, architecture: str) -> None:
    """Raise CheckpointError, with what can be written, if an architecture cannot be a coder's."""
    shape, form = coder.shape, FORMS.get(architecture)
    if form is None:
        raise CheckpointError(f"architecture={architecture!r}: give {', '.join(FORMS)}.")
    selection, named = shape.rule.selection, f"architecture={architecture!r}"
    refused = {
        "its codes have values, as those of stock coders: give host='saelens'.": not shape.binary,
        f"refine_passes={shape.refine_passes}: stock coders look at an input once. Give the coder "
        "that was refined.": shape.refine_passes > 0,
        "SAELens has no autoencoder with a skip connection, and none that comes near.": (
            shape.skip and not shape.transcoder
        ),
        f"{named}: SAELens has no such transcoder. The nearest is architecture='jumprelu'.": (
            shape.transcoder and not form.transcodes
        ),
        f"{named}: of selection={selection!r} it would make another coder. The nearest is "
        "architecture='gated'.": not form.fits_others and form.selection != selection,
    }
    for reason, applies in refused.items():
        if applies:
            raise CheckpointError(reason)


def nearest(coder: PortableCoder) -> str:
    """The architecture whose codes and outputs are nearest to a binary coder's."""
    if coder.shape.transcoder:
        return "jumprelu"
    selection = coder.shape.rule.selection
    return next((name for name, form in FORMS.items() if form.selection == selection), "gated")


def to_stock(coder: PortableCoder, architecture: str, scale: float = SCALE) -> Any:
    """A coder of one of SAELens' own architectures, on the CPU.

    jumprelu and topk are float32: narrower dtypes would round away the differences between margins.

    Args:
        coder: a binary coder with SAELens' names for its place. gated and jumprelu give each latent
            its threshold, so fit thresholds first if the coder has another selection.
        architecture: a key of FORMS.
        scale: values of jumprelu and topk are 1 + scale * margin.

    Raises:
        CheckpointError: the architecture cannot store the coder; the message says which can.
    """
    check_form(coder, architecture)
    import_module("sae_binary_ext.saelens")  # raises an error with advice without SAELens
    from sae_lens.registry import get_sae_class

    form, shape = FORMS[architecture], coder.shape
    coder = coder if form.exact else _in_float32(coder)
    name = architecture + "_skip" * shape.skip + "_transcoder" * shape.transcoder
    kind, config_kind = get_sae_class(name)
    origin = {"selection": shape.rule.selection, "k": shape.rule.k}
    metadata = {**saelens.metadata_of(coder), CONVERTED_KEY: origin}
    metadata.pop(NOTES_KEY, None)
    fields = saelens.fields_of(coder) | {"architecture": name, "metadata": metadata}
    made = kind(config_kind.from_dict(fields))
    names = {"decoder_weight": "W_dec", "decoder_bias": "b_dec", "skip_weight": "W_skip"}
    state = {names[key]: tensor for key, tensor in coder.tensors.items() if key in names}
    made.load_state_dict(state | form.tensors(coder, scale))  # copies the tensors
    return made


def exact(coder: PortableCoder, architecture: str | None) -> Any:
    """A stock coder with the same codes. CheckpointError if only text can tell how near one is."""
    architecture = architecture or nearest(coder)
    check_form(coder, architecture)
    if not FORMS[architecture].keeps_codes(coder):
        raise CheckpointError(
            f"architecture={architecture!r} with selection={coder.shape.rule.selection!r}: some "
            "codes differ, which is measured on text. Use sae_binary_ext.measure.export_stock, or "
            "sae-binary convert --host stock."
        )
    return to_stock(coder, architecture)


def in_words(origin: Mapping[str, Any]) -> str:
    """How a stock coder differs from its own form. `origin` is in its metadata, CONVERTED_KEY."""
    if not origin.get("tokens"):
        return "the same codes and outputs"
    told = f"{origin['differing']:,} codes differ, of {origin['firings']:,} that fire"
    if origin["thresholds"] is not None:
        told = f"{origin['thresholds']} fitted to text, {told}"
    l0, fvu = origin["l0"], origin["fvu"]
    return (
        f"{told}, L0 {l0[0]:.2f} -> {l0[1]:.2f}, FVU {fvu[0]:.6f} -> {fvu[1]:.6f} on "
        f"{origin['tokens']:,} tokens"
    )


def _in_float32(coder: PortableCoder) -> PortableCoder:
    # Round thresholds as the coder does.
    tensors = {name: one.to(coder.dtype).float() for name, one in coder.tensors.items()}
    return replace(coder, tensors=tensors)
