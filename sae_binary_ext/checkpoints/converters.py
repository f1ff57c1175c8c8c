"""Converters for SAELens' own SAE.from_pretrained and SAE.load_from_disk."""

from pathlib import Path
from typing import Any

from torch import Tensor

from sae_binary_ext.checkpoints.load import load_coder


def hub_converter(
    repo_id: str,
    folder_name: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor], None]:
    """Read a coder of any format: SAE.from_pretrained(repo, folder, converter=hub_converter).

    Args:
        repo_id: the repository's id.
        folder_name: the coder's folder in the repository.
        device: where to put the tensors.
        force_download: download files again that are already here.
        cfg_overrides: config fields that replace the coder's.

    Returns:
        Config, tensors by SAELens' names, and no firing statistics.

    Raises:
        CheckpointError: see load_coder.
    """
    if force_download:
        from huggingface_hub import snapshot_download

        snapshot_download(repo_id, allow_patterns=f"{folder_name}/*", force_download=True)
    return *disk_converter(repo_id, device, cfg_overrides, hookpoint=folder_name), None


def disk_converter(
    path: str | Path,
    device: str = "cpu",
    cfg_overrides: dict[str, Any] | None = None,
    hookpoint: str | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a coder of any format: SAE.load_from_disk(folder, converter=disk_converter).

    Args:
        path: the coder's folder.
        device: where to put the tensors.
        cfg_overrides: config fields that replace the coder's.
        hookpoint: as load_coder takes it.

    Returns:
        Config, and tensors by SAELens' names.

    Raises:
        CheckpointError: see load_coder.
    """
    coder = load_coder(path, hookpoint, host="saelens", device=device)
    config = {**coder.cfg.to_dict(), "device": device, **(cfg_overrides or {})}
    return config, coder.state_dict()
