"""Activations of a text at the place a coder belongs to, as its own metadata tells."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sae_lens import SAE
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor

from sae_binary_ext.coding.checks import check_at_least
from sae_binary_ext.evaluation.in_model import ROWS_PER_FORWARD, read_hooks
from sae_binary_ext.saelens.models import load_hooked_model
from sae_binary_ext.saelens.splice import resolve_hook

DEFAULT_CONTEXT = 256


@dataclass(frozen=True)
class Text:
    """What to read with which model.

    Attributes:
        dataset: of texts or token ids, as datasets.load_dataset finds it: a Hub id or a folder.
        model: Hub id or folder; None takes the one that the coder's files name.
        tokens: how many to use.
        context_size: tokens a row; None takes that of the coder's training, or 256.
    """

    dataset: str
    model: str | None = None
    tokens: int = 300_000
    context_size: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, tokens=self.tokens)
        if self.context_size is not None:
            check_at_least(2, context_size=self.context_size)


def read_activations(coder: SAE[Any], text: Text) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets of a coder, a few rows of text at a time, until the text ends.

    Args:
        coder: an autoencoder or a transcoder of SAELens. Its metadata names its hooks and the
            positions it is for.
        text: what to read; text.tokens has no effect here.

    Yields:
        [tokens, d_in] and [tokens, d_out]; of an autoencoder both are the same.

    Raises:
        ValueError: the coder's files do not name its hook, or neither they nor text a model; or
            the model has no such hook.
    """
    metadata = coder.cfg.metadata
    model_name = text.model or metadata.model_name
    if metadata.hook_name is None or model_name is None:
        raise ValueError(
            f"hook_name={metadata.hook_name!r}, model={model_name!r}: the coder's files do not say "
            "where it belongs. Name its model, and its hook as sparsify names it (layers.9)."
        )
    # sparsify's files do not tell; this is SAELens' own default.
    if metadata.prepend_bos is None:
        metadata.prepend_bos = True
    model = load_hooked_model(metadata.model_class_name, model_name, str(coder.device))
    source = resolve_hook(model, "hook_name", metadata.hook_name)
    target = resolve_hook(model, "hook_name_out", metadata.hook_name_out or metadata.hook_name)
    store = ActivationsStore.from_sae(
        model,  # pyright: ignore[reportArgumentType]
        coder,
        text.dataset,
        context_size=text.context_size or metadata.context_size or DEFAULT_CONTEXT,
        store_batch_size_prompts=ROWS_PER_FORWARD,
        device=str(coder.device),
    )
    positions = slice(*metadata.seqpos_slice) if metadata.seqpos_slice else slice(None)
    while True:
        try:
            rows = store.get_batch_tokens(raise_at_epoch_end=True)
        except StopIteration:
            return
        found = read_hooks(model, (source, target), rows)
        inputs, targets = (found[name][:, positions].flatten(0, 1) for name in (source, target))
        yield inputs, targets
