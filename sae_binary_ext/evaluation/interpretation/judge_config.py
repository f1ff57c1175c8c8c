"""The settings of a language model that judges, which several commands have."""

from dataclasses import dataclass
from pathlib import Path

from sae_binary_ext.coding.checks import check_at_least, check_positive
from sae_binary_ext.evaluation.interpretation.judge import Judge


@dataclass
class JudgeFields:
    """Which language model is asked, and how much."""

    judge_url: str | None = None
    """Of a language model behind the chat-completions protocol that is asked, too, up to and
    without /chat/completions. Its key is read from OPENAI_API_KEY."""
    judge_model: str | None = None
    """Its name there."""
    judge_tokens: int = 10_000_000
    """Tokens, read and written, after which it is asked nothing more."""
    judge_parallel: int = 8
    """Requests at once."""
    judge_timeout: float = 120.0
    """Seconds to wait for an answer."""
    judge_retries: int = 5
    """Of a request that failed on its way, or that the server put off."""

    def check_judge_fields(self) -> None:
        """Raise ValueError where one of the fields is out of range, or URL or model is missing."""
        if (self.judge_url is None) != (self.judge_model is None):
            raise ValueError("judge_url, judge_model: give both, or neither.")
        check_at_least(1, judge_tokens=self.judge_tokens, judge_parallel=self.judge_parallel)
        check_positive(judge_timeout=self.judge_timeout)
        check_at_least(0, judge_retries=self.judge_retries)

    def judge_answering_in(self, folder: Path) -> Judge | None:
        """The language model, whose answers are kept in the folder; None where none is named.

        Raises:
            ValueError: the package openai is not installed.
        """
        if self.judge_url is None or self.judge_model is None:
            return None
        return Judge(
            self.judge_url,
            self.judge_model,
            folder / "answers.jsonl",
            self.judge_tokens,
            self.judge_parallel,
            self.judge_timeout,
            self.judge_retries,
        )
