"""The 0/1 step and its surrogate gradients.

The step is 1 if a latent's margin (pre-activation minus threshold) is positive. The step's true
derivative is zero almost everywhere, so backward uses a surrogate. All four formulas are those of
Quirke et al. (arXiv 2509.25596). The sigmoid formula at temperature 1 is also that of Cho et al.
(arXiv 2509.20997). Our sigmoid formula keeps its factor 1/T, which the code of Quirke et al. drops.

To add a surrogate, write one function below and one row of SURROGATES.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surrogate:
    """The gradient that backward uses for the step.

    Attributes:
        slope: function of (margin, temperature) that returns the slope at each margin.
        ste: the surrogate's name in sparsify's configs and files, and in those of Quirke et al.
    """

    slope: Callable[[Tensor, float], Tensor]
    ste: str


# ReSTE's slope is unbounded at margin 0. Margins closer to 0 than this get the slope at this value.
RESTE_SMALLEST_MARGIN = 1e-6


def sigmoid(margin: Tensor, temperature: float) -> Tensor:
    """Derivative of sigmoid(margin / T), with respect to the margin."""
    # Temperature 1 is the usual one, and each pass over all margins takes time.
    activation = torch.sigmoid(margin if temperature == 1 else margin / temperature)
    slope = activation.addcmul_(activation, activation, value=-1)
    return slope if temperature == 1 else slope.div_(temperature)


def rectangle(margin: Tensor, temperature: float) -> Tensor:
    """Slope of 1/T if |margin / T| < 1/2, else 0."""
    return ((margin / temperature).abs() < 0.5).to(margin.dtype) / temperature


def reste(margin: Tensor, temperature: float) -> Tensor:
    """Slope of (1/T) |margin|^((1 - T) / T), the derivative of sign(margin) |margin|^(1/T)."""
    distance = margin.abs().clamp_min(RESTE_SMALLEST_MARGIN)
    return distance.pow((1 - temperature) / temperature) / temperature


def identity(margin: Tensor, temperature: float) -> Tensor:
    """Slope of 1 at every margin: the straight-through estimator. The temperature has no effect."""
    return torch.ones_like(margin)


SURROGATES: dict[str, Surrogate] = {
    "sigmoid": Surrogate(sigmoid, ste="sigmoid"),
    "rectangle": Surrogate(rectangle, ste="rectangle"),
    "reste": Surrogate(reste, ste="re"),
    "identity": Surrogate(identity, ste="identity"),
}


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, margin: Tensor, surrogate: str, temperature: float) -> Tensor:
        ctx.save_for_backward(margin)
        ctx.slope, ctx.temperature = SURROGATES[surrogate].slope, temperature
        return (margin > 0).to(margin.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (margin,) = ctx.saved_tensors
        return grad_outputs[0] * ctx.slope(margin, ctx.temperature), None, None


def step(margin: Tensor, surrogate: str, temperature: float) -> Tensor:
    """Codes of exactly 1.0 if the margin is positive, else 0.0, with a surrogate gradient.

    Args:
        margin: any shape, floating point; pre-activation minus threshold. Codes have this dtype.
        surrogate: a key of SURROGATES.
        temperature: positive width of the surrogate, in units of the margin.
    """
    return _Step.apply(margin, surrogate, temperature)  # pyright: ignore[reportReturnType]


def fired(margin: Tensor, surrogate: str, temperature: float) -> Tensor:
    """Codes of 1.0 at every margin, with the gradient of step, for latents that did not fire."""
    codes = step(margin, surrogate, temperature)
    return codes + (1 - codes).detach()
