"""Coders of any format with their names, and the hooks where they belong."""

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
from sae_binary_ext.saelens.hooked_model import official_name
from sae_binary_ext.saelens.splice import HookedModel, HookView, resolve_hook

logger = logging.getLogger(__name__)
# Values of seqpos_slice that exclude at most the beginning-of-text token.
ALL_POSITIONS = ((None,), (None, None), (0, None), (1, None))


@dataclass(frozen=True)
class Site:
    """The hooks that comparable coders share.

    Attributes:
        hook_name: the activation that coders read.
        hook_name_out: the activation that they reconstruct or predict.
    """

    hook_name: str
    hook_name_out: str

    def __str__(self) -> str:
        if self.hook_name == self.hook_name_out:
            return self.hook_name
        return f"{self.hook_name} -> {self.hook_name_out}"


@dataclass(frozen=True)
class Candidate:
    """One coder.

    Attributes:
        name: short and unique.
        folder: where it was read.
        coder: as a SAELens coder.
        site: where it belongs.
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
        """Whether the coder predicts another activation than it reads."""
        return self.site.hook_name != self.site.hook_name_out

    @property
    def d_out(self) -> int:
        """Width of the activation that the coder reconstructs or predicts."""
        return getattr(self.coder.cfg, "d_out", None) or self.coder.cfg.d_in

    def check_widths(self, inputs: Tensor, targets: Tensor) -> None:
        """Raise ValueError if the model's activations at the site have other widths."""
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
    """Load all coders of all sources.

    Args:
        sources: coders' folders, folders of such folders, or Hub ids of either.
        hook_name: hook, module of the model or hookpoint of coders whose files name none.
        device: where to put the coders.

    Raises:
        CheckpointError: a source holds no coder, or one that SAELens cannot represent.
        ValueError: a coder's files name another hook, or name none and hook_name is None.
    """
    folders = [folder for source in sources for folder in find_coders(source, None).values()]
    candidates = [
        candidate_of(load_candidate(folder, hook_name, device), name, folder, hook_name)
        for name, folder in zip(_short_names(folders), folders, strict=True)
    ]
    for candidate in candidates:
        positions = candidate.coder.cfg.metadata.seqpos_slice
        if positions and tuple(positions) not in ALL_POSITIONS:
            logger.warning(
                "%s was trained on the positions %s of a row (seqpos_slice), and is measured on "
                "all positions from --first_position on.",
                candidate.name,
                list(positions),
            )
    return candidates


def check_alike(candidates: list[Candidate]) -> None:
    """Raise ValueError if there are no coders, or autoencoders beside transcoders."""
    if not candidates:
        raise ValueError("coders: none were given. Name at least one.")
    transcoders = [each for each in candidates if each.is_transcoder]
    if 0 < len(transcoders) < len(candidates):
        others = [each.name for each in candidates if not each.is_transcoder]
        raise ValueError(
            f"{transcoders[0].name} is a transcoder and {others[0]} an autoencoder. Measure one "
            "kind at a time."
        )


def at_common_sites(
    candidates: Iterable[Candidate], model: HookedModel
) -> tuple[list[Candidate], dict[Site, tuple[str, str]]]:
    """Give coders of the same activation the same site, whatever their files call it.

    sparsify's layers.8, blocks.8.hook_resid_post and blocks.9.hook_resid_pre are one activation.

    Returns:
        The candidates, and for each site the model's own hooks.

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
    """The model's own names of the hooks that a coder reads and gives."""
    try:
        return _resolved(candidate.site, model)
    except ValueError as error:
        if (site := _translated(candidate)) is None:
            raise
        try:
            return _resolved(site, model)
        except ValueError:
            # The first error names the hook as the coder's files do.
            raise error from None


def _resolved(site: Site, model: HookedModel) -> tuple[str, str]:
    source = resolve_hook(model, "hook_name", site.hook_name)
    return source, resolve_hook(model, "hook_name_out", site.hook_name_out)


def _translated(candidate: Candidate) -> Site | None:
    """SAELens' hooks of a site that is named by modules (model.layers.9); None if it has none."""
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
    """A coder with its name and site.

    Args:
        coder: any SAELens coder. A coder of attn.hook_z takes all heads side by side from now on.
        name: for tables and files.
        folder: where it was read.
        hook_name: its hook if its metadata names none.

    Raises:
        ValueError: its metadata names another hook, or names none and hook_name is None.
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
            "measure coders whose files name no hook in a run of their own."
        )

    def view(hook: str, head: int | None) -> str:
        return hook if head is None else str(HookView(hook, head))

    coder.turn_off_forward_pass_hook_z_reshaping()
    read = view(own or stated_hook(hook_name or "", model_name), metadata.hook_head_index)
    target = metadata.hook_name_out
    given = read if target is None else view(target, metadata.hook_head_index_out)
    return Candidate(name, folder, coder, Site(read, given))


def _short_names(folders: list[Path]) -> list[str]:
    """As few last parts of each folder as tell it from the others."""
    resolved = [folder.resolve() for folder in folders]
    if twice := [str(folder) for folder in resolved if resolved.count(folder) > 1]:
        raise ValueError(f"{twice[0]}: is named twice. Name it once.")
    return [_short_name(folder, resolved) for folder in resolved]


def _short_name(folder: Path, among: list[Path]) -> str:
    for length in range(1, len(folder.parts)):
        tail = folder.parts[-length:]
        if sum(other.parts[-length:] == tail for other in among) == 1:
            return "/".join(tail)
    return str(folder)


def common_model(candidates: list[Candidate], model: str | None) -> str:
    """The model to read coders in.

    Args:
        candidates: the coders, whose files may name the model.
        model: Hub id or folder, used whatever the files name; None takes the model that they name.
            Two names of one model (gpt2-small, openai-community/gpt2) count as one.

    Raises:
        ValueError: model is None, and the coders' files name several models or none.
    """
    named = {each.model_name: each.name for each in candidates if each.model_name is not None}
    if model is not None:
        for name, coder in named.items():
            # A folder may hold any model; the coders' widths are checked later.
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
