"""Partitions stand by themselves: what a step leaves out of a run, and why.

    without data   nothing of the date and symbol was recorded: named, and no error
    failed         its data cannot be used, or a critical expectation fails: named, and the run counts as
                   failed, whose other partitions are made all the same

A step reads from the lake what may enter it: a partition that failed an expectation stands there for
people to see, with its verdict in the table ``quality``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final, TypeVar

import dagster as dg

from assets.platform import Key, Span
from market.errors import DataError, L2Error
from market.lake import Lake

#: Metadata of assets and checks, which `l2 pipeline` collects.
WITHOUT_DATA, FAILED = "without data", "failed partitions"
#: Partitions that a line names; metadata have all.
_SHOWN: Final = 8

_T = TypeVar("_T")


class LeftOut:
    """The keys that a step leaves out, each with its reason; ``warn`` takes lines for people."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self.without_data: dict[Key, str] = {}
        self.failed: dict[Key, str] = {}

    def lacks(self, key: Key, reason: str) -> None:
        """Nothing of this key was recorded."""
        self.without_data[key] = reason

    def fail(self, key: Key, reason: Exception | str) -> None:
        """This key cannot be made."""
        self.failed[key] = reason if isinstance(reason, str) else reason_of(reason)

    def finish(self, made: Collection[object] | None = None) -> dict[str, Any]:
        """Metadata of the step, which a line for each reason tells too.

        Fails the step when it left out what it was asked for and ``made`` nothing.
        """
        metadata: dict[str, Any] = {}
        for title, keys in ((WITHOUT_DATA, self.without_data), (FAILED, self.failed)):
            named = {name(key): reason for key, reason in keys.items()}
            for line in by_reason(named):
                self._warn(f"{title}: {line}")
            if named:
                metadata[title] = dg.MetadataValue.json(named)
        if made is not None and not made:
            for line in by_reason(
                {name(k): r for k, r in (self.failed or self.without_data).items()}
            ):
                raise dg.Failure(f"no partition can be made: {line}")
        return metadata


def reason_of(error: Exception) -> str:
    """An error in one line, with its type where it was not written for people."""
    kind = "" if isinstance(error, L2Error) else f" ({type(error).__name__})"
    return " ".join(str(error).split()) + kind


def tried(function: Callable[..., _T], *task: Any) -> tuple[_T | None, str]:
    """The result of a partition's task and "", or None and why there is none; for worker processes."""
    try:
        return function(*task), ""
    except Exception as error:  # the partition's own: others go on, and it is named
        return None, reason_of(error)


def by_reason(reasons: Mapping[str, str]) -> Iterator[str]:
    """A line for each reason, after the partitions that it is told of."""
    for reason in dict.fromkeys(reasons.values()):
        keys = [key for key, told in reasons.items() if told == reason]
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        yield f"{', '.join(keys[:_SHOWN])}{more}: {reason}"


def name(key: Key) -> str:
    """``DATE SYMBOL``."""
    return f"{key[1]} {key[0]}"


def critical(lake: Lake, key: Key, tables: Collection[str]) -> str:
    """The critical expectations on these tables that a key's last verdicts fail; "" for none."""
    if not lake.exists("quality", *key):
        return ""
    return ", ".join(
        f"{row['judged']}.{row['figure']}"
        for row in lake.as_written("quality", *key).read().to_pylist()
        if row["judged"] in tables and row["severity"] == "critical" and not row["passed"]
    )


def apart(
    span: Span, make: Callable[[Span], _T], failed: Callable[[Key, DataError], None]
) -> list[_T]:
    """``make`` of a whole span; where that fails, of each part, down to the partitions that fail."""
    try:
        return [make(span)]
    except DataError as error:
        half = len(span.keys) // 2
        if not half:
            failed(span.keys[0], error)
        parts = span.batches(half) if half else []
        return [made for part in parts for made in apart(part, make, failed)]
