"""Losses of training configs on how often each latent fires: too rarely, or too often."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sae_binary_ext.checks import check_at_least, check_rate
from sae_binary_ext.coding.entropy import excess_rate
from sae_binary_ext.coding.variance import total_variance
from sae_binary_ext.training.fields import LearningFields


@dataclass
class FiringLossFields(LearningFields):
    """The fields of the losses on dead and dense latents, and those of LearningFields.

    A coefficient is in units of FVU, the share of variance left unexplained.

    Args:
        pre_act_loss_coefficient: weight of the loss on the encoder biases of dead latents, those
            that have not fired for the trainer's dead_feature_window of steps. It raises them
            until they fire. 0, the default of binary_entropy, turns it off. SAELens' jumprelu has
            a loss of this name and purpose.
        dense_coefficient: what a latent costs for each unit of its firing rate above dense_rate.
            4e-3 left no latent of 4608 above a tenth of the tokens, on text like that of training.
            0 turns the loss off.
    """

    pre_act_loss_coefficient: float = 1e-4
    dense_coefficient: float = 0.0

    def check_firing_fields(self) -> None:
        """Raise ValueError if one of the fields is out of range."""
        check_at_least(
            0,
            pre_act_loss_coefficient=self.pre_act_loss_coefficient,
            dense_coefficient=self.dense_coefficient,
        )
        check_rate(dense_rate=self.dense_rate)

    def firing_losses(
        self, target: Tensor, bias: Tensor, dead: Tensor | None, rates: Callable[[], Tensor]
    ) -> dict[str, Tensor]:
        """The losses that are on, by name, in the units of SAELens' reconstruction loss.

        Args:
            target: [tokens, d_out].
            bias: the encoder's, [d_sae].
            dead: bool [d_sae], or None if the trainer does not know.
            rates: gives the firing rates of the batch, [d_sae].
        """
        losses: dict[str, Tensor] = {}
        if self.pre_act_loss_coefficient and dead is not None:
            # On biases alone: the encoder's weights would cost a product as large as its own, and
            # the other parts of pre-activations nearly cancel over a batch.
            scale = self.pre_act_loss_coefficient * total_variance(target)
            losses["pre_act_loss"] = -scale * (bias * dead).sum()
        if self.dense_coefficient:
            scale = self.dense_coefficient * total_variance(target)
            losses["dense_loss"] = scale * excess_rate(rates(), self.dense_rate)
        return losses
