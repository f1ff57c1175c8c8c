"""In sparsify's Trainer, gradients of a coder's parameters agree with plain formulas."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify import SparseCoderConfig
from torch import Tensor, nn
from torch import distributed as dist

from sae_binary_ext.coding import covariance_penalty, minibatch_entropy, reference
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig
from tests.sparsify.test_coder import reference_output
from tests.sparsify.trainers import (
    HOOKPOINT,
    LookupModel,
    coder_in,
    gradients_of_first_step,
    trainer_on,
)

D_IN, VOCABULARY, ROWS, LENGTH = 8, 40, 8, 5
SIZES: dict[str, Any] = {"num_latents": 64, "k": 4}
# A rate of 0 turns off our start from data. sparsify still sets biases to the batch's means.
PLAIN: dict[str, Any] = {**SIZES, "initial_firing_rate": 0.0}
LOSSES: dict[str, Any] = {
    "entropy_alpha": 0.5,
    "covariance_alpha": 0.3,
    "dense_alpha": 2.0,
    "dense_rate": 0.11,
}
STILL: dict[str, Any] = {"lr": 1e-12, "optimizer": "adam"}


@pytest.fixture
def activations() -> Tensor:
    return torch.randn(VOCABULARY, D_IN) + 0.5


@pytest.fixture
def rows() -> Tensor:
    """Tokens, [8, 5]. Each row starts with token 0; no other repeats, as rounding decides ties."""
    tokens = 1 + torch.randperm(VOCABULARY - 1)[: ROWS * (LENGTH - 1)].unflatten(0, (ROWS, -1))
    return torch.cat([torch.zeros(ROWS, 1, dtype=torch.int64), tokens], dim=1)


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of one rank, so that DistributedDataParallel wraps the coders."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def code_losses(codes: Tensor) -> Tensor:
    loss = 0.5 * minibatch_entropy(codes)
    if len(codes) > 1:  # a single token has no covariance
        loss = loss + 0.3 * covariance_penalty(codes)
    return loss + 2.0 * reference.excess_rate(codes, 0.11)


def gradient_of(coder: BinarySparseCoder, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*coder.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def assert_gradients(ours: dict[str, Tensor], coder: BinarySparseCoder, loss: Tensor) -> None:
    expected = gradient_of(coder, loss)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            ours[name],
            gradient,
            rtol=1e-4,
            atol=1e-6,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def fvu_loss(coder: BinarySparseCoder, batch: Tensor, parts: int) -> Tensor:
    """FVU of a batch, plus each part's losses on codes, weighted by the part's share of tokens."""
    loss = torch.zeros(())
    for part in batch.chunk(parts):
        codes, output = reference_output(coder, part)
        loss = loss + (part - output).square().sum() / (batch - batch.mean(0)).square().sum()
        loss = loss + len(part) / len(batch) * code_losses(codes)
    return loss


def check_parts(
    activations: Tensor, rows: Tensor, output: Path, activation: str, parts: int, accumulate: int
) -> None:
    """Check that the FVU and the losses on codes keep their relative weight for any parts."""
    trainer = trainer_on(
        activations,
        rows,
        BinarySparseCoderConfig(activation=activation, **PLAIN, **LOSSES),
        output,
        batch_size=ROWS // accumulate,
        micro_acc_steps=parts,
        grad_acc_steps=accumulate,
        exclude_tokens=[0],
        **STILL,
    )
    ours = gradients_of_first_step(trainer)
    coder = coder_in(trainer)
    batches = [activations[batch[:, 1:].flatten()] for batch in rows.chunk(accumulate)]
    loss = torch.stack([fvu_loss(coder, batch, parts) for batch in batches]).sum()
    assert_gradients(ours, coder, loss / (parts * accumulate))


# Cut in 7 parts, 32 tokens give six parts of five and one of two; 16 give five of three and one.
@pytest.mark.parametrize("parts", [1, 2, 4, 7])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("activation", ["topk_binary", "binary"])
def test_a_bit_costs_as_much_fvu_whatever_the_parts(
    activation: str, accumulate: int, parts: int, activations: Tensor, rows: Tensor, tmp_path: Path
):
    check_parts(activations, rows, tmp_path, activation, parts, accumulate)


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("parts", [1, 4])
def test_a_bit_costs_as_much_fvu_on_ranks(
    parts: int, activations: Tensor, rows: Tensor, tmp_path: Path
):
    check_parts(activations, rows, tmp_path, "topk_binary", parts, accumulate=1)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss_fn", ["ce", "kl"])
def test_a_bit_costs_as_much_of_the_model_s_loss(
    loss_fn: str, accumulate: int, activations: Tensor, rows: Tensor, tmp_path: Path
):
    trainer = trainer_on(
        activations,
        rows,
        BinarySparseCoderConfig(**PLAIN, **LOSSES),
        tmp_path,
        batch_size=ROWS // accumulate,
        grad_acc_steps=accumulate,
        loss_fn=loss_fn,
        **STILL,
    )
    ours = gradients_of_first_step(trainer)
    coder = coder_in(trainer)
    total = torch.zeros(())
    for batch in rows.chunk(accumulate):
        inputs = activations[batch.flatten()]
        codes, output = reference_output(coder, inputs)
        scores = (output @ activations.T).log_softmax(-1)
        if loss_fn == "ce":
            loss = nn.functional.nll_loss(scores, batch.flatten())
        else:
            loss = -((inputs @ activations.T).softmax(-1) * scores).sum(-1).mean()
        total = total + (loss + code_losses(codes)) / accumulate
    assert_gradients(ours, coder, total)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 400.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_of_few_digits_trains_and_logs_the_right_fvu(
    dtype: torch.dtype, scale: float, parts: int, activations: Tensor, rows: Tensor, tmp_path: Path
):
    """In float16 the sum of squares overflows at scale 400 and vanishes at scale 1e-4."""
    sae = BinarySparseCoderConfig(**SIZES, multi_topk=True)
    trainer = trainer_on(
        scale * activations, rows, sae, tmp_path, micro_acc_steps=parts, exclude_tokens=[0], lr=1e-9
    )
    trainer.model.to(dtype)
    coder = coder_in(trainer)
    fvu, wider = [], []

    def note(_: Any, __: Any, output: Any) -> None:
        fvu.append(output.fvu.item())
        wider.append(output.multi_topk_fvu.item())

    coder.register_forward_hook(note)
    found = gradients_of_first_step(trainer)
    batch = (scale * activations).to(dtype).float()[rows[:, 1:].flatten()]
    _, output = reference_output(coder, batch)
    expected = (batch - output).square().sum() / (batch - batch.mean(0)).square().sum()
    assert sum(fvu) == pytest.approx(expected.item(), rel=1e-4)
    assert 0 < sum(wider) < 2
    assert found["W_dec"].abs().sum() > 0


def test_several_seeds_are_refused_where_the_model_s_loss_trains_one(
    activations: Tensor, rows: Tensor, tmp_path: Path
):
    sae = BinarySparseCoderConfig(**SIZES)
    for loss_fn in ("ce", "kl"):
        with pytest.raises(ValueError, match=rf"init_seeds=\[0, 1\] with loss_fn='{loss_fn}'"):
            trainer_on(activations, rows, sae, tmp_path, loss_fn=loss_fn, init_seeds=[0, 1])
    trainer_on(activations, rows, SparseCoderConfig(k=4), tmp_path, loss_fn="ce", init_seeds=[0, 1])


@pytest.mark.parametrize("start", [None, 0.0])
def test_a_first_batch_of_excluded_tokens_says_so(
    start: float | None, activations: Tensor, rows: Tensor, tmp_path: Path
):
    sae = BinarySparseCoderConfig(**SIZES, initial_firing_rate=start)
    trainer = trainer_on(activations, 0 * rows, sae, tmp_path, exclude_tokens=[0])
    with pytest.raises(ValueError, match=r"first batch has no token.*exclude_tokens"):
        trainer.fit()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("optimizer", ["adam", "signum", "muon"])
def test_a_later_batch_of_excluded_tokens_changes_nothing(
    optimizer: str, activations: Tensor, rows: Tensor, tmp_path: Path
):
    sae = BinarySparseCoderConfig(**SIZES, entropy_alpha=1e-3)
    data = torch.cat([rows, 0 * rows, rows])
    trainer = trainer_on(
        activations, data, sae, tmp_path, batch_size=ROWS, exclude_tokens=[0], optimizer=optimizer
    )
    trainer.fit()
    coder = coder_in(trainer)
    assert all(values.isfinite().all() for values in coder.state_dict().values())
    assert coder.firing_rates.sum() > 0


@pytest.mark.parametrize("parts", [1, 2])
def test_equal_tokens_spoil_no_weights(
    parts: int, activations: Tensor, rows: Tensor, tmp_path: Path
):
    activations[3] = 0.5  # equal tokens of 0.5: an exact mean, variance 0
    data = torch.cat([rows, 0 * rows + 3, rows])
    sae = BinarySparseCoderConfig(**SIZES, multi_topk=True)
    trainer = trainer_on(
        activations, data, sae, tmp_path, batch_size=ROWS, micro_acc_steps=parts, auxk_alpha=0.1
    )
    trainer.fit()
    assert all(values.isfinite().all() for values in coder_in(trainer).state_dict().values())


def test_no_latent_counts_as_fired_where_none_has(
    activations: Tensor, rows: Tensor, tmp_path: Path
):
    trainer = trainer_on(activations, rows, BinarySparseCoderConfig(**PLAIN), tmp_path, **STILL)
    coder_in(trainer).log_threshold.data.fill_(20.0)
    trainer.fit()
    assert (trainer.num_tokens_since_fired[HOOKPOINT] == rows.numel()).all()


def test_the_model_of_these_tests_is_what_the_formulas_take(activations: Tensor, rows: Tensor):
    model = LookupModel(activations)
    assert torch.equal(model(rows).logits, activations[rows] @ activations.T)
