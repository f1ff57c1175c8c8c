"""Tells SAELens about the binary architectures. Nothing of SAELens is replaced."""

import logging

import sae_lens
from packaging.version import Version
from sae_lens.registry import (
    SAE_CLASS_REGISTRY,
    SAE_TRAINING_CLASS_REGISTRY,
    register_sae_class,
    register_sae_training_class,
)

from sae_binary_ext.saelens.autoencoder import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTrainingSAE,
    BinaryTrainingSAEConfig,
)
from sae_binary_ext.saelens.entropy import (
    BinaryEntropyTrainingSAE,
    BinaryEntropyTrainingSAEConfig,
)

logger = logging.getLogger(__name__)

OLDEST_TESTED = Version("6.54")
NEWEST_TESTED = Version("6.55")  # exclusive


def register() -> None:
    """Add the binary architectures to SAELens' registries. Idempotent."""
    if not OLDEST_TESTED <= Version(sae_lens.__version__) < NEWEST_TESTED:
        logger.warning(
            "Tested with SAELens from %s to below %s; this is %s and may still work.",
            OLDEST_TESTED,
            NEWEST_TESTED,
            sae_lens.__version__,
        )
    for architecture, coder, config in (
        ("binary", BinaryTrainingSAE, BinaryTrainingSAEConfig),
        ("binary_entropy", BinaryEntropyTrainingSAE, BinaryEntropyTrainingSAEConfig),
    ):
        if architecture not in SAE_TRAINING_CLASS_REGISTRY:
            register_sae_training_class(architecture, coder, config)
        # Under both names, so that SAE.load_from_disk reads training checkpoints too.
        if architecture not in SAE_CLASS_REGISTRY:
            register_sae_class(architecture, BinarySAE, BinarySAEConfig)
