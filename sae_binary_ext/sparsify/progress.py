"""What sparsify's Trainer knows and a coder in training needs."""

from dataclasses import dataclass

from torch.distributed import ProcessGroup


@dataclass
class TrainingProgress:
    """What sparsify's Trainer knows and a coder needs; register.py keeps it up to date.

    Attributes:
        step: optimizer steps done.
        group: ranks whose batches make up one (DistributedDataParallel), or None.
        regulariser_share: weight of the losses on the codes alone (entropy, covariance, dense
            latents) in the gradient of the reconstruction itself, for training on the model's
            loss (ce, kl); 0 where the FVU is the loss and carries them.
        fit_start: set the initial parameters on the next batch.
        parts: into how many parts the Trainer cuts a batch (micro_acc_steps).
        noise_seed: seed of this batch's samples (gumbel_binary), so that a resumed run draws what
            an unbroken one does: sparsify saves no random state. None draws as torch does.
    """

    step: int = 0
    group: ProcessGroup | None = None
    regulariser_share: float = 0.0
    fit_start: bool = False
    parts: int = 1
    noise_seed: int | None = None
