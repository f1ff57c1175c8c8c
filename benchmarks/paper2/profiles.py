"""Entropy of hidden states after examples of a prompt, and along the positions of a text."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.paper2.coders import Settings
from sae_binary_ext.commands import EntropyProfileConfig
from sae_binary_ext.commands.entropy_profile.entropy_profile_run import train_and_measure
from sae_binary_ext.measure import hidden_states
from sae_binary_ext.measure.hidden_states import States
from sae_binary_ext.measure.reading import open_model_alone
from sae_binary_ext.saelens.splice import resolve_hook

LAYERS = (18, 6)
# Twice as many prompts as by default, and ten times as many rows. Rows of 33 tokens reach
# position 32; rows of 64 would be too few in the embedded articles.
PROMPTS, ROWS = 3120, 15_200
ROW_TOKENS, READ_TOKENS = 33, 520_000
IN_CONTEXT, POSITIONS = "in_context", "positions"


@dataclass(frozen=True)
class Reading:
    """Hidden states to read: of prompts drawn with a seed, or of positions of text (seed 0)."""

    of: str
    seed: int = 0

    def config(self, folder: Path) -> EntropyProfileConfig:
        """The settings of the command that reads these states."""
        both: dict[str, Any] = {
            "output": folder,
            "along": "positions",
            "layers": list(LAYERS),
            "seed": self.seed,
            "device": "cpu",
        }
        if self.of == IN_CONTEXT:
            tokens = PROMPTS * EntropyProfileConfig.context_size
            return EntropyProfileConfig(**both, prompts=IN_CONTEXT, tokens=tokens, states=PROMPTS)
        return EntropyProfileConfig(
            **both, tokens=READ_TOKENS, context_size=ROW_TOKENS, states=ROWS
        )

    def path(self, folder: Path) -> Path:
        """The file of these states in the folder."""
        return folder / f"states_{self.of}_{self.seed}.safetensors"

    def make(self, settings: Settings) -> None:
        """Read the states, if they have no file yet."""
        path, config = self.path(settings.folder), self.config(settings.folder)
        if path.is_file():
            return
        opened = open_model_alone(config, config.output)
        hooks = {
            layer: resolve_hook(opened.model, "layers", f"blocks.{layer}.hook_resid_pre")
            for layer in LAYERS
        }
        if self.of == IN_CONTEXT:
            found = hidden_states.states_of_prompts(
                opened, config, hooks, config.states, config.seed
            )
        else:
            found = hidden_states.states_of_positions(opened, config, hooks, config.states)
        # The file is renamed when complete, so that an interrupted run leaves no partial file.
        unfinished = path.with_suffix(".unfinished")
        named = {f"{layer} {at}": states.contiguous() for (layer, at), states in found.items()}
        save_file(named, unfinished)
        unfinished.replace(path)

    def states(self, folder: Path) -> States:
        """The states that make has read, float16 [states, width] by layer and point."""
        found = load_file(self.path(folder))
        keys = {name: tuple(map(int, name.split())) for name in found}
        return {(keys[name][0], keys[name][1]): found[name] for name in found}


@dataclass(frozen=True)
class ProfileRun:
    """Coders to train for all points of a layer, with weights and order of states by a seed."""

    reading: Reading
    layer: int
    seed: int

    def key(self) -> dict[str, Any]:
        """What tells this run's line from all others in the file of results."""
        return {"kind": "profile", **asdict(self)}

    def make(self, settings: Settings) -> dict[str, Any]:
        """Train and measure a coder for each point; a line of the file of results."""
        config = replace(self.reading.config(settings.folder), seed=self.seed)
        states = self.reading.states(settings.folder)
        points = [
            train_and_measure(layer, at, found, config)
            for (layer, at), found in sorted(states.items())
            if layer == self.layer
        ]
        return self.key() | {
            "points": [
                {
                    "at": point.at,
                    "states": point.states,
                    "fvu": point.metrics.fvu,
                    "l0": point.metrics.l0,
                    "independent": point.metrics.entropy_bits,
                    "tree": point.bounds.tree.value,
                    "blocks": point.bounds.blocks.value,
                }
                for point in points
            ]
        }
