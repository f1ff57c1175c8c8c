"""The coders of the grid: place, k, kind and seed, and their settings in sparsify."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsify import SparseCoderConfig

from benchmarks.reconstruction.activations import Site
from sae_binary_ext.sparsify import BinarySparseCoderConfig

# The paper's hookpoints are the MLPs of these layers. The first two that are made come first.
LAYERS = (9, 18, 0, 27)
FORMS = ("autoencoder", "transcoder")
KS = (16, 32, 64, 128)
SEEDS = (0, 1, 2)
# The paper has 32 to 64 latents for each dimension. Here there are 4.
LATENTS = 2304
# sparsify's own coder; the paper's binary coder; this package's defaults.
KINDS = ("topk", "quirke2025", "topk_binary")

# Each kind's own learning rate is multiplied by one of these. The factor is chosen for each kind
# and form at this layer and k, on rows that no table reports.
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SEARCH_LAYER, SEARCH_K = 9, 32


@dataclass(frozen=True)
class Case:
    """A coder to train.

    Attributes:
        layer: the layer in SmolLM2 whose MLP is read.
        form: "autoencoder" of the MLP's output, or "transcoder" with a skip connection.
        kind: one of KINDS.
        factor: multiplies the kind's own learning rate.
    """

    layer: int
    form: str
    kind: str
    k: int
    seed: int
    factor: float

    def key(self) -> dict[str, Any]:
        """What tells this case's line from all others in the file of results."""
        return asdict(self)

    @property
    def hookpoint(self) -> str:
        """The module that sparsify's Trainer watches."""
        return f"layers.{self.layer}.mlp"

    @property
    def name(self) -> str:
        """A name for the folder of the trained coder."""
        return f"{self.kind}-{self.form}-k{self.k}-seed{self.seed}-lr{self.factor:g}"

    def folder(self, folder: Path) -> Path:
        """The trained coder's own folder in the folder of all runs."""
        return folder / "coders" / self.name / self.hookpoint

    def config(self) -> SparseCoderConfig:
        """The coder's config. A stock coder has the Trainer's own defaults."""
        transcode = self.form == "transcoder"
        shared: dict[str, Any] = {
            "num_latents": LATENTS,
            "k": self.k,
            "transcode": transcode,
            "skip_connection": transcode,
        }
        if self.kind == "topk":
            return SparseCoderConfig(**shared)
        if self.kind == "quirke2025":
            return BinarySparseCoderConfig.quirke2025(**shared)
        return BinarySparseCoderConfig(**shared)


def site(layer: int) -> Site:
    """The activations of a layer: its MLP's input and output, side by side."""
    return Site("transcoder", layer)


def searched(kind: str, form: str) -> list[Case]:
    """The cases by which a kind's learning rate is chosen, for one form."""
    return [Case(SEARCH_LAYER, form, kind, SEARCH_K, SEEDS[0], factor) for factor in FACTORS]
