"""The architecture "binary_refined": a binary autoencoder that looks at its codes once more.

The linear encoder decides on each latent alone. Here encode then turns single latents on or off as
long as the error and the price of the bits fall together (see coding.forms.refining). Such a coder
is trained, or made of a trained one by refine_coder.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from sae_lens.saes.sae import SAEConfig, TrainStepInput, TrainStepOutput
from simple_parsing import choice
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from sae_binary_ext import checks
from sae_binary_ext.coding.encode import Encoder, pre_activations
from sae_binary_ext.coding.entropy import bernoulli_entropy, follow_prices, price_of_bits
from sae_binary_ext.coding.forms import refine
from sae_binary_ext.coding.forms.encoded import DenseCodes, Encoded
from sae_binary_ext.coding.kernels.processor import certainly_none
from sae_binary_ext.coding.packing import pack
from sae_binary_ext.coding.selection import SELECTIONS
from sae_binary_ext.coding.variance import total_variance
from sae_binary_ext.saelens.autoencoder import (
    BinaryCodeConfig,
    BinaryCoder,
    BinaryTrainingSAE,
    BinaryTrainingSAEConfig,
)
from sae_binary_ext.saelens.first_batch import fired_rates
from sae_binary_ext.saelens.refitting import fit_codes, replace_decoder
from sae_binary_ext.training.least_squares import PULL

# The decoder is refitted this often, each time to codes that the last decoder refined.
ROUNDS = 3
# Tokens on which bits are counted to find the cost of a bit.
PRICED_TOKENS = 2048
# Smallest and largest cost of a bit that is tried, as a share of variance.
COSTS_OF_BIT = (1e-6, 1e-1)
# In training, prices follow the firing rates of about this many past tokens.
RATE_TOKENS = 20_000


@dataclass
class RefinedSAEConfig(BinaryCodeConfig):
    """Config of a refined binary autoencoder; also has the fields of BinaryCodeConfig.

    Args:
        refine_passes: how often encode looks at what its codes leave over, at least 1. A pass
            turns at most 16 latents on or off on a token, and leaves out the tokens that the pass
            before left as they were. So 12 passes take less than twice as long as 3. Where 50
            latents are active, they leave a seventh less error.
    """

    refine_passes: int = 12

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_at_least(1, refine_passes=self.refine_passes)

    @override
    @classmethod
    def architecture(cls) -> str:
        return "binary_refined"


class RefinedCoder(BinaryCoder):
    """What refined coders in training and for inference share.

    The buffer flip_price [d_sae] is what a code of 1 costs, in squared units of the input. The
    gradient of codes is that of the linear encoder's codes.
    """

    flip_price: Tensor

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.register_buffer("flip_price", torch.zeros_like(self.b_enc.detach()))

    @override
    def encode_packed(self, x: Tensor) -> Tensor:
        return pack(self.encode(x).detach())

    @override
    def encode_indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As BinaryCoder's; m is the largest number of latents that fire on a token."""
        codes = self.encode(x).detach()
        most = int(codes.sum(-1, dtype=torch.float32).max()) if codes.numel() else 0
        return codes.topk(most, dim=-1)

    @override
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        self.flip_price /= scaling_factor**2

    @override
    def _codes(self, centred: Tensor, pre: Tensor, noise: bool) -> Tensor:
        codes = super()._codes(centred, pre, noise)
        refined = self._refine(codes.detach(), centred, self.cfg.refine_passes)
        return codes + (refined - codes.detach())

    @torch.no_grad()
    def _refine(self, codes: Tensor, centred: Tensor, passes: int) -> Tensor:
        """Refined codes [..., d_sae] of codes of centred inputs [..., d_in]; no gradient."""
        target = centred + self._origin() - self.b_dec
        rows = (codes.flatten(0, -2), target.flatten(0, -2))
        return refine(*rows, self.W_dec, self.flip_price, passes).view_as(codes)


class RefinedSAE(RefinedCoder):
    """A refined binary autoencoder, for inference."""

    cfg: RefinedSAEConfig

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        # Training checkpoints also hold the rates that prices follow.
        own = {name: value for name, value in state_dict.items() if name != "firing_rate"}
        return super().load_state_dict(own, *args, **kwargs)


