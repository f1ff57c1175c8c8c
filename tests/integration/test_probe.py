"""`sae-binary probe` has the figures of sae-probes' own run, and goes on after a stop."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from sae_lens import SAETransformerBridge
from sae_probes import run_baseline_evals, run_sae_evals
from sae_probes.generate_model_activations import ensure_dataset_activations
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.cli import main
from sae_binary_ext.commands.probe import probe_run
from tests.integration.compare_helpers import HOOK, save_coders
from tests.small_models import VOCABULARY

pytestmark = pytest.mark.integration
TASKS = ["118_us_state_CA", "156_athlete_sport_baseball"]
# Splits and metrics of sae-probes: all test examples, long texts, and float32.
LIKE_SAE_PROBES = ["--context_size", "1024", "--test_examples", "5000", "--precision", "float32"]


@pytest.fixture(scope="module")
def model_of_letters(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokeniser of letters, so that states differ from text to text."""
    folder = tmp_path_factory.mktemp("letters")
    model = LlamaForCausalLM.from_pretrained(tiny_model_folder)
    model.config.max_position_embeddings = 2048
    model.save_pretrained(folder)
    letters = string.ascii_lowercase + string.digits + string.punctuation[: VOCABULARY - 40]
    vocabulary = {"<s>": 0, "</s>": 1} | {each: at for at, each in enumerate(letters, 2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    return folder


def probe(coders: list[str], model: Path, dataset: Path, output: Path, *more: str) -> Any:
    arguments = ["--model", str(model), "--dataset", str(dataset), "--hook", HOOK, *more]
    arguments += ["--tokens", "500", "--output", str(output), "--names", *TASKS]
    assert main(["probe", *coders, *arguments]) == 0
    assert (output / "probe.html").is_file()
    found = json.loads((output / "probe.json").read_text())["results"]["probed"]
    return {(each["coder"], each["form"]): each for each in found}


def test_figures_are_those_of_sae_probes(
    model_of_letters: Path, tiny_dataset: Path, tmp_path: Path
):
    folders = save_coders(tmp_path, model_of_letters)[:2]
    found = probe(folders, model_of_letters, tiny_dataset, tmp_path / "out", *LIKE_SAE_PROBES)
    assert list(found) == [
        ("hidden states", "hidden states"),
        ("binary", "active latents"),
        ("stock", "values"),
        ("stock", "active latents"),
    ]
    values, ones = found["stock", "values"]["bits"], found["stock", "active latents"]["bits"]
    assert values == pytest.approx(ones + 8 * 5, rel=1e-6)  # k = 5

    bridge = SAETransformerBridge.boot_transformers(str(model_of_letters), device="cpu")
    # A bridge's cache has the activation under its own name of the hook alone.
    hook, cache = "blocks.0.hook_out", tmp_path / "cache"
    ensure_dataset_activations("it", TASKS, [hook], cache, device="cpu", model=bridge)
    its: dict[str, Any] = {
        "model_name": "it",
        "hook_name": hook,
        "setting": "normal",
        "datasets": TASKS,
        "device": "cpu",
        "model_cache_path": cache,
    }
    run_baseline_evals(**its, results_path=tmp_path / "baseline")
    theirs = _scores_in(tmp_path / "baseline")
    own = found["hidden states", "hidden states"]["tasks"]
    assert {(e["task"], "all"): _rounded(e["auc"], e["accuracy"]) for e in own} == theirs
    for (coder, form), each in list(found.items())[1:]:
        results = tmp_path / f"{coder} {form}"
        run_sae_evals(
            load_coder(str(tmp_path / coder)),
            reg_type="l1",
            ks=[1, 2, 5, 16],
            binarize=form == "active latents",
            results_path=results,
            **its,
        )
        own = {
            (score["task"], score["latents"]): _rounded(score["auc"], score["accuracy"])
            for score in each["tasks"]
            if score["latents"]
        }
        assert own == _scores_in(results)
        assert len(set(own.values())) > len(own) / 2  # the tasks tell probes apart


def _rounded(auc: float, accuracy: float) -> tuple[float, float]:
    return round(auc, 3), round(accuracy, 3)


def _scores_in(folder: Path) -> dict[tuple[str, Any], tuple[float, float]]:
    """Scores of sae-probes' files, by task and number of latents."""
    found = [entry for file in folder.rglob("*.json") for entry in json.loads(file.read_text())]
    return {
        (entry["dataset"], entry.get("k", "all")): _rounded(entry["test_auc"], entry["test_acc"])
        for entry in found
    }


def test_a_stopped_run_goes_on_and_reads_no_text_twice(
    model_of_letters: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folders = save_coders(tmp_path, model_of_letters)
    output, read, stock = tmp_path / "out", list[str](), probe_run.last_states

    def states(opened: Any, task: Any, *rest: Any, **more: Any) -> Any:
        read.append(task.name)
        return stock(opened, task, *rest, **more)

    def stop(probes: list[Any]) -> list[Any]:
        if probes[0].task.name == TASKS[1]:
            raise KeyboardInterrupt
        return fit_all(probes)

    fit_all = probe_run.fits.fit_all
    monkeypatch.setattr(probe_run, "last_states", states)
    monkeypatch.setattr(probe_run.fits, "fit_all", stop)
    with pytest.raises(SystemExit) as stopped:
        probe(folders[:1], model_of_letters, tiny_dataset, output)
    assert stopped.value.code == 130
    assert read == TASKS
    monkeypatch.setattr(probe_run.fits, "fit_all", fit_all)
    first = probe(folders[:1], model_of_letters, tiny_dataset, output)
    assert read == TASKS
    # One more coder at the same hook needs no new states. Scores of the first coder stay.
    fitted: list[str] = []

    def note(probes: list[Any]) -> list[Any]:
        fitted.extend(each.of for each in probes)
        return fit_all(probes)

    monkeypatch.setattr(probe_run.fits, "fit_all", note)
    both = probe(folders[:2], model_of_letters, tiny_dataset, output)
    assert read == TASKS
    own = {
        each["of"]
        for (coder, _), item in both.items()
        if coder == "stock"
        for each in item["tasks"]
    }
    assert set(fitted) == own
    assert both["binary", "active latents"] == first["binary", "active latents"]
    # Other texts are other states.
    probe(folders[:1], model_of_letters, tiny_dataset, output, "--context_size", "8")
    assert read == TASKS * 2
