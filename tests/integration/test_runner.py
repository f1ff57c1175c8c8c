"""SAELens' unmodified runner takes a binary config, trains, and saves a coder."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE, LanguageModelSAETrainingRunner, TrainingSAE
from sae_lens.evals import get_eval_everything_config, run_evals
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore

from sae_binary_ext.bundled.wikipedia import read_wikipedia_sample
from sae_binary_ext.cli import main
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinarySAE,
    BinarySAEConfig,
    BinaryTrainingSAEConfig,
)
from tests.integration.saelens_helpers import bridge, hooked_transformer, runner_config

pytestmark = pytest.mark.integration

CONFIGS = [
    BinaryTrainingSAEConfig(d_in=16, d_sae=128, k=8),
    BinaryTrainingSAEConfig(d_in=16, d_sae=128, k=8, selection="gumbel"),
    BinaryEntropyTrainingSAEConfig(
        d_in=16, d_sae=64, normalize_activations="expected_average_only_in"
    ),
    BinaryEntropyTrainingSAEConfig(
        d_in=16, d_sae=64, k=8, selection="groupmax", covariance_coefficient=1e-5
    ),
]
each_config = pytest.mark.parametrize(
    "sae", CONFIGS, ids=lambda sae: f"{sae.architecture()}-{sae.selection}"
)


@each_config
def test_the_runner_trains_saves_and_loads(
    sae: Any, tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    runner = LanguageModelSAETrainingRunner(
        runner_config(sae, tiny_model_folder, tiny_dataset, tmp_path)
    )
    trained = runner.run()
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded) is BinarySAE
    x = torch.randn(4, 10, 16)
    assert torch.equal(loaded.encode(x), trained.encode(x))
    assert torch.equal(loaded(x), trained(x))
    assert loaded.cfg.metadata.hook_name == "model.layers.0"


def test_a_coder_set_by_hand_is_trained_and_saved_as_it_is(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    sae = BinaryTrainingSAEConfig(d_in=16, d_sae=128, k=8)
    mine = TrainingSAE.from_dict(sae.to_dict())
    mine.W_dec.data.fill_(0.5)
    before = {name: values.clone() for name, values in mine.state_dict().items()}
    config = runner_config(sae, tiny_model_folder, tiny_dataset, tmp_path, 3, lr=1e-9)
    LanguageModelSAETrainingRunner(config, override_sae=mine).run()
    loaded = SAE.load_from_disk(tmp_path)
    assert type(loaded) is BinarySAE
    torch.testing.assert_close(loaded.state_dict(), before, atol=1e-6, rtol=0)


@each_config
def test_the_runner_resumes_from_its_checkpoints(
    sae: Any, tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path
):
    """A resumed run ends near the first one. A store that mixes refills its buffer on resuming, so
    batches differ, for stock coders too. Exact resuming is tested in test_killed.py."""

    def run(seed: int, steps: int, **settings: Any) -> TrainingSAE[Any]:
        torch.manual_seed(seed)
        config = runner_config(
            sae, tiny_model_folder, tiny_dataset, tmp_path / "out", steps, lr=1e-4, **settings
        )
        return LanguageModelSAETrainingRunner(config).run()

    first = run(0, 30, n_checkpoints=1, checkpoint_path=str(tmp_path / "checkpoints"))
    (checkpoint,) = (tmp_path / "checkpoints").glob("*/*")
    resumed = run(1, 30, resume_from_checkpoint=str(checkpoint))
    fresh = run(1, 30)

    def alike(other: TrainingSAE[Any]) -> float:
        return torch.cosine_similarity(other.W_dec, first.W_dec, dim=-1).mean().item()

    assert alike(resumed) > 0.99
    assert alike(fresh) < 0.5


def test_the_command_line_trains_a_binary_coder(
    tiny_model_folder: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    runner = ["run", "-m", "sae_lens.llm_sae_training_runner"]
    with pytest.raises(SystemExit) as stop:
        main([*runner, "--help"])
    assert stop.value.code == 0
    listing = capsys.readouterr().out
    assert "binary" in listing
    assert "binary_entropy" in listing
    assert "--surrogate_temperature" not in listing  # the default architecture is SAELens' own

    options = {
        "--architecture": "binary",
        "--d_in": "16",
        "--d_sae": "64",
        "--k": "4",
        "--surrogate": "rectangle",
        "--model_name": str(tiny_model_folder),
        "--model_class_name": "AutoModelForCausalLM",
        "--hook_name": "model.layers.0",
        "--dataset_path": str(tiny_dataset),
        "--is_dataset_tokenized": "False",
        "--streaming": "False",
        "--context_size": "16",
        "--train_batch_size_tokens": "64",
        "--training_tokens": "640",
        "--store_batch_size_prompts": "8",
        "--n_batches_in_buffer": "16",
        "--log_to_wandb": "False",
        "--output_path": str(tmp_path / "out"),
        "--checkpoint_path": str(tmp_path / "checkpoints"),
    }
    arguments = [word for option in options.items() for word in option]
    assert main([*runner, *arguments]) == 0
    loaded = SAE.load_from_disk(tmp_path / "out")
    assert type(loaded) is BinarySAE
    assert (loaded.cfg.k, loaded.cfg.surrogate, loaded.cfg.d_sae) == (4, "rectangle", 64)


def binary_coder(hook_name: str, **fields: Any) -> BinarySAE:
    sae = BinarySAE(BinarySAEConfig(d_in=16, d_sae=64, k=8, **fields))
    sae.cfg.metadata.hook_name = hook_name
    torch.nn.init.normal_(sae.b_dec, std=0.1)
    return sae


@pytest.mark.parametrize("normalize", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("make_model", [hooked_transformer, bridge])
def test_a_coder_attaches_to_saelens_models(
    make_model: Any, normalize: str, tiny_model_folder: Path
):
    model = make_model(tiny_model_folder)
    sae = binary_coder("blocks.1.hook_resid_pre", normalize_activations=normalize)
    tokens = torch.randint(2, 60, (3, 12))
    with torch.no_grad():
        clean = model(tokens)
        spliced, cache = model.run_with_cache_with_saes(tokens, saes=[sae])
        codes = next(value for name, value in cache.items() if name.endswith("hook_sae_acts_post"))
        with_error = model.run_with_saes(tokens, saes=[sae], use_error_term=True)
        model.add_sae(sae)
        attached = model(tokens)
        model.reset_saes()
        after = model(tokens)
    assert codes.shape == (3, 12, 64)
    assert set(codes.flatten().tolist()) == {0.0, 1.0}
    assert not torch.allclose(spliced, clean, atol=1e-3)
    torch.testing.assert_close(attached, spliced)
    torch.testing.assert_close(with_error, clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after, clean)


def test_saelens_evaluates_a_binary_coder(tiny_model_folder: Path):
    model = bridge(tiny_model_folder)
    # The name hook_resid_pre would fail: run_evals calls run_with_hooks, which ignores aliases.
    sae = binary_coder("blocks.1.hook_in")
    sae.cfg.metadata.context_size = 16
    sae.cfg.metadata.prepend_bos = True
    rows = torch.randint(2, 60, (64, 16)).tolist()
    store = ActivationsStore.from_sae(
        model=model,
        sae=sae,
        dataset=Dataset.from_dict({"tokens": rows}),
        streaming=False,
        store_batch_size_prompts=8,
        train_batch_size_tokens=64,
        context_size=16,
        device="cpu",
    )
    metrics, features = run_evals(
        sae, store, model, ActivationScaler(), get_eval_everything_config(8, 2, 2)
    )
    assert 0 < metrics["sparsity"]["l0"] <= 8
    assert metrics["sparsity"]["l0"] == pytest.approx(metrics["sparsity"]["l1"])
    assert torch.isfinite(torch.tensor(metrics["model_performance_preservation"]["ce_loss_score"]))
    assert len(features["feature_density"]) == 64


def test_smollm2_trains_in_the_runner_and_splices(smollm2_folder: Path, tmp_path: Path):
    """The README's example, shortened, trains on a real model. The coder reads raw activations."""
    texts = [text for _, text in read_wikipedia_sample()][:6]
    sae = BinaryTrainingSAEConfig(
        d_in=576, d_sae=1152, k=32, normalize_activations="expected_average_only_in"
    )
    runner = LanguageModelSAETrainingRunner(
        runner_config(
            sae,
            smollm2_folder,
            Path("overridden"),
            tmp_path,
            hook_name="model.layers.8",
            context_size=128,
            train_batch_size_tokens=256,
            training_tokens=60 * 256,
            n_batches_in_buffer=8,
        ),
        override_dataset=Dataset.from_dict({"text": texts}),
    )
    runner.run()
    loaded = SAE.load_from_disk(tmp_path)
    activations = torch.cat([next(runner.activations_store) for _ in range(8)])
    codes = loaded.encode(activations)
    assert codes.sum(-1).max() <= 32
    error = (loaded.decode(codes) - activations).square().sum()
    assert error / (activations - activations.mean(0)).square().sum() < 0.75
