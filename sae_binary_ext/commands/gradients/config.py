"""The settings of `sae-binary gradients`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_choice
from sae_binary_ext.settings import ActivationsFields, ReadingConfig

BATCH = 256  # number of tokens in a training step


@dataclass
class GradientsConfig(ActivationsFields, ReadingConfig):
    """Train a coder with each surrogate; compare its gradients with changes of the true loss."""

    hook: str | None = "blocks.9.hook_resid_pre"
    """SAELens' name of the hook whose activations coders are trained on."""
    output: Path = Path("runs/gradients")
    """Folder for gradients.json and gradients.html."""
    tokens: int = 40_000
    """How many tokens to read and train on."""
    surrogates: list[str] = field(default_factory=list)
    """Surrogates to compare. If left out: all surrogates."""
    selection: str = "topk"
    """Selection of the coders: topk, groupmax or threshold."""
    surrogate_temperature: float = 1.0
    """Width of the surrogates, in units of the pre-activation."""
    latents: int = 2304
    """Width of the coders."""
    k: int = 32
    """Active latents per token. For groupmax it is the number of groups."""
    training_states: int = 120_000
    """How many activations each coder sees in training. They are repeated as often as needed."""
    probes: int = 6
    """At how many steps to measure gradients. The steps are evenly spaced on a logarithmic axis."""
    probe_tokens: int = 512
    """How many tokens to measure gradients on. No coder is trained on them."""
    probed_latents: int = 64
    """How many latents to draw. The bias of each is raised and lowered, to measure the loss."""
    seed: int = 0
    """Seed of weights, of the order of activations, and of the latents drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # This import is here because torch takes seconds to load, and --help should not wait for
        # it.
        from sae_binary_ext.coding import SELECTIONS, SURROGATES

        for surrogate in self.surrogates:
            check_choice(SURROGATES, surrogates=surrogate)
        comparable = [name for name, kind in SELECTIONS.items() if not kind.samples]
        if self.selection not in comparable:
            raise ValueError(
                f"selection={self.selection!r}: choose {' or '.join(comparable)}. A selection that "
                "samples its codes has no loss without noise to compare with."
            )
        check_at_least(1, probes=self.probes, probe_tokens=self.probe_tokens)
        check_at_least(1, probed_latents=self.probed_latents)
        check_at_least(BATCH, training_states=self.training_states)

    def probe_steps(self) -> list[int]:
        """Training steps after which gradients are measured, from the first step to the last."""
        last = self.training_states // BATCH
        between = max(self.probes - 1, 1)
        return sorted({round(last ** (probe / between)) for probe in range(self.probes)})
