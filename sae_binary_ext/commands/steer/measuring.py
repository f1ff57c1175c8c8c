"""Turns on random live latents one by one, and measures what each does to the next token.

A latent is named by the tokens that it fires on, and by the tokens after those, in half of the
documents. The prompts come from the other half. A latent of a stock coder needs a strength: it is a
multiple of the latent's mean activation where it fires, and the best multiple is found on other
prompts than those that are measured.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from tqdm import tqdm

from sae_binary_ext.commands.comsem.logit_lens import FEWEST_FIRINGS, TokenCounts, name_tokens
from sae_binary_ext.commands.steer.config import SteerConfig
from sae_binary_ext.commands.steer.next_tokens import (
    divergence,
    log_probabilities,
    log_probability_of,
)
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.documents import cut_rows, token_texts
from sae_binary_ext.measure.in_model import read_hooks
from sae_binary_ext.measure.latent_groups import RunningLatents
from sae_binary_ext.measure.reading import OpenedModel, fingerprint, read_text
from sae_binary_ext.measure.saved_records import SavedRecords
from sae_binary_ext.saelens.splice import activations_replaced
from sae_binary_ext.steering.steered_coder import SteeredCoder, steered_coder

# Tokens in a prompt, and the positions after which the next token is measured.
PROMPT_TOKENS, POSITIONS = 32, [7, 15, 23, 31]
CHOOSING, MEASURED = "choosing", "measured"
# Numbers of prompts to find strengths on, and of others to measure on.
PROMPTS = {CHOOSING: 4, MEASURED: 8}
# Strengths of stock latents, in multiples of the mean activation where the latent fires.
FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
# The factor of a binary latent, which has no strength.
ON = 1.0
LATENTS_AT_ONCE = 4


@dataclass(frozen=True)
class SteeredLatent:
    """What turning on one latent does to the next token, mean over prompts and positions, in nats.

    Attributes:
        of: fingerprint of the coder.
        factor: strength in multiples of the latent's mean activation; ON for binary coders.
        prompts: CHOOSING or MEASURED.
        kl: KL of the next token, from the unsteered to the steered model.
        own, following: rise of the log probability that the next token is one that the latent fires
            on, and one of those that follow its firings. NaN if no token follows.
        own_of_others, following_of_others: the same for tokens of the other latents, their mean.
    """

    of: str
    latent: int
    factor: float
    prompts: str
    kl: float
    own: float
    following: float
    own_of_others: float
    following_of_others: float


@dataclass(frozen=True)
class LiveLatents:
    """Random latents of a coder that fire in the documents for names.

    strengths: float32 [latents], mean activation of each where it fires. own, following: int64
    [latents, NAME_TOKENS], the tokens at and after its firings, with -1 for no token.
    """

    latents: Tensor
    strengths: Tensor
    own: Tensor
    following: Tensor


@dataclass(frozen=True)
class MeasuredCoder:
    """A coder with the scores of its latents; `names` has the texts of each latent's own tokens."""

    coder: str
    is_binary: bool
    scores: list[SteeredLatent]
    names: dict[int, list[str]]


@dataclass(frozen=True)
class _Counted:
    """All that scores depend on, besides coder and text."""

    tokens: int
    context_size: int
    first_position: int
    measure: int
    seed: int
    fixed: tuple[Any, ...] = (PROMPT_TOKENS, POSITIONS, *PROMPTS.values(), FACTORS)


def measure_latents(opened: OpenedModel, config: SteerConfig) -> list[MeasuredCoder]:
    """Score latents of all coders. Latents that an interrupted run has scored are not run again."""
    owns = {each.name: steered_coder(each.coder) for each in opened.candidates}
    live = _live_latents(_every_other(opened, 0), config)
    prompts = _prompts(_every_other(opened, 1))
    counted = _Counted(
        config.tokens, opened.context_size, config.first_position, config.measure, config.seed
    )
    of_run = fingerprint([], counted, [opened.model_name, opened.text_name])
    key = ("of", "latent", "factor", "prompts")
    saved = SavedRecords(config.output / "scores.jsonl", of_run, SteeredLatent, key)
    text, found = token_texts(opened.tokenizer), list[MeasuredCoder]()
    for candidate in opened.candidates:
        own, latents = owns[candidate.name], live[candidate.name]
        of = fingerprint([replace(candidate, name="")], counted, [])
        for name, tokens in prompts.items():
            run = PromptRun(opened, candidate, own, latents, tokens, config.first_position)
            for factor in _factors(own, name):
                saved.add(_scores(run, saved, of, factor, name))
        scores = [each for each in saved.records if each.of == of]
        names = [[text(token) for token in row if token >= 0] for row in latents.own.tolist()]
        by_latent = dict(zip(latents.latents.tolist(), names, strict=True))
        found.append(MeasuredCoder(candidate.name, own.is_binary, scores, by_latent))
    return found


