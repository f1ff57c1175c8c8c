"""`sae-binary compare` is interrupted, and the same command continues it."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_binary_ext.cli import main
from sae_binary_ext.commands import run_compare
from sae_binary_ext.measure import candidates, comparison, in_model, reading
from tests.integration.compare_helpers import config_of, save_coders

pytestmark = pytest.mark.integration


@pytest.fixture
def coders(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    # The first tokens are read again to quantise the stock coders' values: here one batch.
    monkeypatch.setattr(comparison, "VALUE_TOKENS", 1)
    return save_coders(tmp_path, tiny_model_folder)


def test_an_interrupted_comparison_goes_on_where_it_was(
    coders: list[str],
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    unbroken = config_of(tiny_model_folder, tiny_dataset, tmp_path / "unbroken")
    run_compare(coders, unbroken)
    broken = config_of(tiny_model_folder, tiny_dataset, tmp_path / "broken")
    monkeypatch.setattr(reading, "SECONDS_BETWEEN_SAVES", 0.0)
    read: list[int] = []

    def read_hooks(*args: Any) -> Any:
        read.append(len(read))
        if len(read) in (4, 9):
            raise KeyboardInterrupt
        return in_model.read_hooks(*args)

    monkeypatch.setattr(candidates, "read_hooks", read_hooks)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_compare(coders, broken)
    run_compare(coders, broken)
    whole, parts = (
        json.loads((tmp_path / name / "metrics.json").read_text())["coders"]
        for name in ("unbroken", "broken")
    )
    # A text of 40 tokens gives rows of 15, 15 and 10 tokens, so 2000 tokens are 19 batches of 8
    # rows. Each of the two interrupts cost one more batch, and the values take one.
    assert len(read) == 19 + 2 + 1
    for one, other in zip(whole, parts, strict=True):
        speeds = one.pop("tokens_per_second"), other.pop("tokens_per_second")
        assert all(speed["value"] > 0 for speed in speeds)
        assert one == other
    # A finished comparison is not measured again, even if a figures file now lies beside a coder.
    # With other settings the coders are measured again.
    (Path(coders[0]) / "metrics.json").write_text("{}")
    run_compare(coders, broken)
    assert len(read) == 22
    broken.tokens = 1000
    run_compare(coders, broken)
    assert len(read) == 22 + 11
    # A comparison on another text is also measured only once.
    text = tmp_path / "text.txt"
    text.write_text("w2 w3 w4 w5 w6")
    broken.dataset = str(text)
    run_compare(coders, broken)
    assert len(read) == 33 + 2
    text.write_text("w7 w8 w9 w10 w11 w12")
    run_compare(coders, broken)
    assert len(read) == 33 + 4
    run_compare(coders, broken)
    assert len(read) == 33 + 4


def left_behind(*_: Any) -> None:
    """A signal handler like the one that SAELens' training runner leaves installed."""
    raise RuntimeError("an interrupt")


@pytest.fixture(params=[signal.default_int_handler, left_behind], ids=["python's", "a host's"])
def handler(request: pytest.FixtureRequest) -> Iterator[Any]:
    before = signal.signal(signal.SIGINT, request.param)
    yield request.param
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_loses_no_batch(
    handler: Any,
    coders: list[str],
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    config = config_of(tiny_model_folder, tiny_dataset, tmp_path / "out")
    read: list[int] = []

    def read_hooks(*args: Any) -> Any:
        read.append(len(read))
        if len(read) == 4:
            signal.raise_signal(signal.SIGINT)
        if len(read) == 8:
            # The second interrupt stops this batch at once, so only the first run's save remains.
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return in_model.read_hooks(*args)

    monkeypatch.setattr(candidates, "read_hooks", read_hooks)
    for counted in (4, 8):
        with pytest.raises(KeyboardInterrupt):
            run_compare(coders, config)
        assert len(read) == counted
        assert signal.getsignal(signal.SIGINT) is handler
    read[:] = range(20)
    run_compare(coders, config)
    assert len(read) == 20 + 19 - 4 + 1


def test_ctrl_c_says_how_to_go_on(
    coders: list[str],
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(candidates, "read_hooks", interrupt)
    options = ["--model", str(tiny_model_folder), "--dataset", str(tiny_dataset)]
    with pytest.raises(SystemExit) as status:
        main(["compare", *coders, *options, "--output", str(tmp_path / "out")])
    assert status.value.code == 130
    assert "the same command goes on" in capsys.readouterr().err
