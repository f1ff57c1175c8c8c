"""Read, write, convert and publish coders: SAELens', sparsify's and the papers' own files."""

from sae_binary_ext.checkpoints.describe import describe
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.hook_names import HOOK_NAMES, HookName
from sae_binary_ext.checkpoints.load import (
    coder_to_saelens,
    coder_to_sparsify,
    convert,
    disk_converter,
    hub_converter,
    load_coder,
)
from sae_binary_ext.checkpoints.push import push

__all__ = [
    "HOOK_NAMES",
    "CheckpointError",
    "HookName",
    "coder_to_saelens",
    "coder_to_sparsify",
    "convert",
    "describe",
    "disk_converter",
    "hub_converter",
    "load_coder",
    "push",
]
