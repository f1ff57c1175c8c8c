"""What sparsify's Trainer knows and a coder in training needs."""

from dataclasses import dataclass

from torch import Tensor
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
        first_batch: the Trainer is at its first batch.
        fit_start: set the initial parameters on the next batch.
        parts: how many parts of this size the Trainer cuts the batch into (micro_acc_steps), a
            number or a scalar. The losses on the codes alone are divided by it, as the FVU is.
        variance: summed over the tokens of the whole batch, a scalar, where sparsify's is in too
            narrow a dtype; None where sparsify's is right, or the part is the batch.
        noise_seed: seed of this batch's samples (gumbel_binary), so that a resumed run draws what
            an unbroken one does: sparsify saves no random state. None draws as torch does.
    """

    step: int = 0
    group: ProcessGroup | None = None
    regulariser_share: float = 0.0
    first_batch: bool = False
    fit_start: bool = False
    parts: float | Tensor = 1.0
    variance: Tensor | None = None
    noise_seed: int | None = None
