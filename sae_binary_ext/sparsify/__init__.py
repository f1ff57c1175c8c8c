"""The sparsify adapter: binary coders in EleutherAI sparsify."""

# Import sparsify first: its import registers the binary coders, with the modules below.
try:
    import sparsify  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "sae_binary_ext.sparsify needs sparsify, which is not installed: "
        "pip install 'sae_binary_ext[sparsify]'."
    ) from error

from sae_binary_ext.sparsify.coder import BinarySparseCoder
from sae_binary_ext.sparsify.config import BinarySparseCoderConfig
from sae_binary_ext.sparsify.refined_coder import RefinedSparseCoder

__all__ = ["BinarySparseCoder", "BinarySparseCoderConfig", "RefinedSparseCoder"]
