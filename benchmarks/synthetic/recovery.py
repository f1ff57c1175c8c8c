"""How many latents a known feature gets, and how much of its magnitude they tell."""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.synthetic import SyntheticModel
from torch import Tensor

# A latent belongs to a feature if the cosine of its decoder row with the feature is at least this.
LEAST_COSINE = 0.7


@dataclass(frozen=True)
class Groups:
    """Latents of each feature, and what they tell of its magnitude.

    latents: int64 [features], number of latents that fire and belong to the feature.
    told: float64 [features], share of the variance of the feature's magnitude, where it is active,
        that a linear function of its latents' codes explains; NaN if the magnitude is constant or
        the feature has no latent.
    """

    latents: Tensor
    told: Tensor

    def summary(self, chosen: Tensor) -> dict[str, float]:
        """Means over the chosen features, bool [features]; told over those that have latents."""
        own = self.latents[chosen].double()
        return {
            "latents": own.mean().item(),
            "without": (own == 0).double().mean().item(),
            "several": (own > 1).double().mean().item(),
            "told": self.told[chosen].nanmean().item(),
        }


@torch.no_grad()
def find_groups(coder: Any, world: SyntheticModel, samples: int) -> Groups:
    """Find the latents of each feature of a world, on new samples."""
    hidden, features = world.sample_with_features(samples)
    codes = coder.encode(hidden)
    rows = torch.nn.functional.normalize(coder.W_dec.float(), dim=1)
    directions = torch.nn.functional.normalize(world.feature_dict.feature_vectors.float(), dim=1)
    cosines, owners = (rows @ directions.T).max(1)
    owners[(cosines < LEAST_COSINE) | ~(codes != 0).any(0)] = -1
    latents = torch.zeros(len(directions), dtype=torch.int64)
    told = torch.full((len(directions),), torch.nan, dtype=torch.float64)
    for feature in range(len(directions)):
        own = (owners == feature).nonzero()[:, 0]
        latents[feature] = len(own)
        active = features[:, feature] > 0
        if len(own):
            magnitudes = features[active, feature].double()
            told[feature] = explained(codes[active][:, own].double(), magnitudes)
    return Groups(latents, told)


def explained(codes: Tensor, magnitudes: Tensor) -> float:
    """Share of the variance of magnitudes [samples] that codes [samples, latents] explain.

    NaN if the magnitudes are constant or fewer than the unknowns of the linear function.
    """
    centred = magnitudes - magnitudes.mean()
    total = centred.square().sum()
    if len(magnitudes) <= codes.shape[1] + 1 or total <= 1e-9 * magnitudes.square().sum():
        return float("nan")
    inputs = torch.cat([codes, torch.ones_like(codes[:, :1])], dim=1)
    # gelsd also takes latents that never change among these samples.
    solution = torch.linalg.lstsq(inputs, magnitudes[:, None], driver="gelsd").solution
    left = (inputs @ solution)[:, 0] - magnitudes
    return (1 - left.square().sum() / total).item()
