"""What a model loses with a coder's output in the place of an activation.

SAELens' own evaluation replaces the activation that a coder reads. A transcoder reads one and
predicts another, so here hook_name is read and hook_name_out replaced; for an autoencoder the two
are one.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, cast

import torch
from sae_lens import TrainingSAE
from sae_lens.multi_sae_training_runner import PerSAEEvaluator
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.prefetch import PrefetchingIterator
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedTransformer import HookedRootModule  # pyright: ignore[reportPrivateImportUsage]  # where version 3.0 has it too
from transformer_lens.model_bridge import TransformerBridge

from sae_binary_ext.saelens.hook_views import HookView
from sae_binary_ext.saelens.pairs import PAIRS, PairScaler

# What SAELens trains on and attaches coders to.
HookedModel = HookedRootModule | TransformerBridge


def resolve_hook(model: HookedModel, field_name: str, hook_name: str) -> str:
    """The name under which a model caches a hook and takes replacements for it.

    A TransformerBridge knows hooks by aliases too (blocks.9.hook_mlp_out), but passes them over in
    run_with_cache and run_with_hooks without a word.

    Args:
        model: any model that SAELens trains on.
        field_name: names the field in the error.
        hook_name: a hook or an alias of one, or a head of it as HookView names it.

    Raises:
        ValueError: the model has no such hook.
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
    raise ValueError(f"{field_name}={hook_name!r}: the model has no such hook. It has {near}.")


def _part(of: Any, name: str) -> Any:
    return of[int(name)] if name.isdigit() else getattr(of, name)


@dataclass(frozen=True)
class SplicedLosses:
    """Next-token cross-entropy, in nats, with a coder's reconstruction in the model's place.

    Attributes:
        clean: of the untouched model.
        ablated: with zeros in place of the activations.
        spliced: with the reconstruction.
    """

    clean: float
    ablated: float
    spliced: float

    @property
    def recovered(self) -> float:
        """Share of the loss between zero ablation and the clean model that splicing keeps.

        NaN where zeros cost nothing.
        """
        cost = self.ablated - self.clean
        return (self.ablated - self.spliced) / cost if cost else math.nan


