"""The coders of a comparison, of any format, and where they belong."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sae_lens import SAE
from torch import Tensor

from sae_binary_ext.checkpoints.errors import CheckpointError
from sae_binary_ext.checkpoints.hook_names import (
    as_output,
    place_in_saelens,
    place_in_sparsify,
    same_place,
    stated_hook,
)
from sae_binary_ext.checkpoints.load import load_candidate
from sae_binary_ext.checkpoints.portable import Place
from sae_binary_ext.checkpoints.sources import find_coders
from sae_binary_ext.saelens.hook_views import HookView
from sae_binary_ext.saelens.hooked_model import official_name
from sae_binary_ext.saelens.splice import HookedModel, resolve_hook

logger = logging.getLogger(__name__)
# Values of seqpos_slice that leave out no more than the beginning-of-text token.
ALL_POSITIONS = ((None,), (None, None), (0, None), (1, None))


@dataclass(frozen=True)
class Site:
    """What coders that can be compared have in common.

    Attributes:
        hook_name: the activation they read.
        hook_name_out: the one they reconstruct or predict.
    """

    hook_name: str
    hook_name_out: str

    def __str__(self) -> str:
        if self.hook_name == self.hook_name_out:
            return self.hook_name
        return f"{self.hook_name} -> {self.hook_name_out}"


@dataclass(frozen=True)
class Candidate:
    """One coder of a comparison.

    Attributes:
        name: short, and no other's.
        folder: where it was read.
        coder: as SAELens has it.
        site: where it belongs.
    """

    name: str
    folder: Path
    coder: SAE[Any]
    site: Site

    @property
    def model_name(self) -> str | None:
        """The model that its files name."""
        return self.coder.cfg.metadata.model_name

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts another activation than it reads."""
        return self.site.hook_name != self.site.hook_name_out

    @property
    def d_out(self) -> int:
        """Width of what it reconstructs or predicts."""
        return getattr(self.coder.cfg, "d_out", None) or self.coder.cfg.d_in

    def check_widths(self, inputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError where the model's activations at its site have other widths."""
        found, own = (inputs.shape[-1], targets.shape[-1]), (self.coder.cfg.d_in, self.d_out)
        if found != own:
            raise ValueError(
                f"{self.name}: takes {own[0]} to {own[1]} dimensions, and the model has {found[0]} "
                f"and {found[1]} at {self.site}. It was trained on another model or hook."
            )


def load_candidates(
    sources: Iterable[str], hook_name: str | None = None, device: str = "cpu"
) -> list[Candidate]:
    """All coders of all sources.

    Args:
        sources: coders' folders, folders of such folders, or Hub ids of either.
        hook_name: where coders belong whose files do not tell: a hook, a module of the model or a
            hookpoint.
        device: where to put them.

    Raises:
        CheckpointError: a source holds no coder, or one that SAELens cannot have.
        ValueError: a coder's files name another hook, or none and hook_name is None.
    """
    folders = [folder for source in sources for folder in find_coders(source, None).values()]
    candidates = [
        candidate_of(load_candidate(folder, hook_name, device), name, folder, hook_name)
        for name, folder in zip(_short_names(folders), folders, strict=True)
    ]
    for candidate in candidates:
        _warn_of_positions(candidate)
    return candidates


def _warn_of_positions(candidate: Candidate) -> None:
    """All coders are measured on the same positions, also on those that one was not trained on."""
    positions = candidate.coder.cfg.metadata.seqpos_slice
    if positions and tuple(positions) not in ALL_POSITIONS:
        logger.warning(
            "%s was trained on the positions %s of a row alone (seqpos_slice), and is measured on "
            "all from --first_position on.",
            candidate.name,
            list(positions),
        )


def check_alike(candidates: list[Candidate]) -> None:
    """Raise ValueError where there are no coders, or autoencoders beside transcoders."""
    if not candidates:
        raise ValueError("coders: there are none to compare.")
    transcoders = [each for each in candidates if each.is_transcoder]
    if 0 < len(transcoders) < len(candidates):
        others = [each.name for each in candidates if not each.is_transcoder]
        raise ValueError(
            f"{transcoders[0].name} is a transcoder and {others[0]} an autoencoder: compare one "
            "kind at a time."
        )


def at_common_sites(
    candidates: Iterable[Candidate], model: HookedModel
) -> tuple[list[Candidate], dict[Site, tuple[str, str]]]:
    """The candidates, those that belong at one activation under several names at one site.

    A hook has aliases, and what enters a block is what left the one before: sparsify's layers.8,
    blocks.8.hook_resid_post and blocks.9.hook_resid_pre are one activation.

    Returns:
        The candidates with the first one's site, and of each site the model's own hooks.

    Raises:
        ValueError: the model lacks a hook.
    """
    sites: dict[tuple[str, str], Site] = {}
    joined: list[Candidate] = []
    for candidate in candidates:
        source, target = _hooks_of(candidate, model)
        hooks = as_output(source), as_output(target)
        joined.append(replace(candidate, site=sites.setdefault(hooks, candidate.site)))
    return joined, {site: hooks for hooks, site in sites.items()}


def _hooks_of(candidate: Candidate, model: HookedModel) -> tuple[str, str]:
    """The model's own names of what a coder reads and of what it gives."""
    try:
        return _resolved(candidate.site, model)
    except ValueError as error:
        if (site := _translated(candidate)) is None:
            raise
        try:
            return _resolved(site, model)
        except ValueError:
            # The name that the user knows is the coder's own.
            raise error from None


def _resolved(site: Site, model: HookedModel) -> tuple[str, str]:
    source = resolve_hook(model, "hook_name", site.hook_name)
    return source, resolve_hook(model, "hook_name_out", site.hook_name_out)


def _translated(candidate: Candidate) -> Site | None:
    """A site named by modules (model.layers.9), as SAELens names hooks; None: there is no name."""
    site, transcoder = candidate.site, candidate.is_transcoder
    place = Place(
        hook_name=site.hook_name,
        hook_name_out=site.hook_name_out if transcoder else None,
        model_name=candidate.model_name,
    )
    try:
        hookpoint = place_in_sparsify(place, transcoder).hookpoint
        found = place_in_saelens(
            Place(hookpoint=hookpoint, model_name=candidate.model_name), transcoder
        )
    except CheckpointError:
        return None
    if found.hook_name is None:
        return None
    return Site(found.hook_name, found.hook_name_out or found.hook_name)


def candidate_of(
    coder: SAE[Any], name: str, folder: Path = Path(), hook_name: str | None = None
) -> Candidate:
    """A coder as readers of text take it.

    Args:
        coder: any SAELens coder. One of attn.hook_z takes all heads side by side from now on.
        name: what to call it.
        folder: where it was read.
        hook_name: where it belongs if its metadata does not tell.

    Raises:
        ValueError: its metadata names another hook, or none and hook_name is None.
    """
    metadata = coder.cfg.metadata
    own = metadata.hook_name
    if own is None and hook_name is None:
        raise ValueError(
            f"{name}: its files do not say which hook it was trained on. Name it with --hook."
        )
    model_name = metadata.model_name
    if own is not None and hook_name and not same_place(own, hook_name, model_name):
        raise ValueError(
            f"{name}: was trained on {own}, and not on --hook {hook_name}. Leave --hook out, and "
            "measure coders whose files name no hook on their own."
        )
    source, target = own or stated_hook(hook_name or "", model_name), metadata.hook_name_out
    read = _view(source, metadata.hook_head_index)
    coder.turn_off_forward_pass_hook_z_reshaping()
    given = read if target is None else _view(target, metadata.hook_head_index_out)
    return Candidate(name, folder, coder, Site(read, given))


def _view(hook_name: str, head: int | None) -> str:
    return hook_name if head is None else str(HookView(hook_name, head))


def _short_names(folders: list[Path]) -> list[str]:
    """Of each folder as few of its last parts as tell it from the others."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        twice = next(str(folder) for folder in resolved if resolved.count(folder) > 1)
        raise ValueError(f"{twice}: is named twice. Name it once.")
    return [_short_name(folder, resolved) for folder in resolved]


def _short_name(folder: Path, among: list[Path]) -> str:
    for length in range(1, len(folder.parts)):
        tail = folder.parts[-length:]
        if sum(other.parts[-length:] == tail for other in among) == 1:
            return "/".join(tail)
    return str(folder)


def common_model(candidates: list[Candidate], model: str | None) -> str:
    """The model to compare on.

    Args:
        candidates: whose files may name it.
        model: Hub id or folder, which is taken whatever the files name; None takes the one that
            they name. Two names of one model (gpt2-small, openai-community/gpt2) count as one.

    Raises:
        ValueError: model is None, and the coders' files name several, or none at all.
    """
    named = {each.model_name: each.name for each in candidates if each.model_name is not None}
    if model is not None:
        for name, coder in named.items():
            # A folder may hold any model; coders' widths tell whether it is the right one.
            if official_name(name) != official_name(model) and not Path(model).exists():
                logger.warning("%s was trained on %s, and is read in %s.", coder, name, model)
        return model
    official = {official_name(name): coder for name, coder in named.items()}
    if len(official) != 1:
        by_coder = ", ".join(f"{coder}: {name}" for name, coder in named.items())
        raise ValueError(
            f"model: the coders' files name {sorted(named) or 'none'}"
            f"{f' ({by_coder})' if named else ''}. Compare coders of one model; if these are "
            "names of one, or none is given, name it with --model."
        )
    return next(iter(named if len(named) == 1 else official))
