"""Files of a user's own into the lake's captures; one that cannot be used stops no other."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

import msgspec

from market.console import utc_time
from market.ingest import adopt
from market.lake import Lake
from market.units import DAY_NS, MS_NS
from market.wire.capture import CaptureError, read_lines
from market.wire.survey import IngestError, Key, scan

#: Of a lake in an object store, in its folder here: size and path of each capture that has been there.
UPLOADED: Final = "uploaded"


class TakenIn(NamedTuple):
    """Captures in the lake, the keys that they hold, and why files were left out, by their paths."""

    captures: list[str]
    keys: set[Key]
    unread: dict[str, str]


def take_in(
    lake: Lake, files: Sequence[str], book_depth: int, say: Callable[[str], None]
) -> TakenIn:
    """`adopt` the files that can be read from end to end and hold a frame that can be used.

    A file that does not is named and stops no other. IngestError when there are files, and all do not.
    """
    taken = TakenIn([], set(), {})
    for file in files:
        held: Collection[Key] = ()
        try:
            held = scan([file], book_depth)
            reason = "" if held else _why_unusable(file, book_depth)
        except CaptureError as error:
            reason = str(error)
        except IngestError as error:
            reason = _why_unusable(file, book_depth) or str(error)
        if reason:
            taken.unread[file] = reason
        else:
            taken.captures.append(adopt(lake, file))
            taken.keys.update(held)
    if files and not taken.keys:
        raise IngestError("; ".join(taken.unread.values()) or f"{files[0]}: holds no frame")
    for reason in taken.unread.values():
        say(f"WARN left out: {reason}")
    return taken


def upload(lake: Lake, say: Callable[[str], None]) -> list[str]:
    """Copy this machine's finished captures and archives into the object store; the paths there.

    What a recorder still writes is left to a later call; what is there in the same size stands, as captures
    only grow, and what was there in the same size and was removed (`l2 retain`) does not come back. In a lake on
    this machine there is nothing to copy.
    """
    if lake.is_local or not lake.home.exists():
        return []
    here = Lake(lake.home, lake.source)
    done: list[str] = []
    gone, noted = 0, lake.home / UPLOADED
    lines = noted.read_text().splitlines() if noted.exists() else ()
    before = {place: int(size) for size, _, place in (line.partition(" ") for line in lines)}
    files = [path for day in here.capture_dates() for path in here.captures(day)]
    for file in [*files, *(here.archive(*key) for key in here.archives())]:
        part = file.removeprefix(f"{here.base}/")
        place = f"{lake.base}/{part}"
        known = lake.store.stat(place)
        with open(file, "rb") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            size = os.fstat(held.fileno()).st_size
            if known is None and before.get(part) == size:
                gone += 1
                continue
            if known is None or known.size != size:
                lake.put_file(place, file)
                done.append(place)
                say(f"uploaded {place}")
            if before.get(part) != size:
                with noted.open("a") as notes:
                    notes.write(f"{size} {part}\n")
    if gone:
        say(f"{gone} that were removed there are left out; remove {noted} to upload them again")
    return done


def _why_unusable(file: str, book_depth: int) -> str:
    """Why `scan` finds no key in a capture; "" when it holds control lines alone."""
    for receive_ns, frame in read_lines(file):
        try:
            content = msgspec.json.decode(frame)
        except (msgspec.DecodeError, RecursionError):
            continue
        if not isinstance(content, dict) or "l2" in content or "topic" not in content:
            continue
        sent_ms = content.get("ts")
        if isinstance(sent_ms, int) and receive_ns - sent_ms * MS_NS > DAY_NS:
            return (
                f"{file}: no frame can be used: the venue's time was {utc_time(sent_ms * MS_NS)} and the "
                f"receive time {utc_time(receive_ns)}, over a day later; record a venue of another date "
                "by its own clock"
            )
        return f"{file}: no frame can be used: none of orderbook.{book_depth}, trades or a ticker"
    return ""