@dataclass(frozen=True)
class Splice:
    """Losses of a hooked model with one activation replaced.

    Attributes:
        model: any model that SAELens trains on, hooked.
        hook_name: the activation that is read, or a head of it as HookView names it.
        hook_name_out: the activation that is replaced, likewise.
        model_kwargs: passed on with every forward pass.
    """

    model: HookedModel
    hook_name: str
    hook_name_out: str
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def clean(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Losses of the untouched model, [rows, context - 1], in nats; where has no effect."""
        return self._forward(tokens, lambda _, target: target)[1]

    def ablated(self, tokens: Tensor, where: Tensor) -> Tensor:
        """Losses with zeros in place of the activation.

        Args:
            tokens: int64 [rows, context].
            where: bool [rows, context], the positions replaced.

        Returns:
            [rows, context - 1], float32 or wider, in nats.
        """
        return self.replaced(tokens, where, lambda _, target: torch.zeros_like(target))

    def replaced(
        self, tokens: Tensor, where: Tensor, replacement: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Losses with another activation in its place.

        Args:
            tokens: int64 [rows, context].
            where: bool [rows, context], the positions replaced.
            replacement: takes what was read at hook_name and at hook_name_out, each
                [rows, context, width], and gives what is to stand at hook_name_out.

        Returns:
            [rows, context - 1], in nats.
        """
        return self.outputs(tokens, where, replacement)[1]

    def outputs(
        self, tokens: Tensor, where: Tensor, replacement: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """As replaced, with the logits [rows, context, vocabulary] before the losses."""

        def put(source: Tensor, target: Tensor) -> Tensor:
            new = replacement(source, target).to(target)
            return torch.where(where[..., None].to(target.device), new, target)

        return self._forward(tokens, put)

    @torch.no_grad()
    def _forward(
        self, tokens: Tensor, put: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        source: list[Tensor] = []
        passed: list[bool] = []
        views = HookView.of(self.hook_name), HookView.of(self.hook_name_out)

        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            source.append(views[0].read(self.model, output))

        def put_in(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            passed.append(True)
            new = put(source.pop(), views[1].read(self.model, output))
            return views[1].write(self.model, output, new)

        # On the points themselves: a SAETransformerBridge's run_with_hooks passes over points that
        # a coder was attached to and taken from again.
        points = cast(Mapping[str, nn.Module], self.model.hook_dict)
        handles = [points[views[0].hook_name].register_forward_hook(keep)]
        handles.append(points[views[1].hook_name].register_forward_hook(put_in))
        try:
            output = self.model(
                tokens, return_type="both", loss_per_token=True, **self.model_kwargs
            )
        finally:
            for handle in handles:
                handle.remove()
        if not passed:
            raise ValueError(
                f"hook_name_out={self.hook_name_out!r}: the model does not pass through it."
            )
        logits, losses = output[0], output[1]
        if torch.finfo(losses.dtype).bits < 32:
            # bfloat16 tells losses of 8 nats apart by 0.06.
            scores = logits[:, :-1].float().transpose(1, 2)
            losses = F.cross_entropy(scores, tokens[:, 1:].to(scores.device), reduction="none")
        return logits, losses


@dataclass
class TranscoderEvaluator:
    """Evaluates transcoders while they train, for SAELens' logger.

    What MultiSAEEvaluator is for autoencoders, and logs under the same names: cross-entropy with
    the transcoder's output in place of the model's. Zeros, the model and every transcoder are
    measured on the same tokens.
    """

    model: HookedModel
    activations_store: ActivationsStore
    hooks: tuple[str, str]
    eval_batch_size_prompts: int | None
    n_eval_batches: int
    model_kwargs: Mapping[str, Any]
    user_evaluator: PerSAEEvaluator | None = None

    def __call__(
        self,
        saes: dict[str, TrainingSAE[Any]],
        data_provider: Iterator[dict[str, Tensor]],
        activation_scalers: dict[str, ActivationScaler],
        hook_names: dict[str, str],
    ) -> dict[str, Any]:
        """Figures of each transcoder, by its name and theirs.

        Raises:
            ValueError: n_eval_batches is below 1.
        """
        if self.n_eval_batches < 1:
            raise ValueError(
                f"n_eval_batches={self.n_eval_batches!r}: cross-entropies need at least 1 batch. "
                "To train without them, set eval_every_n_wandb_logs beyond the run's last step."
            )
        prefetching = isinstance(data_provider, PrefetchingIterator)
        # The prefetching thread reads tokens from the same store.
        with data_provider.paused() if prefetching else nullcontext():
            figures = self._cross_entropies(saes, activation_scalers)
        if self.user_evaluator is not None:
            pairs = (batch[PAIRS] for batch in data_provider)
            for name, sae in saes.items():
                found = self.user_evaluator(sae, pairs, activation_scalers[name])
                figures.update({f"{name}/{key}": value for key, value in found.items()})
        return figures

    def _cross_entropies(
        self, saes: dict[str, TrainingSAE[Any]], scalers: dict[str, ActivationScaler]
    ) -> dict[str, Any]:
        splice = Splice(self.model, *self.hooks, self.model_kwargs)
        totals = dict.fromkeys(("clean", "ablated", *saes), 0.0)
        for _ in range(self.n_eval_batches):
            tokens = self.activations_store.get_batch_tokens(self.eval_batch_size_prompts)
            where = self._trained_positions(tokens)
            totals["clean"] += _mean(splice.clean(tokens, where))
            totals["ablated"] += _mean(splice.ablated(tokens, where))
            for name, sae in saes.items():
                replacement = _scaled_forward(sae, scalers[name])
                totals[name] += _mean(splice.replaced(tokens, where, replacement))
        means = {name: total / self.n_eval_batches for name, total in totals.items()}
        figures: dict[str, Any] = {}
        for name in saes:
            losses = SplicedLosses(means["clean"], means["ablated"], means[name])
            figures[f"{name}/model_performance_preservation"] = {
                "ce_loss_score": losses.recovered,
                "ce_loss_with_ablation": losses.ablated,
                "ce_loss_with_sae": losses.spliced,
                "ce_loss_without_sae": losses.clean,
            }
        return figures

    def _trained_positions(self, tokens: Tensor) -> Tensor:
        store = self.activations_store
        where = torch.zeros_like(tokens, dtype=torch.bool)
        where[:, slice(*store.seqpos_slice)] = True
        if store.exclude_special_tokens is not None:
            where &= ~torch.isin(tokens, store.exclude_special_tokens.to(tokens.device))
        return where


def _mean(losses: Tensor) -> float:
    return losses.double().mean().item()


def _scaled_forward(
    sae: TrainingSAE[Any], scaler: ActivationScaler
) -> Callable[[Tensor, Tensor], Tensor]:
    pairs = cast(PairScaler, scaler)  # PairTrainer has no other

    def replacement(source: Tensor, target: Tensor) -> Tensor:
        return pairs.target.unscale(sae(pairs.input.scale(source.to(sae.W_enc))))

    return replacement
