"""Each error about a config or a coder names a remedy, and following that remedy works.

Remedies of single fields are tested in test_remedies_of_fields.py. Remedies for texts are tested in
integration/test_remedies.py, for models in integration/test_remedies_of_models.py, and for
checkpoints in checkpoints/test_remedies.py.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, LoggingConfig, TopKTrainingSAEConfig
from sparsify import SparseCoder, SparseCoderConfig

from sae_binary_ext.coding import FiringRates, covariance_penalty, pack, packed_width, unpack
from sae_binary_ext.commands.compress.code_file import CodeHeader, CodeWriter
from sae_binary_ext.commands.multi_bit.multi_bit_run import check_has_levels
from sae_binary_ext.measure.code_entropy import GatheredCodes
from sae_binary_ext.measure.refit import with_latents
from sae_binary_ext.saelens import (
    BinarySAE,
    BinarySAEConfig,
    BinaryTrainingSAE,
    BinaryTrainingSAEConfig,
    BinaryTranscoder,
    BinaryTranscoderConfig,
    BinaryTranscoderTrainingSAEConfig,
    TopKTranscoderTrainingSAEConfig,
    TranscoderRunnerConfig,
)
from sae_binary_ext.saelens.pairs import split_pairs
from sae_binary_ext.sparsify import BinarySparseCoder, BinarySparseCoderConfig
from sae_binary_ext.training.finite import finite_tokens
from tests.integration.saelens_helpers import hooked_transformer
from tests.remedies import Remedy, settings
from tests.saelens.helpers import trainer_for
from tests.sparsify.trainers import coder_in, trainer_on

D, LATENTS, K = 16, 32, 4
SIZES: dict[str, Any] = {"d_in": D, "d_sae": LATENTS, "k": K}
PACKED = pack(torch.ones(3, LATENTS))
ROWS = torch.arange(40).reshape(8, 5)


def training(**fields: Any) -> Any:
    return BinaryTrainingSAE(BinaryTrainingSAEConfig(**{**SIZES, **fields}))


def transcoder(**fields: Any) -> Any:
    return BinaryTranscoder(BinaryTranscoderConfig(**{**SIZES, **fields}))


def training_transcoder(**fields: Any) -> Any:
    return BinaryTranscoderTrainingSAEConfig(**{**SIZES, **fields})


def sparse(**fields: Any) -> Any:
    """A binary coder of sparsify with these fields."""
    return BinarySparseCoder(D, BinarySparseCoderConfig(num_latents=LATENTS, **fields))


def sparse_run(root: Path, activation: str = "topk_binary", scale: float = 1.0, **run: Any) -> Any:
    """Train one step in sparsify's Trainer."""
    torch.manual_seed(0)
    activations = torch.randn(40, D)
    activations[3] *= scale
    fields = run.pop("fields", {})
    config = BinarySparseCoderConfig(activation, num_latents=LATENTS, k=K, **fields)
    trainer = trainer_on(activations, run.pop("rows", ROWS), config, root, **run)
    trainer.fit()
    return trainer


def saelens_run(bad: float | None = None, steps: int = 6, **fields: Any) -> Any:
    torch.manual_seed(0)
    activations = torch.randn(1000, D)
    if bad is not None:
        activations[7, 2] = bad
    return trainer_for(BinaryTrainingSAEConfig(**{**SIZES, **fields}), activations, steps).fit()


def folded(root: Path, fold: bool) -> Any:
    BinarySAE(BinarySAEConfig(**SIZES)).save_model(root / "coder")
    return SAE.load_from_disk(root / "coder", fold_W_dec_norm=fold)


