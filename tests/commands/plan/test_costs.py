"""The arithmetic of a plan, against the hosts' own coders and against sums by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import TopKTrainingSAEConfig, TrainingSAE, TrainingSAEConfig
from sparsify import SparseCoder, SparseCoderConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.hosts import PLAIN, saelens_trainer
from benchmarks.plan import CASES, WHOLE_RUNS, planned
from sae_binary_ext.coding.kernels import processor
from sae_binary_ext.commands.plan.config import ARCHITECTURES, HOSTS, PlanConfig
from sae_binary_ext.commands.plan.costs import (
    Memory,
    Run,
    disk_of,
    flops_of_step,
    flops_of_token,
    memory_of,
)
from sae_binary_ext.commands.plan.model_sizes import find_sizes
from sae_binary_ext.commands.plan.step_costs import BLOCK, STEPS
from sae_binary_ext.saelens import (
    BinaryEntropyTrainingSAEConfig,
    BinaryTrainingSAEConfig,
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
)
from sae_binary_ext.sparsify import BinarySparseCoderConfig

GPT2 = find_sizes("openai-community/gpt2")
SIZES: dict[str, Any] = {"d_in": 768, "d_sae": 3000}
SAELENS: dict[tuple[str, bool], TrainingSAEConfig] = {
    ("binary", False): BinaryTrainingSAEConfig(**SIZES),
    ("binary_entropy", False): BinaryEntropyTrainingSAEConfig(**SIZES),
    ("topk", False): TopKTrainingSAEConfig(**SIZES),
    ("binary", True): BinaryTranscoderTrainingSAEConfig(**SIZES),
    ("topk", True): TopKTranscoderTrainingSAEConfig(**SIZES),
}


def run_of(**settings: Any) -> Run:
    return Run.of(PlanConfig(model="gpt2", **settings), GPT2)


def numbers(coder: nn.Module) -> int:
    return sum(each.numel() for each in coder.parameters())


@pytest.mark.parametrize(("architecture", "transcoder"), SAELENS)
def test_weights_are_those_of_saelens_coders(architecture: str, transcoder: bool):
    config = SAELENS[architecture, transcoder]
    coder = TrainingSAE.from_dict(config.to_dict() | {"device": "meta"})
    run = run_of(architecture=architecture, transcoder=transcoder, latents=3000)
    assert run.weights() == numbers(coder)


@pytest.mark.parametrize("activation", ["topk_binary", "topk"])
def test_weights_are_those_of_sparsify_coders(activation: str):
    kind = SparseCoderConfig if activation == "topk" else BinarySparseCoderConfig
    with torch.device("meta"):
        coder = SparseCoder(768, kind(activation=activation, num_latents=3000), device="meta")  # pyright: ignore
    architecture = activation.removeprefix("topk_")
    run = run_of(host="sparsify", architecture=architecture, latents=3000)
    assert run.weights() == numbers(coder)


def test_defaults_are_the_middle_layer_and_eight_latents_a_dimension():
    run = run_of()
    assert (run.layer, run.latents) == (6, 8 * 768)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"layer": 12}, "from 0 to 11"), ({"latents": 8, "k": 9}, "give at most 8")],
)
def test_layers_and_k_out_of_range_are_refused(settings: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        run_of(**settings)


def test_each_optimizer_keeps_its_states():
    kinds = [("saelens", None, 2), ("sparsify", None, 1), ("sparsify", "adam", 2)]
    for host, optimizer, states in kinds:
        memory = memory_of(run_of(host=host, optimizer=optimizer))
        assert memory.optimizer == states * memory.coder == states * memory.gradients


def test_blocks_are_those_of_the_step():
    assert BLOCK == processor.BLOCK_TOKENS
    small, large = (
        memory_of(run_of(architecture="binary_entropy", batch_size=tokens, device="cpu")).step
        for tokens in (BLOCK, 2 * BLOCK)
    )
    # Twice the tokens take less than twice the memory, because a block stays as large.
    assert 1.5 * small < large < 1.8 * small


@pytest.mark.parametrize(
    ("host", "settings", "copies"),
    [
        ("saelens", {"architecture": "topk"}, 1.5),
        ("saelens", {"architecture": "topk", "transcoder": True}, 0),
        ("saelens", {"architecture": "binary"}, 0),
        ("sparsify", {"architecture": "topk", "optimizer": "adam"}, 1),
        ("sparsify", {"architecture": "binary", "optimizer": "adam"}, 0),
        ("sparsify", {"architecture": "binary"}, 0.5),
    ],
)
def test_only_adam_of_this_package_s_coders_makes_no_copies(
    host: str, settings: dict[str, Any], copies: float
):
    # With few tokens, and with the most latents, the update is the peak of a stock coder's step.
    run = run_of(host=host, latents=60_000, batch_size=2, k=1, **settings)
    share = memory_of(run).step / memory_of(run).coder
    if copies:
        assert copies <= share < copies + 0.1
    else:
        assert share < 1


def test_ranks_exchange_copies_of_gradients():
    one, two = (memory_of(run_of(host="sparsify", ranks=ranks)) for ranks in (1, 2))
    assert two == replace(one, buckets=one.gradients)


def test_the_peak_is_the_larger_moment():
    parts = Memory(
        coder=1, gradients=10, optimizer=2, buckets=0, step=20, kept=0, model=5, reading=7,
        store=0, refill=0,
    )  # fmt: skip
    assert parts.training == 33
    # In sparsify a step happens while the model reads, with gradients of the step.
    assert parts.peak == 1 + 2 + 5 + 10 + 20
    assert replace(parts, reading=21).peak == 1 + 2 + 5 + 10 + 21
    # In SAELens gradients are gone when the store is refilled.
    assert replace(parts, store=3, refill=6).peak == 1 + 2 + 5 + 3 + 10 + 20
    assert replace(parts, store=3, refill=26).peak == 1 + 2 + 5 + 3 + 26 + 7
    assert replace(parts, store=3, kept=4, refill=26).peak == 1 + 2 + 5 + 3 + 4 + 26 + 7


def test_the_store_holds_whole_batches_of_rows():
    run = run_of(context_size=11, store_batch_size_prompts=3, n_batches_in_buffer=7)
    # 70 tokens are wanted, and 30 come at once.
    assert memory_of(run).store == 90 * 768 * 4
    pairs = run_of(
        transcoder=True, context_size=11, store_batch_size_prompts=3, n_batches_in_buffer=7
    )
    assert memory_of(pairs).store == 90 * 2 * 768 * 4


def test_saelens_keeps_the_output_of_the_last_step():
    # Three arrays of the pre-activations' size and three of the input's.
    run = run_of(architecture="topk", latents=3000, batch_size=100)
    assert memory_of(run).kept == 100 * 3 * (3000 + 768) * 4
    assert memory_of(run_of(host="sparsify", architecture="topk")).kept == 0


def test_sparsify_loads_the_model_in_bfloat16_on_a_gpu():
    gpu, cpu = (memory_of(run_of(host="sparsify", device=d)).model for d in ("cuda", "cpu"))
    assert cpu == 2 * gpu == 4 * GPT2.weights(with_output_layer=False)


def test_bfloat16_halves_the_coder():
    wide, narrow = (memory_of(run_of(dtype=d)) for d in ("float32", "bfloat16"))
    assert (2 * narrow.coder, 2 * narrow.optimizer) == (wide.coder, wide.optimizer)
    assert 2 * narrow.step == pytest.approx(wide.step)
    assert 2 * narrow.kept == wide.kept
    assert narrow.store == wide.store  # SAELens' store is in float32 in any case


def test_saelens_stops_at_the_layer_and_sparsify_does_not():
    per_layer = 2 * (2 * 768 * 1536 + 2 * 768 * 3072) + 4 * 256 * 768
    assert flops_of_token(run_of(layer=2)) == 3 * per_layer
    assert flops_of_token(run_of(layer=2, host="sparsify")) == 12 * per_layer


def test_flops_grow_with_tokens_and_latents():
    assert flops_of_step(run_of(batch_size=8192)) == 2 * flops_of_step(run_of())
    dense: dict[str, Any] = {"architecture": "topk", "latents": 6000}
    more = flops_of_step(run_of(**dense | {"latents": 12000}))
    assert more == 2 * flops_of_step(run_of(**dense))


def test_disk_counts_files():
    run = run_of(tokens=1000, latents=3000)
    disk = disk_of(run)
    assert disk["coder"] == 4 * run.weights()
    assert disk["checkpoint"] == 3 * disk["coder"]
    assert disk["activations, if cached"] == 1000 * 768 * 4
    pairs = disk_of(run_of(tokens=1000, transcoder=True))
    assert pairs["activations, if cached"] == 2 * 1000 * 768 * 4


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kind_has_a_cost(host: str, architecture: str):
    memory = memory_of(run_of(host=host, architecture=architecture))
    assert memory.peak > memory.training > 3 * memory.coder


@pytest.mark.parametrize(("architecture", "transcoder"), SAELENS)
def test_products_are_those_of_a_step_in_saelens(architecture: str, transcoder: bool):
    tokens, width, latents = 128, 32, 256
    small = {"d_in": width, "d_sae": latents, "k": 8, "device": "cpu"}
    config = SAELENS[architecture, transcoder].to_dict()
    sizes = {name: size for name, size in small.items() if name in config}
    given = config | sizes | ({"d_out": width} if transcoder else {})
    batch = torch.randn(1, tokens, width * (1 + transcoder))
    trainer = saelens_trainer(TrainingSAEConfig.from_dict(given), batch, PLAIN)
    trainer.step(batch[0])  # the first step also initialises the coder
    with FlopCounterMode(display=False) as counter:
        trainer.step(batch[0])
    cost = STEPS["saelens", architecture, transcoder]
    products = counter.get_total_flops() / (2 * tokens * width * latents)
    assert products == pytest.approx(cost.products, rel=0.03)


def test_codes_with_a_gradient_for_every_latent_are_dense_on_a_gpu():
    for host in HOSTS:
        cpu, gpu = (
            memory_of(run_of(host=host, architecture="binary_entropy", device=device))
            for device in ("cpu", "cuda")
        )
        assert gpu.step > 1.5 * cpu.step


def test_the_first_batch_of_a_wide_coder_takes_most():
    run = run_of(host="sparsify", latents=100_000, batch_size=1024, device="cpu")
    weights, tokens, k = 4 * run.weights(), 1024, 32
    # By hand: 1.6 copies of the weights, 3.1 arrays of the pre-activations, and smaller ones.
    arrays = 3.1 * tokens * 100_000 + 4.5 * tokens * 768 + 20 * tokens * k
    assert memory_of(run).step + 2 * weights == pytest.approx(0.6 * weights + 4 * arrays)
    # Arrays of the first batch have 4096 tokens at most, and steps after it make none as wide.
    more = run_of(host="sparsify", latents=100_000, batch_size=8192, device="cpu")
    assert memory_of(more).step < 2 * memory_of(run).step + 2 * weights


def page_rows() -> list[list[str]]:
    """Cells of the first table of measurements in docs/plan.md."""
    page = (Path(__file__).parents[3] / "docs" / "plan.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if "**" in line]
    return [row for row in rows if row[0] in HOSTS and len(row) == 10]


def test_the_page_tells_what_the_plan_tells_today():
    rows, told = page_rows(), [planned(config) for config in (*CASES, *WHOLE_RUNS)]
    assert len(rows) == len(told)
    for row, run in zip(rows, told, strict=True):
        whole = run.config in WHOLE_RUNS
        memory = memory_of(run)
        size = (memory.peak if whole else memory.training) / 2**20
        assert row[:2] == [run.config.host, run.config.architecture]
        assert int(row[7]) == round(size)
        assert float(row[9].strip("*")) == pytest.approx(size / int(row[8]), abs=0.006)
