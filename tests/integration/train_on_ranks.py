"""Trains one rank's part of a distributed run: torchrun train_on_ranks.py MODEL OUTPUT CASE ...

Without torchrun, a single process trains with the same global batches. Each case's final weights
and the number of gradients of each parameter are saved in OUTPUT/CASE_RANK_of_RANKS.pt.
"""

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

import sae_binary_ext  # noqa: F401  # registers
from sae_binary_ext.sparsify import BinarySparseCoderConfig
from tests.integration.sparsify_helpers import token_rows, trainer_for

GLOBAL_BATCH, STEPS = 8, 10
# For each case: fields of the coder's config, and fields of the training config.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "topk_binary": ({"entropy_alpha": 1e-3}, {"auxk_alpha": 0.1, "dead_feature_threshold": 600}),
    "groupmax_binary": (
        {"transcode": True, "skip_connection": True, "refit_tokens": 400},
        {"grad_acc_steps": 2},
    ),
    "gumbel_binary": ({"transcode": True}, {}),
    "binary": ({"entropy_alpha": 1e-3, "covariance_alpha": 1e-5, "refit_tokens": 400}, {}),
    "refined": ({"activation": "binary", "refine_passes": 2, "refit_tokens": 400}, {}),
    "distributed": ({"activation": "topk_binary"}, {"distribute_modules": True}),
}


def main(model: Path, output: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1:
        dist.init_process_group("gloo")
    batches = token_rows(GLOBAL_BATCH * STEPS, 32, 60).unflatten(0, (STEPS, GLOBAL_BATCH))
    own = batches.chunk(ranks, dim=1)[rank].flatten(0, 1)
    for case in cases:
        coder, training = CASES[case]
        if ranks == 1:
            training = {**training, "distribute_modules": False}
        elif "dead_feature_threshold" in training:
            # On each rank, sparsify counts only the tokens of that rank.
            tokens = training["dead_feature_threshold"] // ranks
            training = {**training, "dead_feature_threshold": tokens}
        name = f"{case}_{rank}_of_{ranks}"
        trainer = trainer_for(
            model,
            BinarySparseCoderConfig(**{"activation": case, "k": 8, "expansion_factor": 8, **coder}),
            own,
            output / name,
            **{"optimizer": "adam", "lr": 3e-3, "batch_size": GLOBAL_BATCH // ranks, **training},
        )
        received: Counter[str] = Counter()
        for hookpoint, sae in trainer.saes.items():
            for parameter, tensor in sae.named_parameters():
                tensor.register_post_accumulate_grad_hook(
                    lambda _, key=f"{hookpoint}.{parameter}", to=received: to.update([key])
                )
        trainer.fit()
        weights = {hookpoint: sae.state_dict() for hookpoint, sae in trainer.saes.items()}
        torch.save({"weights": weights, "gradients": dict(received)}, output / f"{name}.pt")
    if ranks > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
