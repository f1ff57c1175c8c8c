"""The settings of `sae-binary rules`, and the forms of labels."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from sae_binary_ext.checks import check_at_least
from sae_binary_ext.settings import AUTO, ActivationsFields, ReadingConfig

TOKEN, NEXT, COLUMN, TASK, TASKS = "token", "next", "column", "task", "tasks"
FORMS = "token:REGEX, next:REGEX, column:NAME=VALUE, task:NAME, tasks:NUMBER"


@dataclass(frozen=True)
class Label:
    """A label as the user writes it. For a column, `of` is its name and `value` its value.

    Attributes:
        kind: TOKEN, NEXT, COLUMN, TASK or TASKS.
        of: regular expression, column, name of a task, or number of tasks.
    """

    text: str
    kind: str
    of: str
    value: str = ""


def read_label(text: str) -> Label:
    """Read a label in one of FORMS; ValueError if it has none of these forms."""
    kind, _, of = text.partition(":")
    wrong = ValueError(f"labels={text!r}: give labels of the forms {FORMS}.")
    if kind not in (TOKEN, NEXT, COLUMN, TASK, TASKS) or not of:
        raise wrong
    if kind == COLUMN:
        name, equals, value = of.partition("=")
        if not name or not equals:
            raise wrong
        return Label(text, kind, name, value)
    if kind == TASKS and not (of.isdecimal() and int(of) > 0):
        raise wrong
    if kind in (TOKEN, NEXT):
        try:
            re.compile(of)
        except re.error as error:
            raise ValueError(
                f"labels={text!r}: {of!r} is not a regular expression of Python: {error}. The "
                f"forms of labels are {FORMS}."
            ) from error
    return Label(text, kind, of)


@dataclass
class RulesConfig(ActivationsFields, ReadingConfig):
    """
    Tell labels of tokens or texts by Boolean rules over latents, such as `1203 & 88 & !7 | 15`, and
    list latents that imply others. Coders with values are read by which latents are active. Labels
    need the extra rules; those of tasks also need the extra probe. After Ctrl-C, the same command
    continues with the next task.
    """

    output: Path = Path("runs/rules")
    """Folder for rules.json, rules.html, and the files of an interrupted run. Its activations/ has
    the model's states of tasks, which a later run with other coders at the same hooks reads
    again."""
    tokens: int = 50_000
    """How many tokens of the text to read. Memory holds one bit for each latent and token. Tasks
    have texts of their own."""
    context_size: int = 128
    """Most tokens in a row. A task's text that is longer keeps its last tokens."""
    precision: str = AUTO
    """As for `probe`: number format of the model's products of matrices, float32 or bfloat16. auto
    takes bfloat16 on a CPU with instructions for it."""
    labels: list[str] = field(default_factory=list)
    """Labels to tell: token:REGEX (the token's text matches), next:REGEX (the next token's text
    matches), column:NAME=VALUE (of a document of the dataset), task:NAME or tasks:NUMBER (one task
    of sae-probes, or so many, evenly spaced)."""
    clauses: int = 3
    """Most clauses in a rule. A rule holds if any of its clauses holds."""
    literals: int = 3
    """Most latents or negated latents in a clause. A clause holds if all of them do."""
    associations: bool = False
    """Also list latents that imply others, and duplicates. Without labels, the command always
    does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, clauses=self.clauses, literals=self.literals)
        for label in self.read_labels():
            if label.kind == COLUMN and self.dataset is None:
                raise ValueError(
                    f"labels={label.text!r}: the embedded articles have no such column. Name a "
                    "dataset too."
                )

    def read_labels(self) -> list[Label]:
        """The labels, each once."""
        return [read_label(text) for text in dict.fromkeys(self.labels)]
