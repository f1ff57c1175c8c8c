"""Trains the coders on saved activations, and scores their latents by ComSem."""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.paper2 import cases
from benchmarks.paper2.cases import ACTIVE_LATENTS, BURSTINESS, RESCALED, VALUES, Case
from benchmarks.reconstruction.activations import MAIN_SITE, Split, load, read_rows
from sae_binary_ext.coding import burstiness
from sae_binary_ext.commands import ComsemConfig, ComsemScore
from sae_binary_ext.commands.comsem.comsem_run import open_comsem_judge, score_latents
from sae_binary_ext.commands.comsem.giving import GivenTokens, give, prominence
from sae_binary_ext.commands.demo.coders import trainer_on
from sae_binary_ext.commands.demo.config import FIRST_POSITION
from sae_binary_ext.measure import measure
from sae_binary_ext.measure.documents import TextBatch, token_texts
from sae_binary_ext.measure.latent_groups import RunningLatents
from sae_binary_ext.saving import replacing

# Latents drawn from each coder.
DRAWN = 400
ROWS_AT_ONCE = 8
# Marks of latents in the file of results.
TOO_FEW, NOT_FITTING, FITTING, APART = "-", ".", "i", "t"


@dataclass(frozen=True)
class Settings:
    """Folder of the model, activations and coders, and the language model that judges, if any."""

    folder: Path
    judge_url: str | None = None
    judge_model: str | None = None

    def comsem(self) -> ComsemConfig:
        """Settings of the command whose functions give tokens and ask the judge."""
        return ComsemConfig(
            output=self.folder,
            latents=DRAWN,
            device="cpu",
            judge_url=self.judge_url,
            judge_model=self.judge_model,
        )


@dataclass(frozen=True)
class CoderRun:
    """A coder to train and measure."""

    case: Case
    seed: int

    def key(self) -> dict[str, Any]:
        """What tells this run's line from all others in the file of results."""
        return {"kind": "coder", **asdict(self)}

    def make(self, settings: Settings) -> dict[str, Any]:
        """Train and measure the coder; a line of the file of results."""
        split = load(settings.folder, MAIN_SITE)
        coder = trained(self, settings.folder, split)
        learned = split.train[: len(split.choosing)]
        parts = {"train": learned, "held_out": split.held_out_articles}
        found = {name: measure(coder, part.float()) for name, part in parts.items()}
        figures = {
            name: {
                "fvu": each.fvu,
                "l0": each.l0,
                "dead": each.dead,
                "dense": each.dense_10,
                "entropy_bits": each.entropy_bits,
            }
            for name, each in found.items()
        }
        return self.key() | figures


@dataclass(frozen=True)
class ScoreRun:
    """A coder whose latents are scored, by one way to give tokens and by one judge."""

    case: Case
    seed: int
    giving: str
    judge: str

    def key(self) -> dict[str, Any]:
        """What tells this run's line from all others in the file of results."""
        return {"kind": "score", **asdict(self)}

    def make(self, settings: Settings) -> dict[str, Any]:
        """Give tokens to the coder's latents and score them; a line of the file of results."""
        split, config = load(settings.folder, MAIN_SITE), settings.comsem()
        text, tokenizer = held_out_text(settings.folder)
        torch.manual_seed(self.seed)
        if self.giving == "random":
            codes = torch.randn(len(split.held_out_articles), cases.EXPANSION * cases.WIDTH)
            scores = codes
        else:
            coder = trained(CoderRun(self.case, self.seed), settings.folder, split)
            with torch.no_grad():
                codes = coder.encode(split.held_out_articles.float()).float()
            scores = GIVINGS[self.giving](coder, codes)
        given = given_tokens(text, codes, scores, config)
        judge = open_comsem_judge(config)
        found = score_latents({self.case.family: given}, token_texts(tokenizer), config, judge)
        return self.key() | figures_of(found, config.interpretable_at)