def _factors(own: SteeredCoder, prompts: str) -> tuple[float, ...]:
    """The factors to run on prompts. A binary latent has one, and nothing to choose."""
    if own.is_binary:
        return (ON,) if prompts == MEASURED else ()
    return FACTORS


def _every_other(opened: OpenedModel, first: int) -> OpenedModel:
    """The opened model with every other document of its text, from document number `first` on."""

    def documents() -> Iterable[str]:
        return islice(opened.documents(), first, None, 2)

    return replace(opened, documents=documents)


def _live_latents(opened: OpenedModel, config: SteerConfig) -> dict[str, LiveLatents]:
    """Draw live latents of each coder and name them; reads the text twice."""
    running = {each.name: RunningLatents(each.coder.cfg.d_sae) for each in opened.candidates}
    for batch in read_text(opened, config, "Counting firings"):
        for each in opened.candidates:
            running[each.name].add(batch.codes(each.coder, opened.hooks[each.site][0]))
    drawn = {name: _draw(name, each, config) for name, each in running.items()}
    vocabulary = len(cast(Any, opened.tokenizer))
    counts = {name: TokenCounts(latents, vocabulary) for name, latents in drawn.items()}
    for batch in read_text(opened, config, "Naming latents"):
        for each in opened.candidates:
            codes = batch.codes(each.coder, opened.hooks[each.site][0])
            counts[each.name].add(batch.text, batch.where, codes)
    found: dict[str, LiveLatents] = {}
    for name, latents in drawn.items():
        each, of_all = counts[name], running[name]
        names = (
            name_tokens(tokens.sum(0), everywhere.sum(0))
            for tokens, everywhere in ((each.own, each.all_own), (each.after, each.all_after))
        )
        strengths = (of_all.means * of_all.tokens / of_all.fired)[latents].float()
        found[name] = LiveLatents(latents, strengths, *names)
    return found


def _draw(name: str, running: RunningLatents, config: SteerConfig) -> Tensor:
    """Latents that fire often enough, drawn at random: int64 [latents] in rising order."""
    live = (running.fired >= FEWEST_FIRINGS).nonzero()[:, 0]
    if not len(live):
        raise ValueError(
            f"{name}: no latent fires on {FEWEST_FIRINGS} of {running.tokens} tokens. Read more "
            "with --tokens, or leave the coder out."
        )
    order = torch.randperm(len(live), generator=torch.Generator().manual_seed(config.seed))
    return live[order[: config.measure]].sort().values


def _prompts(opened: OpenedModel) -> dict[str, Tensor]:
    """Rows of PROMPT_TOKENS tokens, int64 [rows, PROMPT_TOKENS], for choosing and measuring.

    Rows are spread over documents, and no document has rows of both kinds. ValueError if the text
    is too short.
    """
    most = max(PROMPTS.values())
    rows: dict[int, list[Tensor]] = {}
    for batch in cut_rows(opened.documents(), opened.tokenizer, PROMPT_TOKENS, 1):
        (document,), (length,) = batch.documents, batch.lengths.tolist()
        if document >= 2 * most:
            break
        of_document = rows.setdefault(document, [])
        if length == PROMPT_TOKENS and len(of_document) < most:
            of_document.append(batch.tokens[0])
    found: dict[str, Tensor] = {}
    for place, (name, wanted) in enumerate(PROMPTS.items()):
        own = [of_document for document, of_document in rows.items() if document % 2 == place]
        spread = list(_round_robin(own))[:wanted]
        if len(spread) < wanted:
            raise ValueError(
                f"dataset: has {len(spread)} prompts of {PROMPT_TOKENS} tokens in a quarter of its "
                f"documents, and {wanted} are needed. Give a text of more or longer documents."
            )
        found[name] = torch.stack(spread)
    return found


