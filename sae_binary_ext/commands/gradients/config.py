"""The settings of `sae-binary gradients`."""

from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.checks import check_at_least, check_choice
from sae_binary_ext.settings import ReadingConfig

# Tokens of a training step.
BATCH = 256


@dataclass
class GradientsConfig(ReadingConfig):
    """
    Train a binary coder with each surrogate, and compare the surrogate's gradient with what steps
    do to the true loss, over training.
    """

    hook: str | None = "blocks.9.hook_resid_pre"
    """SAELens' name of the hook whose activations coders are trained on."""
    output: Path = Path("runs/gradients")
    """Folder for gradients.json and gradients.html."""
    tokens: int = 40_000
    """Tokens to read and train on."""
    surrogates: list[str] = field(default_factory=list)
    """Which are compared; all if left out."""
    selection: str = "topk"
    """Of the coders: topk, groupmax, threshold."""
    surrogate_temperature: float = 1.0
    """Width of the surrogates, in units of the pre-activation."""
    latents: int = 2304
    """Width of the coders."""
    k: int = 32
    """Active latents a token, or groups."""
    training_states: int = 120_000
    """Activations that each coder sees, the same ones again and again."""
    probes: int = 6
    """Steps at which gradients are measured, evenly spaced on a logarithmic axis."""
    probe_tokens: int = 512
    """Tokens of the batch that they are measured on."""
    probed_latents: int = 64
    """Latents whose bias is bumped."""
    seed: int = 0
    """Of weights, of the order of the activations, and of the latents drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Here, not above: it imports torch, and help should not wait for that.
        from sae_binary_ext.coding import SELECTIONS, SURROGATES

        for surrogate in self.surrogates:
            check_choice(SURROGATES, surrogates=surrogate)
        comparable = [name for name, kind in SELECTIONS.items() if not kind.samples]
        if self.selection not in comparable:
            raise ValueError(
                f"selection={self.selection!r}: choose {' or '.join(comparable)}. A selection that "
                "samples its codes has no loss without noise to compare with."
            )
        check_at_least(
            1,
            probes=self.probes,
            probe_tokens=self.probe_tokens,
            probed_latents=self.probed_latents,
        )
        check_at_least(BATCH, training_states=self.training_states)

    def probe_steps(self) -> list[int]:
        """Steps of training after which gradients are measured, the first and the last included."""
        last = self.training_states // BATCH
        between = max(self.probes - 1, 1)
        return sorted({round(last ** (probe / between)) for probe in range(self.probes)})
