"""The SAELens adapter: binary coders as SAELens architectures."""

# Import SAELens first: its import registers this package, which needs the modules below.
try:
    import sae_lens  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "sae_binary_ext.saelens needs SAELens, which is not installed: "
        "pip install 'sae_binary_ext[saelens]'."
    ) from error

from sae_binary_ext.saelens.autoencoder import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTrainingSAE,
    BinaryTrainingSAEConfig,
)
from sae_binary_ext.saelens.binary_entropy import (
    BinaryEntropyTrainingSAE,
    BinaryEntropyTrainingSAEConfig,
)
from sae_binary_ext.saelens.refined import (
    RefinedSAE,
    RefinedSAEConfig,
    RefinedTrainingSAE,
    RefinedTrainingSAEConfig,
    refine_coder,
)
from sae_binary_ext.saelens.runner import TranscoderTrainingRunner
from sae_binary_ext.saelens.runner_config import TranscoderRunnerConfig
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

__all__ = [
    "BinaryEntropyTrainingSAE",
    "BinaryEntropyTrainingSAEConfig",
    "BinarySAE",
    "BinarySAEConfig",
    "BinaryTrainingSAE",
    "BinaryTrainingSAEConfig",
    "BinaryTranscoder",
    "BinaryTranscoderConfig",
    "BinaryTranscoderTrainingSAE",
    "BinaryTranscoderTrainingSAEConfig",
    "RefinedSAE",
    "RefinedSAEConfig",
    "RefinedTrainingSAE",
    "RefinedTrainingSAEConfig",
    "TopKTranscoder",
    "TopKTranscoderConfig",
    "TopKTranscoderTrainingSAE",
    "TopKTranscoderTrainingSAEConfig",
    "TranscoderRunnerConfig",
    "TranscoderTrainingRunner",
    "refine_coder",
]
