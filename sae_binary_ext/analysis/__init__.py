"""What can be learned from trained binary coders, and made better of them."""

# First: it says what to install where SAELens is missing.
import sae_binary_ext.saelens  # noqa: F401  # pyright: ignore[reportUnusedImport]
from sae_binary_ext.analysis.ablate import AblateConfig, run_ablate
from sae_binary_ext.analysis.code_entropy import CodeEntropy, GatheredCodes
from sae_binary_ext.analysis.code_file import (
    CodeFileError,
    CodeHeader,
    CodeWriter,
    read_codes,
    read_header,
)
from sae_binary_ext.analysis.compress import (
    CompressConfig,
    coder_fingerprint,
    decompress,
    run_compress,
)
from sae_binary_ext.analysis.comsem import ComsemConfig, run_comsem
from sae_binary_ext.analysis.entropy import EntropyConfig, run_entropy
from sae_binary_ext.analysis.entropy_check import EntropyCheckConfig, run_entropy_check
from sae_binary_ext.analysis.entropy_profile import EntropyProfileConfig, run_entropy_profile
from sae_binary_ext.analysis.gradients import GradientsConfig, run_gradients
from sae_binary_ext.analysis.least_squares import DecoderFit
from sae_binary_ext.analysis.levels import level_entropy, level_thresholds, with_levels
from sae_binary_ext.analysis.multi_bit import MultiBitConfig, run_multi_bit
from sae_binary_ext.analysis.refit import Refitted, refit, refit_decoder
from sae_binary_ext.analysis.report import Analysis
from sae_binary_ext.analysis.text import Text, read_activations
from sae_binary_ext.analysis.transfer import TransferConfig, run_transfer

__all__ = [
    "AblateConfig",
    "Analysis",
    "CodeEntropy",
    "CodeFileError",
    "CodeHeader",
    "CodeWriter",
    "CompressConfig",
    "ComsemConfig",
    "DecoderFit",
    "EntropyCheckConfig",
    "EntropyConfig",
    "EntropyProfileConfig",
    "GatheredCodes",
    "GradientsConfig",
    "MultiBitConfig",
    "Refitted",
    "Text",
    "TransferConfig",
    "coder_fingerprint",
    "decompress",
    "level_entropy",
    "level_thresholds",
    "read_activations",
    "read_codes",
    "read_header",
    "refit",
    "refit_decoder",
    "run_ablate",
    "run_compress",
    "run_comsem",
    "run_entropy",
    "run_entropy_check",
    "run_entropy_profile",
    "run_gradients",
    "run_multi_bit",
    "run_transfer",
    "with_levels",
]
