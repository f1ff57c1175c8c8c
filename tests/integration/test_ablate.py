"""`sae-binary ablate` reports the same effects as changing codes by hand, for both hosts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.cli import main
from sae_binary_ext.commands.interpret.interpret_scores import LatentScore, SavedScores
from sae_binary_ext.measure.reading import ReadBatch, open_coders, read_text
from sae_binary_ext.saelens.splice import Splice
from sae_binary_ext.settings import ReadingConfig
from tests.integration.compare_helpers import CONTEXT, HOOK, save_coders

pytestmark = pytest.mark.integration
TOKENS, SPLICED = 900, 300


def ablate(coders: list[str], model: Path, dataset: Path, output: Path, *more: str) -> Any:
    arguments = ["--model", str(model), "--dataset", str(dataset), "--hook", HOOK]
    arguments += ["--tokens", str(TOKENS), "--spliced_tokens", str(SPLICED)]
    arguments += ["--context_size", str(CONTEXT), "--output", str(output), *more]
    assert main(["ablate", *coders, *arguments]) == 0
    assert (output / "ablate.html").is_file()
    return json.loads((output / "ablate.json").read_text())["results"]["groups"]


def spliced_rows(
    coders: list[str], model: Path, dataset: Path, folder: Path
) -> tuple[Splice, list[ReadBatch]]:
    """Read the rows that `ablate` measures the changes on: every third row of the text."""
    config = ReadingConfig(str(model), str(dataset), HOOK, tokens=TOKENS, context_size=CONTEXT)
    opened = open_coders(coders, config, folder)
    (hooks,) = opened.hooks.values()
    batches: list[ReadBatch] = []
    number = 0
    for batch in read_text(opened, config):
        rows = torch.arange(number, number + len(batch.where)) % (TOKENS // SPLICED) == 0
        number += len(batch.where)
        batches.append(replace(batch, where=batch.where & rows[:, None]))
    return Splice(opened.model, *hooks), batches


@pytest.mark.parametrize("change", ["zero", "flip"])
def test_rises_are_those_of_codes_that_were_changed_by_hand(
    change: str, tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    folders = save_coders(tmp_path, tiny_model_folder)[:1]
    arguments = ["--change", change, "--groups", "3", "--latents", "2"]
    found = ablate(folders, tiny_model_folder, tiny_dataset, tmp_path / "out", *arguments)
    splice, batches = spliced_rows(folders, tiny_model_folder, tiny_dataset, tmp_path / "again")
    coder: Any = load_coder(folders[0])
    inputs = torch.cat([batch.activations((splice.hook_name,) * 2)[0] for batch in batches])
    variance = (inputs.double() - inputs.double().mean(0)).square().sum()

    def changed_by(latents: list[int]) -> Any:
        def output(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            codes = coder.encode(x).clone()
            for latent in latents:
                codes[..., latent] = 0 if change == "zero" else 1 - codes[..., latent]
            return codes.double() @ coder.W_dec.double() + coder.b_dec.double()

        return output

    def error_and_loss(latents: list[int]) -> tuple[float, float]:
        output = changed_by(latents)
        error = (output(inputs, inputs) - inputs).square().sum() / variance
        total, number = 0.0, 0
        for batch in batches:
            losses = splice.replaced(batch.text.tokens, batch.where, output)
            counts = batch.where[:, :-1] & batch.text.positions(0)[:, 1:]
            total += losses[counts].double().sum().item()
            number += int(counts.sum())
        return error.item(), total / number

    error, loss = error_and_loss([])
    assert len(found) == 5
    for group in found:
        for latents, rise in (("latents", "rise"), ("random_latents", "rise_of_random")):
            more_error, more_loss = error_and_loss(group[latents])
            assert group[rise]["fvu"]["value"] == pytest.approx(more_error - error, abs=1e-5)
            assert group[rise]["loss"]["value"] == pytest.approx(more_loss - loss, abs=1e-5)
    assert any(abs(group["rise"]["loss"]["value"]) > 1e-3 for group in found)
    # The interval has a width, because the rows come from several documents.
    low, high = found[-1]["rise"]["loss"]["interval"]
    assert low < found[-1]["rise"]["loss"]["value"] < high


def test_latents_are_ranked_by_the_scores_of_a_judge(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    (folder,) = save_coders(tmp_path, tiny_model_folder)[:1]
    scores = {5: 0.9, 0: 0.8, 3: 0.7, 1: 0.6}
    saved = SavedScores(tmp_path / "scores.jsonl", "a run")
    name = Path(folder).name
    saved.add(LatentScore(name, each, 1, 0.1, "tokens", area) for each, area in scores.items())
    saved.add([LatentScore(name, 7, 1, 0.1, "tokens", reason="too few places")])
    arguments = ["--ranking", "score", "--scores", str(tmp_path / "scores.jsonl")]
    arguments += ["--groups", "2", "--latents", "0"]
    found = ablate([folder], tiny_model_folder, tiny_dataset, tmp_path / "out", *arguments)
    assert [latent for each in found for latent in each["latents"]] == list(scores)
    assert len(found) == 2


def test_a_latent_whose_row_is_zero_raises_nothing(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    (folder,) = save_coders(tmp_path, tiny_model_folder)[:1]
    coder: Any = SAE.load_from_disk(folder)
    with torch.no_grad():
        coder.W_dec[7:] = 0
    coder.save_model(folder)
    arguments = ["--groups", "2", "--latents", "12"]
    found = ablate([folder], tiny_model_folder, tiny_dataset, tmp_path / "out", *arguments)
    idle = [each for each in found if min(each["latents"]) >= 7]
    assert idle
    for each in idle:
        assert each["rise"]["fvu"]["value"] == each["rise"]["loss"]["value"] == 0
    # Latents are listed by effect, so those whose decoder row is not zero come first.
    assert found[0]["latents"][0] < 7
    assert found[0]["rise"]["fvu"]["value"] != 0


def test_stock_coders_and_those_of_sparsify_are_silenced_and_not_flipped(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folders = save_coders(tmp_path, tiny_model_folder)
    arguments = ["--groups", "2", "--latents", "0", "--ranking", "burstiness"]
    found = ablate(folders, tiny_model_folder, tiny_dataset, tmp_path / "out", *arguments)
    assert len({each["coder"] for each in found}) == 4
    with pytest.raises(SystemExit):
        ablate(folders, tiny_model_folder, tiny_dataset, tmp_path / "out", "--change", "flip")
    assert "has codes with values" in capsys.readouterr().err
