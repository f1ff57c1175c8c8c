"""The commands that train or measure, a room each; names are imported when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_binary_ext.commands.ablate.ablate_run import run_ablate
    from sae_binary_ext.commands.ablate.config import AblateConfig
    from sae_binary_ext.commands.compare.compare_run import run_compare
    from sae_binary_ext.commands.compare.config import CompareConfig
    from sae_binary_ext.commands.compress.code_file import (
        CodeFileError,
        CodeHeader,
        CodeWriter,
        read_codes,
        read_header,
    )
    from sae_binary_ext.commands.compress.compress_run import (
        coder_fingerprint,
        decompress,
        run_compress,
    )
    from sae_binary_ext.commands.compress.config import CompressConfig
    from sae_binary_ext.commands.comsem.comsem_run import run_comsem
    from sae_binary_ext.commands.comsem.comsem_scores import ComsemScore
    from sae_binary_ext.commands.comsem.config import ComsemConfig
    from sae_binary_ext.commands.demo.config import DemoConfig
    from sae_binary_ext.commands.demo.demo_run import run_demo
    from sae_binary_ext.commands.entropy.config import EntropyConfig
    from sae_binary_ext.commands.entropy.entropy_run import run_entropy
    from sae_binary_ext.commands.entropy_check.config import EntropyCheckConfig
    from sae_binary_ext.commands.entropy_check.entropy_check_run import run_entropy_check
    from sae_binary_ext.commands.entropy_profile.config import EntropyProfileConfig
    from sae_binary_ext.commands.entropy_profile.entropy_profile_run import run_entropy_profile
    from sae_binary_ext.commands.gradients.config import GradientsConfig
    from sae_binary_ext.commands.gradients.gradients_run import run_gradients
    from sae_binary_ext.commands.interpret.config import InterpretConfig
    from sae_binary_ext.commands.interpret.interpret_run import run_interpret
    from sae_binary_ext.commands.interpret.interpret_scores import CoderScores, LatentScore
    from sae_binary_ext.commands.multi_bit.config import MultiBitConfig
    from sae_binary_ext.commands.multi_bit.levels import (
        level_entropy,
        level_thresholds,
        with_levels,
    )
    from sae_binary_ext.commands.multi_bit.multi_bit_run import run_multi_bit
    from sae_binary_ext.commands.transfer.config import TransferConfig
    from sae_binary_ext.commands.transfer.transfer_run import run_transfer

# Of each name the module that has it.
_HOMES = {
    "AblateConfig": "ablate.config",
    "CodeFileError": "compress.code_file",
    "CodeHeader": "compress.code_file",
    "CodeWriter": "compress.code_file",
    "CoderScores": "interpret.interpret_scores",
    "CompareConfig": "compare.config",
    "CompressConfig": "compress.config",
    "ComsemConfig": "comsem.config",
    "ComsemScore": "comsem.comsem_scores",
    "DemoConfig": "demo.config",
    "EntropyCheckConfig": "entropy_check.config",
    "EntropyConfig": "entropy.config",
    "EntropyProfileConfig": "entropy_profile.config",
    "GradientsConfig": "gradients.config",
    "InterpretConfig": "interpret.config",
    "LatentScore": "interpret.interpret_scores",
    "MultiBitConfig": "multi_bit.config",
    "TransferConfig": "transfer.config",
    "coder_fingerprint": "compress.compress_run",
    "decompress": "compress.compress_run",
    "level_entropy": "multi_bit.levels",
    "level_thresholds": "multi_bit.levels",
    "read_codes": "compress.code_file",
    "read_header": "compress.code_file",
    "run_ablate": "ablate.ablate_run",
    "run_compare": "compare.compare_run",
    "run_compress": "compress.compress_run",
    "run_comsem": "comsem.comsem_run",
    "run_demo": "demo.demo_run",
    "run_entropy": "entropy.entropy_run",
    "run_entropy_check": "entropy_check.entropy_check_run",
    "run_entropy_profile": "entropy_profile.entropy_profile_run",
    "run_gradients": "gradients.gradients_run",
    "run_interpret": "interpret.interpret_run",
    "run_multi_bit": "multi_bit.multi_bit_run",
    "run_transfer": "transfer.transfer_run",
    "with_levels": "multi_bit.levels",
}

__all__ = [
    "AblateConfig",
    "CodeFileError",
    "CodeHeader",
    "CodeWriter",
    "CoderScores",
    "CompareConfig",
    "CompressConfig",
    "ComsemConfig",
    "ComsemScore",
    "DemoConfig",
    "EntropyCheckConfig",
    "EntropyConfig",
    "EntropyProfileConfig",
    "GradientsConfig",
    "InterpretConfig",
    "LatentScore",
    "MultiBitConfig",
    "TransferConfig",
    "coder_fingerprint",
    "decompress",
    "level_entropy",
    "level_thresholds",
    "read_codes",
    "read_header",
    "run_ablate",
    "run_compare",
    "run_compress",
    "run_comsem",
    "run_demo",
    "run_entropy",
    "run_entropy_check",
    "run_entropy_profile",
    "run_gradients",
    "run_interpret",
    "run_multi_bit",
    "run_transfer",
    "with_levels",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
