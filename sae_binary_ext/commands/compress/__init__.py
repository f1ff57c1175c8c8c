"""`sae-binary compress`: writes hidden states to files as codes."""

from typing import TYPE_CHECKING

from sae_binary_ext.commands.command import MeasuringCommand, imported_late
from sae_binary_ext.commands.compress.config import CompressConfig

if TYPE_CHECKING:
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

__all__ = [
    "COMMAND",
    "CodeFileError",
    "CodeHeader",
    "CodeWriter",
    "CompressConfig",
    "coder_fingerprint",
    "decompress",
    "read_codes",
    "read_header",
    "run_compress",
]
COMMAND = MeasuringCommand(
    "compress", "hidden states as codes in files: size and error", settings=CompressConfig
)
__getattr__ = imported_late(__name__, "code_file", "compress_run")
