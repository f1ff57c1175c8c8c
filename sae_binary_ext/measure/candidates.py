"""Loads coders of any format, finds their hooks, and opens a model with its coders and text."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from sae_lens import SAE
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from sae_binary_ext.checkpoints import hook_names
from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.load import load_candidate, load_coder
from sae_binary_ext.checkpoints.portable import Place
from sae_binary_ext.checkpoints.published import find_published, load_published
from sae_binary_ext.checkpoints.sources import find_coders, split, stated_place
from sae_binary_ext.measure.documents import OutlyingTokens, TextBatch, cut_rows
from sae_binary_ext.measure.figures import TokenBatch
from sae_binary_ext.measure.in_model import (
    ROWS_PER_FORWARD,
    codes_of,
    decisive_settings,
    official_name,
    read_hooks,
)
from sae_binary_ext.saelens.splice import HookedModel, HookView, resolve_hook
from sae_binary_ext.settings import BFLOAT16, FLOAT32

logger = logging.getLogger(__name__)
# Values of seqpos_slice that exclude at most the beginning-of-text token.
ALL_POSITIONS = ((None,), (None, None), (0, None), (1, None))


@dataclass(frozen=True)
class Site:
    """Two hooks: the activation that coders read, and the activation that they output."""

    hook_name: str
    hook_name_out: str

    def __str__(self) -> str:
        return " -> ".join(dict.fromkeys((self.hook_name, self.hook_name_out)))


@dataclass(frozen=True)
class Candidate:
    """A SAELens coder with a short, unique name, the place it was read from, and its site.

    folder: the coder's folder, or its whole name on the Hub or in SAELens' list.
    """

    name: str
    folder: Path
    coder: SAE[Any]
    site: Site

    @property
    def model_name(self) -> str | None:
        """The model that the coder's files name."""
        return self.coder.cfg.metadata.model_name

    @property
    def is_transcoder(self) -> bool:
        """Whether the coder reads one activation and predicts another."""
        return self.site.hook_name != self.site.hook_name_out

    @property
    def d_out(self) -> int:
        """Width of the activation that the coder reconstructs or predicts."""
        return getattr(self.coder.cfg, "d_out", None) or self.coder.cfg.d_in

    def check_widths(self, inputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError if the activations do not have the widths of the coder."""
        found, own = (inputs.shape[-1], targets.shape[-1]), (self.coder.cfg.d_in, self.d_out)
        if found != own:
            raise ValueError(
                f"{self.name}: takes {own[0]} to {own[1]} dimensions, and the model has {found[0]} "
                f"and {found[1]} at {self.site}. The coder was trained on another model or hook: "
                "name the right model with --model."
            )


def load_candidates(
    sources: Iterable[str], hook_name: str | None = None, device: str = "cpu"
) -> list[Candidate]:
    """Load all coders of all sources to a device.

    Args:
        sources: folders of one coder or of several coders, Hub ids of either, Hub ids with a
            coder's path (user/repo/layers.9), or releases of SAELens with an id.
        hook_name: hook, module or hookpoint for coders whose files do not name one.

    Raises:
        CheckpointError: a source holds no coder, or one that SAELens cannot represent.
        ValueError: a coder's files name another hook than hook_name, or neither names a hook.
    """
    found = [each for source in sources for each in _find(source, hook_name, device)]
    candidates: list[Candidate] = []
    for name, one in zip(_short_names([one.parts for one in found]), found, strict=True):
        coder = one.load()
        candidates.append(candidate_of(coder, name, Path(*one.parts), hook_name))
        positions = coder.cfg.metadata.seqpos_slice
        if positions and tuple(positions) not in ALL_POSITIONS:
            logger.warning(
                f"{name} was trained on the positions {list(positions)} of a row (seqpos_slice), "
                "and is measured on all positions from --first_position on."
            )
    return candidates


class _Found(NamedTuple):
    """A coder that a source names.

    parts: the parts of its folder's path, or of its name on the Hub, or its release and its id.
    """

    parts: tuple[str, ...]
    load: Callable[[], SAE[Any]]


def _find(source: str, hook_name: str | None, device: str) -> Iterator[_Found]:
    is_here = Path(source).exists()
    if not is_here and (published := find_published(source)) is not None:
        parts = (published.release, published.own_id)
        yield _Found(parts, partial(load_published, published, device))
        return
    given, chosen = split(source, None)
    for name, folder in find_coders(given, chosen).items():
        own = folder.resolve() if is_here else Path(given) / name
        stated = stated_place(name, chosen)
        if stated is None:
            yield _Found(own.parts, partial(load_candidate, folder, hook_name, device))
        else:
            yield _Found(own.parts, partial(load_coder, folder, stated, device=device))


def check_any(candidates: list[Candidate]) -> None:
    """Raise ValueError if there are no coders."""
    if not candidates:
        raise ValueError("coders: none were given. Name at least one.")


def check_alike(candidates: list[Candidate]) -> None:
    """Raise ValueError if there are no coders, or if autoencoders and transcoders are mixed."""
    check_any(candidates)
    first = {each.is_transcoder: each.name for each in reversed(candidates)}
    if len(first) > 1:
        raise ValueError(
            f"{first[True]} is a transcoder and {first[False]} an autoencoder. Measure one kind at "
            "a time."
        )


def at_common_sites(
    candidates: Iterable[Candidate], model: HookedModel
) -> tuple[list[Candidate], dict[Site, tuple[str, str]]]:
    """Give all coders of one activation the same site; also return the model's hooks of each site.

    Hosts name one activation layers.8, blocks.8.hook_resid_post or blocks.9.hook_resid_pre.
    """
    sites: dict[tuple[str, str], Site] = {}
    joined: list[Candidate] = []
    for candidate in candidates:
        source, target = _hooks_of(candidate, model)
        hooks = hook_names.as_output(source), hook_names.as_output(target)
        joined.append(replace(candidate, site=sites.setdefault(hooks, candidate.site)))
    return joined, {site: hooks for hooks, site in sites.items()}


def _hooks_of(candidate: Candidate, model: HookedModel) -> tuple[str, str]:
    """The model's own names of a coder's input hook and output hook."""
    errors: list[ValueError] = []
    for site in _possible_sites(candidate):
        try:
            source = resolve_hook(model, "hook_name", site.hook_name)
            return source, resolve_hook(model, "hook_name_out", site.hook_name_out)
        except ValueError as error:
            errors.append(error)
    # Raise the first error, because it names the hook as the coder's files do.
    raise errors[0]


def _possible_sites(candidate: Candidate) -> Iterator[Site]:
    """The site as the files name it. A module (model.layers.9) is also given as SAELens' hook."""
    site, transcoder, model_name = candidate.site, candidate.is_transcoder, candidate.model_name
    yield site
    out = site.hook_name_out if transcoder else None
    place = Place(hook_name=site.hook_name, hook_name_out=out, model_name=model_name)
    try:
        hookpoint = hook_names.place_in_sparsify(place, transcoder).hookpoint
        module = Place(hookpoint=hookpoint, model_name=model_name)
        found = hook_names.place_in_saelens(module, transcoder)
    except CheckpointError:
        return
    if found.hook_name is not None:
        yield Site(found.hook_name, found.hook_name_out or found.hook_name)


def candidate_of(
    coder: SAE[Any], name: str, folder: Path = Path(), hook_name: str | None = None
) -> Candidate:
    """A SAELens coder with its name and site.

    A coder of attn.hook_z takes all heads as one vector from now on. hook_name is the coder's hook
    if its metadata names none. ValueError if the two differ or both are None.
    """
    metadata = coder.cfg.metadata
    own, model_name = metadata.hook_name, metadata.model_name
    if own is None and hook_name is None:
        raise ValueError(
            f"{name}: its files do not say which hook it was trained on. Name it with --hook."
        )
    if own is not None and hook_name and not hook_names.same_place(own, hook_name, model_name):
        raise ValueError(
            f"{name}: was trained on {own}, and not on --hook {hook_name}. Leave --hook out, and "
            "measure coders whose files name no hook in a run of their own."
        )

    def view(hook: str, head: int | None) -> str:
        return hook if head is None else str(HookView(hook, head))

    coder.turn_off_forward_pass_hook_z_reshaping()
    stated = own or hook_names.stated_hook(hook_name or "", model_name)
    read = view(stated, metadata.hook_head_index)
    target = metadata.hook_name_out
    given = read if target is None else view(target, metadata.hook_head_index_out)
    return Candidate(name, folder, coder, Site(read, given))


def _short_names(found: list[tuple[str, ...]]) -> list[str]:
    """Short names: the fewest last parts of each coder's path that no other path shares."""
    if twice := [str(Path(*parts)) for parts in found if found.count(parts) > 1]:
        raise ValueError(f"{twice[0]}: is named twice. Name it once.")

    def short(parts: tuple[str, ...]) -> str:
        for length in range(1, len(parts)):
            tail = parts[-length:]
            if sum(other[-length:] == tail for other in found) == 1:
                return "/".join(tail)
        return str(Path(*parts))

    return [short(parts) for parts in found]


def settings_of_model(candidate: Candidate) -> dict[str, Any]:
    """Settings for loading the model, from the coder's files, without those at their defaults."""
    try:
        return decisive_settings(candidate.coder.cfg.metadata.model_from_pretrained_kwargs)
    except ValueError as error:
        raise ValueError(f"{candidate.name}: {error}") from error


def told(settings: Mapping[str, Any]) -> str:
    """Settings of a model as text, for a message."""
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "no settings"


def common_model(candidates: list[Candidate], model: str | None) -> str:
    """The Hub id or folder of the model: `model`, or else the model that the coders' files name.

    Two names of the same model (gpt2-small, openai-community/gpt2) count as equal. ValueError if
    model is None, and the files name several models or none.
    """
    named = {each.model_name: each.name for each in candidates if each.model_name is not None}
    if model is not None:
        for name, coder in named.items():
            # The name of a folder does not say which model it holds. The coders' widths are checked
            # later.
            if official_name(name) != official_name(model) and not Path(model).exists():
                logger.warning("%s was trained on %s, and is read in %s.", coder, name, model)
        return model
    official = {official_name(name): coder for name, coder in named.items()}
    if len(official) != 1:
        by_coder = ", ".join(f"{coder}: {name}" for name, coder in named.items())
        raise ValueError(
            f"model: the coders' files name {sorted(named) or 'none'}"
            f"{f' ({by_coder})' if named else ''}. Measure coders of one model at a time. If these "
            "name one model, or no file names any, name it with --model."
        )
    return next(iter(named if len(named) == 1 else official))


@dataclass(frozen=True)
class ReadBatch:
    """Rows of text, the positions that count (bool [rows, context]), and activations by hook."""

    text: TextBatch
    where: Tensor
    found: dict[str, Tensor]

    def activations(self, hooks: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """Inputs [tokens, d_in] and targets [tokens, d_out] at the positions that count."""
        return self.found[hooks[0]][self.where], self.found[hooks[1]][self.where]

    def tokens(self, hooks: tuple[str, str], weights: Tensor, with_rows: bool = True) -> TokenBatch:
        """The activations for RunningFigures; set with_rows if a coder reads sequences."""
        rows = self.found[hooks[0]] if with_rows else None
        return TokenBatch(*self.activations(hooks), self.text, self.where, weights, rows)

    def codes(self, coder: Any, hook: str) -> Tensor:
        """Codes [tokens, latents] of a coder that reads `hook`, at the positions that count."""
        return codes_of(coder, self.found[hook], self.where)


@dataclass(frozen=True)
class OpenedModel:
    """A model, the coders that belong to it, and the text to read."""

    candidates: list[Candidate]
    # The model's names of the input hook and the output hook of each site.
    hooks: dict[Site, tuple[str, str]]
    model: HookedModel
    model_name: str
    tokenizer: PreTrainedTokenizerBase
    text_name: str
    # Each call gives all texts again, from the first one.
    documents: Callable[[], Iterable[str]]
    # Finds tokens of too large a norm; its `left_out` is for the last reading.
    outliers: OutlyingTokens
    # Most tokens in a row. The model has at least this number of positions.
    context_size: int
    # Positions before this one do not count.
    first_position: int
    # Whether the forward pass multiplies matrices in bfloat16.
    bfloat16: bool = False

    def rows(self) -> Iterator[TextBatch]:
        """The whole text in batches of rows."""
        return cut_rows(self.documents(), self.tokenizer, self.context_size, ROWS_PER_FORWARD)

    def batches(self, tokens: int) -> Iterator[tuple[TextBatch, int]]:
        """Batches of rows with their numbers of tokens that count, until these sum to `tokens`."""
        taken = 0
        for batch in self.rows():
            number = int(batch.positions(self.first_position).sum())
            yield batch, number
            taken += number
            if taken >= tokens:
                return
        logger.warning("The text ends after %d of %d tokens.", taken, tokens)

    def forward(self, tokens: Tensor, more_hooks: Iterable[str] = ()) -> dict[str, Tensor]:
        """Activations [rows, context, width] of tokens [rows, context] at all coders' hooks.

        `more_hooks` are names of further hooks. ValueError if a coder lacks the model's widths.
        """
        with self._products():
            found = read_hooks(self.model, self.hook_names(more_hooks), tokens)
        self.check_widths(found)
        return found

    def _products(self) -> AbstractContextManager[Any]:
        if not self.bfloat16:
            return nullcontext()  # autocast(enabled=False) would end the caller's autocast
        device = next(cast(nn.Module, self.model).parameters()).device.type
        return torch.autocast(device, torch.bfloat16)

    @property
    def precision(self) -> str:
        """The setting `precision` without auto: float32 or bfloat16."""
        return BFLOAT16 if self.bfloat16 else FLOAT32

    def hook_names(self, more_hooks: Iterable[str] = ()) -> set[str]:
        """The model's names of all coders' hooks, and `more_hooks`."""
        return {name for pair in self.hooks.values() for name in pair} | set(more_hooks)

    def check_widths(self, found: Mapping[str, Tensor]) -> None:
        """Raise ValueError if activations [rows, context, width] do not fit a coder."""
        for candidate in self.candidates:
            source, target = self.hooks[candidate.site]
            candidate.check_widths(found[source], found[target])

    def activations(self, text: TextBatch, more_hooks: Iterable[str] = ()) -> dict[str, Tensor]:
        """Activations of a batch of rows, 0 after the longest; result as in `forward`."""
        longest, context = int(text.lengths.max()), text.tokens.shape[1]
        found = self.forward(text.tokens[:, :longest], more_hooks)
        if longest == context:
            return found
        return {hook: pad(each, (0, 0, 0, context - longest)) for hook, each in found.items()}

    def read(self, text: TextBatch, more_hooks: Iterable[str] = ()) -> ReadBatch:
        """The activations of a batch, and its positions that count; more_hooks as in `forward`."""
        found = self.activations(text, more_hooks)
        where = self.outliers.within(found, text.positions(self.first_position))
        return ReadBatch(text, where, found)
