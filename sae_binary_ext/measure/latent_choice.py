"""A coder of chosen latents of another coder."""

import copy
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sae_binary_ext.saelens.autoencoder import BinaryCoder

AnyCoder = TypeVar("AnyCoder", bound=BinaryCoder)
DIMENSION_OF_LATENTS = {"W_enc": 1, "b_enc": 0, "log_threshold": 0, "W_dec": 0}
# Figures of all latents that SAELens writes into the metadata.
OF_ALL_LATENTS = ("l0", "num_dead_features")


@torch.no_grad()
def with_latents(coder: AnyCoder, latents: Tensor) -> AnyCoder:
    """A binary coder with some latents of another one, int64 [new d_sae]; a latent may occur twice.

    Raises:
        ValueError: latents is empty.
    """
    if not len(latents):
        raise ValueError(
            f"latents=[]: a coder needs at least one of the {coder.cfg.d_sae} latents. If no "
            "latent was worth its bits, train longer or lower the price of a bit."
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
