"""What a person types and sees: lists of options, progress, tables, figures and intervals.

Every report, page and command writes its figures with these, so that they look alike. ``–`` stands
for a figure that does not exist (None or NaN).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from market.errors import UsageError

#: Takes one line of progress.
Say = Callable[[str], None]

#: What a verb of `l2` returns: plain data, which ``--json`` prints; None when there is none.
Result = dict[str, Any] | None

NONE: Final = "–"
_START: Final = time.monotonic()


def say(message: str) -> None:
    """One progress line on standard error, after the seconds since the start; results go to stdout."""
    print(f"[{time.monotonic() - _START:6.1f} s] {message}", file=sys.stderr, flush=True)


def utc_time(ns: int) -> str:
    """An epoch time in ns to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ns // 1_000_000_000))


# -- what is typed ---------------------------------------------------------------------------------


def names(text: str | None, option: str = "--symbols") -> tuple[str, ...]:
    """The names of ``A,B``, none of None; UsageError for a list that names nothing."""
    if text is None:
        return ()
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise UsageError(f"{option} {text!r}: names none; expected e.g. A,B")
    return found


def seeds(text: str | None, option: str = "--seeds") -> tuple[int, ...]:
    """The seeds of ``1,2,5-8``, ends included, none of None; UsageError for anything else."""
    if text is None:
        return ()
    found: list[int] = []
    for part in names(text, option):
        first, dash, last = part.partition("-")
        try:
            begin, end = int(first), int(last if dash else first)
        except ValueError as error:
            raise UsageError(f"{option} {text}: expected seeds and ranges, e.g. 1,2,5-8") from error
        if end < begin:
            raise UsageError(f"{option} {text}: {part} runs backwards")
        found.extend(range(begin, end + 1))
    return tuple(found)


# -- figures ---------------------------------------------------------------------------------------


def fixed(value: float | None, digits: int = 2) -> str:
    """A figure to a fixed number of decimals, thousands separated."""
    if value is None or math.isnan(value):
        return NONE
    text = f"{value:,.{digits}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text


def significant(value: float | None) -> str:
    """A figure to three significant digits, thousands separated; ∞ where it is infinite."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return NONE if value is None or math.isnan(value) else f"{value:.1%}"


def bps(value: float | None) -> str:
    """Basis points: three decimals below one, two above."""
    return fixed(value, 2 if value is None or abs(value) >= 1 else 3)


def interval(
    low: float | None, high: float | None, text: Callable[[float | None], str] = fixed
) -> str:
    """An interval, ``low … high``."""
    missing = low is None or high is None or not (math.isfinite(low) and math.isfinite(high))
    return NONE if missing else f"{text(low)} … {text(high)}"


def estimate(
    mean: float | None,
    low: float | None,
    high: float | None,
    text: Callable[[float | None], str] = bps,
) -> str:
    """An estimate with its interval, ``mean [low, high]``; the mean alone where there is none."""
    return (
        text(mean) if low is None or high is None else f"{text(mean)} [{text(low)}, {text(high)}]"
    )


def table(rows: Sequence[Sequence[object]], head: Sequence[str] = ()) -> str:
    """A plain aligned table; numbers to the right, text to the left."""
    cells = [[str(cell) for cell in row] for row in ([head] if head else []) + list(rows)]
    if not cells:
        return ""
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    numeric = [
        all(isinstance(row[n], int | float) or str(row[n])[:1] in "+-0123456789–" for row in rows)
        for n in range(len(widths))
    ]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    if head:
        lines.insert(1, "  ".join("─" * width for width in widths))
    return "\n".join(lines)
