"""delphi's explainer and scorers, with a language model as judge."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sae_binary_ext.commands.interpret.examples import ActiveExamples, LatentExamples
from sae_binary_ext.commands.interpret.interpret_scores import LatentScore, f1_of
from sae_binary_ext.commands.interpret.with_delphi import latent_record
from sae_binary_ext.measure.judge import Asked, MalformedAnswerError, imported

# delphi returns this instead of an explanation that it cannot read.
UNREADABLE = "Explanation could not be parsed."
EXPLANATION_TOKENS, ANSWER_TOKENS = 500, 100
KINDS = ("detection", "fuzz")


class _Client:
    """Lets delphi call a judge as one of its clients."""

    def __init__(self, judge: Asked, max_tokens: int) -> None:
        self.model = judge.model
        self._judge, self._max_tokens = judge, max_tokens
        self._response = imported("delphi.clients.client").Response

    async def generate(self, prompt: Any, **settings: Any) -> Any:
        temperature = settings.get("temperature", 0.0)
        answer = await self._judge.ask(prompt, temperature=temperature, max_tokens=self._max_tokens)
        return self._response(answer)


class LanguageModelScorer:
    """delphi's DefaultExplainer, then its DetectionScorer and FuzzingScorer.

    Args:
        judge: the judge to ask.
        text: gives the text of a token.
        at_once: windows in one request of a scorer.
    """

    def __init__(self, judge: Asked, text: Callable[[int], str], at_once: int) -> None:
        self._judge, self._text, self._at_once = judge, text, at_once
        self.judges = tuple(f"{kind}, {judge.model}" for kind in KINDS)

    async def score(self, coder: str, examples: LatentExamples) -> list[LatentScore]:
        """Score one latent by detection and by fuzzing.

        Raises:
            JudgeStoppedError: the judge cannot be asked any more.
        """
        record = latent_record(self._in_whole_requests(examples), coder, self._text)
        facts = coder, examples.latent, examples.firings, examples.rate
        explanation = await self._explanation(record)
        if explanation is None:
            reason = "the explanation failed"
            return [LatentScore(*facts, judge, reason=reason, failed=1) for judge in self.judges]
        record.explanation = explanation
        return [
            replace(
                await self._answers(kind, record, LatentScore(*facts, judge)),
                explanation=explanation,
            )
            for kind, judge in zip(KINDS, self.judges, strict=True)
        ]

    def _in_whole_requests(self, examples: LatentExamples) -> LatentExamples:
        """Cut the windows to whole requests, because delphi fails all answers to a smaller one."""
        number = len(examples.asked.tokens) // self._at_once * self._at_once
        asked = examples.asked
        asked = ActiveExamples(
            asked.tokens[:number], asked.values[:number], asked.quantiles[:number]
        )
        # delphi's scorers ask about every silent window of the record.
        none = examples.silent_shown[:0]
        silent = examples.silent_asked[:number]
        return replace(examples, asked=asked, silent_shown=none, silent_asked=silent)

    async def _explanation(self, record: Any) -> str | None:
        explainers = imported("delphi.explainers")
        client = _Client(self._judge, EXPLANATION_TOKENS)
        try:
            found = (await explainers.DefaultExplainer(client)(record)).explanation
        except MalformedAnswerError:
            return None
        return None if found == UNREADABLE or not found else found

    async def _answers(self, kind: str, record: Any, score: LatentScore) -> LatentScore:
        scorers = imported("delphi.scorers")
        new = {"detection": scorers.DetectionScorer, "fuzz": scorers.FuzzingScorer}[kind]
        client = _Client(self._judge, ANSWER_TOKENS)
        found = (await new(client, n_examples_shown=self._at_once)(record)).score
        # delphi ignores errors, so check here whether the judge has stopped.
        self._judge.check()
        answers = [each for each in found if each.prediction is not None]
        failed = len(found) - len(answers)
        if failed > len(found) / 2:
            return replace(score, failed=failed, answered=len(answers), reason="answers failed")
        hits = sum(each.activating and each.prediction for each in answers)
        missed = sum(each.activating and not each.prediction for each in answers)
        false = sum(not each.activating and each.prediction for each in answers)
        return replace(
            score,
            accuracy=sum(each.correct for each in answers) / len(answers),
            f1=f1_of(hits, false, missed),
            failed=failed,
            answered=len(answers),
        )
