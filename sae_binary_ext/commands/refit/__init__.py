"""`sae-binary refit`: replaces a binary coder's decoder by the one of least squared error."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from sae_binary_ext.commands.command import FileCommand, add_option, add_reading, add_source


def _add_arguments(parser: ArgumentParser) -> None:
    add_source(parser)
    parser.add_argument("out", type=Path, help="folder of the refitted coder, in the same format")
    parser.add_argument("--dataset", required=True, help="texts: a Hub id, a file or a folder")
    add_reading(parser, tokens=300_000)
    add_option(
        parser, "--context_size", type=int, help="tokens per row; by default the coder's, or 256"
    )
    add_option(
        parser,
        "--refine_passes",
        type=int,
        default=0,
        help="passes in which encode will turn single latents on or off where the error left over "
        "asks for it; 12 get nearly all of the gain, and encode about eight times as long",
    )
    add_option(
        parser,
        "--cost_of_bit",
        type=float,
        help="with refine_passes, the share of variance that is worth a bit; if left out, the one "
        "at which codes have as many bits as before",
    )


def _refit(options: Namespace) -> Iterator[str]:
    """Refit the decoder; yields the error before and after, and the new folder."""
    from sae_binary_ext import measure

    given = vars(options)
    source, out, hookpoint = (given.pop(name) for name in ("source", "out", "hookpoint"))
    refining = {name: given.pop(name) for name in ("refine_passes", "cost_of_bit")}
    done = measure.refit(source, out, measure.Text(**given), hookpoint, **refining)
    yield (
        f"FVU {done.fvu_before:.4f} -> {done.fvu_after:.4f} on {done.measured_tokens} tokens "
        f"after the {done.fitted_tokens} fitted on"
    )
    if done.refined:
        yield f"bits a token {done.bits_before:.1f} -> {done.bits_after:.1f}"
    yield str(out)


COMMAND = FileCommand(
    "refit",
    "give a binary coder the decoder of least error for its codes",
    description="Replaces a binary coder's decoder by the one of least squared error. The codes "
    "stay the same, unless refine_passes is given. Text is read with the coder's model, at the hook"
    " that its files name.",
    add_arguments=_add_arguments,
    does=_refit,
)
