"""The form of a coder that belongs to no host, from and to which each format is converted."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.files import DTYPES
from sae_binary_ext.coding.selection import CodeRule
from sae_binary_ext.saving import NOTES_KEY

# Version of the notes that a config of any format keeps under NOTES_KEY.
NOTES_VERSION = 1
# Key of a coder's settings that say how it was fine-tuned. All formats keep it in their notes.
FINETUNED = "finetuned"


@dataclass(frozen=True)
class Shape:
    """The part of a config that says what a coder computes.

    Attributes:
        rule: which latents fire. If codes are not binary, only its selection and k are used.
        binary: whether codes are 0 or 1. Other codes are the positive pre-activations.
        skip: whether a linear map of the input is added to the output.
        subtracts_decoder_bias: whether the encoder's input is x minus the decoder bias.
        normalize_activations, reshape_activations: SAELens' fields of these names.
        rescales_by_decoder_norm: whether latents are ranked by pre-activation times row norm.
        refine_passes: passes that refine codes (coding.forms.refining), or 0.
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
    refine_passes: int = 0

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
        if self.refine_passes:
            shapes["flip_price"] = (self.latents,)
        if self.skip:
            shapes["skip_weight"] = (self.d_out, self.d_in)
        return shapes


@dataclass(frozen=True)
class Place:
    """The place of a coder in a model. A name is None if the coder's files do not tell it.

    hookpoint is sparsify's name, such as layers.9.mlp. The hook names are SAELens' names of the
    input and of a transcoder's output.
    """

    hookpoint: str | None = None
    hook_name: str | None = None
    hook_name_out: str | None = None
    model_name: str | None = None


@dataclass(frozen=True)
class PortableCoder:
    """A coder of any format. CheckpointError if its tensors do not fit the shape or each other.

    Attributes:
        tensors: encoder_weight [latents, d_in], encoder_bias [latents], decoder_weight
            [latents, d_out], decoder_bias [d_out], log_threshold [latents] of binary coders,
            flip_price [latents] of coders that refine codes, skip_weight [d_out, d_in] of a skip
            connection. All except log_threshold share a dtype.
        firing_rates: float [latents], running means of training, or None.
        settings: for each format that it was read from, the fields that no other format has.
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
        if (rates := self.firing_rates) is not None:
            self._check("firing_rates", rates, (self.shape.latents,))
            if not (rates.is_meta or ((rates >= 0) & (rates <= 1)).all()):
                raise CheckpointError("firing_rates: holds rates that are not between 0 and 1.")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of all tensors except the thresholds and the firing rates."""
        return self.tensors["encoder_weight"].dtype

    def _check(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape:
            raise CheckpointError(
                f"{name}: {list(tensor.shape)} where the config asks for {list(shape)}."
            )
        # Coders hold thresholds and firing rates in float32 or wider.
        widest = torch.promote_types(self.dtype, torch.float32)
        apart = name in ("log_threshold", "firing_rates")
        fits = apart and torch.promote_types(tensor.dtype, widest) == widest
        if tensor.dtype not in DTYPES.values() or not (fits or tensor.dtype == self.dtype):
            raise CheckpointError(
                f"{name}: dtype {tensor.dtype}, but encoder_weight is {self.dtype}. The tensors "
                "of a coder must share one floating dtype."
            )
        # A threshold of zero has the logarithm -inf. A meta tensor has no values.
        low = float("-inf") if name == "log_threshold" else -torch.finfo(tensor.dtype).max
        inside = (tensor >= low) & (tensor <= torch.finfo(tensor.dtype).max)
        if not (tensor.is_meta or inside.all()):
            raise CheckpointError(f"{name}: holds values that are not finite.")


def notes_of(coder: PortableCoder, own_format: str) -> dict[str, Any]:
    """Notes to add to a config in JSON. The config itself holds the settings of its own format."""
    place = {name: value for name, value in vars(coder.place).items() if value is not None}
    settings = {key: value for key, value in coder.settings.items() if key != own_format}
    notes: dict[str, Any] = {"version": NOTES_VERSION, "place": place, "settings": settings}
    if (rates := coder.firing_rates) is not None:
        dtype = next(key for key, value in DTYPES.items() if value == rates.dtype)
        notes["firing_rates"] = {"dtype": dtype, "values": rates.tolist()}
    return notes


def read_notes(notes: Any) -> tuple[Place, Tensor | None, dict[str, dict[str, Any]]]:
    """Read notes that notes_of wrote. CheckpointError if they are damaged or of a newer version."""
    if notes is None:
        return Place(), None, {}
    version = notes.get("version") if isinstance(notes, dict) else None
    if version != NOTES_VERSION:
        raise CheckpointError(
            f"{NOTES_KEY}: notes of version {version!r}, and this package reads version "
            f"{NOTES_VERSION}. Install the version of sae_binary_ext that wrote the coder."
        )
    if unknown := notes.keys() - {"version", "place", "settings", "firing_rates"}:
        raise CheckpointError(f"{NOTES_KEY}: unknown notes {sorted(unknown)}.")
    place, settings = notes.get("place", {}), notes.get("settings", {})
    names = vars(Place()).keys()
    named = _maps_strings(place) and place.keys() <= names
    if not named or not all(value and isinstance(value, str) for value in place.values()):
        raise CheckpointError(
            f"{NOTES_KEY}: place={place!r} must hold text under names of {sorted(names)}."
        )
    if not _maps_strings(settings) or not all(map(_maps_strings, settings.values())):
        raise CheckpointError(f"{NOTES_KEY}: settings must hold one table for each format.")
    if (rates := notes.get("firing_rates")) is None:
        return Place(**place), None, settings
    try:
        tensor = torch.tensor(rates["values"], dtype=DTYPES[rates["dtype"]])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{NOTES_KEY}: firing_rates cannot be read: {error}.") from error
    return Place(**place), tensor, settings


def _maps_strings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def finetuning_lines(settings: Any) -> list[tuple[str, str]]:
    """The labelled line that says how a coder was fine-tuned, if its settings say so."""
    note: Any = settings.get(FINETUNED) if _maps_strings(settings) else None
    if not _maps_strings(note):
        return []
    return [("fine-tuned", ", ".join(f"{key}={value}" for key, value in note.items()))]
