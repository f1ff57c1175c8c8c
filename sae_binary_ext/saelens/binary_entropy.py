"""The training architecture "binary_entropy": a binary autoencoder with the entropy loss.

Cho, Yang, Li, Kurkoski, Inoue, Binary Autoencoder for Mechanistic Interpretability of Large
Language Models (arXiv 2509.20997). Saved "binary_entropy" coders have the architecture "binary".
"""

from dataclasses import dataclass

from sae_lens.saes.sae import SAEConfig, TrainStepInput
from simple_parsing import choice
from torch import Tensor
from typing_extensions import override

from sae_binary_ext.checks import check_at_least, check_count
from sae_binary_ext.coding.covariance import covariance_penalty, sampled_covariance_penalty
from sae_binary_ext.coding.entropy import bernoulli_entropy, ramp
from sae_binary_ext.coding.forms.encoded import Encoded
from sae_binary_ext.coding.selection import SELECTIONS
from sae_binary_ext.coding.variance import total_variance
from sae_binary_ext.saelens import autoencoder
from sae_binary_ext.training.derived import DerivesSettings
from sae_binary_ext.training.fields import EntropyFields


@dataclass
class EntropyLossFields(EntropyFields):
    """The weights of the entropy and covariance losses; EntropyFields has the other fields.

    A coefficient is in units of FVU, the fraction of variance unexplained, so that it means the
    same at any scale and width. The paper's alpha, used with the mean squared error, is the
    coefficient times the variance per dimension.

    Args:
        entropy_coefficient: cost of one bit of a batch's code entropy. 0 turns the loss off.
        covariance_coefficient: cost of one unit of the sum of absolute covariances. 0 turns the
            loss off.
    """

    entropy_coefficient: float = 0.0
    covariance_coefficient: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()  # pyright: ignore  # of the config that has these fields
        check_at_least(
            0,
            **{
                name: getattr(self, name)
                for name in ("entropy_coefficient", "covariance_coefficient", "covariance_sample")
            },
        )
        check_count(
            entropy_start_step=self.entropy_start_step,
            entropy_warm_up_steps=self.entropy_warm_up_steps,
        )


class EntropyLosses(DerivesSettings):
    """The entropy and covariance losses of a coder whose config has EntropyLossFields."""

    def entropy_losses(self, step: int, codes: Encoded, target: Tensor) -> dict[str, Tensor]:
        """The losses that are on at this training step, by name; target is [tokens, d_out]."""
        cfg = self.cfg
        share = ramp(
            step, self.setting("entropy_start_step"), self.setting("entropy_warm_up_steps")
        )
        # SAELens' reconstruction loss is FVU times the total variance.
        scale = share * total_variance(target)
        losses: dict[str, Tensor] = {}
        if cfg.entropy_coefficient:
            bits = bernoulli_entropy(codes.firing_rates()).sum()
            losses["entropy_loss"] = cfg.entropy_coefficient * scale * bits
        # A single token has no covariance.
        if cfg.covariance_coefficient and codes.tokens > 1:
            dense = codes.dense()
            if cfg.covariance_sample:
                penalty = sampled_covariance_penalty(dense, cfg.covariance_sample, step)
            else:
                penalty = covariance_penalty(dense)
            losses["covariance_loss"] = cfg.covariance_coefficient * scale * penalty
        return losses


@dataclass
class BinaryEntropyTrainingSAEConfig(EntropyLossFields, autoencoder.BinaryTrainingSAEConfig):
    """Config for training a binary autoencoder with entropy and covariance losses.

    The fields are those of BinaryTrainingSAEConfig and EntropyLossFields. By default, the entropy
    loss is on, the selection is threshold, and no loss raises dead latents.
    """

    selection: str = choice(*SELECTIONS, default="threshold")
    entropy_coefficient: float = 5e-4
    pre_act_loss_coefficient: float = 0.0

    @override
    @classmethod
    def architecture(cls) -> str:
        return "binary_entropy"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return autoencoder.BinarySAEConfig


class BinaryEntropyTrainingSAE(EntropyLosses, autoencoder.BinaryTrainingSAE):
    """A binary autoencoder in training, with the entropy and covariance losses."""

    cfg: BinaryEntropyTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @override
    def code_losses(
        self, step_input: TrainStepInput, codes: Encoded, pre: Tensor | None, output: Tensor
    ) -> dict[str, Tensor]:
        losses = super().code_losses(step_input, codes, pre, output)
        step, target = step_input.n_training_steps, step_input.sae_in
        return losses | self.entropy_losses(step, codes, target)
