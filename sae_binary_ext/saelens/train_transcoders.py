"""Trains a transcoder for each layer of a model, from the command line.

python -m sae_binary_ext.saelens.train_transcoders --architecture binary_transcoder ...
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sae_lens import TrainingSAEConfig
from simple_parsing import ArgumentParser, subgroups
from simple_parsing import field as option
from typing_extensions import override

from sae_binary_ext.saelens.runner import TranscoderTrainingRunner
from sae_binary_ext.saelens.runner_config import TranscoderRunnerConfig
from sae_binary_ext.saelens.transcoder import (
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
)

# As SAELens' own command line, which has the same widths if none are given.
_ARCHITECTURES = {
    config.architecture(): partial(config, d_in=512, d_sae=1024)
    for config in (BinaryTranscoderTrainingSAEConfig, TopKTranscoderTrainingSAEConfig)
}


def _position(text: str) -> int | None:
    # The parser takes "1 -1" for SAELens' own field, but not "1 None".
    return None if text == "None" else int(text)


@dataclass(kw_only=True)
class CommandLineConfig(TranscoderRunnerConfig):
    """A run with one architecture. Each field that can be written as text is an option."""

    # Each field has its help here, because the parser would show the comment beside it.
    sae: TrainingSAEConfig = subgroups(  # noqa: RUF009  # pyright: ignore[reportCallIssue]
        _ARCHITECTURES,  # pyright: ignore[reportArgumentType]
        default="binary_transcoder",
        alias="--architecture",
        help="the architecture; its fields are options too",
    )
    hook_name: str = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        help="hook of the inputs: blocks.{layer}.mlp.hook_in, or, for AutoModelForCausalLM, the "
        "module model.layers.{layer}.post_attention_layernorm"
    )
    hook_name_out: str = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        help="hook of the targets: blocks.{layer}.hook_mlp_out, or model.layers.{layer}.mlp"
    )
    seqpos_slice: tuple[int | None, ...] = option(
        default=(None,),
        nargs="+",
        type=_position,
        required=False,
        help="positions to train on, as Python's slice: 1 None leaves out the first position",
    )
    layers: list[int] | None = option(  # noqa: RUF009  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None, help="numbers of the layers; without this option, all layers"
    )
    saes: Mapping[str, TrainingSAEConfig] = option(cmd=False, default_factory=dict)
    lrs: Mapping[str, float] = option(cmd=False, default_factory=dict)
    evaluator: None = option(  # pyright: ignore[reportIncompatibleVariableOverride]
        cmd=False, default=None
    )

    @override
    def __post_init__(self) -> None:
        self.saes = self.saes or {self.sae.architecture(): self.sae}
        self.seqpos_slice = tuple(self.seqpos_slice)
        super().__post_init__()

    @override
    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "sae"}


def parse(arguments: list[str]) -> CommandLineConfig:
    """The run that command-line arguments describe."""
    parser = ArgumentParser(prog="python -m sae_binary_ext.saelens.train_transcoders")
    parser.add_arguments(CommandLineConfig, dest="cfg")
    return parser.parse_args(arguments or ["--help"]).cfg


def main(arguments: list[str]) -> None:
    """Train the transcoders that command-line arguments describe."""
    run = parse(arguments)
    torch.manual_seed(run.seed)
    TranscoderTrainingRunner(run).run()


if __name__ == "__main__":
    main(sys.argv[1:])
