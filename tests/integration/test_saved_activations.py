"""Commands have the same results from a file of activations, without a run of the model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_binary_ext.cli import main
from sae_binary_ext.measure import candidates
from tests.integration.compare_helpers import CONTEXT, HOOK, save_coders

pytestmark = pytest.mark.integration

BOTH, BINARY = ("binary", "stock"), ("binary",)
# Arguments and coders of each command.
COMMANDS: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "compare": (BOTH, ["--spliced_tokens", "200", "--latents", "5"]),
    "interpret": (BOTH, ["--judge", "tokens", "--window", "4", "--latents", "10"]),
    "entropy": (BOTH, []),
    "comsem": (BOTH, ["--decode", "logit_lens", "--latents", "10"]),
    "compress": (BINARY, []),
    "transfer": (BOTH, ["--layers", "0", "1"]),
    "rules": (BOTH, ["--labels", "token:w7", "--clauses", "1", "--literals", "1"]),
    "gradients": (
        (), ["--hook", HOOK, "--latents", "24", "--k", "4", "--surrogates", "sigmoid",
             "--training_states", "1024", "--probes", "2", "--probe_tokens", "50"],
    ),
    "entropy-profile": (
        (), ["--layers", "1", "--states", "200", "--latents", "16", "--training_states", "1024"],
    ),
}  # fmt: skip
RESULTS = {"compare": "metrics.json", "interpret": "interpretation.json"}


@pytest.fixture(scope="module")
def coders(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """Coders whose files say that their model computes in bfloat16."""
    folder = tmp_path_factory.mktemp("coders")
    save_coders(folder, tiny_model_folder)
    for name in BOTH:
        path = folder / name / "cfg.json"
        config = json.loads(path.read_text())
        config["metadata"]["model_from_pretrained_kwargs"] = {"dtype": "bfloat16"}
        path.write_text(json.dumps(config))
    return folder


@pytest.fixture
def run(coders: Path, tiny_model_folder: Path, tiny_dataset: Path) -> Callable[..., Any]:
    """Runs a command on 1200 tokens; returns its results."""

    def run(command: str, output: Path, *more: str) -> Any:
        names, own = COMMANDS[command]
        given = [str(coders / name) for name in names]
        text = ["--model", str(tiny_model_folder), "--dataset", str(tiny_dataset)]
        text += ["--context_size", str(CONTEXT), "--tokens", "1200", "--output", str(output)]
        assert main([command, *given, *text, *own, *more]) == 0
        found = json.loads((output / RESULTS.get(command, f"{command}.json")).read_text())
        return {key: value for key, value in found.items() if key not in ("run", "versions")}

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_results_from_a_file_are_those_of_the_model(
    command: str, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = "--activations", str(tmp_path / "own.safetensors")
    expected = without_places(run(command, tmp_path / "none"))
    assert without_places(run(command, tmp_path / "written", *file)) == expected
    assert (tmp_path / "own.safetensors").is_file()
    monkeypatch.setattr(candidates, "read_hooks", None)
    assert without_places(run(command, tmp_path / "read", *file)) == expected


def without_places(found: Any) -> Any:
    """Results without folders and measured seconds, which differ from run to run."""
    if isinstance(found, dict):
        left_out = ("file", "path", "folder", "seconds", "tokens_per_second")
        return {k: without_places(v) for k, v in found.items() if k not in left_out}
    return [without_places(each) for each in found] if isinstance(found, list) else found


def test_one_file_serves_several_commands_and_the_index(
    run: Callable[..., Any],
    coders: Path,
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    file = "--activations", str(tmp_path / "own.safetensors")
    entropies = run("entropy", tmp_path / "entropy", *file)
    monkeypatch.setattr(candidates, "read_hooks", None)
    run("compare", tmp_path / "compare", *file)
    text = ["--model", str(tiny_model_folder), "--dataset", str(tiny_dataset), *file]
    text += ["--context_size", str(CONTEXT), "--tokens", "1200"]
    assert main(["index", str(tmp_path / "index"), str(coders / "binary"), *text]) == 0
    (facts,) = (tmp_path / "index").glob("segments/*/*.json")
    tokens = entropies["results"]["coders"][0]["tokens"]
    assert json.loads(facts.read_text())["tokens"] >= tokens


def test_a_file_of_other_settings_is_an_error_that_names_them(
    run: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = "--activations", str(tmp_path / "own.safetensors")
    run("entropy", tmp_path / "out", *file)
    for more, message in (
        (["--context_size", "12"], "context_size=16, and this run has context_size=12"),
        (["--tokens", "2000"], "tokens=2000: "),
        (["--precision", "bfloat16"], "precision=float32, and this run has precision=bfloat16"),
    ):
        with pytest.raises(SystemExit):
            run("entropy", tmp_path / "out", *file, *more)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reads_in_bfloat16(
    command: str, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stock, under_autocast = candidates.read_hooks, set[bool]()

    def noted(*given: Any) -> dict[str, Tensor]:
        under_autocast.add(torch.is_autocast_enabled("cpu"))
        return stock(*given)

    monkeypatch.setattr(candidates, "read_hooks", noted)
    run(command, tmp_path, "--precision", "float32")
    assert under_autocast == {False}
    under_autocast.clear()
    # Counts of another precision in the same folder are not gone on with.
    run(command, tmp_path, "--precision", "bfloat16")
    assert under_autocast == {True}
    page = json.loads((tmp_path / RESULTS.get(command, f"{command}.json")).read_text())
    assert page["run"]["precision"] == "bfloat16"


@pytest.mark.parametrize("command", ["ablate", "steer", "finetune"])
@pytest.mark.parametrize("setting", ["activations", "precision"])
def test_commands_that_run_the_model_have_no_such_setting(
    command: str, setting: str, coders: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        main([command, str(coders / "binary"), f"--{setting}", "bfloat16"])
    assert setting in capsys.readouterr().err
