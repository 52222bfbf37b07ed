"""Lists over REST: filters on time, newest first, a page at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Final

from proving.sandbox.refusal import RefusedError
from proving.sandbox.trading import Row

Query = Mapping[str, str]

WEEK_MS: Final = 7 * 86_400_000


def whole(query: Query, name: str, default: int) -> int:
    """A whole number of a query."""
    text = query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > 15:
        raise RefusedError(10001, f"params error: {name} invalid")
    return int(text)


def limit_of(query: Query, default: int, most: int) -> int:
    """How many rows are asked for; more than the most is the most."""
    limit = whole(query, "limit", whole(query, "size", default))
    if limit < 1:
        raise RefusedError(10001, "params error: limit invalid")
    return min(limit, most)


def page(
    rows: Iterable[Row], query: Query, at: str, default: int, most: int, **equal: str
) -> dict[str, Any]:
    """One page of rows that come newest first, as ``list`` and ``nextPageCursor``.

    Rows are made as far as the page needs them. ``at`` is their field of time, ``equal`` what a field
    has to be (anything where it is empty).
    """
    start, end = whole(query, "startTime", 0), whole(query, "endTime", 0)
    if start and end and not 0 <= end - start <= WEEK_MS:
        raise RefusedError(10001, "params error: endTime - startTime has to be within 7 days")
    chosen = (
        row
        for row in rows
        if start <= int(row[at]) <= (end or 1 << 62)
        and all(not value or row[name] == value for name, value in equal.items())
    )
    skipped, limit = whole(query, "cursor", 0), limit_of(query, default, most)
    found = list(islice(chosen, skipped, skipped + limit + 1))
    return {
        "list": found[:limit],
        "nextPageCursor": str(skipped + limit) if len(found) > limit else "",
        "category": "linear",
    }
