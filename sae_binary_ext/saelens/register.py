"""Tells SAELens about the binary architectures. Nothing of SAELens is replaced."""

import sae_lens
from sae_lens.registry import (
    SAE_CLASS_REGISTRY,
    SAE_TRAINING_CLASS_REGISTRY,
    register_sae_class,
    register_sae_training_class,
)

from sae_binary_ext.registration import warn_if_untested
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


def register() -> None:
    """Add the binary architectures to SAELens' registries. Idempotent."""
    warn_if_untested(sae_lens, oldest="6.54", below="6.55")
    for architecture, coder, config in (
        ("binary", BinaryTrainingSAE, BinaryTrainingSAEConfig),
        ("binary_entropy", BinaryEntropyTrainingSAE, BinaryEntropyTrainingSAEConfig),
    ):
        if architecture not in SAE_TRAINING_CLASS_REGISTRY:
            register_sae_training_class(architecture, coder, config)
        # Under both names, so that SAE.load_from_disk reads training checkpoints too.
        if architecture not in SAE_CLASS_REGISTRY:
            register_sae_class(architecture, BinarySAE, BinarySAEConfig)
