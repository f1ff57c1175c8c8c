"""`sae-binary circuit`: latents that lead to a model's next token, as circuit-tracer's graph."""

from argparse import ArgumentParser
from pathlib import Path

from sae_binary_ext.commands.circuit.circuit_run import circuit
from sae_binary_ext.commands.command import FileCommand, add_option

BACKENDS = ("nnsight", "transformerlens")


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", help="folder or Hub id with a transcoder for each layer")
    parser.add_argument("prompt", help="text whose next token the graph explains")
    parser.add_argument("--model", help="Hub id or folder, if not the model that the files name")
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="library that runs the model; if left out, transformerlens for models that it knows "
        "by name, and nnsight for others",
    )
    out_help = "folder of the graph files, which may hold other graphs (runs/circuit)"
    parser.add_argument("--output", type=Path, default=Path("runs/circuit"), help=out_help)
    parser.add_argument("--name", help="name of the graph; if left out, the words of the prompt")
    latents_help = "most latents in the graph, those of the largest influence first (1000)"
    add_option(parser, "--max_latents", type=int, default=1000, help=latents_help)
    targets_help = "most next tokens that the graph explains, until they reach 0.95 probability (5)"
    add_option(parser, "--max_targets", type=int, default=5, help=targets_help)
    share_help = "share of all influence that the graph's latents keep (0.8)"
    add_option(parser, "--node_threshold", type=float, default=0.8, help=share_help)
    add_option(
        parser, "--edge_threshold", type=float, default=0.98, help="the same of edges (0.98)"
    )
    size_help = "latents in each backward pass (64)"
    add_option(parser, "--batch_size", type=int, default=64, help=size_help)
    parser.add_argument("--device", default="auto", help="cpu, cuda:0; auto takes a GPU if any")


COMMAND = FileCommand(
    "circuit",
    "which latents lead to the next token, as a graph for circuit-tracer's page",
    description="Writes the attribution graph of a prompt, through transcoders of all layers, as "
    "files that circuit-tracer's page opens. Needs the extra sae_binary_ext[circuits].",
    add_arguments=_add_arguments,
    does=circuit,
)