def trained(run: CoderRun, folder: Path, split: Split) -> SAE[Any]:
    """The run's inference coder, from its file if an earlier run has trained it."""
    name = f"{run.case.family}_{run.case.price:g}_{run.seed}".replace(" ", "_")
    saved = folder / "coders" / name
    if not (saved / "cfg.json").is_file():
        coder = fitted(run, split, lr) if (lr := run.case.kind.lr) else untrained(run)
        with replacing(saved) as new:
            coder.save_inference_model(new)
    return SAE.load_from_disk(saved)


def fitted(run: CoderRun, split: Split, lr: float) -> TrainingSAE[Any]:
    """A coder after training; its learning rate falls to 0 in the last third of the steps."""
    tokens = cases.EPOCHS * len(split.train)
    trainer = trainer_on(
        split.train,
        run.case.config(),
        cases.BATCH,
        run.seed,
        total_training_samples=tokens,
        lr=lr,
        lr_end=0.0,
        lr_decay_steps=tokens // cases.BATCH // 3,
    )
    return trainer.fit()


def untrained(run: CoderRun) -> TrainingSAE[Any]:
    """A coder with the random weights with which training starts."""
    torch.manual_seed(run.seed)
    return TrainingSAE.from_dict(run.case.config().to_dict())


def by_value(coder: Any, codes: Tensor) -> Tensor:
    """Values of active latents, with the decoder rows scaled to norm 1; -inf for silent ones."""
    return torch.where(codes > 0, codes * coder.W_dec.detach().norm(dim=1), -torch.inf)


def by_active_latents(_coder: Any, codes: Tensor) -> Tensor:
    """Burstiness of which latents are active, as if the coder were binary."""
    active = (codes != 0).float()
    return burstiness(active, active.mean(0))


def by_prominence(coder: Any, codes: Tensor) -> Tensor:
    """The command's own way: burstiness of binary codes, and values in standard deviations."""
    running = RunningLatents(codes.shape[1])
    running.add(codes)
    return prominence(coder, codes, running)


GIVINGS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    BURSTINESS: by_prominence,
    ACTIVE_LATENTS: by_active_latents,
    VALUES: by_value,
    RESCALED: by_prominence,
}


@functools.lru_cache(maxsize=1)
def held_out_text(folder: Path) -> tuple[TextBatch, PreTrainedTokenizerBase]:
    """The rows whose activations are held_out_articles of the Split, and the tokenizer."""
    tokens = read_rows(folder).held_out_articles
    lengths = torch.full((len(tokens),), tokens.shape[1])
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return TextBatch(tokens, lengths, list(range(len(tokens)))), tokenizer


def given_tokens(
    text: TextBatch, codes: Tensor, scores: Tensor, config: ComsemConfig
) -> GivenTokens:
    """Give each token to the latents with the highest scores; both are [tokens, latents]."""
    found = GivenTokens(codes.shape[1], config.latents, config.shown + config.asked)
    start = 0
    for rows in torch.arange(len(text.tokens)).split(ROWS_AT_ONCE):
        batch = TextBatch(text.tokens[rows], text.lengths[rows], rows.tolist())
        where = batch.positions(FIRST_POSITION)
        end = start + int(where.sum())
        given = give(scores[start:end], config.burstiest)
        found.add(batch, where, codes[start:end], given)
        start = end
    return found


def figures_of(scores: list[ComsemScore], at: float) -> dict[str, Any]:
    """A mark for each latent drawn, and the mean shares of tokens that fit, over those scored."""
    known = [each for each in scores if each.fitting is not None]

    def mean(values: list[float]) -> float | None:
        return sum(values) / len(values) if values else None

    return {
        "marks": "".join(mark(each, at) for each in scores),
        "fitting": mean([each.fitting for each in known if each.fitting is not None]),
        "others_fitting": mean(
            [each.others_fitting for each in known if each.others_fitting is not None]
        ),
    }


def mark(score: ComsemScore, at: float) -> str:
    """The mark of a latent in the file of results."""
    if score.fitting is None:
        return TOO_FEW
    if score.told_apart(at):
        return APART
    return FITTING if score.interpretable(at) else NOT_FITTING
