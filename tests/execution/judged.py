"""Cases for two engines: random markets with random orders, and our simulator's outcomes.

A case is one symbol's rows, the actions we send, and the setting of both engines. `ask` puts cases to
the judge, see tests/peers/hftbacktest_judge.py. Some of its answers are kept; to renew them:

    .venv/bin/python -m tests.execution.judged
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from execution.orders import (
    Accepted,
    Action,
    Amend,
    Amended,
    Cancel,
    Cancelled,
    CancelRejected,
    Event,
    Filled,
    OrderType,
    Rejected,
    Submit,
    TimeInForce,
)
from execution.simulation.latency import Latency, constant, recorded
from execution.simulation.queue import MODELS
from execution.simulation.simulator import Simulator
from execution.simulation.state import Reason
from market.book import Book
from market.events import EVENT, Events, Flag, Kind
from tests.conftest import REPOSITORY
from tests.execution.tape import INSTRUMENT, SYMBOL, frame

#: Models of the published formulas, on which the peer agrees in mode ``whole``.
PUBLISHED = ("risk_averse", "power1", "power2", "power3", "log1", "log2")

KEPT = Path(__file__).parent / "fixtures" / "judged.npz"
PEER = REPOSITORY / "peers" / "hftbacktest" / "bin" / "python"
JUDGE = REPOSITORY / "tests" / "peers" / "hftbacktest_judge.py"

ROW = np.dtype(
    [
        ("time_ns", "i8"),
        ("price_ticks", "i4"),
        ("qty_lots", "i4"),
        ("kind", "u1"),
        ("side", "i1"),
        ("flags", "u1"),
    ]
)
SETTING = np.dtype(
    [("model", "i8"), ("power", "f8"), ("entry_ns", "i8"), ("response_ns", "i8"), ("end_ns", "i8")]
)
#: Columns of an action: time_ns, kind (0 submit, 1 amend, 2 cancel), order, side, price_ticks,
#: qty_lots, policy (index into POLICIES), whether it is a market order.
NO_RECORDS = np.zeros((0, 3), np.int64)
POLICIES = (TimeInForce.GTC, TimeInForce.POST_ONLY, TimeInForce.FOK, TimeInForce.IOC)
#: States of the peer: new, expired, filled, cancelled.
NEW, EXPIRED, FILLED, CANCELLED = 1, 2, 3, 4

#: (receive_ns, order, status, venue_ns, price_ticks, qty_lots); the last two of fills only.
StateLine = tuple[int, ...]


#: Kinds of outcomes in the reference engine.
WORDS: dict[type, str] = {
    Accepted: "accepted",
    Rejected: "rejected",
    Filled: "filled",
    Amended: "amended",
    Cancelled: "cancelled",
    CancelRejected: "too late",
}
#: All of an outcome: (receive_ns, order, what, venue_ns, price_ticks, qty_lots, leaves_lots), with -1
#: for the venue's time of what never reached it.
OutcomeLine = tuple[int, int, str, int, int, int, int]


class Case(NamedTuple):
    rows: npt.NDArray[np.void]  #: dtype ROW
    actions: npt.NDArray[np.int64]  #: (n, 8)
    setting: npt.NDArray[np.void]  #: one of dtype SETTING
    records: npt.NDArray[np.int64]  #: (n, 3), recorded latencies: sent, at the exchange, answered


class Answer(NamedTuple):
    sent: list[bool]  #: per action: whether it went out, with no other of its order under way
    log: list[StateLine]


def random_case(number: int, *, seed: int = 1) -> Case:
    """A market of some 200 rows on a dozen ticks, and some 30 actions on both sides of it.

    Every fifth market may be crossed or one-sided; the others stay sound.
    """
    rng = np.random.Generator(np.random.Philox(key=(seed << 32) + number))
    wild = number % 5 == 4
    books: dict[int, dict[int, int]] = {1: {}, -1: {}}
    rows: list[tuple[int, ...]] = []
    now = 1_000

    def show(kind: Kind, levels: Sequence[tuple[int, int, int]]) -> None:
        for n, (side, price, lots) in enumerate(levels):
            flags = (Flag.FIRST if n == 0 else 0) | (Flag.LAST if n == len(levels) - 1 else 0)
            rows.append((now, price, lots, int(kind), side, int(flags)))

    def restate(middle: int) -> None:
        for side in books:
            prices = [middle - side * n for n in range(1, 6) if n == 1 or rng.random() < 0.7]
            books[side] = {price: int(rng.integers(20, 60)) for price in prices}
        show(Kind.SNAPSHOT, [(s, p, q) for s in books for p, q in books[s].items()])

    def change() -> tuple[int, int, int] | None:
        side = int(rng.choice((1, -1)))
        best = max(books[side], key=lambda p: side * p, default=100)
        price = best - side * int(rng.choice((-1, 0, 1, 2, 3), p=(0.04, 0.6, 0.2, 0.1, 0.06)))
        held = books[side].get(price, 10)
        lots = 0 if rng.random() < 0.03 else max(1, held + int(rng.integers(-9, 9)))
        if not wild:
            crosses = any(side * (price - p) >= 0 for p in books[-side])
            empties = lots == 0 and set(books[side]) <= {price}
            if crosses or empties:
                return None
        books[side].pop(price, None)
        if lots:
            books[side][price] = lots
        return side, price, lots

    restate(100)
    while len(rows) < 200:
        now += int(rng.integers(0, 20))
        draw = rng.random()
        if draw < 0.5:
            levels = [c for _ in range(int(rng.integers(1, 4))) if (c := change())]
            if levels:
                show(Kind.DELTA, levels)
        elif draw < 0.99:
            side = int(rng.choice((1, -1)))
            best = max(books[-side], key=lambda p: -side * p, default=100)
            price = best + side * int(rng.choice((-1, 0, 1), p=(0.02, 0.97, 0.01)))
            lots = int(rng.integers(1, 9))
            rows.append((now, price, lots, int(Kind.TRADE), side, int(Flag.LAST)))
        else:
            restate(100 + int(rng.integers(-1, 2)))

    actions: list[tuple[int, ...]] = []
    lots_of: dict[int, int] = {}
    prices: dict[int, int] = {}
    resized: set[int] = set()
    times = np.sort(rng.integers(1_001, now + 50, int(rng.integers(20, 40))))
    for time in times.tolist():
        draw = rng.random()
        side = int(rng.choice((1, -1)))
        price = 100 - side * int(rng.choice((-3, -1, 0, 1, 1, 1, 1, 2, 3)))
        lots, policy = int(rng.integers(1, 15)), int(rng.choice(4, p=(0.6, 0.2, 0.1, 0.1)))
        order = int(rng.integers(1, len(lots_of) + 1)) if lots_of else 0
        if order == 0 or draw < 0.6:
            order = len(lots_of) + 1
            lots_of[order] = lots
            prices[order] = price
            market = 0 if wild else int(rng.random() < 0.05)
            actions.append((time, 0, order, side, price, lots, policy, market))
        elif draw > 0.85:
            actions.append((time, 2, order, 0, 0, 0, 0, 0))
        elif order not in resized:
            # See `state_lines`: an order's size changes once, and last of all.
            if rng.random() < 0.4:
                resized.add(order)
            else:
                lots = lots_of[order]
            if rng.random() < 0.4:
                price = prices[order]
            prices[order] = price
            actions.append((time, 1, order, 0, price, lots, 0, 0))
    setting = np.zeros(1, SETTING)
    setting["model"] = number % len(PUBLISHED)
    setting["power"] = float(rng.choice((1.0, 2.0, 3.0)))
    setting["entry_ns"], setting["response_ns"] = rng.integers(0, 40, 2)
    setting["end_ns"] = now + 10_000
    records = recorded_latencies(rng, 1_000, now) if number % 4 >= 2 else NO_RECORDS
    return Case(np.array(rows, ROW), np.array(actions, np.int64), setting[0], records)


def joined(cases: Sequence[Case]) -> Case:
    """Cases one after the other as one, in the setting of the first and with constant latencies."""
    rows, actions = [], []
    later = orders = 0
    for case in cases:
        rows.append(case.rows.copy())
        rows[-1]["time_ns"] += later
        actions.append(case.actions.copy())
        actions[-1][:, 0] += later
        actions[-1][:, 2] += orders
        later += int(case.setting["end_ns"])
        orders = int(actions[-1][:, 2].max())
    setting = cases[0].setting.copy()
    setting["end_ns"] = later
    return Case(np.concatenate(rows), np.concatenate(actions), setting, NO_RECORDS)


def recorded_latencies(
    rng: np.random.Generator, first_ns: int, last_ns: int, unit_ns: int = 1, step_ns: int = 60
) -> npt.NDArray[np.int64]:
    """Latencies of requests about every ``step_ns``, some of which were refused on their way: their
    exchange time then lies before their sending, which the peer reads as a refusal."""
    records: list[tuple[int, int, int]] = []
    sent = first_ns + int(rng.integers(0, 50)) * unit_ns
    at_exchange = 0
    while sent < last_ns:
        way = int(rng.integers(-10, 0)) if rng.random() < 0.15 else int(rng.integers(0, 40))
        at_exchange = max(at_exchange + 1, sent + way * unit_ns)
        answered = max(sent, at_exchange) + int(rng.integers(0, 40)) * unit_ns
        records.append((sent, at_exchange, answered))
        sent += int(rng.integers(1, 2 * step_ns))
    return np.array(records, np.int64)


def action_of(row: Sequence[int]) -> Action:
    _, kind, order, side, price, lots, policy, market = row
    if kind == 1:
        return Amend(client_id=str(order), price_ticks=price, qty_lots=lots)
    if kind == 2:
        return Cancel(client_id=str(order))
    return Submit(
        client_id=str(order),
        symbol=SYMBOL,
        side=side,
        qty_lots=lots,
        price_ticks=price,
        order_type=OrderType.MARKET if market else OrderType.LIMIT,
        time_in_force=POLICIES[policy],
    )


def events_of(rows: npt.NDArray[np.void]) -> Events:
    events = np.zeros(len(rows), EVENT)
    events["receive_ns"] = events["exchange_ns"] = rows["time_ns"]
    for name in ("price_ticks", "qty_lots", "kind", "side", "flags"):
        events[name] = rows[name]
    return events


def state_lines(
    events: Sequence[Event], actions: Sequence[Sequence[int]], as_peer: bool
) -> list[StateLine]:
    """Order states by the outcomes: the last state of each order at each instant.

    With ``as_peer`` one thing is as the peer has it: when an amend loses queue position, the peer
    forgets the new quantity and later fills the old one.
    """
    last: dict[tuple[int, int], StateLine] = {}
    submitted = {row[2]: (row[4], row[5]) for row in actions if row[1] == 0}
    for event in events:
        order, price, lots = int(event.client_id), 0, 0
        if isinstance(event, Accepted | Amended):
            status = NEW
            if isinstance(event, Amended):
                kept = (
                    event.price_ticks == submitted[order][0]
                    and event.qty_lots <= submitted[order][1]
                )
                submitted[order] = (
                    event.price_ticks,
                    event.qty_lots if kept else submitted[order][1],
                )
        elif isinstance(event, Filled):
            status, price, lots = FILLED, event.price_ticks, event.qty_lots
            if as_peer:
                lots = submitted[order][1]
        elif isinstance(event, Rejected) and event.reason == Reason.NOT_DELIVERED:
            last[event.time_ns, order] = (event.time_ns, order, EXPIRED, 0, 0, 0)
            continue
        elif isinstance(event, Cancelled):
            status = CANCELLED if event.reason == Reason.BY_USER else EXPIRED
        else:
            continue
        last[event.time_ns, order] = (event.time_ns, order, status, event.venue_ns, price, lots)
    return sorted(last.values())


def latency_of(case: Case) -> Latency:
    if len(case.records):
        return recorded(case.records)
    return constant(int(case.setting["entry_ns"]), int(case.setting["response_ns"]))


def simulate(case: Case, sent: Sequence[bool], *, as_peer: bool = True) -> Answer:
    """States in mode ``whole`` when the actions marked in ``sent`` go out; see `state_lines`."""
    return Answer(
        list(sent), state_lines(outcomes(case, sent, mode="whole"), case.actions.tolist(), as_peer)
    )


def outcomes(case: Case, sent: Sequence[bool], *, mode: str, **more: Any) -> list[Event]:
    """Our simulator's events of a case when the actions marked in ``sent`` go out; ``more`` are further
    arguments of `Simulator`."""
    names = {number: name for name, number in MODELS.items()}
    setting = case.setting
    simulator = Simulator(
        {SYMBOL: INSTRUMENT},
        latency=latency_of(case),
        queue=names[int(setting["model"])],
        queue_power=float(setting["power"]),
        mode=mode,
        **more,
    )
    simulator.on_events(SYMBOL, events_of(case.rows))
    # An order meets the exchange when the rows up to its arrival are known.
    simulator.on_events(SYMBOL, frame(int(setting["end_ns"])))
    simulator.advance(int(case.rows["time_ns"][0]))
    received: list[Event] = []
    for row, goes in zip(case.actions.tolist(), sent, strict=True):
        simulator.advance(row[0])
        received += simulator.poll()
        if goes:
            simulator.send([action_of(row)])
    simulator.advance(int(setting["end_ns"]) - 1)
    received += simulator.poll()
    moved = sum(event.side * event.qty_lots for event in received if isinstance(event, Filled))
    assert moved == simulator.position_lots(SYMBOL)
    return received


def outcome_lines(events: Sequence[Event]) -> list[OutcomeLine]:
    """Outcomes in the form of the reference engine."""
    lines: list[OutcomeLine] = []
    for event in events:
        what, price, lots, leaves = WORDS[type(event)], 0, 0, 0
        venue = event.venue_ns
        if isinstance(event, Filled | Amended):
            price, lots = event.price_ticks, event.qty_lots
        if isinstance(event, Filled | Cancelled):
            leaves = event.leaves_lots
        if isinstance(event, Rejected | CancelRejected) and event.reason == Reason.NOT_DELIVERED:
            venue = -1
        lines.append((event.time_ns, int(event.client_id), what, venue, price, lots, leaves))
    return lines


def pack(path: Path, cases: Sequence[Case]) -> None:
    """Write cases where the judge reads them."""

    def ends(of: Callable[[Case], Any]) -> npt.NDArray[np.int64]:
        return np.cumsum([0] + [len(of(case)) for case in cases])

    np.savez_compressed(
        path,
        rows=np.concatenate([case.rows for case in cases]),
        row_ends=ends(lambda case: case.rows),
        actions=np.concatenate([case.actions for case in cases]),
        action_ends=ends(lambda case: case.actions),
        records=np.concatenate([case.records for case in cases]),
        record_ends=ends(lambda case: case.records),
        settings=np.array([case.setting for case in cases], SETTING),
    )


def unpack(cases: Any, answers: Any) -> list[tuple[Case, Answer]]:
    """Cases and the judge's answers, from the two archives."""
    out = []
    for n, setting in enumerate(cases["settings"]):
        rows = slice(*cases["row_ends"][n : n + 2])
        actions = slice(*cases["action_ends"][n : n + 2])
        log = answers["log"][answers["log"][:, 0] == n][:, 1:]
        last = {(time, order): row for row in map(tuple, log.tolist()) for time, order in [row[:2]]}
        records = slice(*cases["record_ends"][n : n + 2])
        case = Case(
            cases["rows"][rows], cases["actions"][actions], setting, cases["records"][records]
        )
        sent = answers["sent"][actions].tolist()
        out.append((case, Answer(sent, sorted(last.values()))))
    return out


