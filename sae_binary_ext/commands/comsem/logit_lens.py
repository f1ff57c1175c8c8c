"""Names latents by the tokens they read and by the tokens they write, and tests both names.

A latent reads the tokens it fires on. It writes the tokens whose logits its decoder row raises: the
row goes through the model's final norm and unembedding (the logit lens). Both names are made on one
half of the documents, and tested on the firings of the other half.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sae_binary_ext.commands.comsem.config import ComsemConfig
from sae_binary_ext.measure.candidates import Candidate
from sae_binary_ext.measure.documents import TextBatch, token_texts
from sae_binary_ext.measure.in_model import BLOCK
from sae_binary_ext.measure.reading import OpenedModel, read_text
from sae_binary_ext.measure.samples import draw_latents
from sae_binary_ext.saelens.splice import HookedModel, resolve_hook, run_replaced

# Number of tokens in a name.
NAME_TOKENS = 10
# A latent that fires on fewer tokens of either half has no score.
FEWEST_FIRINGS = 10
# The output of a block, as the hosts' kinds of models name it.
BLOCK_OUTPUTS = ("blocks.{}.hook_resid_post", "model.layers.{}", "transformer.h.{}")
ROWS_AT_ONCE = 64
# Figures of a latent: what its name tells (own token, next token), by which of its names.
FIGURES = ("own_by_read", "own_by_written", "next_by_read", "next_by_written")


@dataclass(frozen=True)
class NamedLatent:
    """A latent with its two names, and how well each tells the tokens at its firings.

    Attributes:
        firings: number of tokens of the other half on which it fires.
        read, written: texts of the tokens in each name, best first.
        own_by_read, own_by_written: share of its firings whose own token is in the name, less the
            share of all tokens that are; None if it fires too seldom.
        next_by_read, next_by_written: the same of the token after each firing.
    """

    coder: str
    latent: int
    firings: int
    read: list[str]
    written: list[str]
    own_by_read: float | None = None
    own_by_written: float | None = None
    next_by_read: float | None = None
    next_by_written: float | None = None


class TokenCounts:
    """Counts, for drawn latents, how often each token is at a firing, and how often after one.

    Counts are int32, by half of the documents (0 or 1): own and after [2, latents, vocabulary], and
    all_own and all_after [2, vocabulary] at any position that counts.
    """

    def __init__(self, latents: Tensor, vocabulary: int) -> None:
        self.latents = latents
        self.own = torch.zeros(2, len(latents), vocabulary, dtype=torch.int32)
        self.after = torch.zeros_like(self.own)
        self.all_own = torch.zeros(2, vocabulary, dtype=torch.int32)
        self.all_after = torch.zeros_like(self.all_own)

    def add(self, text: TextBatch, where: Tensor, codes: Tensor) -> None:
        """Count a batch.

        `where` is bool [rows, context], the positions that count. Codes are [positions that count,
        latents], row by row. The last token of a row has no token after it, and is left out.
        """
        fired = codes[:, self.latents].cpu() != 0
        followed = torch.cat([text.positions(0)[:, 1:], torch.zeros_like(where[:, :1])], dim=1)
        kept = followed[where]
        fired, places = fired[kept], (where & followed).nonzero()
        own = text.tokens[places[:, 0], places[:, 1]]
        after = text.tokens[places[:, 0], places[:, 1] + 1]
        half = torch.tensor(text.documents)[places[:, 0]] % 2
        one = torch.ones((), dtype=torch.int32)
        self.all_own.index_put_((half, own), one, accumulate=True)
        self.all_after.index_put_((half, after), one, accumulate=True)
        token, latent = fired.nonzero().T
        for counts, found in ((self.own, own), (self.after, after)):
            counts.index_put_((half[token], latent, found[token]), one, accumulate=True)

    def names(self) -> Tensor:
        """int64 [latents, NAME_TOKENS]: tokens that each latent reads, from the first half."""
        return name_tokens(self.own[0], self.all_own[0])


def name_tokens(counts: Tensor, everywhere: Tensor) -> Tensor:
    """int64 [latents, NAME_TOKENS]: the tokens that are most a latent's own; -1 if there are fewer.

    counts, [latents, vocabulary], are of tokens at or after firings, and everywhere, [vocabulary],
    of all tokens. Tokens are ranked by n log(n / expected), with n counts of a token, and the
    number expected if the latent fired on all tokens alike. This favours tokens that are frequent
    among the firings and rare elsewhere.
    """
    own, everywhere = counts.double(), everywhere.double()
    share = everywhere / everywhere.sum().clamp_min(1)
    expected = own.sum(1, keepdim=True) * share
    score = torch.where(own > 0, own * (own / expected).log(), -torch.inf)
    best = score.topk(NAME_TOKENS, dim=1)
    return torch.where(best.values > -torch.inf, best.indices, -1)


def share_in_name(counts: Tensor, everywhere: Tensor, names: Tensor) -> Tensor:
    """float64 [latents]: share of a latent's counted tokens in its name, less that of all tokens.

    counts [latents, vocabulary] and everywhere [vocabulary] are of one half; names are int64
    [latents, NAME_TOKENS], with -1 for no token.
    """
    named, there = names.clamp_min(0), (names >= 0).double()
    own, all_tokens = counts.double(), everywhere.double()
    inside = (own.gather(1, named) * there).sum(1) / own.sum(1)
    return inside - (all_tokens[named] * there).sum(1) / all_tokens.sum()


def name_latents(opened: OpenedModel, config: ComsemConfig) -> list[NamedLatent]:
    """Name latents of all coders, and test the names on the other half of the documents."""
    counts: dict[str, TokenCounts] = {}
    vocabulary = len(cast(Any, opened.tokenizer))
    for batch in read_text(opened, config, "Counting tokens"):
        for each in opened.candidates:
            if each.name not in counts:
                drawn = draw_latents(each.coder.cfg.d_sae, config.latents)
                counts[each.name] = TokenCounts(drawn, vocabulary)
            codes = batch.codes(each.coder, opened.hooks[each.site][0])
            counts[each.name].add(batch.text, batch.where, codes)
    found = [_named(opened, each, counts[each.name]) for each in opened.candidates]
    return [latent for of_coder in found for latent in of_coder]


def _named(opened: OpenedModel, candidate: Candidate, counts: TokenCounts) -> list[NamedLatent]:
    rows = cast(Tensor, candidate.coder.W_dec).detach()[counts.latents.to(candidate.coder.device)]
    vocabulary = counts.own.shape[2]
    read, written = counts.names(), promoted(opened.model, rows, vocabulary)
    shares = [
        share_in_name(of_latents[1], everywhere[1], names).tolist()
        for of_latents, everywhere in (
            (counts.own, counts.all_own),
            (counts.after, counts.all_after),
        )
        for names in (read, written)
    ]
    text, firings = token_texts(opened.tokenizer), counts.own.sum(2)
    found: list[NamedLatent] = []
    for place, latent in enumerate(counts.latents.tolist()):
        first, second = firings[:, place].tolist()
        read_texts, written_texts = (
            [text(token) for token in each[place].tolist() if token >= 0]
            for each in (read, written)
        )
        scored = min(first, second) >= FEWEST_FIRINGS
        told = dict(zip(FIGURES, (share[place] for share in shares), strict=True)) if scored else {}
        found.append(NamedLatent(candidate.name, latent, second, read_texts, written_texts, **told))
    return found


@torch.no_grad()
def promoted(model: HookedModel, rows: Tensor, vocabulary: int) -> Tensor:
    """int64 [rows, NAME_TOKENS]: the tokens whose logits each decoder row raises most.

    Each of the rows [rows, d_out] takes the place of the last block's output, so that the model's
    own final norm and unembedding make the logits. Tokens are below `vocabulary`, because a model
    may have logits of tokens that its tokenizer lacks.
    """
    hook = _last_output(model)
    found: list[Tensor] = []
    for part in rows.split(ROWS_AT_ONCE):

        def put(_: Tensor, target: Tensor, part: Tensor = part) -> Tensor:
            return part[:, None].to(target).expand_as(target).contiguous()

        # The model predicts the next token, so a row has two tokens. Both get the decoder row.
        tokens = torch.zeros(len(part), 2, dtype=torch.int64)
        logits, _ = run_replaced(model, {(hook, hook): put}, tokens, {})
        found.append(logits[:, 0, :vocabulary].topk(NAME_TOKENS).indices.cpu())
    return torch.cat(found)


def _last_output(model: HookedModel) -> str:
    """The model's name of the last block's output; ValueError if it has none of the known names."""
    names = cast(Mapping[str, Any], model.hook_dict)
    last = max((int(found[1]) for name in names if (found := BLOCK.search(name))), default=0)
    for form in BLOCK_OUTPUTS:
        try:
            return resolve_hook(model, "decode", form.format(last))
        except ValueError:
            continue
    raise ValueError(
        "decode='logit_lens': the model has no output of its last block by a known name "
        f"({', '.join(form.format(last) for form in BLOCK_OUTPUTS)}). Set decode='judge'."
    )
