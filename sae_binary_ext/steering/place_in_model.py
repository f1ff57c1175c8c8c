"""Where a coder belongs in a model: hooks of a hooked model, or a module of transformers' model."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from sae_lens import SAE
from torch import nn
from transformer_lens import HookedTransformer
from transformer_lens.HookedTransformer import HookedRootModule  # pyright: ignore[reportPrivateImportUsage]  # where version 3.0 has it too
from transformer_lens.model_bridge import TransformerBridge

from sae_binary_ext.checkpoints import coder_to_saelens, hook_names
from sae_binary_ext.checkpoints.portable import Place
from sae_binary_ext.measure.candidates import at_common_sites, candidate_of
from sae_binary_ext.saelens.splice import (
    HookedModel,
    Replacement,
    activations_replaced,
    heads_side_by_side,
)
from sae_binary_ext.steering.code_change import CodeChange
from sae_binary_ext.steering.positions import bare_model

# Parts of a HookedTransformer that run after it has made the attention mask.
AFTER_MASK = ("blocks.", "ln_final.")


@dataclass(frozen=True)
class PlaceInModel:
    """Two names of activations in a model: the one that a coder reads, and the one it writes.

    In a model of transformers both are the name of one module, whose input a transcoder reads.
    """

    source: str
    target: str
    reads_input: bool = False

    @property
    def names(self) -> tuple[str, str]:
        """The two names."""
        return self.source, self.target


def place_in(model: Any, change: CodeChange) -> PlaceInModel:
    """Where the coder of a change belongs in a model; ValueError if the model lacks the place."""
    if isinstance(model, HookedRootModule | TransformerBridge):
        return _place_in_hooked(model, change)
    if bare_model(model) is None:
        raise ValueError(
            f"model={type(model).__name__}: steering takes a TransformerBridge, a "
            "HookedTransformer or a model of transformers. Give one of these."
        )
    return _place_in_plain(model, change)


@contextmanager
def replaced(
    model: Any, replacements: Mapping[PlaceInModel, Replacement]
) -> Generator[set[tuple[str, str]]]:
    """Within the block, the model's forward passes have activations replaced.

    `replacements` has for each place the function that makes the new activation from those read and
    written. Yields the names of the places at which a forward pass has replaced one so far.
    """
    if isinstance(model, HookedRootModule | TransformerBridge):
        by_hooks = {place.names: new for place, new in replacements.items()}
        with activations_replaced(model, by_hooks) as passed:
            yield passed
        return
    passed = set[tuple[str, str]]()
    inner = cast(nn.Module, bare_model(model))
    handles = [
        inner.get_submodule(place.target).register_forward_hook(
            partial(_replace_output, passed, place, new), with_kwargs=True
        )
        for place, new in replacements.items()
    ]
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


def _place_in_hooked(model: HookedModel, change: CodeChange) -> PlaceInModel:
    coder, hook = change.coder, change.hook
    if not isinstance(coder, SAE):
        known = hook is not None and hook_names.is_hookpoint(hook)
        coder = coder_to_saelens(coder, hook if known else None, _name_of(model))
        hook = None if known else hook
    if hook is None and coder.cfg.metadata.hook_name is None:
        raise _unplaced(change)
    with heads_side_by_side(coder):  # candidate_of changes how the coder takes heads
        candidate = candidate_of(coder, type(coder).__name__, hook_name=hook)
    _, hooks = at_common_sites([candidate], model)
    ((source, target),) = hooks.values()
    early = isinstance(model, HookedTransformer) and not source.startswith(AFTER_MASK)
    if early:
        raise ValueError(
            f"hook={source!r}: a HookedTransformer does not tell there which tokens are padding. "
            "Load the model as a TransformerBridge."
        )
    return PlaceInModel(source, target)


def _place_in_plain(model: Any, change: CodeChange) -> PlaceInModel:
    inner = cast(nn.Module, bare_model(model))
    hookpoint = change.hook
    if hookpoint is None:
        if not isinstance(change.coder, SAE) or change.coder.cfg.metadata.hook_name is None:
            raise _unplaced(change)
        metadata = cast(Any, change.coder).cfg.metadata
        place = Place(None, metadata.hook_name, metadata.hook_name_out, _name_of(model))
        is_transcoder = change.own.is_transcoder
        hookpoint = str(hook_names.place_in_sparsify(place, is_transcoder).hookpoint)
    elif hook_names.model_class_of(hookpoint) is not None:
        hookpoint = str(hook_names.place_in_sparsify(Place(hook_name=hookpoint), False).hookpoint)
    try:
        inner.get_submodule(hookpoint)
    except AttributeError as error:
        names = [name for name, _ in inner.named_modules() if name]
        block = ".".join(hookpoint.split(".")[:2])
        near = [name for name in names if name.startswith(block)] or names[:20]
        raise ValueError(
            f"hook={hookpoint!r}: the model has no such module. It has {near}. Give one of these."
        ) from error
    return PlaceInModel(hookpoint, hookpoint, change.own.is_transcoder)


def _name_of(model: Any) -> str:
    """Names by which hook_names knows the structure of a model."""
    config = getattr(bare_model(model), "config", None)
    cfg = getattr(model, "cfg", None)
    told = (config, "model_type"), (cfg, "model_name"), (cfg, "original_architecture")
    return " ".join(str(getattr(of, name, "")) for of, name in told)


def _unplaced(change: CodeChange) -> ValueError:
    return ValueError(
        f"hook=None: the files of this {type(change.coder).__name__} do not say which hook it was "
        "trained on. Give hook: a name of SAELens, or a module such as layers.9."
    )


def _replace_output(
    passed: set[tuple[str, str]],
    place: PlaceInModel,
    new: Replacement,
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Any,
) -> Any:
    passed.add(place.names)
    target = output[0] if isinstance(output, tuple) else output
    source = next(iter((*args, *kwargs.values()))) if place.reads_input else target
    changed = new(source, target)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed
