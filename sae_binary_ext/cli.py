"""The command line: parse, call, print."""

import importlib
import logging
import os
import runpy
import sys
from argparse import ArgumentParser as StandardParser
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from simple_parsing import ArgumentParser, DashVariant

import sae_binary_ext

USAGE = """usage: sae-binary COMMAND ...

commands:
  ablate     what reconstruction and model lose when latents are silenced or flipped
  compare    measure coders of any format, binary or stock, on the same tokens
  compress   hidden states as codes in files, and what that keeps and takes
  comsem     what the tokens have in common that latents stand out on
  convert    write coders down in another format (saelens, sparsify, cho2025, quirke2025)
  demo       train binary and stock coders on SmolLM2 and compare them
  entropy    the information in hidden states, read off the codes of coders
  entropy-check    the same of states whose entropy is known
  entropy-profile  the same along a model's layers, or along positions
  gradients  what surrogates let through in training, beside the true loss
  inspect    what a folder or a Hub repository of coders holds
  interpret how well latents can be told from the text they are active in
  multi-bit  give each latent several thresholds: more bits, and less error
  push       publish coders on the Hub, with a model card
  refit      give a binary coder the decoder of least error for its codes
  run        run a host's module or a script with the binary coders registered:
             sae-binary run -m sae_lens.llm_sae_training_runner --architecture binary ...
             sae-binary run -m sparsify MODEL DATASET --activation topk_binary ...
             sae-binary run -m delphi MODEL CODERS --hookpoints layers.9 ...
             sae-binary run script.py ...
  transfer   what coders of one layer make of the others

sae-binary COMMAND --help explains a command's options.
"""

# What a shell gives a command that Ctrl-C ended.
INTERRUPTED = 130
# Commands that keep what an interruption leaves done.
GOING_ON = ("compare", "interpret", "push")
CODERS_HELP = (
    "folders of coders, folders of such folders, or Hub ids of either: autoencoders, or "
    "transcoders, of one model, at one or several hooks"
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = sys.argv[1:] if arguments is None else arguments
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command == "run":
        return run(rest)
    if command in COMMANDS:
        with _told_plainly(command):
            return COMMANDS[command](rest)
    if command == "--version":
        print(sae_binary_ext.__version__)
        return 0
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    print(
        f"sae-binary: no command {command!r}; choose one of "
        f"{', '.join(sorted(('run', *COMMANDS)))}.",
        file=sys.stderr,
    )
    return 2


def demo(arguments: list[str]) -> int:
    """Train and compare the demo's coders."""
    from sae_binary_ext.demo.config import DemoConfig

    parser = ArgumentParser(prog="sae-binary demo")
    parser.add_arguments(DemoConfig, dest="config")
    config = parser.parse_args(arguments).config

    from sae_binary_ext.demo.pipeline import run_demo

    print(run_demo(config))
    print(f"\nReport: {config.output / 'report.html'}")
    return 0


def compare(arguments: list[str]) -> int:
    """Measure coders on the same tokens of the same model."""
    from sae_binary_ext.evaluation.run import CompareConfig, run_compare

    parser = ArgumentParser(prog="sae-binary compare")
    parser.add_argument("coders", metavar="CODER", nargs="+", help=CODERS_HELP)
    parser.add_arguments(CompareConfig, dest="config")
    options = parser.parse_args(arguments)
    print(run_compare(options.coders, options.config))
    print(f"\nReport: {options.config.output / 'report.html'}")
    return 0


def interpret(arguments: list[str]) -> int:
    """Score how well latents can be told from text."""
    from sae_binary_ext.evaluation.interpretation import InterpretConfig, run_interpret

    dashes = DashVariant.UNDERSCORE_AND_DASH
    parser = ArgumentParser(prog="sae-binary interpret", add_option_string_dash_variants=dashes)
    parser.add_argument("coders", metavar="CODER", nargs="+", help=CODERS_HELP)
    parser.add_arguments(InterpretConfig, dest="config")
    options = parser.parse_args(arguments)
    print(run_interpret(options.coders, options.config))
    print(f"\nScores: {options.config.output / 'interpretation.json'}")
    return 0


def analyse(command: str, arguments: list[str]) -> int:
    """Run one of ANALYSES on coders."""
    parser, run = _analysis(command)
    parser.add_argument("coders", metavar="CODER", nargs="+", help=CODERS_HELP)
    return _print_analysis(command, parser, arguments, lambda o: run(o.coders, o.config))


def study(command: str, arguments: list[str]) -> int:
    """Run one of STUDIES, which train coders of their own."""
    parser, run = _analysis(command)
    return _print_analysis(command, parser, arguments, lambda options: run(options.config))


def _analysis(command: str) -> tuple[ArgumentParser, Callable[..., Any]]:
    """Its parser and what is run with the settings that the parser gives."""
    module, config, function = (ANALYSES | STUDIES)[command]
    found: Any = importlib.import_module(f"sae_binary_ext.analysis.{module}")
    dashes = DashVariant.UNDERSCORE_AND_DASH
    parser = ArgumentParser(prog=f"sae-binary {command}", add_option_string_dash_variants=dashes)
    parser.add_arguments(getattr(found, config), dest="config")
    return parser, getattr(found, function)


def _print_analysis(
    command: str, parser: ArgumentParser, arguments: list[str], run: Callable[[Any], Any]
) -> int:
    options = parser.parse_args(arguments)
    print(run(options))
    print(f"\nReport: {options.config.output / f'{command}.html'}")
    return 0


def convert(arguments: list[str]) -> int:
    """Write coders down in another format."""
    parser = _source_parser("convert", "Writes coders down in another format.")
    parser.add_argument("out", type=Path, help="folder of the new coder, or of several ones'")
    parser.add_argument("--host", default="saelens", help="saelens, sparsify, cho2025, quirke2025")
    options = parser.parse_args(arguments)

    from sae_binary_ext import checkpoints

    written = checkpoints.convert(options.source, options.out, options.host, options.hookpoint)
    for folder in written:
        print(folder)
    return 0


def inspect(arguments: list[str]) -> int:
    """Print what a folder or a repository of coders holds."""
    options = _source_parser("inspect", "Says what coders are, and checks their files.").parse_args(
        arguments
    )

    from sae_binary_ext import checkpoints

    for description in checkpoints.describe(options.source, options.hookpoint):
        print(description.name)
        for label, value in description.lines():
            print(f"  {label:<22} {value}")
    return 0


def push(arguments: list[str]) -> int:
    """Publish coders on the Hub."""
    parser = StandardParser(
        prog="sae-binary push",
        description="Publishes a coder, or a folder of coders, each with a model card. Run again "
        "after an interruption, it goes on. Log in first: hf auth login, or HF_TOKEN.",
    )
    parser.add_argument("path", type=Path, help="folder of a coder, or of several ones'")
    parser.add_argument("repo_id", help="user/name; made if it does not exist")
    parser.add_argument("--model", help="the model's Hub id, where the coder's files name a folder")
    parser.add_argument("--licence", help="as the Hub names it: mit, apache-2.0")
    parser.add_argument("--dataset", help="what the coders were trained on")
    parser.add_argument("--training_tokens", help="on how many tokens")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--dry-run", action="store_true", help="show it and upload nothing")
    options = vars(parser.parse_args(arguments))

    from sae_binary_ext import checkpoints

    upload = checkpoints.push(options.pop("path"), options.pop("repo_id"), **options)
    for name, size in upload.files.items():
        print(f"{size:>14,} bytes  {upload.repo_id}/{name}")
    if options["dry_run"]:
        for name, card in upload.cards.items():
            print(f"\n--- {name} ---\n{card}")
    return 0


def refit(arguments: list[str]) -> int:
    """Refit a binary coder's decoder."""
    parser = _source_parser(
        "refit",
        "Gives a binary coder the decoder of least squared error for its codes, which stay as they "
        "are. Text is read with the coder's own model, at the place its files name.",
    )
    parser.add_argument("out", type=Path, help="folder of the refitted coder, in the same format")
    parser.add_argument("--dataset", required=True, help="texts: a Hub id, a file or a folder")
    parser.add_argument("--model", help="Hub id or folder; the one that the coder's files name")
    parser.add_argument("--tokens", type=int, default=300_000, help="to fit on (%(default)s)")
    parser.add_argument("--context_size", type=int, help="tokens a row; the coder's own, or 256")
    parser.add_argument("--split", help="of the dataset; train")
    parser.add_argument("--text_column", help="column of the texts; text")
    options = parser.parse_args(arguments)

    from sae_binary_ext import analysis

    text = analysis.Text(
        options.dataset,
        options.model,
        options.tokens,
        options.context_size,
        options.split,
        options.text_column,
    )
    done = analysis.refit(options.source, options.out, text, options.hookpoint)
    print(
        f"FVU {done.fvu_before:.4f} -> {done.fvu_after:.4f} on {done.measured_tokens} tokens "
        f"after the {done.fitted_tokens} fitted on"
    )
    print(options.out)
    return 0


def _source_parser(command: str, description: str) -> StandardParser:
    parser = StandardParser(prog=f"sae-binary {command}", description=description)
    parser.add_argument("source", help="folder of a coder or of several, or a Hub id (user/name)")
    parser.add_argument(
        "--hookpoint", help="the coder's folder in the source, or where the source's one belongs"
    )
    return parser


@contextmanager
def _told_plainly(command: str) -> Generator[None]:
    """A user's mistake, a package that is not installed and Ctrl-C are a line, not a traceback."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        goes_on = "; the same command goes on" * (command in GOING_ON)
        print(f"sae-binary {command}: stopped{goes_on}.", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from interrupt
    except (ValueError, ModuleNotFoundError) as error:
        # Python names the module it did not find; this package's own errors say what to install.
        if isinstance(error, ModuleNotFoundError) and error.name is not None:
            raise
        print(f"sae-binary {command}: {error}", file=sys.stderr)
        raise SystemExit(1) from error


def run(arguments: list[str]) -> int:
    """Run a module or a script as its own command, the binary coders registered."""
    if arguments[:1] in ([], ["-h"], ["--help"]):
        parser = StandardParser(
            prog="sae-binary run",
            usage="sae-binary run (-m MODULE | SCRIPT) [its arguments ...]",
            description="Runs a module or script with the binary coders registered with its host.",
        )
        parser.print_help()
        return 0 if arguments else 2
    if arguments[0] == "-m":
        if len(arguments) < 2:
            print("sae-binary run: -m needs the name of a module.", file=sys.stderr)
            return 2
        _, module, *rest = arguments
        sys.argv = [module, *rest]
        with _without_gpu(module):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        script, *rest = arguments
        sys.argv = [script, *rest]
        # As python itself does, so that a script finds its neighbours.
        sys.path.insert(0, str(Path(script).resolve().parent))
        runpy.run_path(script, run_name="__main__")
    return 0


def _without_gpu(module: str) -> AbstractContextManager[None]:
    """Where there is no GPU, the hosts whose command lines ask for CUDA run on the CPU."""
    if module not in ("sparsify", "delphi"):
        return nullcontext()
    import torch

    if torch.cuda.is_available():
        return nullcontext()
    # sparsify reads it when it is imported, which the next line does.
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sae_binary_ext.sparsify.register import cpu_instead_of_cuda

    return cpu_instead_of_cuda()


# Commands that measure: module of sae_binary_ext.analysis, settings, and what gives the Analysis.
# Of coders:
ANALYSES = {
    "ablate": ("ablate", "AblateConfig", "run_ablate"),
    "compress": ("compress", "CompressConfig", "run_compress"),
    "comsem": ("comsem", "ComsemConfig", "run_comsem"),
    "entropy": ("entropy", "EntropyConfig", "run_entropy"),
    "multi-bit": ("multi_bit", "MultiBitConfig", "run_multi_bit"),
    "transfer": ("transfer", "TransferConfig", "run_transfer"),
}
# And without any:
STUDIES = {
    "entropy-check": ("entropy_check", "EntropyCheckConfig", "run_entropy_check"),
    "entropy-profile": ("entropy_profile", "EntropyProfileConfig", "run_entropy_profile"),
    "gradients": ("gradients", "GradientsConfig", "run_gradients"),
}
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "compare": compare,
    "convert": convert,
    "demo": demo,
    "inspect": inspect,
    "interpret": interpret,
    "push": push,
    "refit": refit,
    **{name: partial(analyse, name) for name in ANALYSES},
    **{name: partial(study, name) for name in STUDIES},
}
