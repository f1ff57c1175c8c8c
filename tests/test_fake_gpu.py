"""Both hosts' coders train and infer on a GPU: devices, dtypes, and what waits for the GPU.

The GPU is a fake one (see tests/fake_gpu.py). The table in docs/gpu.md lists each function that
makes the host wait. A step of training calls none of them, but those that are named here.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, LoggingConfig, TrainingSAE, TrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from schedulefree import ScheduleFreeWrapper
from sparsify import SparseCoder
from sparsify.sign_sgd import SignSGD
from torch import Tensor, nn

from sae_binary_ext import saelens
from sae_binary_ext.coding import SELECTIONS, SURROGATES, unpack
from sae_binary_ext.sparsify import BinarySparseCoderConfig
from sae_binary_ext.sparsify.losses import TrainingProgress
from sae_binary_ext.training.collapse import EVERY
from sae_binary_ext.training.least_squares import DecoderFit
from tests.fake_gpu import Waits, fake_gpu

D_IN, LATENTS, K, TOKENS = 16, 512, 8, 64
GPU = torch.device("cuda", 0)
PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
LISTED = set(re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(), re.MULTILINE))
# autocast computes in bfloat16 with weights in float32.
MODES = {"autocast": torch.float32, "bfloat16": torch.bfloat16}
each_mode = pytest.mark.parametrize("mode", MODES)


def cases(table: dict[str, Any]) -> list[tuple[str, str]]:
    """Each case with autocast, and every third with weights in bfloat16: names and modes."""
    return [(name, "autocast") for name in table] + [(name, "bfloat16") for name in [*table][::3]]


FIRST_BATCH = {"training.untouched._fingerprint", "coding.initialization.has_spread"}
FINITE_ROWS = {"training.finite.FiniteRows.of"}
FIRST_RATES = {"sparsify.refined_coder.RefinedSparseCoder._has_rates"}
MENDED_START = {"sparsify.starting.mend_start"}
COLLAPSE = {"training.collapse._collapse"}
SAVING = {"training.finite.FiniteWatch._raise_if_bad", "training.finite._may_be_saved"}
CHECKED_INPUT = {"training.finite.check_finite"}
WIDEST_TOKEN = {"coding.forms.margins.ones_first"}
WIDEST_REFINED = {"saelens.refined.RefinedCoder.encode_indices"}
HOSTS_AUXK = {"saelens.transcoder.TranscoderTraining.training_forward_pass"}
FVU_OF_REFIT = {"training.least_squares.DecoderFit._fvu"}


def binary(kind: Any = saelens.BinaryTrainingSAEConfig, **fields: Any) -> Any:
    sizes = {"d_in": D_IN, "d_sae": LATENTS, "k": K, "device": "cuda"}
    return kind(**{**sizes, **fields})


def entropy(**fields: Any) -> Any:
    return binary(saelens.BinaryEntropyTrainingSAEConfig, **fields)


def transcoder(**fields: Any) -> Any:
    return binary(saelens.BinaryTranscoderTrainingSAEConfig, d_out=12, **fields)


IN_SAELENS: dict[str, TrainingSAEConfig] = {
    **{f"topk, {name}": binary(surrogate=name) for name in SURROGATES},
    "topk, selected": binary(surrogate_latents="selected"),
    "topk, all": binary(surrogate_latents="all"),
    "topk, dense form": binary(k=LATENTS // 4, surrogate="reste"),
    "groupmax": binary(selection="groupmax"),
    "threshold": binary(selection="threshold", surrogate="rectangle"),
    "gumbel": binary(selection="gumbel"),
    "dense latents": binary(dense_coefficient=1e-3),
    "b_dec through the encoder": binary(encoder_trains_b_dec=True),
    "decoder rows of norm 0.1": binary(decoder_init_norm=0.1),
    "layer_norm": binary(normalize_activations="layer_norm"),
    "constant_norm_rescale": binary(normalize_activations="constant_norm_rescale"),
    "non-finite tokens": binary(skip_non_finite=True),
    "refined": binary(saelens.RefinedTrainingSAEConfig, training_passes=1),
    "entropy": entropy(),
    "entropy of topk": entropy(selection="topk"),
    "entropy of gumbel": entropy(selection="gumbel"),
    "covariance": entropy(covariance_coefficient=1e-4),
    "sampled covariance": entropy(covariance_coefficient=1e-4, covariance_sample=100),
    "covariance of topk": entropy(selection="topk", covariance_coefficient=1e-4),
    "transcoder": transcoder(),
    "transcoder, skip connection": transcoder(skip_connection=True, selection="threshold"),
    "transcoder, AuxK": transcoder(aux_loss_coefficient=1e-2),
    "transcoder, covariance": transcoder(entropy_coefficient=1e-4, covariance_coefficient=1e-4),
    "topk transcoder": binary(saelens.TopKTranscoderTrainingSAEConfig, d_out=12),
}
IN_SPARSIFY: dict[str, dict[str, Any]] = {
    **{f"topk, {kind.ste}": {"ste": kind.ste} for kind in SURROGATES.values()},
    "topk, selected": {"ste_latents": "selected"},
    "topk, all": {"ste_latents": "all"},
    "groupmax": {"activation": "groupmax_binary"},
    "gumbel": {"activation": "gumbel_binary"},
    "threshold": {"activation": "binary"},
    "entropy": {"activation": "binary", "entropy_alpha": 1e-3, "dense_alpha": 1e-3},
    "covariance": {"covariance_alpha": 1e-4},
    "sampled covariance": {"covariance_alpha": 1e-4, "covariance_sample": 100},
    "b_dec through the encoder": {"encoder_trains_b_dec": True},
    "tied": {"tied_decoder": True, "initial_firing_rate": 0.0},
    "matryoshka": {"matryoshka": True},
    "4k latents": {"multi_topk": True},
    "transcoder": {"transcode": True},
    "transcoder, skip connection": {"transcode": True, "skip_connection": True},
    "refined": {"refine_passes": 1},
    "non-finite tokens": {"skip_non_finite": True},
}


@contextmanager
def watched(mode: str) -> Iterator[Waits]:
    """What waits for the fake GPU in the block, which computes in a mode."""
    with Waits() as waits, torch.autocast("cuda", enabled=mode == "autocast"):
        yield waits


def batch(dtype: torch.dtype, width: int = D_IN) -> Tensor:
    return torch.randn(TOKENS, width, dtype=dtype, device="cuda")


def check_places(coder: nn.Module, dtype: torch.dtype) -> None:
    """All tensors of a coder are on the GPU. Thresholds and rates are in float32."""
    for name, tensor in coder.state_dict().items():
        wide = any(part in name for part in ("log_threshold", "firing_rate"))
        assert (tensor.device, tensor.dtype) == (GPU, torch.float32 if wide else dtype), name


def check_outputs(dtype: torch.dtype, *outputs: Any) -> None:
    for output in outputs:
        assert (output.device, output.dtype) == (GPU, dtype)


def trainer_of(config: TrainingSAEConfig, mode: str) -> SAETrainer[Any, Any]:
    """A trainer in which some latents have not fired for long."""
    dtype = str(MODES[mode])
    sae = TrainingSAE.from_dict(config.to_dict() | {"dtype": dtype})
    settings = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=TOKENS,
        lr=1e-3,
        lr_end=1e-4,
        device="cuda",
        autocast=mode == "autocast",
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(settings, sae, iter(()))


@pytest.mark.parametrize(("name", "mode"), cases(IN_SAELENS))
def test_a_step_in_saelens(name: str, mode: str):
    config, dtype = IN_SAELENS[name], MODES[mode]
    always = FINITE_ROWS if name == "non-finite tokens" else set()
    always = HOSTS_AUXK if name == "topk transcoder" else always
    with fake_gpu():
        trainer = trainer_of(config, mode)
        for step, waiting in ((0, FIRST_BATCH), (1, set())):
            trainer.n_training_steps = step
            with Waits() as waits:
                output = trainer.step(batch(dtype, D_IN + getattr(config, "d_out", 0)))
            assert waits.places.keys() == always | waiting
        check_places(trainer.sae, dtype)
        if name != "topk transcoder":  # its step is SAELens' own
            check_outputs(torch.float32, output.loss)
            check_outputs(dtype, output.sae_out, output.feature_acts)


@pytest.mark.parametrize(("name", "mode"), cases(IN_SPARSIFY))
def test_a_step_in_sparsify(name: str, mode: str):
    config = BinarySparseCoderConfig(num_latents=LATENTS, k=K, **IN_SPARSIFY[name])
    dtype = MODES[mode]
    always = FINITE_ROWS if config.skip_non_finite else set()
    first = MENDED_START if config.skip_non_finite else set()
    first = FIRST_RATES if config.refine_passes else first
    with fake_gpu():
        coder = SparseCoder(D_IN, config, "cuda", dtype).train()
        optimizer = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=1e-3), momentum=0.95)
        optimizer.train()
        for step, waiting in ((0, first), (1, set())):
            fits = step == 0 and config.initial_firing_rate != 0
            progress = TrainingProgress(step=step, fit_start=fits, noise_seed=step, parts=2.0)
            coder.progress = progress
            dead = torch.zeros(LATENTS, dtype=torch.bool, device="cuda")
            with watched(mode) as waits:
                target = batch(dtype) if config.transcode else None
                output = coder(batch(dtype), target, dead_mask=dead if step else None)
                (output.fvu + output.auxk_loss + output.multi_topk_fvu).backward()
                optimizer.step()
            assert waits.places.keys() == always | waiting
        check_places(coder, dtype)
        check_outputs(torch.float32, output.fvu)
        check_outputs(dtype, output.sae_out, output.latent_acts)
        assert output.latent_indices.shape == (LATENTS,)


def test_a_step_with_a_hook_on_codes_waits_for_nothing():
    with fake_gpu():
        trainer = trainer_of(IN_SAELENS["threshold"], "autocast")
        trainer.sae._starts_fresh = False
        trainer.sae.hook_sae_acts_post.add_hook(lambda codes, hook: codes)
        with Waits() as waits:
            trainer.step(batch(torch.float32))
    assert not waits.places


def test_each_hundredth_step_looks_for_collapse_and_saving_waits():
    with fake_gpu():
        trainer = trainer_of(IN_SAELENS["topk, sigmoid"], "autocast")
        trainer.sae._starts_fresh, trainer.n_training_steps = False, EVERY
        with Waits() as waits:
            trainer.step(batch(torch.float32))
        assert waits.places.keys() == COLLAPSE
        with Waits() as waits, pytest.raises(ValueError, match="step 1 "):
            trainer.sae.check_saveable()
        assert waits.places.keys() <= SAVING


def test_a_refit_waits_for_its_fvu_alone():
    with fake_gpu():
        fit = DecoderFit(LATENTS, D_IN, "cuda")
        weight, bias = torch.randn(LATENTS, D_IN, device="cuda"), torch.randn(D_IN, device="cuda")
        with Waits() as waits:
            fit.add(torch.rand(TOKENS, LATENTS, device="cuda") < 0.1, batch(torch.float32))
            assert not waits.places
            fit.replace(weight, bias, fits_bias=True)
    assert waits.places.keys() == FVU_OF_REFIT


def check_codes(dtype: torch.dtype, x: Tensor, packed: Tensor, *codes: Tensor) -> None:
    check_outputs(dtype, *codes)
    check_outputs(torch.uint8, packed)
    check_outputs(torch.float32, unpack(packed, LATENTS))
    assert packed.shape == (*x.shape[:-1], LATENTS // 8)


@each_mode
@pytest.mark.parametrize("name", [*SELECTIONS, "refined"])
def test_inference_in_saelens(name: str, mode: str):
    dtype = MODES[mode]
    sizes = {"d_in": D_IN, "d_sae": LATENTS, "k": K, "dtype": str(dtype), "device": "cuda"}
    config = (
        saelens.RefinedSAEConfig(**sizes, refine_passes=1)
        if name == "refined"
        else saelens.BinarySAEConfig(**sizes, selection=name)
    )
    with fake_gpu(), torch.no_grad():
        coder = SAE.from_dict(config.to_dict())
        x = batch(dtype)[None]
        with watched(mode) as waits:
            codes, packed = coder.encode(x), coder.encode_packed(x)
            check_outputs(dtype, coder.decode(codes), coder(x))
        assert not waits.places
        check_codes(dtype, x, packed, codes)
        with watched(mode) as waits:
            check_outputs(dtype, coder.encode_indices(x)[0])
        picks = name in SELECTIONS and SELECTIONS[name].pick is not None
        widest = WIDEST_REFINED if name == "refined" else WIDEST_TOKEN
        assert waits.places.keys() == (set() if picks else widest)


@each_mode
@pytest.mark.parametrize("name", [*SELECTIONS, "refined"])
def test_inference_in_sparsify(name: str, mode: str):
    dtype = MODES[mode]
    refined = name == "refined"
    activation = "topk_binary" if refined else SELECTIONS[name].activation
    config = BinarySparseCoderConfig(
        num_latents=LATENTS, k=K, activation=activation, refine_passes=int(refined)
    )
    with fake_gpu(), torch.no_grad():
        coder = SparseCoder(D_IN, config, "cuda", dtype).eval()
        x = batch(dtype)[None]
        with watched(mode) as waits:
            packed = coder.encode_packed(x)
        assert waits.places.keys() == CHECKED_INPUT
        with watched(mode) as waits:
            check_outputs(dtype, coder(x).sae_out)
        assert not waits.places
        with watched(mode) as waits:
            codes, index, _ = coder.encode(x)
            check_outputs(dtype, coder.decode(codes, index), coder.encode_indices(x)[0])
        picks = not refined and SELECTIONS[name].pick is not None
        assert waits.places.keys() == CHECKED_INPUT | (set() if picks else WIDEST_TOKEN)
        check_codes(dtype, x, packed, codes)


def test_the_page_lists_what_waits():
    """Each function that a test above expects to wait is in the table, and no other."""
    expected = {
        name
        for key, names in globals().items()
        if key.isupper() and isinstance(names, set) and key != "LISTED"
        for name in names
    }
    assert expected == LISTED
