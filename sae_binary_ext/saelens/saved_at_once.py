"""Saves of SAELens coders, weights and config at once."""

from pathlib import Path
from typing import Any

from sae_lens.saes.sae import SAE
from typing_extensions import override

from sae_binary_ext.saelens.private import HOST
from sae_binary_ext.saving import replacing
from sae_binary_ext.training.finite import check_parameters


class SavedAtOnce(SAE[Any]):
    """A coder whose save a killed process leaves done or not begun (see saving.replacing)."""

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        HOST.check()
        super().__init__(cfg, use_error_term)

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """Write sae_weights.safetensors and cfg.json; returns their paths.

        Raises:
            ValueError: a parameter is not finite; nothing is written then.
        """
        check_parameters(self.named_parameters())
        with replacing(Path(path)) as new:
            weights, config = super().save_model(new)
        return Path(path) / weights.name, Path(path) / config.name
