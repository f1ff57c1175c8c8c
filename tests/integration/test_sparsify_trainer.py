import hashlib
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model
from sparsify import SparseCoder, SparseCoderConfig, Trainer
from torch import Tensor
from transformers import AutoTokenizer

import sae_binary_ext  # noqa: F401  # registers
from sae_binary_ext.bundled.wikipedia import read_wikipedia_sample
from sae_binary_ext.coding.paper_names import SELECTION_OF_ACTIVATION
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig
from tests.fresh import run_fresh
from tests.integration.sparsify_helpers import (
    mean,
    record_fvu,
    token_rows,
    train_stock_coders,
    trainer_for,
)
from tests.small_models import VOCABULARY

pytestmark = pytest.mark.integration

ACTIVATIONS = tuple(SELECTION_OF_ACTIVATION)
KINDS: dict[str, dict[str, Any]] = {
    "autoencoder": {},
    "transcoder": {"transcode": True},
    "skip transcoder": {"transcode": True, "skip_connection": True},
}
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_kind = pytest.mark.parametrize("kind", KINDS)
SMALL: dict[str, Any] = {"k": 8, "expansion_factor": 8}


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return token_rows(160, 32, VOCABULARY)


@pytest.fixture(scope="module")
def wikipedia_tokens(smollm2_folder: Path) -> Tensor:
    """Tokens of English, [192, 64]. Each row starts with SmolLM2's beginning-of-sequence token."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    text = "\n".join(text for _, text in islice(read_wikipedia_sample(), 8))
    rows = torch.tensor(tokenizer(text).input_ids[: 192 * 63]).unflatten(0, (192, 63))
    begin = torch.full((192, 1), tokenizer.bos_token_id)
    return torch.cat([begin, rows], dim=1)


def assert_learned(history: dict[str, list[float]]) -> None:
    """The last FVUs are below that of predicting the mean, which is 1, and below the first FVUs."""
    for name, fvu in history.items():
        assert mean(fvu[-4:]) < 0.99, (name, fvu)
        assert mean(fvu[-4:]) < mean(fvu[:4]), (name, fvu)


@each_kind
@each_activation
def test_every_coder_trains(
    activation: str, kind: str, tiny_model_folder: Path, tokens: Tensor, tmp_path: Path
):
    sae = BinarySparseCoderConfig(activation=activation, **SMALL, **KINDS[kind])
    trainer = trainer_for(tiny_model_folder, sae, tokens, tmp_path)
    history = record_fvu(trainer)
    trainer.fit()
    assert_learned(history)


@each_kind
@each_activation
def test_every_coder_trains_on_smollm2(
    activation: str, kind: str, smollm2_folder: Path, wikipedia_tokens: Tensor, tmp_path: Path
):
    sae = BinarySparseCoderConfig(activation=activation, k=32, expansion_factor=4, **KINDS[kind])
    trainer = trainer_for(
        smollm2_folder,
        sae,
        wikipedia_tokens,
        tmp_path,
        hookpoints=["layers.2.mlp"],
        exclude_tokens=wikipedia_tokens[0, :1].tolist(),
        batch_size=8,
    )
    # The FVU does not need the layers above the hookpoint, so the model leaves them out.
    trainer.model.config.num_hidden_layers = 3
    history = record_fvu(trainer)
    trainer.fit()
    assert_learned(history)


@pytest.mark.parametrize("loss_fn", ["ce", "kl"])
@pytest.mark.parametrize("model", ["tiny_model_folder", "smollm2_folder"])
def test_the_model_s_loss_trains_binary_coders(
    model: str, loss_fn: str, tokens: Tensor, tmp_path: Path, request: pytest.FixtureRequest
):
    if model == "smollm2_folder":
        # Training repeats one batch, because a few steps lower the loss less than texts differ.
        tokens = request.getfixturevalue("wikipedia_tokens")[:4, :32].repeat(10, 1)
        settings = {"hookpoints": ["layers.9.mlp"]}
    else:
        settings = {"hookpoints": ["layers.*.mlp"], "grad_acc_steps": 2}
    trainer = trainer_for(
        request.getfixturevalue(model),
        BinarySparseCoderConfig(**SMALL, entropy_alpha=1e-4),
        tokens,
        tmp_path,
        loss_fn=loss_fn,
        **settings,
    )
    before = {name: coder.encoder.weight.clone() for name, coder in trainer.saes.items()}
    losses: list[float] = []
    stock_reduce = trainer.maybe_all_reduce

    def reduce(x: Tensor, op: str = "mean") -> Tensor:
        if x.ndim == 0:
            losses.append(x.item())
        return stock_reduce(x, op)

    trainer.maybe_all_reduce = reduce
    trainer.fit()
    if loss_fn == "ce":
        losses.pop(0)  # the loss of the model without coders
    assert mean(losses[-3:]) < mean(losses[:3])
    for name, coder in trainer.saes.items():
        assert not torch.equal(coder.encoder.weight, before[name])


class KilledError(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adam", "signum"])
@pytest.mark.parametrize(
    ("sae", "settings"),
    [
        (BinarySparseCoderConfig(**SMALL), {}),
        (
            BinarySparseCoderConfig(
                **SMALL,
                activation="binary",
                transcode=True,
                entropy_alpha=1e-3,
                covariance_alpha=1e-5,
                entropy_start_step=4,
                entropy_warm_up_steps=6,
            ),
            {"grad_acc_steps": 2, "auxk_alpha": 0.1, "dead_feature_threshold": 200},
        ),
        (BinarySparseCoderConfig(**SMALL, activation="groupmax_binary"), {"micro_acc_steps": 2}),
        (BinarySparseCoderConfig(**SMALL, activation="gumbel_binary"), {}),
    ],
    ids=["topk_binary", "binary, all losses", "groupmax_binary", "gumbel_binary"],
)
def test_a_resumed_run_has_the_losses_of_an_unbroken_one(
    sae: BinarySparseCoderConfig,
    settings: dict[str, Any],
    optimizer: str,
    tiny_model_folder: Path,
    tokens: Tensor,
    tmp_path: Path,
):
    def start(output: Path) -> tuple[Trainer, dict[str, list[float]]]:
        trainer = trainer_for(
            tiny_model_folder,
            BinarySparseCoderConfig.from_dict(sae.to_dict()),
            tokens,
            output,
            optimizer=optimizer,
            lr=3e-3,
            save_every=3,
            **settings,
        )
        return trainer, record_fvu(trainer)

    unbroken, whole = start(tmp_path / "unbroken")
    unbroken.fit()

    broken, _ = start(tmp_path / "broken")

    def kill(*_: Any) -> None:
        if broken.global_step == 31:
            raise KilledError

    handle = broken.model.register_forward_pre_hook(kill)
    with pytest.raises(KilledError):
        broken.fit()
    handle.remove()

    resumed, rest = start(tmp_path / "broken")
    resumed.load_state(str(tmp_path / "broken" / "run"))
    assert 0 < resumed.global_step < 31
    resumed.fit()
    for name, fvu in whole.items():
        assert rest[name] == fvu[-len(rest[name]) :]
        assert len(rest[name]) < len(fvu)
        for tensor, other in zip(
            unbroken.saes[name].state_dict().values(),
            resumed.saes[name].state_dict().values(),
            strict=True,
        ):
            assert torch.equal(tensor, other)


@pytest.mark.parametrize("start", [None, 0.0], ids=["our start", "the papers' start"])
@pytest.mark.parametrize("transcode", [False, True])
def test_a_first_batch_that_is_not_finite_throughout_leaves_no_trace(
    transcode: bool, start: float | None, tiny_model_folder: Path, tokens: Tensor, tmp_path: Path
):
    """sparsify's Trainer sets biases to the first batch's means, NaN if one token has a NaN."""
    sae = BinarySparseCoderConfig(
        **SMALL, transcode=transcode, initial_firing_rate=start, skip_non_finite=True
    )
    trainer = trainer_for(tiny_model_folder, sae, tokens, tmp_path, optimizer="adam")
    batches = 0

    def spoil(module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        nonlocal batches
        batches += 1
        if batches != 1:
            return output
        spoilt = output.clone()
        spoilt[0, 3] = float("nan")
        return spoilt

    trainer.model.get_submodule("layers.1.post_attention_layernorm").register_forward_hook(spoil)
    trainer.fit()
    coder = trainer.saes["layers.1.mlp"]
    assert coder.skipped_tokens == 1
    assert all(parameter.isfinite().all() for parameter in coder.parameters())
    if start is None:
        assert coder.entropy_bits() > 1


def test_a_checkpoint_is_what_was_trained(tiny_model_folder: Path, tokens: Tensor, tmp_path: Path):
    trainer = trainer_for(
        tiny_model_folder, BinarySparseCoderConfig(**SMALL), tokens, tmp_path, optimizer="adam"
    )
    trainer.fit()
    loaded = SparseCoder.load_many(str(tmp_path / "run"), local=True)
    assert loaded.keys() == trainer.saes.keys()
    x = torch.randn(50, 16)
    for name, coder in trainer.saes.items():
        assert type(loaded[name]) is BinarySparseCoder
        for ours, theirs in zip(loaded[name].encode(x), coder.encode(x), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(loaded[name](x).sae_out, coder(x).sae_out)


def test_finetuning_starts_from_the_loaded_weights(
    tiny_model_folder: Path, tokens: Tensor, tmp_path: Path
):
    trained = trainer_for(tiny_model_folder, BinarySparseCoderConfig(**SMALL), tokens, tmp_path)
    trained.fit()
    finetune = str(tmp_path / "run")
    trainer = trainer_for(
        tiny_model_folder,
        BinarySparseCoderConfig(**SMALL),
        tokens,
        tmp_path / "finetuned",
        optimizer="adam",
        lr=1e-9,
        finetune=finetune,
    )
    for name, coder in trainer.saes.items():
        load_model(coder, f"{finetune}/{name}/sae.safetensors")
    trainer.fit()
    for name, coder in SparseCoder.load_many(finetune, local=True).items():
        for parameter, tuned in zip(
            coder.parameters(), trainer.saes[name].parameters(), strict=True
        ):
            torch.testing.assert_close(tuned, parameter, atol=1e-6, rtol=0)


def test_the_entropy_loss_lowers_the_entropy(
    tiny_model_folder: Path, tokens: Tensor, tmp_path: Path
):
    bits = []
    for alpha in (0.0, 1e-2):
        sae = BinarySparseCoderConfig(**SMALL, activation="binary", entropy_alpha=alpha)
        trainer = trainer_for(tiny_model_folder, sae, tokens, tmp_path)
        trainer.fit()
        bits.append(mean(coder.entropy_bits() for coder in trainer.saes.values()))
    assert bits[1] < 0.8 * bits[0]


def test_dead_latents_are_those_that_did_not_fire(
    tiny_model_folder: Path, tokens: Tensor, tmp_path: Path
):
    trainer = trainer_for(tiny_model_folder, BinarySparseCoderConfig(**SMALL), tokens, tmp_path)
    fired: dict[str, set[int]] = {}

    def note(name: str, coder: BinarySparseCoder, x: Tensor) -> None:
        acts, index, _ = coder.encode(x)
        fired[name] = set(index[acts == 1].tolist())  # each batch replaces the one before

    for name, coder in trainer.saes.items():
        coder.register_forward_hook(
            lambda coder, _, inputs, __, name=name: note(name, coder, inputs["x"]), with_kwargs=True
        )
    trainer.fit()
    for name, silent_for in trainer.num_tokens_since_fired.items():
        assert set((silent_for == 0).nonzero().flatten().tolist()) == fired[name]


def test_without_a_given_rate_signum_takes_the_paper_s(
    tiny_model_folder: Path, tokens: Tensor, tmp_path: Path
):
    def rates(sae: SparseCoderConfig, **settings: Any) -> set[float]:
        trainer = trainer_for(tiny_model_folder, sae, tokens, tmp_path, **settings)
        return {group["lr"] for group in trainer.optimizers[0].param_groups}

    binary = BinarySparseCoderConfig.quirke2025(num_latents=2**13)
    assert rates(binary) == {3e-3 * 2}
    assert rates(binary, lr=1e-3) == {1e-3}
    assert rates(SparseCoderConfig(num_latents=2**12)) == {5e-3 * 2}


def test_groups_refuse_a_decaying_k(tiny_model_folder: Path, tokens: Tensor, tmp_path: Path):
    sae = BinarySparseCoderConfig(**SMALL, activation="groupmax_binary")
    with pytest.raises(ValueError, match=r"k_decay_steps=5.*groups"):
        trainer_for(tiny_model_folder, sae, tokens, tmp_path, k_decay_steps=5)
    decaying = trainer_for(
        tiny_model_folder, BinarySparseCoderConfig(**SMALL), tokens, tmp_path, k_decay_steps=5
    )
    decaying.fit()
    assert all(coder.rule.k == SMALL["k"] for coder in decaying.saes.values())


def test_non_finite_activations_end_the_run_naming_the_step(
    tiny_model_folder: Path, tokens: Tensor, tmp_path: Path
):
    trainer = trainer_for(tiny_model_folder, BinarySparseCoderConfig(**SMALL), tokens, tmp_path)

    def spoil(*_: Any) -> None:
        if trainer.global_step == 3:
            trainer.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))

    trainer.model.register_forward_pre_hook(spoil)
    with pytest.raises(ValueError, match="step 3 "):
        trainer.fit()


STOCK_RUN = """
import sys
from pathlib import Path
from tests.integration.sparsify_helpers import train_stock_coders
train_stock_coders(Path(sys.argv[1]), Path(sys.argv[2]))
assert "sae_binary_ext" not in sys.modules
"""


def test_a_stock_run_is_bitwise_the_same_with_the_package(tiny_model_folder: Path, tmp_path: Path):
    without = run_fresh(STOCK_RUN, str(tiny_model_folder), str(tmp_path / "without"))
    assert without.exit_code == 0, without.stderr
    train_stock_coders(tiny_model_folder, tmp_path / "with")
    digests = [
        {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for pattern in ("*.safetensors", "cfg.json")
            for path in folder.rglob(pattern)
        }
        for folder in (tmp_path / "without", tmp_path / "with")
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 8  # two files for each of two activations and two layers

    for folder in (tmp_path / "with").iterdir():
        loaded = SparseCoder.load_many(str(folder / "run"), local=True)
        assert {type(coder) for coder in loaded.values()} == {SparseCoder}
