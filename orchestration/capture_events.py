"""Events of captures that are named on the command line and are not in the lake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from market.errors import DataError
from market.events import Events
from market.instruments import Instrument
from market.wire.capture import read_blocks
from market.wire.decode import Decoder


def require_captures(paths: Sequence[str]) -> None:
    """DataError for the first path that is not a file."""
    for path in paths:
        if not Path(path).is_file():
            raise DataError(f"{path}: no such capture")


def symbol_events(
    path: str, instruments: Mapping[str, Instrument], symbol: str, book_depth: int
) -> Iterator[Events]:
    """A symbol's event rows of a capture, block by block."""
    decoder = Decoder(instruments, book_depth, [symbol], follow=False)
    for block in read_blocks(path):
        events = decoder.decode_block(block).events.get(symbol)
        if events is not None and len(events):
            yield events
