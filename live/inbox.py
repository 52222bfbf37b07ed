"""What the main loop takes: the feed's queue, in which everybody's inputs wait behind each other."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from live.feed import FeedError, Item
from live.messages import Input

#: So many refused frames, and none accepted, end a run.
_REFUSED: Final = 200


class Given(NamedTuple):
    """An input of another source than the feed, read at ``read_ns`` (monotonic); a command has a name."""

    body: Input
    read_ns: int
    name: str = ""


def grouped(items: Iterator[Any], inbox: queue.SimpleQueue[Any], most: int) -> Iterator[Any]:
    """The items; up to ``most`` frames that wait in the inbox behind each other in lists."""
    waiting: list[Item] = []
    try:
        for item in items:
            if isinstance(item, Item) and item.frame is not None:
                waiting.append(item)
                if len(waiting) < most and not inbox.empty():
                    continue
                item = None
            if waiting:
                yield waiting
                waiting = []
            if item is not None:
                yield item
    except FeedError:
        yield waiting
        raise
    yield waiting


def require_accepted(rejects: Mapping[tuple[str, str], int]) -> None:
    """FeedError when so many frames were refused, by (topic, reason), that nothing can come of it."""
    if (times := sum(rejects.values())) >= _REFUSED:
        (topic, reason), _ = max(rejects.items(), key=lambda kind: kind[1])
        raise FeedError(
            f"{times} frames were refused and none accepted, most of {topic or 'no topic'}: {reason}; "
            "the log shows the first"
        )
