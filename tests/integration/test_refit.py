"""`sae-binary refit` lowers the error of a saved coder on a text, in both hosts' formats."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import LanguageModelSAETrainingRunner, TopKSAE, TopKSAEConfig

from sae_binary_ext.checkpoints import convert, load_coder
from sae_binary_ext.cli import main
from sae_binary_ext.measure import Text, refit
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
    BinaryTranscoderTrainingSAEConfig,
    TranscoderTrainingRunner,
)
from tests.integration.saelens_helpers import runner_config
from tests.integration.sparsify_helpers import token_rows
from tests.integration.test_transcoder_runner import MODULES, run_config

pytestmark = pytest.mark.integration
SIZES: dict[str, Any] = {"d_in": 16, "d_sae": 64, "k": 8}
PLACES = {
    BinarySAE: {"hook_name": "blocks.1.hook_resid_pre"},
    BinaryTranscoder: {
        "hook_name": "blocks.1.mlp.hook_in",
        "hook_name_out": "blocks.1.hook_mlp_out",
    },
}


def save(coder: Any, model: Path, folder: Path) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        coder.W_enc.normal_()
        coder.W_dec.normal_(std=0.1)
    metadata = coder.cfg.metadata
    metadata.model_name, metadata.context_size = str(model), 16
    metadata.prepend_bos, metadata.seqpos_slice = True, (1, None)
    for field, name in PLACES[type(coder)].items():
        metadata[field] = name
    coder.save_model(folder)


@pytest.mark.parametrize("host", ["saelens", "sparsify"])
@pytest.mark.parametrize(
    "coder",
    [
        BinarySAE(BinarySAEConfig(**SIZES)),
        BinaryTranscoder(BinaryTranscoderConfig(**SIZES)),
        BinaryTranscoder(BinaryTranscoderConfig(**SIZES, skip_connection=True)),
    ],
    ids=["autoencoder", "transcoder", "skip transcoder"],
)
def test_the_refitted_file_has_the_same_codes_and_less_error(
    coder: Any,
    host: str,
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    save(coder, tiny_model_folder, tmp_path / "saelens")
    old, new = tmp_path / "saelens", tmp_path / "refitted" / "layers.1"
    if host == "sparsify":
        (old,) = convert(old, tmp_path / "layers.1", host="sparsify")

    arguments = [str(old), str(new), "--dataset", str(tiny_dataset), "--tokens", "3000"]
    model = ["--model", str(tiny_model_folder), "--context_size", "16"]
    assert main(["refit", *arguments, *(model if host == "sparsify" else [])]) == 0

    figures = capsys.readouterr().out.splitlines()[-2].split()
    before, after, measured = float(figures[1]), float(figures[3]), int(figures[5])
    assert after < 0.9 * before
    assert 300 <= measured < 500
    coders = [load_coder(folder) for folder in (old, new)]
    x = torch.randn(50, 16)
    codes = [each.encode(x) for each in coders]
    assert torch.equal(*codes)
    for name in ("W_dec", "W_skip") if "W_skip" in coder.state_dict() else ("W_dec",):
        assert not torch.equal(*(getattr(each, name) for each in coders)), name
    assert coders[1].cfg.metadata.hook_name == coders[0].cfg.metadata.hook_name
    assert {path.name for path in new.iterdir()} == {path.name for path in old.iterdir()}


@pytest.mark.parametrize("host", ["saelens", "sparsify"])
def test_the_refined_file_has_other_codes_and_less_error(
    host: str,
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    old, new, again = tmp_path / "old", tmp_path / "new", tmp_path / "again"
    save(BinarySAE(BinarySAEConfig(**SIZES)), tiny_model_folder, old)
    options = ["--dataset", str(tiny_dataset), "--tokens", "3000"]
    if host == "sparsify":
        (old,) = convert(old, tmp_path / "layers.1", host="sparsify")
        options += ["--model", str(tiny_model_folder), "--context_size", "16"]
    assert main(["refit", str(old), str(new), *options, "--refine-passes", "2"]) == 0

    errors, bits, _ = capsys.readouterr().out.splitlines()[-3:]
    assert float(errors.split()[3]) < 0.8 * float(errors.split()[1])
    assert float(bits.split()[5]) == pytest.approx(float(bits.split()[3]), rel=0.2)
    coders = [load_coder(folder) for folder in (old, new)]
    assert (coders[1].cfg.architecture(), coders[1].cfg.refine_passes) == ("binary_refined", 2)
    x = torch.randn(50, 16)
    assert not torch.equal(*(each.encode(x) for each in coders))
    assert main(["inspect", str(new)]) == 0
    assert "refines codes" in capsys.readouterr().out

    assert main(["refit", str(new), str(again), *options]) == 0
    assert load_coder(again).cfg.refine_passes == 2


@pytest.mark.parametrize(
    ("kind", "options", "problem"),
    [
        ("transcoder", ["--refine-passes", "2"], "must be an autoencoder in the format"),
        ("binary", ["--tokens", "1000000"], "ends after"),
        ("binary", ["--tokens", "0"], "tokens=0"),
        ("binary", ["--context_size", "1"], "context_size=1"),
        ("topk", [], "codes have values"),
    ],
)
def test_what_cannot_be_refitted_is_named(
    kind: str,
    options: list[str],
    problem: str,
    tiny_model_folder: Path,
    tiny_dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    if kind == "topk":
        TopKSAE(TopKSAEConfig(**SIZES)).save_model(tmp_path / "coder")
    else:
        coders = {"binary": (BinarySAE, BinarySAEConfig)}
        coders["transcoder"] = (BinaryTranscoder, BinaryTranscoderConfig)
        made, config = coders[kind]
        save(made(config(**SIZES)), tiny_model_folder, tmp_path / "coder")
    arguments = [str(tmp_path / "coder"), str(tmp_path / "new"), "--dataset", str(tiny_dataset)]
    with pytest.raises(SystemExit):
        main(["refit", *arguments, *options])
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["autoencoder", "transcoder"])
def test_a_runner_s_refit_is_that_of_the_command_on_the_rows_after_training(
    kind: str, tiny_model_folder: Path, tmp_path: Path
):
    rows = token_rows(150, 16, 60)  # 80 to train on, 40 to refit on, and 30 to measure on
    whole, rest = (Dataset.from_dict({"tokens": each.tolist()}) for each in (rows, rows[80:]))
    rest.save_to_disk(tmp_path / "rest")
    batch = 8 * 15  # each row has a token that is left out
    settings: dict[str, Any] = {
        "is_dataset_tokenized": True,
        "n_batches_in_buffer": 8,
        "activations_mixing_fraction": 0.0,
        "train_batch_size_tokens": batch,
        "training_tokens": 10 * batch,
    }

    def run(refit_tokens: int) -> Path:
        torch.manual_seed(0)
        folder = tmp_path / str(refit_tokens)
        fields: dict[str, Any] = {**SIZES, "refit_tokens": refit_tokens}
        if kind == "autoencoder":
            sae = BinaryTrainingSAEConfig(**fields)
            config = runner_config(sae, tiny_model_folder, Path("rows"), folder, **settings)
            LanguageModelSAETrainingRunner(config, override_dataset=whole).run()
            return folder
        saes = {"coder": BinaryTranscoderTrainingSAEConfig(**fields)}
        own = {name: value for name, value in settings.items() if name != "is_dataset_tokenized"}
        own |= {"model_name": str(tiny_model_folder), "output_path": str(folder)}
        pairs = run_config(saes, MODULES, **own)
        TranscoderTrainingRunner(pairs, override_dataset=whole).run()
        return folder / "coder"

    plain, refitted = run(0), run(5 * batch)
    refit(plain, tmp_path / "command", Text(str(tmp_path / "rest"), tokens=5 * batch))
    found, expected, trained = map(load_coder, (refitted, tmp_path / "command", plain))
    assert not torch.allclose(found.W_dec, trained.W_dec, atol=1e-3)
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), atol=1e-5, rtol=1e-5)


def test_a_coder_that_names_no_hook_is_refused(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    BinarySAE(BinarySAEConfig(**SIZES)).save_model(tmp_path / "coder")
    with pytest.raises(SystemExit):
        main(
            [
                "refit",
                str(tmp_path / "coder"),
                str(tmp_path / "new"),
                "--dataset",
                str(tiny_dataset),
            ]
        )
    assert "hook_name=None" in capsys.readouterr().err


def test_figures_of_another_decoder_are_not_kept(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "coder"
    save(BinarySAE(BinarySAEConfig(**SIZES)), tiny_model_folder, folder)
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["refit", str(folder), str(folder), "--dataset", str(tiny_dataset)])
    assert "metrics.json of another decoder" in capsys.readouterr().err
