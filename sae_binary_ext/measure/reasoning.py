"""Remove a language model's reasoning from its answer."""

import re
from typing import Any

# Names of reasoning tags contain one of these words: inner_monologue, seed:think.
_ABOUT = r"(?:think|thought|reason|reflect|analys|monolog|deliberat|scratchpad)"
_NAME = rf"[\w:.-]*{_ABOUT}[\w:.-]*"
# Models write these tags into their answers if their server does not remove them.
_SPELLINGS = (
    (rf"<{_NAME}(?:\s[^<>]*)?(?<!/)>", rf"</{_NAME}\s*>"),
    (r"\[(?:think|thinking|reasoning)\]", r"\[/(?:think|thinking|reasoning)\]"),
    (r"◁think▷", r"◁/think▷"),
    (rf"<\|(?!end){_NAME}\|>", rf"<\|(?:end|/){_NAME}\|>"),
    (r"<\|channel\|?>\s*(?:analysis|thought)(?:<\|message\|>)?", r"<\|end\|>|<channel\|>"),
    (r"Here is my thought process:", r"Here is my response:"),
)
_FLAGS = re.IGNORECASE | re.DOTALL
# Marks around the answer itself, and empty tags of reasoning.
_MARKS = re.compile(
    r"<\|start\|>assistant|<\|channel\|>final<\|message\|>|<\|return\|>"
    r"|<\|(?:begin|end)_of_solution\|>|</?(?:final[_-]?)?(?:answer|response|output|explanation|verdict)>"
    rf"|<{_NAME}\s*/>",
    _FLAGS,
)
# A tag of any name that begins the text.
_FIRST_BLOCK = re.compile(r"<([\w:.-]+)(?:\s[^<>]*)?>(.*?)</\1\s*>(\s*)(?=\S)", _FLAGS)


def without_reasoning(text: str) -> str:
    """The answer without its blocks of reasoning; empty if the text is only reasoning.

    A block without a closing tag was cut off, so it reaches to the end of the text. A block without
    an opening tag starts with the text, because some servers put that tag into the request.

    Any other tag counts as reasoning if its block starts the text, an answer follows, and there is
    a line break within or after the block. Markup in an answer has no such line break.

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
    text = _MARKS.sub("", text).strip()
    while (block := _FIRST_BLOCK.match(text)) and "\n" in block[2] + block[3]:
        text = text[block.end() :]
    return text


def answer_in(message: Any) -> Any:
    """The text of a chat-completions message, without its fields and parts of reasoning.

    It is empty if the message has only reasoning. Content that is not text is returned unchanged.
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
