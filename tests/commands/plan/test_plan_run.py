"""`sae-binary plan` writes settings, says what fits, and imports torch to measure alone."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sae_binary_ext.cli import main
from sae_binary_ext.commands.plan import PlanConfig
from sae_binary_ext.commands.plan.plan_run import make_plan, measured_rate

GPT2: dict[str, Any] = {"model": "gpt2", "rate": 10.0}


def words_of(settings: str) -> list[str]:
    return shlex.split(settings, comments=True)


def test_the_command_writes_its_figures_and_both_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sizes = ("--model", "gpt2", "--latents", "3072", "--rate", "10", "--layer", "4")
    assert main(["plan", *sizes, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "plan.json").read_text())
    assert (found["layer"], found["latents"], found["rate"]) == (4, 3072, 1e13)
    assert f"{found['memory']['peak'] / 1e9:.3f} GB" in printed
    assert found["fits"] is None
    for host in ("saelens", "sparsify"):
        text = (tmp_path / f"{host}.args").read_text()
        assert text.rstrip() in printed
        assert "# written by: sae-binary plan --model gpt2 --layer 4 --latents 3072\n" in text


def test_time_is_all_flops_at_the_rate_of_all_ranks():
    settings: dict[str, Any] = {**GPT2, "host": "sparsify", "tokens": 1_000_000}
    one, four = (make_plan(PlanConfig(**settings, ranks=ranks)) for ranks in (1, 4))
    tokens_of_step = one.run.step_tokens
    flops = 1_000_000 * (one.step_flops / tokens_of_step + one.token_flops)
    assert one.seconds == pytest.approx(flops / 1e13)
    assert one.seconds == pytest.approx(4 * (four.seconds or 0))


def test_a_rate_is_measured_where_the_device_is(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert measured_rate("cuda") is None
    assert (measured_rate("cpu") or 0) > 1e8
    plan = make_plan(PlanConfig(model="gpt2"))
    assert plan.seconds is None
    assert "give --rate" in str(plan)


def test_changes_that_fit_come_first_and_fit():
    large: dict[str, Any] = {**GPT2, "latents": 24576, "batch_size": 8192}
    peak = make_plan(PlanConfig(**large)).memory.peak
    large["device_memory"] = 0.8 * peak / 1e9
    plan = make_plan(PlanConfig(**large))
    assert plan.fits is False
    assert any(change.fits for change in plan.changes)
    assert sorted(plan.changes, key=lambda change: not change.fits) == list(plan.changes)
    for change in plan.changes:
        option, value = change.setting.removeprefix("--").split()
        changed: dict[str, Any] = large | {option: value if option == "dtype" else int(value)}
        again = make_plan(PlanConfig(**changed))
        assert again.memory.peak == change.peak < plan.memory.peak
        assert again.fits == change.fits
        if change.fits and option != "dtype":  # twice the value does not fit
            assert not make_plan(PlanConfig(**large | {option: 2 * int(value)})).fits


def test_a_run_that_fits_needs_no_change():
    plan = make_plan(PlanConfig(**GPT2, device_memory=80))
    assert plan.fits
    assert plan.changes == ()
    assert "fits in 80 GB" in str(plan)


def test_sparsify_s_adam_may_be_changed_for_signum():
    plan = make_plan(PlanConfig(**GPT2, host="sparsify", optimizer="adam", device_memory=0.1))
    settings = {change.setting.split()[0] for change in plan.changes}
    assert "--optimizer" in settings
    assert "--n_batches_in_buffer" not in settings  # sparsify has no store


def test_several_ranks_have_settings_of_sparsify_alone():
    plan = make_plan(PlanConfig(**GPT2, host="sparsify", ranks=2))
    assert list(plan.settings) == ["sparsify"]
    assert "# torchrun --nproc_per_node 2 -m sae_binary_ext run @" in plan.settings["sparsify"]
    assert "memory of each of 2 devices" in str(plan)


@pytest.mark.parametrize(
    ("settings", "saelens", "sparsify"),
    [
        ({}, "--hook_name transformer.h.6", "--hookpoints h.6"),
        (
            {"transcoder": True},
            "--hook_name transformer.h.6.ln_2 --hook_name_out transformer.h.6.mlp",
            "--hookpoints h.6.mlp --transcode True",
        ),
        (
            {"architecture": "binary_entropy"},
            "--architecture binary_entropy",
            "--activation binary --entropy_alpha 4e-4",
        ),
        ({"tokens": 100_000}, "--training_tokens 100000", "--max_examples 391"),
        ({"architecture": "topk"}, "--architecture topk", "--activation topk"),
        (
            {"transcoder": True, "architecture": "binary_entropy"},
            "--selection threshold",
            "--activation binary",
        ),
    ],
)
def test_settings_name_the_hooks_and_the_architecture(
    settings: dict[str, Any], saelens: str, sparsify: str
):
    plan = make_plan(PlanConfig(**GPT2, **settings))
    assert saelens in " ".join(words_of(plan.settings["saelens"]))
    assert sparsify in " ".join(words_of(plan.settings["sparsify"]))


def test_a_plan_with_a_rate_imports_no_torch():
    code = (
        "import sys; from sae_binary_ext.commands.plan.plan_run import make_plan\n"
        "from sae_binary_ext.commands.plan import PlanConfig\n"
        "make_plan(PlanConfig(model='gpt2', rate=1.0))\n"
        "assert not {'torch', 'sae_lens', 'sparsify'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
