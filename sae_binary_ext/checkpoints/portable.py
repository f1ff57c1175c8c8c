"""A coder as no host has it and every format can tell it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import DTYPES
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.saving import NOTES_KEY

# Of what a config of any format keeps under NOTES_KEY.
NOTES_VERSION = 1


@dataclass(frozen=True)
class Shape:
    """What a config says of a coder; its tensors must agree.

    Attributes:
        d_in, d_out, latents: widths of input, output and code.
        rule: who fires. Of a coder with values the selection and k count: the k largest, or the
            largest of each of k groups, where positive.
        binary: codes are 0 or 1; otherwise they are the positive pre-activations themselves.
        transcoder: the output is another activation than the input.
        skip: a linear map of the input is added to the output.
        subtracts_decoder_bias: the input less the decoder's bias is what is encoded.
        normalize_activations, reshape_activations: SAELens' treatment of inputs as they come in.
        rescales_by_decoder_norm: SAELens' TopK ranks values times the norms of decoder rows.
    """

    d_in: int
    d_out: int
    latents: int
    rule: CodeRule
    binary: bool = True
    transcoder: bool = False
    skip: bool = False
    subtracts_decoder_bias: bool = False
    normalize_activations: str = "none"
    reshape_activations: str = "none"
    rescales_by_decoder_norm: bool = False

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor by its name."""
        shapes: dict[str, tuple[int, ...]] = {
            "encoder_weight": (self.latents, self.d_in),
            "encoder_bias": (self.latents,),
            "decoder_weight": (self.latents, self.d_out),
            "decoder_bias": (self.d_out,),
        }
        if self.binary:
            shapes["log_threshold"] = (self.latents,)
        if self.skip:
            shapes["skip_weight"] = (self.d_out, self.d_in)
        return shapes


@dataclass(frozen=True)
class Place:
    """Where in a model a coder belongs; None where its files do not say.

    Attributes:
        hookpoint: sparsify's name, such as layers.9.mlp.
        hook_name: SAELens' name of the input.
        hook_name_out: SAELens' name of a transcoder's output.
        model_name: as SAELens or transformers load it.
    """

    hookpoint: str | None = None
    hook_name: str | None = None
    hook_name_out: str | None = None
    model_name: str | None = None


@dataclass(frozen=True)
class PortableCoder:
    """A coder between formats.

    Attributes:
        shape: what its config says.
        tensors: encoder_weight [latents, d_in], encoder_bias [latents], decoder_weight
            [latents, d_out], decoder_bias [d_out], log_threshold [latents] of binary coders,
            skip_weight [d_out, d_in] with a skip connection. All in one dtype but log_threshold.
        place: where it belongs.
        firing_rates: float [latents], running means of training, or None.
        settings: of each format that it was read from, what that format's config says and no
            other has a field for.

    Raises:
        CheckpointError: tensors do not fit the shape or one another, or are not finite.
    """

    shape: Shape
    tensors: dict[str, Tensor]
    place: Place = Place()
    firing_rates: Tensor | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    def __post_init__(self) -> None:
        try:
            self.shape.rule.check_latents(self.shape.latents)
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        expected = self.shape.tensors()
        if self.tensors.keys() != expected.keys():
            raise CheckpointError(f"tensors {sorted(self.tensors)}: expected {sorted(expected)}.")
        for name, tensor in self.tensors.items():
            self._check(name, tensor, expected[name])
        if self.firing_rates is not None:
            self._check("firing_rates", self.firing_rates, (self.shape.latents,))
            if self.firing_rates.is_meta:
                return
            if not ((self.firing_rates >= 0) & (self.firing_rates <= 1)).all():
                raise CheckpointError("firing_rates: rates lie between 0 and 1.")

    @property
    def dtype(self) -> torch.dtype:
        """That of all tensors but the threshold and the firing rates."""
        return self.tensors["encoder_weight"].dtype

    def _check(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape:
            raise CheckpointError(
                f"{name}: {list(tensor.shape)} where the config asks for {list(shape)}."
            )
        # Coders hold these two in float32 or wider.
        widest = torch.promote_types(self.dtype, torch.float32)
        apart = name in ("log_threshold", "firing_rates")
        fits = torch.promote_types(tensor.dtype, widest) == widest if apart else False
        if tensor.dtype not in DTYPES.values() or not (fits or tensor.dtype == self.dtype):
            raise CheckpointError(
                f"{name}: dtype {tensor.dtype} beside {self.dtype} of encoder_weight; the tensors "
                "of a coder share one floating dtype."
            )
        if tensor.is_meta:
            return  # described by its file's header alone
        # A threshold of zero has the logarithm -inf.
        low = float("-inf") if name == "log_threshold" else -torch.finfo(tensor.dtype).max
        if not ((tensor >= low) & (tensor <= torch.finfo(tensor.dtype).max)).all():
            raise CheckpointError(f"{name}: holds values that are not finite.")


def notes_of(coder: PortableCoder) -> dict[str, Any]:
    """What a coder's config keeps under NOTES_KEY, as JSON can hold it."""
    place = {name: value for name, value in vars(coder.place).items() if value is not None}
    notes: dict[str, Any] = {"version": NOTES_VERSION, "place": place, "settings": coder.settings}
    if coder.firing_rates is not None:
        notes["firing_rates"] = {
            "dtype": next(
                key for key, value in DTYPES.items() if value == coder.firing_rates.dtype
            ),
            "values": coder.firing_rates.tolist(),
        }
    return notes


def read_notes(notes: Any) -> tuple[Place, Tensor | None, dict[str, dict[str, Any]]]:
    """Place, firing rates and settings out of what notes_of returned.

    Raises:
        CheckpointError: notes of a newer version of this package, or none of its notes at all.
    """
    if notes is None:
        return Place(), None, {}
    known = {"version", "place", "settings", "firing_rates"}
    if not isinstance(notes, dict) or notes.get("version") != NOTES_VERSION:
        version = notes.get("version") if isinstance(notes, dict) else notes
        raise CheckpointError(
            f"{NOTES_KEY}: notes of version {version!r}, and this package reads version "
            f"{NOTES_VERSION}. Install the version of sae_binary_ext that wrote the coder."
        )
    if not notes.keys() <= known:
        raise CheckpointError(f"{NOTES_KEY}: unknown notes {sorted(notes.keys() - known)}.")
    place, settings = notes.get("place", {}), notes.get("settings", {})
    names = vars(Place())
    if not _maps_strings(place) or not place.keys() <= names.keys():
        raise CheckpointError(f"{NOTES_KEY}: place={place!r} must name {sorted(names)}.")
    if not all(value and isinstance(value, str) for value in place.values()):
        raise CheckpointError(f"{NOTES_KEY}: place={place!r} must hold text.")
    if not _maps_strings(settings) or not all(map(_maps_strings, settings.values())):
        raise CheckpointError(f"{NOTES_KEY}: settings must hold one table a format.")
    return Place(**place), _read_rates(notes.get("firing_rates")), settings


def _read_rates(rates: Any) -> Tensor | None:
    if rates is None:
        return None
    try:
        return torch.tensor(rates["values"], dtype=DTYPES[rates["dtype"]])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{NOTES_KEY}: firing_rates cannot be read: {error}.") from error


def _maps_strings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)
