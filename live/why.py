"""`l2 why`: one order, or one decision, from the market's last frame to cost, as the worker's log has it.

    frame -> feature vector -> contributions -> prediction and threshold -> size -> parent -> orders -> fills -> cost

Everything is on record: decisions with their vectors in the decision log or the lake, the rest in the log.
"""

from __future__ import annotations

import argparse
import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from execution.orders import Amend, Cancel, Filled, OrderReport, Submit
from live.control import state_of
from live.decisions import DECISIONS, read_stream
from live.journal import action_of, event_of
from live.log import Block, Position, offsets, read, segments
from live.messages import Append, PublicFrame
from market.console import NONE, Result, fixed, table, utc_time
from market.errors import UsageError
from market.lake import Lake
from market.settings import Settings
from market.units import SECOND_NS, utc_date
from models_registry.manifest import Bundle, bundles_folder
from models_registry.pointed import find

#: Features shown of a decision.
_MOST: Final = 10
#: A frame is not looked for longer before a decision.
_SILENCE_NS: Final = 60 * SECOND_NS


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 why`."""
    parser.add_argument(
        "what", metavar="ORDER|PARENT|TIME", help="an id, or a UTC second as 2026-03-02T10:00:00"
    )
    parser.add_argument("--symbol", metavar="NAME", help="of a time; default: the first one traded")
    parser.add_argument("--venue", metavar="NAME", help="default: that of the worker that runs")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """Print what led to it and what came of it. UsageError for what is not on record."""
    state = state_of(settings, options.venue)
    text, found = explained(settings, state, options.what, options.symbol or "")
    if not options.json:
        print(text)
    return found


def explained(
    settings: Settings, state: Path, what: str, symbol: str = ""
) -> tuple[str, dict[str, Any]]:
    """What led to an order, a parent or a second, and what came of it: one screen, and plain data."""
    symbol, second, parent = target(what, symbol or settings.market.symbols[0])
    own = parent or f"{symbol}-{second}-"
    records = [r for r in _records(state, own) if r.parent_id.startswith(own)]
    if not parent:
        at = second * SECOND_NS
        parent = next((r.parent_id for r in records if r.kind == "parent" and r.time_ns == at), "")
    records = [r for r in records if parent and r.parent_id == parent]
    decision = decision_at(settings, state, symbol, second * SECOND_NS)
    if decision is None and not records:
        raise UsageError(f"{what}: not in the log of {state}, nor among the decisions")
    moved = contributions(settings, decision) if decision else []
    frame = frame_before(state / "log", symbol, second * SECOND_NS)
    told = (*_of_decision(symbol, second, frame, decision, moved), *_of_parent(records))
    text = "\n".join(told)
    return text, {
        "symbol": symbol,
        "second": second,
        "frame": frame,
        "decision": decision,
        "moved_bps": dict(moved),
        "records": [
            {"kind": r.kind, "time_ns": r.time_ns, "client_id": r.client_id, "body": _body(r)}
            for r in records
        ],
    }


def target(what: str, symbol: str) -> tuple[str, int, str]:
    """Symbol, second of the decision (epoch s), and parent id, empty for a time. UsageError for neither."""
    parts = what.split("-")
    if len(parts) in (3, 4) and parts[1].isdigit() and parts[2].isdigit():
        return parts[0], int(parts[1]), "-".join(parts[:3])
    try:
        return (
            symbol,
            round(datetime.fromisoformat(f"{what.removesuffix('Z')}+00:00").timestamp()),
            "",
        )
    except ValueError:
        raise UsageError(
            f"{what}: neither an id (SYMBOL-SECOND-NUMBER) nor a UTC time (2026-03-02T10:00:00)"
        ) from None


def _records(state: Path, parent: str) -> Iterator[Append]:
    """What a log has of parents whose ids begin so, and more."""
    for block in read(state / "log", holding=parent.encode()):
        for _, body in block.records:
            if isinstance(body, Append) and not body.kind.startswith("section/"):
                yield body


def frame_before(log: Path, symbol: str, t_ns: int) -> dict[str, Any] | None:
    """The last frame of a symbol that a decision at ``t_ns`` knew: its topic, when it was received, and where the
    log has it (segment, byte of its block, record in it). None when it has none within a minute.
    """
    topic = re.compile(rb'"topic"\s*:\s*"([^"]+\.%s)"' % re.escape(symbol.encode()))
    for block in _backwards(log, t_ns):
        for n, (at, body) in reversed([*enumerate(block.records)]):
            if at < t_ns - _SILENCE_NS:
                return None
            if at < t_ns and isinstance(body, PublicFrame) and (found := topic.search(body.frame)):
                place = {"segment": block.segment, "offset": block.offset, "record": n}
                return {"topic": found[1].decode(), "receive_ns": at, **place}
    return None


def _backwards(log: Path, t_ns: int) -> Iterator[Block]:
    """Blocks that begin before a time, the last first; few others are decoded to find them."""

    def begins_ns(position: Position) -> int:
        return next((block.records[0][0] for block in read(log, position)), t_ns)

    for number, path in reversed(segments(log).items()):
        known = [Position(number, offset) for offset in offsets(path)]
        for position in reversed(known[: bisect_left(known, t_ns, key=begins_ns)]):
            yield from islice(read(log, position), 1)


def decision_at(settings: Settings, state: Path, symbol: str, t_ns: int) -> dict[str, Any] | None:
    """A decision with its features, from the lake or from what is not collected yet."""
    lake, day = Lake(settings.root, settings.source), utc_date(t_ns - 1)
    tables = (
        [lake.read(DECISIONS.name, symbol, day)] if lake.exists(DECISIONS.name, symbol, day) else []
    )
    for path in sorted((state / "decisions").glob(f"date={day}/hour=*/*")):
        if path.suffix == ".parquet":
            tables.append(pq.read_table(path, partitioning=None))
        elif path.suffix == ".arrows":
            found, _ = read_stream(path)
            tables += [] if found is None else [found]
    for found in tables:
        mask = np.asarray(found.column("t_ns").to_numpy() == t_ns)
        if "symbol" in found.column_names:
            mask &= np.array([s == symbol for s in found.column("symbol").to_pylist()])
        if mask.any():
            return dict(found.filter(pa.array(mask)).slice(0, 1).to_pylist()[0])
    return None


@lru_cache(maxsize=2)
def bundle_of(root: str, name: str, sha: str) -> Bundle:
    """The bundle with this checksum, which never changes; ModelError without one."""
    return find(bundles_folder(root, name), sha)[1]


def contributions(settings: Settings, decision: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What each feature moved the prediction by (bps), the largest first; ModelError without the bundle."""
    bundle = bundle_of(settings.root, settings.model_name, decision["bundle_sha"])
    names = bundle.manifest.features
    given = [decision.get(name) for name in names]
    vector = np.array([math.nan if value is None else value for value in given], np.float64)
    parts = bundle.contributions(vector)
    order = np.argsort(-np.abs(parts[:-1]), kind="stable")
    return [*((names[n], float(parts[n])) for n in order), ("constant", float(parts[-1]))]


# -- the screen ------------------------------------------------------------------------------------


def _of_decision(
    symbol: str,
    second: int,
    frame: Mapping[str, Any] | None,
    decision: Mapping[str, Any] | None,
    moved: Sequence[tuple[str, float]],
) -> Iterator[str]:
    yield f"{symbol}, decision of {utc_time(second * SECOND_NS)}"
    if frame is None:
        yield "  no public frame of the minute before is in the log"
    else:
        at = frame["receive_ns"]
        yield (
            f"  last public frame before it: {frame['topic']}, received {utc_time(at)[11:19]}.{at % SECOND_NS:09d}; "
            f"log segment {frame['segment']}, block at byte {frame['offset']:,}, record {frame['record']}"
        )
    if decision is None:
        yield "  no decision of that second is on record"
        return
    horizons = [k for k in decision if k.startswith("expected_") and k != "expected_bps"]
    yield (
        f"  model version {decision['model_version']} expects {fixed(decision['raw_bps'], 3)} bps "
        f"({', '.join(f'{k[9:-4]} s {fixed(decision[k], 2)}' for k in horizons)}), regime {decision['regime']}"
    )
    yield (
        f"  acted on {fixed(decision['expected_bps'], 3)} bps; entering has to exceed "
        f"{fixed(decision['cost_bps'], 3)}; target {decision['target']:+d}, position "
        f"{decision['position_lots']:,} lots, mid {fixed(decision['mid'])}"
    )
    rows = [
        (name, fixed(decision.get(name), 4) if name in decision else "", f"{part:+.3f}")
        for name, part in moved[:_MOST]
    ]
    rest = sum(part for _, part in moved[_MOST:])
    yield table([*rows, ("all others", "", f"{rest:+.3f}")], ("feature", "value", "bps"))


def _of_parent(records: Sequence[Append]) -> Iterator[str]:
    if not records:
        yield "\nno parent order was opened by it"
        return
    first = next((r for r in records if r.kind == "parent"), None)
    begun = first.time_ns if first else records[0].time_ns
    if first:
        row = _body(first)
        yield (
            f"\nparent {first.parent_id}: {'buy' if row['side'] > 0 else 'sell'} {row['qty_lots']:,} lots "
            f"({fixed(row['size_usdt'], 0)} USDT) by {row['algorithm']} within "
            f"{(row['deadline_ns'] - row['decision_ns']) / SECOND_NS:g} s"
        )
        yield from _sizes(row)
    rows = [line for record in records if (line := _line(record, begun))]
    yield table(rows, ("after, s", "order", "what", "lots", "ticks"))
    for record in records:
        if record.kind == "end":
            cost = _body(record)
            total = [
                v for k, v in cost.items() if k.endswith("_bps") and k in _PARTS and v is not None
            ]
            parts = ", ".join(
                f"{k[:-4]} {fixed(cost[k], 3)}" for k in _PARTS if cost.get(k) is not None
            )
            yield f"\ncost {fixed(sum(total), 3)} bps: {parts}"


_PARTS: Final = (
    "delay_bps",
    "spread_bps",
    "impact_bps",
    "timing_bps",
    "opportunity_bps",
    "fees_bps",
)


def _sizes(row: Mapping[str, Any]) -> Iterator[str]:
    """What bound the size, where it is on record."""
    found = {name: row[name] for name in ("size_binding", "size_caps") if row.get(name)}
    if found:
        yield f"  size bound by {found.get('size_binding', NONE)}: {found.get('size_caps', '')}"


def _line(record: Append, begun_ns: int) -> tuple[str, str, str, str, str] | None:
    after = f"{(record.time_ns - begun_ns) / SECOND_NS:.3f}"
    name = record.client_id.rpartition("-")[2]
    if record.kind == "intent":
        match action_of(record):
            case Submit() as order:
                what = f"{'buy' if order.side > 0 else 'sell'} {order.order_type} {order.time_in_force}"
                return after, name, what.lower(), f"{order.qty_lots:,}", f"{order.price_ticks:,}"
            case Amend() as change:
                return (
                    after, name, "amend", "" if change.qty_lots is None else f"{change.qty_lots:,}",
                    "" if change.price_ticks is None else f"{change.price_ticks:,}",
                )  # fmt: skip
            case Cancel():
                return after, name, "cancel", "", ""
    if record.kind == "event":
        event = event_of(record)
        if isinstance(event, Filled):
            return (
                after,
                name,
                f"filled, {event.liquidity}".lower(),
                f"{event.qty_lots:,}",
                f"{event.price_ticks:,}",
            )
        if isinstance(event, OrderReport):
            return None  # says again what executions say
        why = getattr(event, "reason", "")
        return after, name, type(event).__name__.lower() + (f": {why}" if why else ""), "", ""
    if record.kind == "denied":
        return after, name, f"denied: {_body(record).get('reason', '')}", "", ""
    return None


def _body(record: Append) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(record.body)
    return found