def in_float16(root: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        training(dtype=dtype).save_inference_model(str(root / dtype))
        loaded = SAE.load_from_disk(root / dtype, dtype="float16")
        assert loaded.W_dec.dtype == torch.float16


def attached(error_term: bool) -> torch.Tensor:
    model = hooked_transformer(Path())
    coder = transcoder()
    coder.cfg.metadata.hook_name = "blocks.0.mlp.hook_in"
    coder.cfg.metadata.hook_name_out = "blocks.0.hook_mlp_out"
    model.add_sae(coder, use_error_term=error_term)
    return model(torch.zeros(1, 4, dtype=torch.long))


def decoded(changed: Callable[[Any, torch.Tensor, torch.Tensor], Any]) -> None:
    coder, x = transcoder(skip_connection=True), torch.randn(3, D)
    changed(coder, coder.encode(x), x)


def change_in_place(coder: Any, codes: torch.Tensor, x: torch.Tensor) -> None:
    coder.decode(codes.mul_(0))


def run_of(**fields: Any) -> TranscoderRunnerConfig:
    defaults: dict[str, Any] = {
        "saes": {"a": training_transcoder(), "b": training_transcoder()},
        "hook_name": "in",
        "hook_name_out": "out",
        "model_name": "m",
        "dataset_path": "d",
        "logger": LoggingConfig(log_to_wandb=False),
    }
    return TranscoderRunnerConfig(**{**defaults, **fields})


def finetuned(root: Path, *, by_trainer: bool) -> None:
    stock = SparseCoder(D, SparseCoderConfig(num_latents=LATENTS, k=K))
    if by_trainer:
        stock.save_to_disk(root / "stock" / "middle")
        trainer = trainer_on(
            torch.randn(40, D), ROWS, BinarySparseCoderConfig(num_latents=LATENTS, k=K), root,
            finetune=str(root / "stock"),
        )  # fmt: skip
        coder_in(trainer).load_state_dict(stock.state_dict())
        trainer.fit()
    else:
        sparse(k=K).load_state_dict(stock.state_dict())


def estimate(batches: int) -> None:
    """Read batches of eight tokens for an estimate that needs twenty tokens."""
    stream = iter(torch.randn(batches, 8, D))
    list(finite_tokens(stream, "scale", skip=False, count=batches, needed=20))


def rates_of(codes: torch.Tensor) -> torch.Tensor:
    counted = FiringRates(codes.shape[1])
    counted.update(codes)
    return counted.rates


def code_entropy(tokens: int) -> Any:
    gathered = GatheredCodes(LATENTS)
    gathered.add(torch.ones(tokens, LATENTS, dtype=torch.bool), torch.arange(tokens))
    return gathered.entropy()


def code_writer(root: Path) -> CodeWriter:
    return CodeWriter(
        root / "codes", CodeHeader(LATENTS, "packed", "", "00" * packed_width(LATENTS), {})
    )


def write_codes(root: Path) -> None:
    with code_writer(root) as writer:
        writer.write(PACKED)


REMEDIES = {
    "float16 in training": Remedy(
        lambda root: training(dtype="float16"), 'dtype="float16")', in_float16
    ),
    "layer norm of one number": settings(
        training, "Choose another, or none",
        {"d_in": 1, "normalize_activations": "layer_norm"},
        {"d_in": 1, "normalize_activations": "none"},
        {"d_in": 1, "normalize_activations": "expected_average_only_in"},
        {"d_in": 1, "normalize_activations": "constant_norm_rescale"},
    ),
    "a surrogate for gumbel": settings(
        training, "'sigmoid' alone", {"selection": "gumbel", "surrogate": "reste"},
        {"selection": "gumbel", "surrogate": "sigmoid"},
    ),
    "latents that compete": settings(
        training, "Leave it out", {"selection": "groupmax", "surrogate_latents": "near"},
        {"selection": "groupmax"}, {"selection": "topk", "surrogate_latents": "near"},
    ),
    "no such latents for groups": settings(
        training, "Leave it out", {"selection": "groupmax", "surrogate_latents": "no such"},
        {"selection": "groupmax"},
    ),
    "more than the latents": settings(
        training, "k of at most 32", {"k": 33}, {"k": 32}
    ),
    "groups that are not equal": settings(
        training, "Give k of 4, or another that divides 32", {"k": 6, "selection": "groupmax"},
        {"k": 4, "selection": "groupmax"}, {"k": 8, "selection": "groupmax"},
    ),
    "b_dec that the encoder does not see": settings(
        training, "Leave encoder_trains_b_dec out",
        {"encoder_trains_b_dec": True, "apply_b_dec_to_input": False},
        {"apply_b_dec_to_input": False},
    ),
    "the same of a transcoder": settings(
        training_transcoder, "Leave encoder_trains_b_dec out", {"encoder_trains_b_dec": True}, {}
    ),
    "decoder rows to fold": Remedy(
        lambda root: folded(root, True), "Load with fold_W_dec_norm=False",
        lambda root: folded(root, False),
    ),
    "a transcoder's b_dec": settings(
        transcoder, "give False", {"apply_b_dec_to_input": True},
        {}, {"apply_b_dec_to_input": False},
    ),
    "a transcoder that reshapes": settings(
        transcoder, "Leave the field out", {"reshape_activations": "hook_z"}, {}
    ),
    "a transcoder's error term": Remedy(
        lambda root: BinaryTranscoder(BinaryTranscoderConfig(**SIZES), use_error_term=True),
        "model.add_sae(transcoder, use_error_term=True)",
        lambda root: attached(True),
    ),
    "codes of an unknown input": Remedy(
        lambda root: decoded(lambda coder, codes, x: coder.decode(codes * 1)),
        "decode_with_input(codes, x)",
        lambda root: decoded(lambda coder, codes, x: coder.decode_with_input(codes * 1, x)),
    ),
    "the same, changed in place": Remedy(
        lambda root: decoded(lambda coder, codes, x: coder.decode(0 * codes)), "in place",
        lambda root: decoded(change_in_place),
    ),
    "a decoder at zero": settings(
        lambda **fields: TopKTranscoderTrainingSAEConfig(
            **SIZES, rescale_acts_by_decoder_norm=True, **fields
        ),
        "Give decoder_init_norm a number", {"decoder_init_norm": None}, {"decoder_init_norm": 0.1},
    ),
    "pairs of another width": Remedy(
        lambda root: split_pairs(torch.zeros(2, D), D, D), "32 wide",
        lambda root: split_pairs(torch.zeros(2, 32), D, D),
    ),
    "a coder that is no transcoder": settings(
        run_of, "binary_transcoder or topk_transcoder",
        {"saes": {"a": TopKTrainingSAEConfig(**SIZES)}},
        {"saes": {"a": training_transcoder()}},
        {"saes": {"a": TopKTranscoderTrainingSAEConfig(**SIZES)}},
    ),
    "transcoders of different widths": settings(
        run_of, "Give all the same d_in and d_out",
        {"saes": {"a": training_transcoder(), "b": training_transcoder(d_out=3)}}, {},
    ),
    "a rate for no transcoder": settings(
        run_of, "['a', 'b']", {"lrs": {"c": 1e-3}}, {"lrs": {"a": 1e-3}}
    ),
    "an activation that is infinite": Remedy(
        lambda root: saelens_run(float("inf")), "skip_non_finite=True",
        lambda root: saelens_run(float("inf"), skip_non_finite=True),
    ),
    "the same in an estimate": Remedy(
        lambda root: saelens_run(
            float("nan"), normalize_activations="expected_average_only_in"
        ),
        "skip_non_finite=True",
        lambda root: saelens_run(
            float("nan"), normalize_activations="expected_average_only_in", skip_non_finite=True
        ),
    ),
    "an estimate of few tokens": Remedy(
        lambda root: estimate(2), "n_batches_for_norm_estimate", lambda root: estimate(3)
    ),
    "unit rows": settings(
        sparse, "give False", {"normalize_decoder": True}, {}, {"normalize_decoder": False}
    ),
    "four times k": settings(
        sparse, "topk_binary alone", {"activation": "groupmax_binary", "multi_topk": True},
        {"activation": "groupmax_binary"}, {"activation": "topk_binary", "multi_topk": True},
    ),
    "a rate of all": settings(
        sparse, "or None", {"initial_firing_rate": 1},
        {"initial_firing_rate": 0.5}, {"initial_firing_rate": None},
    ),
    "b_dec of a transcoder": settings(
        sparse, "Leave it out", {"encoder_trains_b_dec": True, "transcode": True},
        {"transcode": True},
    ),
    "ste of gumbel": settings(
        sparse, "only ste='sigmoid'", {"activation": "gumbel_binary", "ste": "re"},
        {"activation": "gumbel_binary", "ste": "sigmoid"},
    ),
    "ste_latents of groups": settings(
        sparse, "Leave it out", {"activation": "groupmax_binary", "ste_latents": "all"},
        {"activation": "groupmax_binary"},
    ),
    "no such ste_latents of groups": settings(
        sparse, "Leave it out", {"activation": "groupmax_binary", "ste_latents": "no such"},
        {"activation": "groupmax_binary"},
    ),
    "a binary field of a stock coder": settings(
        BinarySparseCoderConfig, "Leave it out or choose a binary activation",
        {"activation": "topk", "entropy_alpha": 1e-3},
        {"activation": "topk"}, {"activation": "binary", "entropy_alpha": 1e-3},
    ),
    "a price of bits without refined codes": settings(
        sparse, "Set refine_passes=12, or leave cost_of_bit out", {"cost_of_bit": 1e-3},
        {"cost_of_bit": 1e-3, "refine_passes": 12}, {},
    ),
    "a refined transcoder": settings(
        sparse, "Leave one of the two out", {"refine_passes": 3, "transcode": True},
        {"refine_passes": 3}, {"transcode": True},
    ),
    "a stock config": Remedy(
        lambda root: SparseCoder(D, SparseCoderConfig(activation="topk_binary")),  # pyright: ignore
        "BinarySparseCoderConfig(activation='topk_binary', ...)",
        lambda root: SparseCoder(D, BinarySparseCoderConfig(activation="topk_binary")),
    ),
    "a stock config in our coder": Remedy(
        lambda root: BinarySparseCoder(D, SparseCoderConfig()),  # pyright: ignore
        "BinarySparseCoderConfig", lambda root: BinarySparseCoder(D, BinarySparseCoderConfig()),
    ),
    "groups that decay": Remedy(
        lambda root: sparse_run(root, "groupmax_binary", k_decay_steps=5), "Give 0",
        lambda root: sparse_run(root, "groupmax_binary", k_decay_steps=0),
    ),
    "seeds and the model's loss": Remedy(
        lambda root: sparse_run(root, loss_fn="ce", init_seeds=[0, 1]), "Give one seed in each run",
        lambda root: sparse_run(root, loss_fn="ce", init_seeds=[1]),
    ),
    "a first batch left out": Remedy(
        lambda root: sparse_run(root, exclude_tokens=[*range(20)], batch_size=4),
        "raise batch_size",
        lambda root: sparse_run(root, exclude_tokens=[*range(20)], batch_size=8),
    ),
    "the same, with fewer tokens": Remedy(
        lambda root: sparse_run(root, exclude_tokens=[*range(40)]), "give fewer exclude_tokens",
        lambda root: sparse_run(root, exclude_tokens=[*range(20)]),
    ),
    "an infinite token in sparsify": Remedy(
        lambda root: sparse_run(root, scale=float("inf")), "skip_non_finite=True",
        lambda root: sparse_run(
            root, scale=float("inf"), fields={"skip_non_finite": True}
        ),
    ),
    "a stock coder's weights": Remedy(
        lambda root: finetuned(root, by_trainer=False), "--finetune",
        lambda root: finetuned(root, by_trainer=True),
    ),
    "unit rows of a coder that is there": Remedy(
        lambda root: sparse().set_decoder_norm_to_unit_norm(),
        "Leave normalize_decoder at False", lambda root: sparse_run(root),
    ),
    "the entropy of one token's code": Remedy(
        lambda root: code_entropy(1), "give at least 2", lambda root: code_entropy(2)
    ),
    "a covariance of one token": Remedy(
        lambda root: covariance_penalty(torch.ones(1, 4)), "a batch of at least 2",
        lambda root: covariance_penalty(torch.ones(2, 4)),
    ),
    "packed codes of other latents": Remedy(
        lambda root: unpack(PACKED, 2 * LATENTS), "64 latents take uint8 and 8 in the last",
        lambda root: unpack(torch.zeros(3, 8, dtype=torch.uint8), 2 * LATENTS),
    ),
    "rates of no codes": Remedy(
        lambda root: FiringRates(4).rates, "call update before reading rates",
        lambda root: rates_of(torch.ones(2, 4)),
    ),
    "codes for a file that is not open": Remedy(
        lambda root: code_writer(root).write(PACKED), "Write in a `with` block", write_codes
    ),
    "no latents": Remedy(
        lambda root: with_latents(training(), torch.zeros(0, dtype=torch.long)), "at least one",
        lambda root: with_latents(
            training(selection="threshold"), torch.zeros(1, dtype=torch.long)
        ),
    ),
    "levels where latents compete": Remedy(
        lambda root: check_has_levels("a", training()), "selection 'threshold'",
        lambda root: check_has_levels("a", training(selection="threshold")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REMEDIES)
def test_the_remedy_works(name: str, tmp_path: Path):
    remedy = REMEDIES[name]
    with pytest.raises((ValueError, NotImplementedError), match=re.escape(remedy.says)):
        remedy.mistake(tmp_path)
    remedy.follow(tmp_path)