@dataclass
class RefinedTrainingSAEConfig(BinaryTrainingSAEConfig):
    """Config for training a refined binary autoencoder; also has the fields of its base class.

    surrogate and surrogate_latents have no effect. By default, no loss raises dead latents.

    Args:
        refine_passes: see RefinedSAEConfig. Whatever encodes outside a step makes as many: the
            refit at the end, evaluations, and the saved coder.
        training_passes: passes of a training step, or refine_passes if that is less. With 12, a
            step takes longer and the coder gets no better.
        cost_of_bit: squared error that is worth a bit, as a share of the variance. It sets how many
            bits a token takes: more cost, fewer bits.
        dense_coefficient: as BinaryTrainingSAEConfig's. At 2e-4, 5 to 22 of 2304 latents fired on
            more than a tenth of tokens at layers 4 and 9 of SmolLM2, and 152 at layer 20 (3 million
            tokens).
        surrogate_temperature: width of the logistic by which the linear encoder learns to tell the
            refined codes, in units of the pre-activation.
    """

    selection: str = choice(*SELECTIONS, default="threshold")
    surrogate_temperature: float = 0.5
    pre_act_loss_coefficient: float = 0.0
    dense_coefficient: float = 2e-4
    refine_passes: int = 12
    training_passes: int = 3
    cost_of_bit: float = 4e-4

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_at_least(
            1, refine_passes=self.refine_passes, training_passes=self.training_passes
        )
        checks.check_at_least(0, cost_of_bit=self.cost_of_bit)

    @override
    @classmethod
    def architecture(cls) -> str:
        return "binary_refined"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return RefinedSAEConfig


class RefinedTrainingSAE(RefinedCoder, BinaryTrainingSAE):
    """A refined binary autoencoder in training.

    The decoder learns from refined codes. The encoder learns to tell them: its loss is the cross-
    entropy of a logistic. Prices follow firing_rate [d_sae], a running mean, and the variance of
    the input over many batches.
    """

    cfg: RefinedTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    firing_rate: Tensor

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        rate = self.setting("initial_firing_rate")
        self.register_buffer("firing_rate", torch.full_like(self.flip_price, rate).float())

    @override
    def fit_to_first_batch(self, batch: Tensor) -> None:
        super().fit_to_first_batch(batch)
        self._set_price(self.run_time_activation_norm_fn_in(batch.to(self.dtype)))

    @override
    def code_losses(
        self, step_input: TrainStepInput, codes: Encoded, pre: Tensor | None, output: Tensor
    ) -> dict[str, Tensor]:
        losses = super().code_losses(step_input, codes, pre, output)
        # A step of this class always makes all pre-activations.
        values = cast(Tensor, pre)
        margin = values - self._rounded_log_threshold().exp().to(values.dtype)
        told = margin / self.cfg.surrogate_temperature
        loss = F.binary_cross_entropy_with_logits(told, codes.dense(), reduction="sum")
        return losses | {"encoder_loss": loss / codes.tokens}

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        output = super().training_forward_pass(step_input)
        codes = output.feature_acts.detach()
        # A module that was cast to bfloat16 could not follow small changes of a rate.
        rate = self.firing_rate.float()
        unknown = rate.isnan()
        if not certainly_none(unknown):
            bits = self.flip_price / (self.cfg.cost_of_bit * total_variance(output.sae_in))
            rate = torch.where(unknown, 1 / (1 + bits.exp2()), rate)
        self.firing_rate = rate.lerp(fired_rates(codes), min(1.0, len(codes) / RATE_TOKENS))
        self._set_price(output.sae_in)
        return output

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        # A coder that was saved for inference has prices alone. The first step tells its rates.
        unknown = torch.full((self.cfg.d_sae,), torch.nan, device=state_dict["b_enc"].device)
        return super().load_state_dict({"firing_rate": unknown, **state_dict}, *args, **kwargs)

    @override
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving_inference(state_dict)
        del state_dict["firing_rate"]

    @torch.no_grad()
    def _set_price(self, target: Tensor) -> None:
        """Set prices by the firing rates and by the variance up to a batch [tokens, d_in].

        The price of a dense latent also has the derivative of the loss on dense latents.
        """
        rate, variance = self.firing_rate, total_variance(target)
        price = variance * price_of_bits(rate, self.cfg.cost_of_bit, RATE_TOKENS)
        dense = rate > self.cfg.dense_rate
        price += self.cfg.dense_coefficient * variance * dense
        self.flip_price.copy_(follow_prices(self.flip_price, price, len(target)))

    @override
    def _codes(self, centred: Tensor, pre: Tensor, noise: bool) -> Tensor:
        linear = BinaryCoder._codes(self, centred, pre, noise=False).detach()
        # Only steps ask for noise, and the start of a search needs none.
        most = self.cfg.training_passes if noise else self.cfg.refine_passes
        return self._refine(linear, centred, min(most, self.cfg.refine_passes))

    @override
    def _encode_batch(self, encoder: Encoder) -> tuple[Encoded, Tensor | None]:
        pre = pre_activations(encoder.centred, self.W_enc, self.b_enc)
        codes = self._codes(encoder.centred, pre, noise=self.training)
        return DenseCodes(len(codes), self.cfg.d_sae, codes, pre), pre


