"""Losses of training configs on how often each latent fires: too rarely, or too often."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sae_binary_ext.checks import check_at_least, check_rate
from sae_binary_ext.coding.entropy import excess_rate
from sae_binary_ext.coding.variance import total_variance


@dataclass
class FiringLossFields:
    """The fields of the losses on dead and dense latents.

    Both are weighed against the share of variance left unexplained (FVU).

    Args:
        pre_act_loss_coefficient: FVU that a unit of the encoder bias of a dead latent is worth:
            latents that have not fired for the trainer's dead_feature_window of steps come up
            until they do. 0, the default of binary_entropy, turns it off. SAELens' jumprelu has a
            loss of this name and purpose.
        dense_coefficient: FVU that a latent costs for each unit of its firing rate above
            dense_rate. 4e-3 left no latent of 4608 above a tenth of the tokens, on text like the
            trained. 0 turns the loss off.
        dense_rate: firing rate above which a latent counts as dense, between 0 and 1. Rates of a
            batch scatter: the default keeps those over many below 0.1.
    """

    pre_act_loss_coefficient: float = 1e-4
    dense_coefficient: float = 0.0
    dense_rate: float = 0.085

    def check_firing_fields(self) -> None:
        """Raise ValueError where one of the fields is out of range."""
        check_at_least(
            0,
            pre_act_loss_coefficient=self.pre_act_loss_coefficient,
            dense_coefficient=self.dense_coefficient,
        )
        check_rate(dense_rate=self.dense_rate)

    def firing_losses(
        self,
        target: Tensor,
        bias: Tensor,
        dead: Tensor | None,
        rates: Callable[[], Tensor],
    ) -> dict[str, Tensor]:
        """The losses that are on, by name, in the units of SAELens' reconstruction loss.

        Args:
            target: [tokens, d_out], what is reconstructed.
            bias: [d_sae], the encoder's.
            dead: bool [d_sae], or None where the trainer does not know.
            rates: gives the codes' means over the batch, [d_sae].
        """
        losses: dict[str, Tensor] = {}
        if self.pre_act_loss_coefficient and dead is not None:
            # Of the pre-activations the biases alone: those of a batch add up to little else, and
            # the encoder's weights would take a product as large as the encoder's.
            scale = self.pre_act_loss_coefficient * total_variance(target)
            losses["pre_act_loss"] = -scale * (bias * dead).sum()
        if self.dense_coefficient:
            scale = self.dense_coefficient * total_variance(target)
            losses["dense_loss"] = scale * excess_rate(rates(), self.dense_rate)
        return losses