def recorded_case(
    events: Events, model: int, *, count: int, seed: int = 1, interpolated: bool = False
) -> Case:
    """Recorded rows of one symbol, and ``count`` actions around the touch that they show."""
    rng = np.random.Generator(np.random.Philox(key=(seed << 32) + model))
    visible = (events["kind"] <= Kind.TRADE) & (events["side"] != 0)
    events = events[visible & (events["flags"] & (Flag.RPI | Flag.BLOCK) == 0)]
    rows = np.zeros(len(events), ROW)
    for name in ("price_ticks", "qty_lots", "kind", "side", "flags"):
        rows[name] = events[name]
    happened = np.minimum(events["exchange_ns"], events["receive_ns"])
    rows["time_ns"] = np.maximum.accumulate(happened)
    shown = events_of(rows)
    places = np.sort(rng.integers(len(rows) // 20, len(rows), count))
    book, done, submitted = Book(), 0, 0
    actions: list[tuple[int, ...]] = []
    for place in places.tolist():
        book.apply(shown[done:place])
        done = place
        side, draw = int(rng.choice((1, -1))), rng.random()
        own = book.best_bid if side > 0 else book.best_ask
        price = (own or 1) - side * int(rng.choice((-2, 0, 0, 0, 1, 2, 5)))
        time = int(rows["time_ns"][place]) + int(rng.integers(0, 3)) * 1_000_000
        time = max(time, actions[-1][0] if actions else 0)
        if submitted == 0 or draw < 0.7:
            submitted += 1
            policy = int(rng.choice(4, p=(0.6, 0.2, 0.1, 0.1)))
            lots = int(rng.integers(1, 500))
            actions.append((time, 0, submitted, side, price, lots, policy, 0))
            continue
        order = int(rng.integers(max(1, submitted - 20), submitted + 1))
        (submitted,) = (row for row in actions if row[1] == 0 and row[2] == order)
        if draw < 0.8:
            own = book.best_bid if submitted[3] > 0 else book.best_ask
            actions.append((time, 1, order, 0, own or submitted[4], submitted[5], 0, 0))
        else:
            actions.append((time, 2, order, 0, 0, 0, 0, 0))
    setting = np.zeros(1, SETTING)
    setting["model"], setting["power"] = model, 3.0
    setting["entry_ns"], setting["response_ns"] = 3_000_000, 2_000_000
    setting["end_ns"] = int(rows["time_ns"][-1]) + 1_000_000_000
    records = NO_RECORDS
    if interpolated:
        first, last = int(rows["time_ns"][0]), int(rows["time_ns"][-1])
        records = recorded_latencies(rng, first, last, 100_000, 500_000_000)
    return Case(rows, np.array(actions, np.int64), setting[0], records)


def kept_cases() -> list[Case]:
    """The cases whose answers are kept."""
    return [random_case(n, seed=1) for n in range(200)]


def ask(cases: Sequence[Case], folder: Path) -> list[tuple[Case, Answer]]:
    """The judge's answers to cases; the two archives stay in the folder."""
    given, answered = folder / "cases.npz", folder / "answers.npz"
    pack(given, cases)
    subprocess.run([PEER, JUDGE, given, answered], check=True)
    with np.load(given) as stored, np.load(answered) as answers:
        return unpack(dict(stored), dict(answers))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        ask(kept_cases(), Path(name))
        archives = [np.load(Path(name) / f"{part}.npz") for part in ("cases", "answers")]
        np.savez_compressed(KEPT, **dict(archives[0]), **dict(archives[1]))
