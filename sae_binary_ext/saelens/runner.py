"""Training transcoders in SAELens: TranscoderTrainingRunner and its config.

SAELens' MultiSAETrainingRunner trains several autoencoders on the same activations. Our runner
gives SAELens' runner pairs of activations. Binary and continuous transcoders then learn from the
same tokens.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import wandb
from sae_lens import TrainingSAE, TrainingSAEConfig, logger
from sae_lens.config import HfDataset, SAETrainerConfig
from sae_lens.load_model import load_model
from sae_lens.multi_sae_training_runner import MultiSAETrainingRunnerConfig
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.prefetch import PrefetchingIterator
from sae_lens.training.sae_trainer import SAETrainer
from sae_lens.util import get_special_token_ids
from typing_extensions import override

from sae_binary_ext.saelens import pairs
from sae_binary_ext.saelens.private import MultiRunner, MultiTrainer
from sae_binary_ext.saelens.splice import HookedModel, TranscoderEvaluator, resolve_hook
from sae_binary_ext.saelens.transcoder import TranscoderFields

# Config fields that the activations store takes under the same names.
STORE_SETTINGS = (
    "streaming",
    "dataset_trust_remote_code",
    "use_chat_formatting",
    "context_size",
    "n_batches_in_buffer",
    "store_batch_size_prompts",
    "train_batch_size_tokens",
    "prepend_bos",
    "dtype",
    "model_kwargs",
    "autocast_lm",
    "seqpos_slice",
    "disable_concat_sequences",
    "sequence_separator_token",
    "activations_mixing_fraction",
)


@dataclass(kw_only=True)
class TranscoderRunnerConfig(MultiSAETrainingRunnerConfig):
    """Config of a run that trains one transcoder or several on pairs of activations.

    The other fields are those of SAELens' MultiSAETrainingRunnerConfig.

    Args:
        saes: training configs of binary_transcoder or topk_transcoder, by names of your choice. All
            have the same d_in and d_out.
        hook_name: the hook of the inputs, a TransformerLens hook (blocks.9.mlp.hook_in). If
            model_class_name is AutoModelForCausalLM, give a module instead
            (model.layers.9.post_attention_layernorm), whose outputs are the inputs.
        hook_name_out: the hook of the targets (blocks.9.hook_mlp_out, or model.layers.9.mlp).
        lrs: learning rates by the names in saes. A transcoder that is not named takes lr.
    """

    saes: Mapping[str, TrainingSAEConfig]
    hook_name: str
    hook_name_out: str
    lrs: Mapping[str, float] = field(default_factory=dict)
    # All transcoders share one pair of hooks, so these two fields are not arguments.
    hook_names: Mapping[str, str] | str = field(init=False, default="")
    hook_head_indices: dict[str, int | None] | int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.hook_names = self.hook_name
        super().__post_init__()
        if self.hook_name == self.hook_name_out:
            raise ValueError(
                f"hook_name_out={self.hook_name_out!r} is hook_name too: a coder of one "
                "activation is an autoencoder. Train it with SAELens' own runners."
            )
        for name, config in self.saes.items():
            if not isinstance(config, TranscoderFields):
                raise ValueError(
                    f"saes[{name!r}] is a {type(config).__name__}: give a training config of "
                    "binary_transcoder or topk_transcoder."
                )
        if len(self._all_widths()) > 1:
            raise ValueError(
                f"saes have different (d_in, d_out), {sorted(self._all_widths())}: all learn from "
                "the same pairs. Give all the same d_in and d_out."
            )
        unknown = sorted(set(self.lrs) - set(self.saes))
        if unknown:
            raise ValueError(f"lrs of {unknown}: no such name in saes, {sorted(self.saes)}.")

    @property
    def widths(self) -> tuple[int, int]:
        """d_in and d_out of the transcoders."""
        return next(iter(self._all_widths()))

    def _all_widths(self) -> set[tuple[int, int]]:
        configs = cast(Iterable[TranscoderFields], self.saes.values())
        return {(config.d_in, config.d_out or config.d_in) for config in configs}


class PairTrainer(MultiTrainer):
    """SAELens' trainer of several coders, on batches of pairs.

    The trainer scales inputs and targets separately. Each transcoder may have its own learning
    rate.
    """

    def __init__(self, cfg: SAETrainerConfig, lrs: Mapping[str, float], **settings: Any) -> None:
        super().__init__(cfg, **settings)
        for name, trainer in self.trainers.items():
            lr = lrs.get(name, cfg.lr)
            own = replace(trainer.cfg, lr=lr, lr_end=lr / cfg.lr * (cfg.lr_end or 0.0))
            own_trainer: SAETrainer[Any, Any] = SAETrainer(own, trainer.sae, iter(()))
            own_trainer.activation_scaler = pairs.PairScaler(trainer.sae.cfg.d_in)
            own_trainer.sae.give_scale_to(own_trainer.activation_scaler)
            self.trainers[name] = own_trainer

    @override
    @torch.no_grad()
    def estimate_scales(self) -> None:
        """Make one estimate for all transcoders with the same mode: they see the same pairs."""
        batches = self.cfg.n_batches_for_norm_estimate
        for mode in (pairs.SCALE, pairs.WHITENING):
            scaled = [
                trainer
                for trainer in self.trainers.values()
                if trainer.sae.cfg.normalize_activations == mode
                # A resumed transcoder has the scale of its checkpoint.
                and trainer.activation_scaler.scaling_factor is None
                and trainer.activation_scaler.whitening is None
            ]
            if not scaled:
                continue
            rows = (batch[pairs.PAIRS] for batch in self.data_provider)
            skips = all(trainer.sae.cfg.skip_non_finite for trainer in scaled)
            estimate = pairs.PairScaler(scaled[0].sae.cfg.d_in, skip_non_finite=skips)
            if mode == pairs.WHITENING:
                estimate.estimate_whitening(estimate.d_in, rows, batches)
            else:
                estimate.estimate_scaling_factor(estimate.d_in, rows, batches)
            for trainer in scaled:
                trainer.activation_scaler.scaling_factor = estimate.scaling_factor  # pyright: ignore
                trainer.activation_scaler.whitening = estimate.whitening


class TranscoderTrainingRunner(MultiRunner):
    """Trains transcoders on pairs of activations of the same tokens.

    As in SAELens' runners, run() trains, logs, writes checkpoints and saves each transcoder to
    output_path/name. SAE.load_from_disk loads a saved transcoder, which takes raw activations.

    Args:
        cfg: the run.
        override_dataset: replaces cfg.dataset_path.
        override_model: replaces cfg.model_name, for example with a TransformerBridge.
        override_saes: transcoders to continue training, by the names in cfg.saes.

    Raises:
        ValueError: the model does not have a hook or does not pass through it, the two hooks see
            different numbers of tokens, or d_in or d_out is not the width of its hook.
    """

    cfg: TranscoderRunnerConfig  # pyright: ignore

    def __init__(
        self,
        cfg: TranscoderRunnerConfig,
        override_dataset: HfDataset | None = None,
        override_model: HookedModel | None = None,
        override_saes: dict[str, TrainingSAE[Any]] | None = None,
    ) -> None:
        self.cfg = cfg  # pyright: ignore[reportIncompatibleVariableOverride]
        if override_saes is not None and set(override_saes) != set(cfg.saes):
            raise ValueError(
                f"override_saes has the names {sorted(override_saes)}, saes has "
                f"{sorted(cfg.saes)}: they must be the same."
            )
        self.model = override_model or load_model(  # pyright: ignore[reportAttributeAccessIssue]
            cfg.model_class_name,
            cfg.model_name,
            device=cfg.llm_device,
            model_from_pretrained_kwargs=cfg.model_from_pretrained_kwargs,
            hook_names=[cfg.hook_name, cfg.hook_name_out],
        )
        if cfg.compile_llm:
            # Compile run_with_cache, because the activations store calls it.
            self.model.run_with_cache = torch.compile(
                self.model.run_with_cache, mode=cfg.llm_compilation_mode
            )
        self._hooks = (
            resolve_hook(self.model, "hook_name", cfg.hook_name),
            resolve_hook(self.model, "hook_name_out", cfg.hook_name_out),
        )
        self.activations_store = self._make_store(override_dataset)
        pairs.check_pairs(self.activations_store, *self._hooks, *cfg.widths)
        self.saes = override_saes or {
            name: TrainingSAE.from_dict(config.to_dict()) for name, config in cfg.saes.items()
        }
        for sae in self.saes.values():
            sae.to(cfg.device)
        self.evaluator = TranscoderEvaluator(
            model=self.model,
            activations_store=self.activations_store,
            hooks=self._hooks,
            eval_batch_size_prompts=cfg.eval_batch_size_prompts,
            n_eval_batches=cfg.n_eval_batches,
            model_kwargs=cfg.model_kwargs,
            user_evaluator=cfg.evaluator,
        )

    @override
    def run(self) -> dict[str, TrainingSAE[Any]]:
        """Train and save as cfg says. Returns transcoders by name, which take raw activations."""
        cfg = self.cfg
        self.set_metadata()
        for sae in self.saes.values():
            sae.cfg.metadata.hook_name_out = cfg.hook_name_out
        if cfg.logger.log_to_wandb:
            wandb.init(
                project=cfg.logger.wandb_project,
                entity=cfg.logger.wandb_entity,
                config=cfg.to_dict(),
                name=cfg.logger.run_name,
                id=cfg.logger.wandb_id,
            )
        batches = pairs.pair_batches(self.activations_store, *self._hooks)
        if cfg.prefetch_llm_batches:
            # int(True) is 1, the default length of the queue.
            batches = PrefetchingIterator(batches, prefetch=int(cfg.prefetch_llm_batches))
        try:
            trainer = PairTrainer(
                cfg.to_sae_trainer_config(),
                cfg.lrs,
                saes=self.saes,
                hook_names=dict.fromkeys(self.saes, pairs.PAIRS),
                data_provider=batches,
                evaluator=self.evaluator,
                save_checkpoint_fn=self.save_runner_files,
            )
            if cfg.resume_from_checkpoint is not None:
                logger.info("Resuming from checkpoint: %s", cfg.resume_from_checkpoint)
                trainer.load_checkpoint(cfg.resume_from_checkpoint)
                self.activations_store.load_from_checkpoint(cfg.resume_from_checkpoint)
            transcoders = self.train(trainer)
            if cfg.logger.log_to_wandb:
                wandb.finish()
            return transcoders
        finally:
            if isinstance(batches, PrefetchingIterator):
                batches.close()

    def _make_store(self, override_dataset: HfDataset | None) -> ActivationsStore:
        cfg = self.cfg
        special: bool | list[int] = cfg.exclude_special_tokens
        if special is True:
            special = list(get_special_token_ids(self.model.tokenizer))  # pyright: ignore
        return ActivationsStore.from_config_multi_hook(
            model=self.model,
            dataset=cfg.dataset_path if override_dataset is None else override_dataset,
            hook_names=list(self._hooks),
            hook_d_ins=dict(zip(self._hooks, cfg.widths, strict=True)),
            total_training_tokens=cfg.training_tokens,
            device=cfg.act_store_device or cfg.device,
            exclude_special_tokens=torch.tensor(special) if special else None,
            **{name: getattr(cfg, name) for name in STORE_SETTINGS},
        )
