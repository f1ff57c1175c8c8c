"""Training transcoders in SAELens: TranscoderTrainingRunner.

SAELens' MultiSAETrainingRunner trains several autoencoders in one pass over the text. Our runner
gives SAELens' runner pairs of activations. Binary and continuous transcoders, of one layer or of
all, then learn from the same tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import wandb
from sae_lens import TrainingSAE, logger
from sae_lens.config import HfDataset
from sae_lens.load_model import HookedProxyLM, load_model
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.training.prefetch import PrefetchingIterator
from sae_lens.util import get_special_token_ids
from typing_extensions import override

from sae_binary_ext.saelens import layers as several_layers
from sae_binary_ext.saelens import pairs
from sae_binary_ext.saelens.pair_trainer import PairTrainer
from sae_binary_ext.saelens.pairs import HookPair
from sae_binary_ext.saelens.private import MultiRunner
from sae_binary_ext.saelens.resuming import RandomStream
from sae_binary_ext.saelens.runner_config import TranscoderRunnerConfig
from sae_binary_ext.saelens.splice import HookedModel, TranscoderEvaluator, resolve_hook

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


class TranscoderTrainingRunner(MultiRunner):
    """Trains transcoders on pairs of activations of the same tokens.

    As in SAELens' runners, run() trains, logs, writes checkpoints and saves each transcoder to
    output_path/name. SAE.load_from_disk loads a saved transcoder, which takes raw activations.

    One pass over the text trains as many layers as fit in memory; further passes train the others.
    Each transcoder has its own random numbers, so it learns the same (without prefetching), whether
    other layers train beside it or not. torch.manual_seed decides about all of them.

    Args:
        cfg: the run.
        override_dataset: replaces cfg.dataset_path.
        override_model: replaces cfg.model_name, for example with a TransformerBridge.
        override_saes: transcoders to continue training, by the names in cfg.saes, or by names such
            as "binary/layers.9" if the hooks have {layer}.

    Attributes:
        cfg: the run, with a transcoder for each layer.
        saes, activations_store, evaluator: those of the pass that runs, at first of the first.

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
        # Loading a model draws random numbers, so take the seed first.
        self._seed = RandomStream.new_seed()
        self.model, self.cfg = _open_model(cfg, override_model)  # pyright: ignore
        cfg, self._dataset, self._given = self.cfg, override_dataset, override_saes
        if override_saes is not None and set(override_saes) != set(cfg.saes):
            raise ValueError(
                f"override_saes has the names {sorted(override_saes)}, saes has "
                f"{sorted(cfg.saes)}: they must be the same."
            )
        if cfg.compile_llm:
            # Compile run_with_cache, because the activations store calls it.
            self.model.run_with_cache = torch.compile(
                self.model.run_with_cache, mode=cfg.llm_compilation_mode
            )
        self._hooks = {
            name: HookPair(
                resolve_hook(self.model, "hook_name", hooks.hook_name),
                resolve_hook(self.model, "hook_name_out", hooks.hook_name_out),
            )
            for name, hooks in cfg.hook_pairs.items()
        }
        widths = {hooks: cfg.widths(name) for name, hooks in self._hooks.items()}
        self.activations_store = self._make_store(self._hooks)
        pairs.check_pairs(self.activations_store, widths)
        self._passes = self._plan()
        self._prepare(self._passes[0])

    @override
    def run(self) -> dict[str, TrainingSAE[Any]]:
        """Train and save as cfg says. Returns transcoders by name, which take raw activations.

        A resumed run returns the transcoders of the checkpoint and those trained after them.
        """
        trained: dict[str, TrainingSAE[Any]] = {}
        for names in self._passes:
            if trained:
                self._prepare(names)
            # Each pass reads the same tokens in the same order.
            with RandomStream(self._seed, "order of tokens").drawn_from():
                trained |= self._train_pass(resumes=not trained)
            for sae in self.saes.values():
                sae.zero_grad(set_to_none=True)  # to free the memory of gradients
        return trained

    def _plan(self) -> list[list[str]]:
        """The names that each pass trains."""
        names = list(self.cfg.saes)
        resumed: list[str] = []
        if self.cfg.resume_from_checkpoint is not None:
            checkpoint = Path(self.cfg.resume_from_checkpoint)
            resumed = [name for name in names if (checkpoint / name).exists()] or names
            # Earlier passes have saved their transcoders.
            names = names[names.index(resumed[-1]) + 1 :]
        by_hooks: dict[HookPair, list[str]] = {}
        for name in names:
            by_hooks.setdefault(self._hooks[name], []).append(name)
        costs = {
            hooks: several_layers.cost_of_pair((self.cfg.saes[name] for name in group), self.cfg)
            for hooks, group in by_hooks.items()
        }
        budget = several_layers.budget(self.cfg)
        for hooks, cost in costs.items():
            if cost.training > budget:
                logger.warning(
                    f"{', '.join(by_hooks[hooks])}: {cost.training / 1e9:.1f} GB in training, and "
                    f"{budget / 1e9:.1f} GB are there. Set a smaller n_batches_in_buffer, or train "
                    "fewer transcoders at a time."
                )
        found = several_layers.passes(costs, budget)
        planned = [[name for hooks in group for name in by_hooks[hooks]] for group in found]
        return [group for group in ([resumed] if resumed else []) + planned if group]

    def _prepare(self, names: Sequence[str]) -> None:
        """Make the transcoders of a pass, their store and their evaluator."""
        cfg, hooks = self.cfg, {name: self._hooks[name] for name in names}
        if len(names) < len(cfg.saes):
            logger.info("This pass trains %s.", ", ".join(names))
            self.activations_store = self._make_store(hooks)
        self.saes = {name: self._given[name] if self._given else self._new(name) for name in names}
        self.evaluator = TranscoderEvaluator(
            model=self.model,
            activations_store=self.activations_store,
            hooks=hooks,
            eval_batch_size_prompts=cfg.eval_batch_size_prompts,
            n_eval_batches=cfg.n_eval_batches,
            model_kwargs=cfg.model_kwargs,
            user_evaluator=cfg.evaluator,
        )

    def _new(self, name: str) -> TrainingSAE[Any]:
        with RandomStream(self._seed, f"initial {name}").drawn_from():
            return TrainingSAE.from_dict(self.cfg.saes[name].to_dict()).to(self.cfg.device)

    def _train_pass(self, *, resumes: bool) -> dict[str, TrainingSAE[Any]]:
        cfg, hooks = self.cfg, {name: self._hooks[name] for name in self.saes}
        self.set_metadata()
        for name, sae in self.saes.items():
            sae.to(cfg.device)
            sae.cfg.metadata.hook_name_out = cfg.hook_pairs[name].hook_name_out
        # Passes keep their checkpoints and logs apart, by the number of their first transcoder.
        number = list(cfg.saes).index(next(iter(self.saes)))
        suffix = f"from-{number}" if len(self.saes) < len(cfg.saes) else ""
        if cfg.logger.log_to_wandb:
            own = [
                text and "-".join(filter(None, (text, suffix)))
                for text in (cfg.logger.run_name, cfg.logger.wandb_id)
            ]
            wandb.init(
                project=cfg.logger.wandb_project,
                entity=cfg.logger.wandb_entity,
                config=cfg.to_dict(),
                name=own[0],
                id=own[1],
            )
        trainer_cfg = cfg.to_sae_trainer_config()
        if trainer_cfg.checkpoint_path is not None:
            trainer_cfg.checkpoint_path = str(Path(trainer_cfg.checkpoint_path) / suffix)
        batches = pairs.pair_batches(self.activations_store, dict.fromkeys(hooks.values()))
        if cfg.prefetch_llm_batches:
            # int(True) is 1, the default length of the queue.
            batches = PrefetchingIterator(batches, prefetch=int(cfg.prefetch_llm_batches))
        try:
            trainer = PairTrainer(
                trainer_cfg,
                cfg.lrs,
                seed=self._seed,
                saes=self.saes,
                hook_names={name: each.name for name, each in hooks.items()},
                data_provider=batches,
                evaluator=self.evaluator,
                save_checkpoint_fn=self.save_runner_files,
            )
            if resumes and cfg.resume_from_checkpoint is not None:
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

    def _make_store(self, hooks: Mapping[str, HookPair]) -> ActivationsStore:
        cfg = self.cfg
        special: bool | list[int] = cfg.exclude_special_tokens
        if special is True:
            special = list(get_special_token_ids(self.model.tokenizer))  # pyright: ignore
        widths = {
            hook: width
            for name, pair in hooks.items()
            for hook, width in zip(pair, cfg.widths(name), strict=True)
        }
        return ActivationsStore.from_config_multi_hook(
            model=self.model,
            dataset=cfg.dataset_path if self._dataset is None else self._dataset,
            hook_names=list(widths),
            hook_d_ins=widths,
            total_training_tokens=cfg.training_tokens,
            device=cfg.act_store_device or cfg.device,
            exclude_special_tokens=torch.tensor(special) if special else None,
            **{name: getattr(cfg, name) for name in STORE_SETTINGS},
        )


def _open_model(
    cfg: TranscoderRunnerConfig, override_model: HookedModel | None
) -> tuple[Any, TranscoderRunnerConfig]:
    """The model with the run's hooks, and the run at each of the model's layers."""
    # A loaded Hugging Face model gets its hooks once its layers are known.
    model = override_model or load_model(
        cfg.model_class_name,
        cfg.model_name,
        device=cfg.llm_device,
        model_from_pretrained_kwargs=cfg.model_from_pretrained_kwargs,
        hook_names=[],
    )
    if cfg.has_layers:
        count = several_layers.layer_count
        cfg = cfg.at_layers(range(count(model)) if cfg.layers is None else cfg.layers)
    if override_model is None and isinstance(model, HookedProxyLM):
        hooks = [hook for pair in cfg.hook_pairs.values() for hook in pair]
        model = HookedProxyLM(model.model, model.tokenizer, hook_names=hooks)
    return model, cfg
