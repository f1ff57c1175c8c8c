"""Refits decoders by least squares at the end of sparsify's Trainer, and saves them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from schedulefree import ScheduleFreeWrapper
from sparsify import TrainConfig, Trainer
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from sae_binary_ext.coding.packing import unpack
from sae_binary_ext.sparsify.coder import BinarySparseCoder
from sae_binary_ext.sparsify.steps import ranks
from sae_binary_ext.training.least_squares import TOKENS_AT_ONCE, DecoderFit


def check_refit(cfg: TrainConfig) -> None:
    """Raise ValueError if a training config asks for a refit that it cannot have."""
    tokens = getattr(cfg.sae, "refit_tokens", None)
    if tokens and (reason := _obstacle(cfg)):
        raise ValueError(f"refit_tokens={tokens} with {reason}")


def _obstacle(cfg: TrainConfig) -> str:
    """Why the Trainer cannot refit. Empty if it can."""
    if cfg.loss_fn != "fvu":
        return (
            f"loss_fn={cfg.loss_fn!r}: a refit minimises the FVU and would undo what training on "
            "the model's loss has learned. Give refit_tokens=0."
        )
    if cfg.distribute_modules:
        return (
            "distribute_modules=True: a rank has the coders of other hookpoints than the other "
            "ranks. Give refit_tokens=0, and run sae-binary refit after training."
        )
    if getattr(cfg.sae, "tied_decoder", False):
        return (
            "tied_decoder=True: the decoder is the encoder's weight, and a refit would change the "
            "codes. Give refit_tokens=0."
        )
    return ""


@torch.no_grad()
def refit_at_end(trainer: Trainer, coders: dict[str, BinarySparseCoder]) -> None:
    """Refit each coder whose config has refit_tokens on the Trainer's last tokens, and save again.

    The codes must be those of the final weights, and the Trainer has no batches left. So the model
    reads the last rows of the dataset once more. The trained coders are saved already: if the refit
    fails, they stay. Each rank reads its share of the tokens, and the ranks' sums are added.
    """
    tokens = max((coder.setting("refit_tokens") for coder in coders.values()), default=0)
    if not tokens or _obstacle(trainer.cfg):
        return
    for optimizer in _schedule_free(trainer):
        optimizer.eval()  # the averaged weights, which the Trainer saves
    fits = {
        name: DecoderFit(
            *coder.decoder_weight().shape,
            device=coder.device,
            d_skip=0 if coder.W_skip is None else coder.W_skip.shape[1],
        )
        for name, coder in coders.items()
    }
    _read_last_rows(trainer, tokens, partial(_add, coders, fits))
    for name, fit in fits.items():
        coder = coders[name]
        weight, bias, skip = coder.decoder_weight(), coder.b_dec, coder.W_skip
        changed = [weight, bias] if skip is None else [weight, bias, skip]
        fit.sum_over_ranks()
        done = fit.replace(weight, bias, skip, fits_bias=not coder.cfg.centres())
        if _rank() == 0:
            done.log(name)
        for optimizer in _schedule_free(trainer):
            for parameter in changed:
                if "z" in optimizer.state[parameter]:  # the point that resumed training steps from
                    optimizer.state[parameter]["z"].copy_(parameter)
    trainer.save()
    for optimizer in _schedule_free(trainer):
        optimizer.eval()  # save has turned the other weights into those that training steps from


def _schedule_free(trainer: Trainer) -> list[ScheduleFreeWrapper]:
    return [each for each in trainer.optimizers if isinstance(each, ScheduleFreeWrapper)]


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _read_last_rows(
    trainer: Trainer, tokens: int, add: Callable[[str, Tensor, Tensor], None]
) -> None:
    """Give the activations of the dataset's last tokens, on this rank its share, to `add`.

    add takes a hookpoint, and inputs and outputs of its module, both [tokens, d_in].
    """
    mask = torch.ones(0, dtype=torch.bool)

    def hook(hookpoint: str, _: nn.Module, inputs: Any, outputs: Any) -> None:
        y = (outputs[0] if isinstance(outputs, tuple) else outputs).flatten(0, 1)[mask]
        x = inputs[0].flatten(0, 1)[mask] if trainer.cfg.sae.transcode else y
        add(hookpoint, x, y)

    dataset: Any = trainer.dataset
    rows = Subset(dataset, range(len(dataset) - 1, -1, -1))
    names = trainer.cfg.hookpoints
    modules = [trainer.model.base_model.get_submodule(name) for name in names]
    handles = [
        module.register_forward_hook(partial(hook, name))
        for name, module in zip(names, modules, strict=True)
    ]
    left = -(-tokens // ranks())
    try:
        with tqdm(total=left, desc="Refitting", leave=False, disable=_rank() != 0) as progress:
            for batch in DataLoader(rows, batch_size=trainer.cfg.batch_size):
                ids = batch["input_ids"].to(trainer.model.device)
                mask = torch.isin(ids, trainer.exclude_tokens, invert=True).flatten()
                trainer.model(ids)
                read = int(mask.sum())
                progress.update(read)
                left -= read
                if left <= 0:
                    return
    finally:
        for handle in handles:
            handle.remove()


def _add(
    coders: dict[str, BinarySparseCoder],
    fits: dict[str, DecoderFit],
    hookpoint: str,
    x: Tensor,
    y: Tensor,
) -> None:
    """Add a hookpoint's finite tokens, inputs x and targets y [tokens, d_in], to its fits."""
    finite = x.isfinite().all(-1) & y.isfinite().all(-1)
    for name, fit in fits.items():
        if name.partition("/")[0] != hookpoint:
            continue
        coder = coders[name]
        for source, target in zip(
            *(each[finite].split(TOKENS_AT_ONCE) for each in (x, y)), strict=True
        ):
            source, target = source.to(coder.dtype), target.to(coder.dtype)
            active = unpack(coder.encode_packed(source), coder.num_latents, torch.bool)
            fit.add(active, target, None if coder.W_skip is None else source)