def _round_robin(lists: list[list[Tensor]]) -> Iterator[Tensor]:
    """The first of each list, then the second of each, and so on."""
    for place in range(max(map(len, lists), default=0)):
        yield from (each[place] for each in lists if place < len(each))


class PromptRun:
    """A model that reads prompts with latents of one coder turned on, several in one forward pass.

    What the unsteered model does is computed once.
    """

    def __init__(
        self,
        opened: OpenedModel,
        candidate: Candidate,
        own: SteeredCoder,
        live: LiveLatents,
        prompts: Tensor,
        first_position: int,
    ) -> None:
        device = candidate.coder.device
        self.live, self.name = live, candidate.name
        self._model, self._prompts, self._own = opened.model, prompts.to(device), own
        self._hooks = opened.hooks[candidate.site]
        found = read_hooks(opened.model, self._hooks, self._prompts)
        candidate.check_widths(found[self._hooks[0]], found[self._hooks[1]])
        source = found[self._hooks[0]]
        codes, scale = own.encode(source.flatten(0, 1))
        chosen = live.latents.to(codes.device)
        self._codes = codes[:, chosen].view(*prompts.shape, -1)
        counted = torch.arange(prompts.shape[1], device=codes.device) >= first_position
        shape = (*prompts.shape, 1)
        one = counted.to(codes)[:, None].expand(shape)
        self._scale = one if scale is None else one * scale.view(shape)
        self._before = log_probabilities(opened.model, self._prompts, POSITIONS)
        self._names = tuple(names.to(device) for names in (live.own, live.following))
        self._named = [log_probability_of(names, self._before) for names in self._names]

    def strengths(self, places: Tensor, factor: float) -> Tensor:
        """Codes of live latents that are on, [latents]: 1 if the coder is binary."""
        if self._own.is_binary:
            return torch.ones(len(places)).to(self._codes)
        return (factor * self.live.strengths[places]).to(self._codes)

    def added(self, places: Tensor, values: Tensor) -> Tensor:
        """What latents add at the output hook if each is on: [latents, prompts, context, d_out].

        places: int64 [latents], places among the live latents. values: [latents], their codes where
        they are on.
        """
        codes = self._codes[..., places].movedim(-1, 0)
        change = (values[:, None, None] - codes)[..., None] * self._scale
        return change * self._own.rows(self.live.latents[places].tolist())[:, None, None]

    @torch.no_grad()
    def figures(self, places: Tensor, values: Tensor) -> Tensor:
        """kl, own, following, own_of_others, following_of_others, float64 [latents, 5].

        Arguments are those of `added`.
        """
        added, number = self.added(places, values), len(places)

        def put(_: Tensor, target: Tensor) -> Tensor:
            return target + added.flatten(0, 1).to(target)

        with activations_replaced(self._model, {self._hooks: put}):
            tokens = self._prompts.repeat(number, 1)
            steered = log_probabilities(self._model, tokens, POSITIONS)
        steered = steered.unflatten(0, (number, -1))
        kl = divergence(self._before, steered).double().mean((1, 2))
        columns: list[Tensor] = [kl]
        others: list[Tensor] = []
        for names, before in zip(self._names, self._named, strict=True):
            rise = (log_probability_of(names, steered) - before).double().mean((1, 2))
            ones = rise[torch.arange(number), places]
            columns.append(ones)
            known = rise.isfinite().sum(1) - ones.isfinite().int()
            others.append((rise.nansum(1) - ones.nan_to_num()) / known)
        return torch.stack([*columns, *others], dim=1).cpu()


def _scores(
    run: PromptRun, saved: SavedRecords[SteeredLatent], of: str, factor: float, prompts: str
) -> Iterator[SteeredLatent]:
    """Scores of the latents that have none yet, at one factor."""
    latents = run.live.latents.tolist()
    missing = [
        place for place, latent in enumerate(latents) if not saved.has(of, latent, factor, prompts)
    ]
    title = f"{run.name}, {prompts}, x{factor:g}"
    with tqdm(total=len(latents), initial=len(latents) - len(missing), desc=title) as progress:
        for first in range(0, len(missing), LATENTS_AT_ONCE):
            part = torch.tensor(missing[first : first + LATENTS_AT_ONCE])
            values = run.strengths(part, factor)
            for place, figures in zip(part.tolist(), run.figures(part, values), strict=True):
                kl, *rises = figures.tolist()
                yield SteeredLatent(of, latents[place], factor, prompts, kl, *rises)
            progress.update(len(part))
