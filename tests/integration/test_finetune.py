"""`sae-binary finetune` lowers the divergence, saves what it measured, and goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from sparsify import SparseCoder, SparseCoderConfig

from sae_binary_ext.checkpoints import load_coder
from sae_binary_ext.checkpoints.describe import describe
from sae_binary_ext.cli import main
from sae_binary_ext.commands import FinetuneConfig, run_finetune
from sae_binary_ext.measure import finetuning
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
)
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig

pytestmark = pytest.mark.integration
WIDTH, LATENTS, K = 16, 48, 6


def metadata(model: Path, hook: str, out: str | None = None) -> SAEMetadata:
    place = {"hook_name": hook, "model_name": str(model), "context_size": 16}
    return SAEMetadata(**place, **({"hook_name_out": out} if out else {}))


def binary_of_sparsify(folder: Path, model: Path) -> Path:
    config = BinarySparseCoderConfig(num_latents=LATENTS, k=K, activation="topk_binary")
    coder = BinarySparseCoder(WIDTH, config)
    coder.firing_rates.fill_(0.1)
    coder.save_to_disk(folder / "layers.0")
    return folder / "layers.0"


def stock_of_sparsify(folder: Path, model: Path) -> Path:
    coder = SparseCoder(WIDTH, SparseCoderConfig(num_latents=LATENTS, k=K))
    coder.save_to_disk(folder / "layers.0.mlp")
    return folder / "layers.0.mlp"


def threshold_of_saelens(folder: Path, model: Path) -> Path:
    config = BinarySAEConfig(
        d_in=WIDTH, d_sae=LATENTS, selection="threshold", dtype="bfloat16",
        metadata=metadata(model, "blocks.1.hook_mlp_out"),
    )  # fmt: skip
    coder = BinarySAE(config)
    coder.b_enc.data.fill_(-0.5)
    coder.W_dec.data.mul_(0.3)
    coder.save_model(folder / "threshold")
    return folder / "threshold"


def topk_of_saelens(folder: Path, model: Path) -> Path:
    place = metadata(model, "blocks.1.hook_resid_post")
    TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=K, metadata=place)).save_model(
        folder / "topk"
    )
    return folder / "topk"


def jumprelu_of_saelens(folder: Path, model: Path) -> Path:
    place = metadata(model, "blocks.1.hook_resid_post")
    JumpReLUSAE(JumpReLUSAEConfig(d_in=WIDTH, d_sae=LATENTS, metadata=place)).save_model(
        folder / "jumprelu"
    )
    return folder / "jumprelu"


def transcoder_of_saelens(folder: Path, model: Path) -> Path:
    config = BinaryTranscoderConfig(
        d_in=WIDTH, d_sae=LATENTS, k=K, skip_connection=True,
        metadata=metadata(model, "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"),
    )  # fmt: skip
    BinaryTranscoder(config).save_model(folder / "transcoder")
    return folder / "transcoder"


def finetune(coders: list[Path], model: Path, dataset: Path, output: Path, *more: str) -> Any:
    arguments = ["--model", str(model), "--dataset", str(dataset), "--output", str(output)]
    arguments += [
        "--tokens",
        "1600",
        "--held-out-tokens",
        "400",
        "--context-size",
        "16",
        "--batch-rows",
        "8",
    ]
    assert main(["finetune", *map(str, coders), *arguments, "--lr", "0.02", *more]) == 0
    assert (output / "finetune.html").is_file()
    return json.loads((output / "finetune.json").read_text())["results"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_coder(folder).state_dict()


SETS = {
    "both hosts": (binary_of_sparsify, topk_of_saelens),
    "kinds mixed": (stock_of_sparsify, transcoder_of_saelens),
    "stock alone": (threshold_of_saelens, jumprelu_of_saelens),
}


@pytest.mark.parametrize("makers", SETS.values(), ids=SETS.keys())
def test_the_divergence_falls_on_held_out_rows_and_files_hold_what_was_measured(
    makers: Any, tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    torch.manual_seed(0)
    coders = [make(tmp_path / "old", tiny_model_folder) for make in makers]
    found = finetune(coders, tiny_model_folder, tiny_dataset, tmp_path / "out", "--loss", "kl")
    losses = found["losses"]
    assert losses["divergence"]["fall"]["interval"][0] > 0.2
    assert losses["clean"]["before"] == losses["clean"]["after"]
    steps = found["training"]
    assert steps[-1]["tokens"] >= 1600
    assert steps[-1]["divergence"] < steps[0]["divergence"]

    # Tuned again with a learning rate of almost nothing, the saved coders measure the same.
    saved = [Path(each["folder"]) for each in found["coders"]]
    for old, new in zip(coders, saved, strict=True):
        assert {path.name for path in old.iterdir()} == {path.name for path in new.iterdir()}
        before, after = weights(old), weights(new)
        assert {name: one.dtype for name, one in before.items()} == {
            name: one.dtype for name, one in after.items()
        }
        assert not torch.equal(before["W_dec"], after["W_dec"])
        (described,) = describe(new)
        told = dict(described.lines())["fine-tuned"]
        assert "loss=kl" in told
        assert "spliced_with" in told
    again = finetune(saved, tiny_model_folder, tiny_dataset, tmp_path / "again", "--lr", "1e-12")
    for name, each in losses.items():
        assert again["losses"][name]["before"] == each["after"]
    for one, other in zip(found["coders"], again["coders"], strict=True):
        assert one["fvu_after"] == other["fvu_before"]


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    torch.manual_seed(0)
    coders = [make(tmp_path / "old", tiny_model_folder) for make in SETS["both hosts"]]
    output, model = tmp_path / "out", tiny_model_folder
    whole = finetune(coders, model, tiny_dataset, output)
    expected = [weights(Path(each["folder"])) for each in whole["coders"]]
    (output / "progress.pt").unlink()

    step = finetuning.Finetuning._step  # pyright: ignore[reportPrivateUsage]

    def stopping(self: Any, *arguments: Any) -> None:
        if len(self.steps) == 4:
            self.save()
            raise KeyboardInterrupt
        step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(finetuning.Finetuning, "_step", stopping)
        arguments = [*map(str, coders), "--model", str(model), "--dataset", str(tiny_dataset)]
        arguments += ["--output", str(output), "--tokens", "1600", "--held-out-tokens", "400"]
        arguments += ["--context-size", "16", "--lr", "0.02", "--batch-rows", "8"]
        with pytest.raises(SystemExit):
            main(["finetune", *arguments])
    resumed = finetune(coders, model, tiny_dataset, output)
    assert resumed == whole
    for each, state in zip(resumed["coders"], expected, strict=True):
        for name, tensor in weights(Path(each["folder"])).items():
            assert torch.equal(tensor, state[name])

    config = FinetuneConfig(
        model=str(model), dataset=str(tiny_dataset), output=output, tokens=2000, context_size=16
    )
    with pytest.raises(ValueError, match=r"progress\.pt: is of a run with other coders or set"):
        run_finetune(list(map(str, coders)), config)
