"""Trains several transcoders in lockstep, each on the pairs of its own hooks."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.saelens.pairs import SCALE, WHITENING, PairScaler, norms_of_pairs
from sae_binary_ext.saelens.private import MultiTrainer
from sae_binary_ext.saelens.resuming import RandomStream


class StreamTrainer(SAETrainer[Any, Any]):
    """SAELens' trainer of one coder, whose steps draw from the coder's own random numbers.

    The coder then learns the same, whichever coders train beside it.
    """

    stream: RandomStream

    @override
    def step(self, batch: Tensor) -> TrainStepOutput:
        with self.stream.drawn_from():
            return super().step(batch)

    @override
    def save_trainer_state(self, checkpoint_path: Path) -> None:
        with self.stream.drawn_from():
            super().save_trainer_state(checkpoint_path)

    @override
    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        with self.stream.drawn_from():
            super().load_trainer_state(checkpoint_path)


class PairTrainer(MultiTrainer):
    """SAELens' trainer of several coders, on batches of pairs.

    The trainer scales inputs and targets separately. Each transcoder may have its own learning
    rate.

    Args:
        cfg: SAELens' settings of the run.
        lrs: learning rates by name. A transcoder that is not named takes cfg.lr.
        seed: decides, together with a transcoder's name, the random numbers of its steps. None
            takes one from torch's generator.
        settings: the other arguments of SAELens' MultiSAETrainer. hook_names has for each
            transcoder the name of its pairs in the batches of data_provider.
    """

    def __init__(
        self,
        cfg: SAETrainerConfig,
        lrs: Mapping[str, float],
        *,
        seed: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(cfg, **settings)
        seed = RandomStream.new_seed() if seed is None else seed
        for name, trainer in self.trainers.items():
            lr = lrs.get(name, cfg.lr)
            own = replace(trainer.cfg, lr=lr, lr_end=lr / cfg.lr * (cfg.lr_end or 0.0))
            own_trainer = StreamTrainer(own, trainer.sae, iter(()))
            own_trainer.stream = RandomStream(seed, name)
            own_trainer.activation_scaler = PairScaler(trainer.sae.cfg.d_in)
            own_trainer.sae.give_scale_to(own_trainer.activation_scaler)
            self.trainers[name] = own_trainer

    @override
    @torch.no_grad()
    def estimate_scales(self) -> None:
        """Make one estimate for all transcoders with the same pairs and mode, in one pass."""
        for mode in (SCALE, WHITENING):
            scaled: dict[str, list[SAETrainer[Any, Any]]] = {}
            for name, trainer in self.trainers.items():
                known = trainer.activation_scaler
                # A resumed transcoder has the scale of its checkpoint.
                if trainer.sae.cfg.normalize_activations == mode and (
                    known.scaling_factor is None and known.whitening is None
                ):
                    scaled.setdefault(self.hook_names[name], []).append(trainer)
            rows = self._rows_for_estimates(mode, *scaled)
            for pairs_name, trainers in scaled.items():
                estimate = self._estimate(mode, trainers, rows.pop(pairs_name))
                for trainer in trainers:
                    trainer.activation_scaler.scaling_factor = estimate.scaling_factor  # pyright: ignore
                    trainer.activation_scaler.whitening = estimate.whitening

    def _rows_for_estimates(self, mode: str, *names: str) -> dict[str, list[Tensor]]:
        """What an estimate reads of the next batches: the norms of pairs, or the pairs."""
        d_in = {self.hook_names[name]: sae.cfg.d_in for name, sae in self.saes.items()}
        rows: dict[str, list[Tensor]] = {name: [] for name in names}
        for _ in range(self.cfg.n_batches_for_norm_estimate if names else 0):
            batch = next(self.data_provider)
            for name, kept in rows.items():
                # Pairs of all layers would fill the memory.
                pairs = batch[name]
                kept.append(norms_of_pairs(pairs, d_in[name]) if mode == SCALE else pairs)
        return rows

    def _estimate(
        self, mode: str, trainers: list[SAETrainer[Any, Any]], rows: list[Tensor]
    ) -> PairScaler:
        config, count = trainers[0].sae.cfg, self.cfg.n_batches_for_norm_estimate
        skips = all(trainer.sae.cfg.skip_non_finite for trainer in trainers)
        estimate = PairScaler(config.d_in, skip_non_finite=skips)
        if mode == WHITENING:
            estimate.estimate_whitening(config.d_in, iter(rows), count)
        else:
            estimate.estimate_from_norms((config.d_in, config.d_out), iter(rows), count)
        return estimate
