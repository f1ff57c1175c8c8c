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
from sae_binary_ext.saelens.transcoder import (
    BinaryTranscoder,
    BinaryTranscoderConfig,
    BinaryTranscoderTrainingSAE,
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoder,
    TopKTranscoderConfig,
    TopKTranscoderTrainingSAE,
    TopKTranscoderTrainingSAEConfig,
)

# Of each training architecture, its classes in training and those it is loaded as.
ARCHITECTURES = (
    (BinaryTrainingSAE, BinaryTrainingSAEConfig, BinarySAE, BinarySAEConfig),
    (BinaryEntropyTrainingSAE, BinaryEntropyTrainingSAEConfig, BinarySAE, BinarySAEConfig),
    (
        BinaryTranscoderTrainingSAE,
        BinaryTranscoderTrainingSAEConfig,
        BinaryTranscoder,
        BinaryTranscoderConfig,
    ),
    (
        TopKTranscoderTrainingSAE,
        TopKTranscoderTrainingSAEConfig,
        TopKTranscoder,
        TopKTranscoderConfig,
    ),
)


def register() -> None:
    """Add the binary architectures to SAELens' registries. Idempotent."""
    warn_if_untested(sae_lens, oldest="6.54", below="6.55")
    for training_coder, training_config, coder, config in ARCHITECTURES:
        architecture = training_config.architecture()
        if architecture not in SAE_TRAINING_CLASS_REGISTRY:
            register_sae_training_class(architecture, training_coder, training_config)
        # Under this name too where the saved coder has another (binary_entropy), so that
        # SAE.load_from_disk reads training checkpoints.
        if architecture not in SAE_CLASS_REGISTRY:
            register_sae_class(architecture, coder, config)
