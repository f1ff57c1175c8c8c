"""What SAELens' training checkpoints lack for a resumed run to end where an unbroken one does."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RANDOM_STATE_FILENAME = "random_state.safetensors"


def save_random_state(checkpoint: Path) -> None:
    """Keep the state of torch's generators, which gumbel codes draw from, in a checkpoint."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    save_file(states, checkpoint / RANDOM_STATE_FILENAME)


def load_random_state(checkpoint: Path) -> None:
    """Go on drawing where a checkpoint was saved; nothing if it has no such state."""
    if not (checkpoint / RANDOM_STATE_FILENAME).is_file():
        return
    states = load_file(checkpoint / RANDOM_STATE_FILENAME)
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
