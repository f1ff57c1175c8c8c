"""What a language model says to itself before its answer, told apart from the answer."""

import re
from typing import Any

_WORD = r"(?:think|thinking|thought|thoughts|reason|reasoning|reflection|analysis|scratchpad)"
# Models write these tags into their answers where their server does not take them out.
_SPELLINGS = (
    # <think>, <thinking type="x">, <seed:think>, <antThinking>
    (rf"<(?:\w+:|ant)?{_WORD}(?:\s[^<>]*)?>", rf"</(?:\w+:|ant)?{_WORD}\s*>"),
    (r"\[(?:think|thinking|reasoning)\]", r"\[/(?:think|thinking|reasoning)\]"),
    (r"◁think▷", r"◁/think▷"),
    (rf"<\|(?:begin_of_|start_of_)?{_WORD}\|>", rf"<\|(?:end_of_|/){_WORD}\|>"),
    (r"<\|channel\|?>\s*(?:analysis|thought)(?:<\|message\|>)?", r"<\|end\|>|<channel\|>"),
    (r"Here is my thought process:", r"Here is my response:"),
)
# What then stands around the answer itself.
_WRAPPING = re.compile(
    r"<\|start\|>assistant|<\|channel\|>final<\|message\|>|<\|return\|>"
    r"|<\|(?:begin|end)_of_solution\|>",
    re.IGNORECASE,
)
_FLAGS = re.IGNORECASE | re.DOTALL


def without_reasoning(text: str) -> str:
    """An answer without the blocks of reasoning in it; empty where it is nothing else.

    A block without end, as of an answer that was cut off, goes on to the end of the text. One
    without a beginning, which some servers have already put into the request, starts with the text.

    Args:
        text: what the model wrote.
    """
    for opening, closing in _SPELLINGS:
        inner = re.compile(rf"(?:{opening})(?:(?!{opening}).)*?(?:{closing})", _FLAGS)
        found = 1
        while found:  # from the inside out
            text, found = inner.subn("", text)
        text = re.split(closing, text, flags=_FLAGS)[-1]
        text = re.split(opening, text, maxsplit=1, flags=_FLAGS)[0]
    return _WRAPPING.sub("", text).strip()


def answer_in(message: Any) -> Any:
    """The text of a message, without the fields and parts that servers put reasoning into.

    Args:
        message: of the chat-completions protocol.

    Returns:
        A text; empty where there is reasoning alone. What is no text comes back as it is.
    """
    content = message.content
    if isinstance(content, list):
        texts = [
            part.get("text") for part in content if part.get("type") in ("text", "output_text")
        ]
        return "".join(text for text in texts if isinstance(text, str))
    if content is None and _reasoned(message):
        return ""
    return content


def _reasoned(message: Any) -> bool:
    fields = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
    return any(getattr(message, field, None) for field in fields)
