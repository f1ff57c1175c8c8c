"""Measures a model's loss with one activation replaced, for example by a reconstruction.

SAELens' own evaluation replaces the activation that a coder reads. A transcoder reads one
activation and predicts another. So this file reads the activation at hook_name and replaces the
activation at hook_name_out. For an autoencoder, the two hooks are the same.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import itemgetter
from typing import Any, cast

import torch
from sae_lens import TrainingSAE
from sae_lens.multi_sae_training_runner import MultiSAEEvaluator
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.prefetch import PrefetchingIterator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedTransformer import HookedRootModule  # pyright: ignore[reportPrivateImportUsage]  # where version 3.0 has it too
from transformer_lens.model_bridge import TransformerBridge
from typing_extensions import override

from sae_binary_ext.saelens.pairs import HookPair, PairScaler

# The models that SAELens trains on.
HookedModel = HookedRootModule | TransformerBridge
# Makes the new activation from those at hook_name and hook_name_out, each [rows, context, width].
Replacement = Callable[[Tensor, Tensor], Tensor]

_HEAD = re.compile(r"(?P<hook>.+)\[(?P<head>\d+)\]")
# A TransformerBridge has the heads of these hooks side by side: attn.hook_z is attn.o.hook_in.
_HEADS_SIDE_BY_SIDE = re.compile(r".*\battn\.(hook_[qkvz]|[qkv]\.hook_out|o\.hook_in)")
# [rows, context, heads, d_head]
_DIMENSIONS_WITH_HEADS = 4


@contextmanager
def heads_side_by_side(coder: Any) -> Generator[None]:
    """Within the block, a coder of attn.hook_z takes and returns [..., heads * d_head]."""
    reshapes = getattr(coder, "hook_z_reshaping_mode", False)
    if reshapes:
        coder.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        if reshapes:
            coder.turn_on_forward_pass_hook_z_reshaping()


@dataclass(frozen=True)
class HookView:
    """A hook's activation as a coder reads it: the whole if head is None, else one head.

    attn.hook_z, hook_q, hook_k and hook_v hold one vector for each head. SAELens trains a coder on
    all heads side by side, or on the head that hook_head_index names. We write one head as an
    index: blocks.3.attn.hook_z[5].
    """

    hook_name: str
    head: int | None = None

    @classmethod
    def of(cls, name: str) -> "HookView":
        """The view with this name."""
        found = _HEAD.fullmatch(name)
        return cls(name) if found is None else cls(found["hook"], int(found["head"]))

    def __str__(self) -> str:
        return self.hook_name if self.head is None else f"{self.hook_name}[{self.head}]"

    def read(self, model: Any, output: Tensor) -> Tensor:
        """The view's part, [rows, context, width], of a hook's activation in this model.

        output may have heads, [rows, context, heads, d_head]. ValueError if output lacks this head.
        """
        if self.head is not None:
            return self._by_head(model, output)[:, :, self.head]
        return output.flatten(2) if output.ndim == _DIMENSIONS_WITH_HEADS else output

    def write(self, model: Any, output: Tensor, new: Tensor) -> Tensor:
        """A copy of a hook's activation in which new (shaped as by read) is the view's part."""
        if self.head is None:
            return new.view(output.shape)
        changed = self._by_head(model, output).clone()
        changed[:, :, self.head] = new
        return changed.view(output.shape)

    def _by_head(self, model: Any, output: Tensor) -> Tensor:
        """The activation as [rows, context, heads, d_head]."""
        if output.ndim != _DIMENSIONS_WITH_HEADS:
            d_head = getattr(getattr(model, "cfg", None), "d_head", None)
            split = _HEADS_SIDE_BY_SIDE.fullmatch(self.hook_name) and d_head
            if not split or output.shape[-1] % split:
                raise ValueError(
                    f"{self}: the hook's activations are {output.shape[-1]} wide and have no "
                    "heads. Give a hook with heads, for example blocks.0.attn.hook_z, or leave "
                    "out the index of the head."
                )
            output = output.unflatten(-1, (-1, split))
        if self.head is None or self.head >= output.shape[2]:
            raise ValueError(
                f"{self}: the hook has {output.shape[2]} heads. Give a head from 0 to "
                f"{output.shape[2] - 1}."
            )
        return output


def resolve_hook(model: HookedModel, field_name: str, hook_name: str) -> str:
    """The name by which a model caches and replaces a hook, or a head of it (see HookView).

    A TransformerBridge also has aliases (blocks.9.hook_mlp_out), but its run_with_cache and
    run_with_hooks ignore them. An unknown hook raises a ValueError that starts with field_name.
    """
    view = HookView.of(hook_name)
    if view.head is not None:
        return str(replace(view, hook_name=resolve_hook(model, field_name, view.hook_name)))
    hooks = cast(Mapping[str, Any], model.hook_dict)
    if hook_name in hooks:
        return hook_name
    try:
        point = reduce(_part, hook_name.split("."), model)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        point = None
    if isinstance(point, HookPoint) and point.name is not None and point.name in hooks:
        return point.name
    block = ".".join(hook_name.split(".")[:2])
    near = sorted(name for name in hooks if name.startswith(block + ".")) or sorted(hooks)[:20]
    raise ValueError(
        f"{field_name}={hook_name!r}: the model has no such hook. It has {near}. Give one of these."
    )


def _part(of: Any, name: str) -> Any:
    return of[int(name)] if name.isdigit() else getattr(of, name)


@dataclass(frozen=True)
class SplicedLosses:
    """Cross-entropies of the next token, in nats, of a model with and without a coder.

    clean is the loss of the unchanged model, ablated the loss with zeros in place of the
    activations, and spliced the loss with the coder's reconstruction in their place.
    """

    clean: float
    ablated: float
    spliced: float

    @property
    def recovered(self) -> float:
        """(ablated - spliced) / (ablated - clean); NaN if zeros do not change the loss."""
        cost = self.ablated - self.clean
        return (self.ablated - self.spliced) / cost if cost else math.nan


@dataclass(frozen=True)
class Splice:
    """Losses of a hooked model with the activation at hook_name_out replaced.

    Each method takes tokens, int64 [rows, context], and where, bool [rows, context]: the positions
    to replace. Losses are [rows, context - 1], in nats, float32 or wider.

    Attributes:
        model: any model that SAELens trains on.
        hook_name: the hook to read, or a head of it (see HookView).
        hook_name_out: the hook to replace, or a head of it.
        model_kwargs: arguments of each forward pass.
    """

    model: HookedModel
    hook_name: str
    hook_name_out: str
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def clean(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Losses of the unchanged model. The argument where has no effect."""
        return self._forward(tokens, lambda _, target: target)[1]

    def ablated(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Losses with zeros in place of the activation."""
        return self.replaced(tokens, where, lambda _, target: torch.zeros_like(target))

    def replaced(self, tokens: Tensor, where: Tensor, replacement: Replacement) -> Tensor:
        """Losses with the result of replacement in place of the activation."""
        return self.outputs(tokens, where, replacement)[1]

    def outputs(
        self, tokens: Tensor, where: Tensor, replacement: Replacement
    ) -> tuple[Tensor, Tensor]:
        """As replaced, but returns the logits [rows, context, vocabulary] and the losses."""

        def put(source: Tensor, target: Tensor) -> Tensor:
            new = replacement(source, target).to(target)
            return torch.where(where[..., None].to(target.device), new, target)

        return self._forward(tokens, put)

    @torch.no_grad()
    def _forward(self, tokens: Tensor, put: Replacement) -> tuple[Tensor, Tensor]:
        hooks = {(self.hook_name, self.hook_name_out): put}
        return run_replaced(self.model, hooks, tokens, self.model_kwargs)


@contextmanager
def activations_replaced(
    model: HookedModel, replacements: Mapping[tuple[str, str], Replacement]
) -> Generator[set[tuple[str, str]]]:
    """Within the block, forward passes have activations replaced; arguments as for run_replaced.

    Yields the pairs of hooks that a forward pass has replaced so far.
    """
    passed: set[tuple[str, str]] = set()
    source: dict[tuple[str, str], Tensor] = {}

    def keep(names: tuple[str, str], _: nn.Module, __: Any, output: Tensor) -> None:
        source[names] = HookView.of(names[0]).read(model, output)

    def put_in(names: tuple[str, str], _: nn.Module, __: Any, output: Tensor) -> Tensor:
        passed.add(names)
        view = HookView.of(names[1])
        new = replacements[names](source.pop(names), view.read(model, output))
        return view.write(model, output, new)

    # Register on the hook points: if a coder was attached to a point of a SAETransformerBridge
    # and removed, the bridge's run_with_hooks skips that point.
    points = cast(Mapping[str, nn.Module], model.hook_dict)
    handles: list[RemovableHandle] = []
    for names in replacements:
        for name, act in zip(names, (keep, put_in), strict=True):
            point = points[HookView.of(name).hook_name]
            handles.append(point.register_forward_hook(partial(act, names)))
    try:
        yield passed
    finally:
        for handle in handles:
            handle.remove()


def run_replaced(
    model: HookedModel,
    replacements: Mapping[tuple[str, str], Replacement],
    tokens: Tensor,
    model_kwargs: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Run a hooked model with activations at several places replaced; gradients flow through.

    Args:
        model: any model that SAELens trains on.
        replacements: for each pair of hooks (read, replaced), the function that makes the new
            activation of the second from the activations of both. Hooks may be heads (HookView).
        tokens: int64 [rows, context].
        model_kwargs: arguments of the forward pass.

    Returns:
        Logits [rows, context, vocabulary], and cross-entropies of the next token in nats, [rows,
        context - 1], float32 or wider.

    Raises:
        ValueError: the model does not pass through a hook that is replaced.
    """
    with activations_replaced(model, replacements) as passed:
        logits, losses = model(tokens, return_type="both", loss_per_token=True, **model_kwargs)[:2]
    for _, target in replacements.keys() - passed:
        raise ValueError(
            f"hook_name_out={target!r}: the model does not pass through this hook. Give another."
        )
    if torch.finfo(losses.dtype).bits < 32:
        # In bfloat16, neighbouring numbers near 8 nats are 0.06 apart: use float32.
        scores = logits[:, :-1].float().transpose(1, 2)
        losses = F.cross_entropy(scores, tokens[:, 1:].to(scores.device), reduction="none")
    return logits, losses


@dataclass
class TranscoderEvaluator(MultiSAEEvaluator):
    """SAELens' evaluator in training, for transcoders that predict the second hook from the first.

    The evaluator logs cross-entropies under SAELens' names. All losses use the same tokens. hooks
    has the two hooks of each transcoder, by its name.
    """

    hooks: Mapping[str, HookPair] = field(kw_only=True)

    @override
    def __call__(
        self,
        saes: dict[str, TrainingSAE[Any]],
        data_provider: Iterator[dict[str, Tensor]],
        activation_scalers: dict[str, ActivationScaler],
        hook_names: dict[str, str],
    ) -> dict[str, Any]:
        """Figures by "transcoder/figure"; ValueError if n_eval_batches is below 1."""
        if self.n_eval_batches < 1:
            raise ValueError(
                f"n_eval_batches={self.n_eval_batches!r}: cross-entropies need at least 1 batch. "
                "To train without them, set eval_every_n_wandb_logs beyond the run's last step."
            )
        prefetching = isinstance(data_provider, PrefetchingIterator)
        # Pause the prefetching thread, because it reads tokens from the same store.
        with data_provider.paused() if prefetching else nullcontext():
            figures = self._cross_entropies(saes, activation_scalers)
        if self.user_evaluator is not None:
            for name, sae in saes.items():
                pairs = map(itemgetter(hook_names[name]), data_provider)
                found = self.user_evaluator(sae, pairs, activation_scalers[name])
                figures.update({f"{name}/{key}": value for key, value in found.items()})
        return figures

    def _cross_entropies(
        self, saes: dict[str, TrainingSAE[Any]], scalers: dict[str, ActivationScaler]
    ) -> dict[str, Any]:
        store, hooks = self.activations_store, self.hooks
        splices = {
            hooks[name]: Splice(self.model, *hooks[name], self.model_kwargs) for name in saes
        }
        totals: defaultdict[Any, float] = defaultdict(float)
        for _ in range(self.n_eval_batches):
            tokens = store.get_batch_tokens(self.eval_batch_size_prompts)
            where = torch.zeros_like(tokens, dtype=torch.bool)
            where[:, slice(*store.seqpos_slice)] = True
            if store.exclude_special_tokens is not None:
                where &= ~torch.isin(tokens, store.exclude_special_tokens.to(tokens.device))
            totals["clean"] += _mean(next(iter(splices.values())).clean(tokens, where))
            for pair, splice in splices.items():
                totals["ablated", pair] += _mean(splice.ablated(tokens, where))
            for name, sae in saes.items():
                replacement = partial(_scaled_output, sae, cast(PairScaler, scalers[name]))
                spliced = splices[hooks[name]].replaced(tokens, where, replacement)
                totals["spliced", name] += _mean(spliced)
        means = {key: total / self.n_eval_batches for key, total in totals.items()}
        figures: dict[str, Any] = {}
        for name in saes:
            clean, ablated = means["clean"], means["ablated", hooks[name]]
            spliced = means["spliced", name]
            figures[f"{name}/model_performance_preservation"] = {
                "ce_loss_score": SplicedLosses(clean, ablated, spliced).recovered,
                "ce_loss_with_ablation": ablated,
                "ce_loss_with_sae": spliced,
                "ce_loss_without_sae": clean,
            }
        return figures


def _mean(losses: Tensor) -> float:
    return losses.double().mean().item()


def _scaled_output(sae: TrainingSAE[Any], scaler: PairScaler, source: Tensor, _: Tensor) -> Tensor:
    return scaler.target.unscale(sae(scaler.input.scale(source.to(sae.W_enc))))
