"""Tables in Markdown, and their places in a document, between marks."""

import statistics
from pathlib import Path

END = "<!-- end -->"


def write_tables(document: Path, tables: dict[str, str]) -> None:
    """Write tables between the marks <!-- NAME --> and END of a document.

    ValueError if the document has no mark of a table's name.
    """
    text = document.read_text()
    for name, table in tables.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(END)
        if not end:
            raise ValueError(f"{document}: no place for a table: no mark of {name!r}.")
        text = before + begin + table + end + after
    document.write_text(text)


def table_of(rows: list[list[str]]) -> str:
    """Rows of cells as a table; the first row is the header. Says so if there is no other."""
    head, *others = (f"| {' | '.join(row)} |\n" for row in rows)
    made = head + "|---" * len(rows[0]) + "|\n" + "".join(others) if others else "Not run yet.\n"
    return f"\n{made}\n"


def ranged(values: list[float], form: str) -> str:
    """The median, and the range if it shows; "none" if a figure does not exist."""
    known = [value for value in values if value == value]
    if not known:
        return "none"
    ends = [format(end, form) for end in (min(known), max(known))]
    middle = format(statistics.median(known), form)
    return middle if ends[0] == ends[1] else f"{middle} ({ends[0]} to {ends[1]})"
