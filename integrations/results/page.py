"""What the results pages share: numbers with their spread, tables, and filling a page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..cache import write_text


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """Mean +- standard deviation [least, most]; what is None is left out, "-" for nothing at all.

    >>> spread([1.0, 2.0, None, 3.0])
    '2.00 +- 1.00 [1.00, 3.00]'
    """
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    text = f"{statistics.fmean(known):.{digits}f}"
    if len(known) > 1:
        text += f" +- {statistics.stdev(known):.{digits}f}"
        text += f" [{min(known):.{digits}f}, {max(known):.{digits}f}]"
    return text


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: a line of titles and a line for each row.

    >>> print(markdown(["method", "runs"], [["gr", "3"]]))
    | method | runs |
    |---|---|
    | gr | 3 |
    """
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def fill(page: Path, tables: dict[str, str]) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end -->`` in the page."""
    text = page.read_text(encoding="utf-8")
    for name, body in tables.items():
        start, end = f"<!-- {name} -->", "<!-- end -->"
        if start not in text:
            continue
        before, rest = text.split(start, 1)
        text = before + start + "\n" + body + "\n" + rest[rest.index(end) :]
    write_text(page, text)
