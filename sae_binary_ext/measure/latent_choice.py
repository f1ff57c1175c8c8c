"""A coder of some latents of another, each as often as it is wanted."""

import copy
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sae_binary_ext.saelens.autoencoder import BinaryCoder

AnyCoder = TypeVar("AnyCoder", bound=BinaryCoder)
DIMENSION_OF_LATENTS = {"W_enc": 1, "b_enc": 0, "log_threshold": 0, "W_dec": 0}
# What SAELens puts down of the old latents.
OF_ALL_LATENTS = ("l0", "num_dead_features")


@torch.no_grad()
def with_latents(coder: AnyCoder, latents: Tensor) -> AnyCoder:
    """A coder of these latents of another, their weights as they were.

    Args:
        coder: a binary autoencoder or transcoder, trained or in training.
        latents: int64 [d_sae of the new one]; one may stand there several times.

    Raises:
        ValueError: there are none.
    """
    if not len(latents):
        raise ValueError(
            f"latents=[]: a coder needs at least one of the {coder.cfg.d_sae}. Where none paid "
            "for its bits, train longer or lower the price of a bit."
        )
    metadata: Any = copy.deepcopy(coder.cfg.metadata)
    for name in OF_ALL_LATENTS:
        metadata.__dict__.pop(name, None)
    chosen = type(coder)(replace(coder.cfg, d_sae=len(latents), metadata=metadata))
    state = {
        name: value.index_select(DIMENSION_OF_LATENTS[name], latents.to(value.device))
        if name in DIMENSION_OF_LATENTS
        else value
        for name, value in coder.state_dict().items()
    }
    chosen.load_state_dict(state)
    return chosen