@torch.no_grad()
def refine_coder(
    coder: BinaryCoder,
    batches: Sequence[tuple[Tensor, Tensor]],
    passes: int,
    cost_of_bit: float | None = None,
    pull: float = PULL,
) -> RefinedSAE:
    """A refined coder with a trained coder's encoder, and with the prices and decoder for it.

    Decoder and codes depend on each other. So the codes of a third of the batches are refined, the
    decoder is refitted to them, and the next third follows.

    Args:
        coder: a binary autoencoder, refined or not. It is not changed.
        batches: inputs and targets as refit_decoder takes them; at least one for each of ROUNDS.
        passes: the new coder's refine_passes.
        cost_of_bit: squared error that is worth a bit, as a share of the variance. None finds the
            cost at which codes have as many bits as before.
        pull: see refit_decoder.

    Raises:
        ValueError: there are fewer batches than ROUNDS, or an argument is out of range.
    """
    if len(batches) < ROUNDS:
        raise ValueError(f"batches: {len(batches)}, but the decoder is refitted {ROUNDS} times.")
    if cost_of_bit is not None and not cost_of_bit > 0:
        raise ValueError(f"cost_of_bit={cost_of_bit!r}: give a positive share of the variance.")
    refined = _unpriced(coder, passes)
    pricing = _Pricing(refined, coder, torch.cat([x for x, _ in batches])[:PRICED_TOKENS])
    pricing.set_price(cost_of_bit or pricing.find_cost())
    for number in range(ROUNDS):
        fit = fit_codes(refined, batches[number::ROUNDS])
        replace_decoder(fit, refined, pull)
        pricing.rates, pricing.tokens = fit.counts.diagonal() / fit.tokens, fit.tokens
        pricing.set_price(cost_of_bit or pricing.find_cost())
    return refined


def _unpriced(coder: BinaryCoder, passes: int) -> RefinedSAE:
    """A refined coder with the weights of another coder. Its bits cost nothing yet."""
    names = BinaryCodeConfig.__dataclass_fields__.keys() - {"metadata"}
    metadata: Any = copy.deepcopy(coder.cfg.metadata)
    # Remove these figures of SAELens, because they are of the codes before.
    for name in ("l0", "num_dead_features"):
        metadata.__dict__.pop(name, None)
    fields = {name: getattr(coder.cfg, name) for name in names}
    refined = RefinedSAE(RefinedSAEConfig(**fields, metadata=metadata, refine_passes=passes))
    refined.load_state_dict(coder.state_dict(), strict=False)
    return refined.to(coder.device)


class _Pricing:
    """Sets a coder's flip_price from its firing rates and a cost of a bit, on a sample of inputs.

    rates, [latents], were measured on `tokens` tokens.
    """

    def __init__(self, coder: RefinedSAE, before: BinaryCoder, sample: Tensor) -> None:
        self._coder, self._sample = coder, sample
        self._variance = total_variance(coder.process_sae_in(sample)).item()
        self.rates, self.tokens = _rates(before, sample), len(sample)
        self._bits = bernoulli_entropy(self.rates).sum().item()

    def set_price(self, cost: float) -> None:
        self._coder.flip_price.copy_(price_of_bits(self.rates, cost * self._variance, self.tokens))

    def find_cost(self) -> float:
        """The cost of a bit, as a share of variance, at which codes have as many bits as before."""
        low, high = COSTS_OF_BIT
        while high / low > 1.05:
            middle = math.sqrt(low * high)
            self.set_price(middle)
            bits = bernoulli_entropy(_rates(self._coder, self._sample)).sum().item()
            low, high = (middle, high) if bits > self._bits else (low, middle)
        return math.sqrt(low * high)


def _rates(coder: BinaryCoder, x: Tensor) -> Tensor:
    """Firing rates on inputs x [tokens, d_in]: [latents], float32."""
    return (coder.encode(x) != 0).float().mean(0)
