"""One market of a seed, traded at once by every variant of the desk's settings; what each one did, in sums.

    engine (or a recording) ─► events ─► foresight by each model ─► one replay, a run per variant ─► sums

A session is ten minutes after 750 s to warm up, with the funding settlement of 08:00 UTC five minutes before its
end. Our orders have no impact (`orchestration.backtest`).

Decisions come of the lake's champion and its frozen legacy model (``planted``, ``null``), or are drawn
(``parents``, ``recordings``): a signal of either side every two minutes, large enough to be traded at every
fee row, that knows nothing. Drawn signals give both desks the same parents at the same instants.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute

from execution.estimates import group_of
from execution.simulation.queue import BOUNDS
from execution.tca import ESTIMATES, ParentRow, Row, Shortfall
from market.bars import make_bars
from market.errors import DataError
from market.events import ARROW_SCHEMA, to_arrow
from market.ingest import ingest
from market.instruments import BUILT_IN
from market.lake import Lake
from market.settings import FEE_ROWS_BPS, Execution, Settings, load
from market.units import DAY_NS, E8, SECOND_NS, day_start_ns, utc_date
from models_registry.manifest import LEGACY
from orchestration.backtest.foresight import ForesightTrader, file_of, foresee
from orchestration.backtest.run import FixedModel, Run, load_model, replay, signal_model
from orchestration.backtest.span import Span, instruments_of_span
from proving.synthetic import altered, profile
from proving.synthetic.marketplace import SyntheticMarket
from proving.synthetic.profiles import Profile

Figures = dict[str, float]

SYMBOLS: Final = ("BTCUSDT", "ETHUSDT")
DAY: Final = "2026-03-01"
#: Features are warm after twelve minutes; a session ends five minutes after a settlement.
WARM_S, TRADE_S = 750, 600
FIRST_S: Final = 8 * 3600 + 300 - TRADE_S
#: A drawn signal: one every so many seconds, its size at first and its half-life.
SIGNAL_EVERY_S, SIGNAL_BPS, SIGNAL_HALF_LIFE_S = 120, 30.0, 15.0
HISTORY_S: Final = 3_700
PESSIMISTIC: Final = BOUNDS[0]

#: Settings in which each part of the desk is switched on (over `legacy`), and off (from the whole).
PARTS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "model": (("desk.model=champion",), ("desk.model=legacy",)),
    "size": (("desk.size=risk",), ("desk.size=fixed",)),
    # Urgency is read by the default algorithm; what the owners had took at once.
    "urgency": (
        ("desk.urgency=true", f"execution.algorithm={Execution().algorithm}"),
        ("desk.urgency=false", "execution.algorithm=market"),
    ),
    **{
        name: ((f"desk.{name}=true",), (f"desk.{name}=false",))
        for name in ("leaders", "funding", "margin", "ramp")
    },
}


def variant(fee_row: str, queue: str, *changes: str, profile: str = "whole") -> tuple[str, ...]:
    """The overrides of one variant."""
    shared = (f"model.fee_row={fee_row}", f"execution.queue={queue}", f"desk.profile={profile}")
    return (*shared, *changes)


def whole() -> dict[str, tuple[str, ...]]:
    """Both desks at every fee row and bound. Of `legacy`, which never rests an order, one bound is both."""
    cells = {f"legacy {fee}": variant(fee, PESSIMISTIC, profile="legacy") for fee in FEE_ROWS_BPS}
    pairs = product(FEE_ROWS_BPS, BOUNDS)
    return cells | {f"whole {fee} {queue}": variant(fee, queue) for fee, queue in pairs}


def parts(fee_row: str, draws: bool) -> dict[str, tuple[str, ...]]:
    """Each part alone, over `legacy` and left out of the whole, at one fee row and the pessimistic bound.

    With drawn signals the model is no part.
    """
    tried = {name: PARTS[name] for name in PARTS if not (draws and name == "model")}
    over = {f"legacy + {n}": variant(fee_row, PESSIMISTIC, *on, profile="legacy") for n, (on, _) in tried.items()}  # fmt: skip
    return over | {f"whole - {n}": variant(fee_row, PESSIMISTIC, *off) for n, (_, off) in tried.items()}  # fmt: skip


def settings_of(lake: Lake, overrides: Sequence[str]) -> Settings:
    """The product's defaults with these overrides, over a lake; no file or environment has a say."""
    own = (f"root={lake.uri}", f"source={lake.source}", f"market.symbols={','.join(SYMBOLS)}")
    return load(os.devnull, {}, (*own, *overrides))


@cache
def models() -> dict[str, FixedModel]:
    """The champion and the legacy model of the configured lake, by their names in ``desk.model``."""
    settings = load()
    return {which: load_model(settings, which, SYMBOLS) for which in ("champion", LEGACY)}


# -- the market ------------------------------------------------------------------------------------


def engine(law: Profile, seed: int, lake: Lake) -> Span:
    """Write a session of the synthetic market as events, and its warm-up as bars; the span that is traded."""
    first_ns = day_start_ns(DAY) + FIRST_S * SECOND_NS
    end_ns = first_ns + TRADE_S * SECOND_NS
    for symbol in SYMBOLS:
        market = SyntheticMarket(law, seed, symbol, DAY, begins_ns=first_ns - WARM_S * SECOND_NS)
        notes = {"instrument": msgspec.json.encode(BUILT_IN[symbol]).decode(), "until_ns": end_ns}
        with lake.writer("events", symbol, DAY, ARROW_SCHEMA, f"session of {seed}", notes) as out:
            while market.now_ns < end_ns:
                rows = market.chunk(end_ns)
                rows = rows[: np.searchsorted(rows["receive_ns"], end_ns)]
                out.write_table(to_arrow(rows).replace_schema_metadata(out.schema.metadata))
        make_bars(lake, symbol, DAY, settings_of(lake, ()))
        lake.write("bars", symbol, DAY, lake.between("bars", symbol, DAY, 0, first_ns))
    return Span(first_ns, end_ns)


def recording(name: str, _: int, lake: Lake) -> Span:
    """Ingest a recording, the same for every seed; its span. It is minutes long and features look back an hour, so the hour before repeats
    its own bars, of which a drawn signal knows nothing."""
    folder = Path(os.environ.get("L2_TEST_DATA", "../shared/data"))
    path = folder / f"{name}.frames.zst"
    if not path.exists():
        raise DataError(f"{path}: no such recording; name its folder with L2_TEST_DATA")
    day = f"{name[-8:-4]}-{name[-4:-2]}-{name[-2:]}"
    days = [day, utc_date(day_start_ns(day) + DAY_NS)]
    ingest(lake, [str(path)], [(s, date) for s in SYMBOLS for date in days], settings_of(lake, ()))
    held = {s: [date for date in days if lake.exists("events", s, date)] for s in SYMBOLS}
    bars: dict[str, pa.Table] = {}
    for symbol, dates in held.items():
        for date in dates:
            make_bars(lake, symbol, date, settings_of(lake, ()))
        bars[symbol] = pa.concat_tables([lake.read("bars", symbol, date) for date in dates])
        for date in dates:
            lake.remove("bars", symbol, date)
    # After some seconds the books are there.
    first_ns = max(table["t_ns"][0].as_py() for table in bars.values()) + 5 * SECOND_NS
    for symbol, table in bars.items():
        sound = table.filter(pa.compute.equal(table["gap"], 0))
        back = np.arange(HISTORY_S, dtype=np.int64)[::-1]
        times = pa.array(first_ns - SECOND_NS * back)
        history = sound.take(back % len(sound))
        history = history.set_column(history.column_names.index("t_ns"), "t_ns", times)
        lake.write("bars", symbol, utc_date(first_ns - 1), history)
    return Span(first_ns, max(table["t_ns"][-1].as_py() for table in bars.values()))


def drawn(settings: Settings, span: Span, seed: int) -> FixedModel:
    """A signal that knows nothing: as many buys as sells, in an order and at an offset of the seed."""
    parts = []
    for symbol in SYMBOLS:
        dice = np.random.default_rng([seed, *symbol.encode()])
        seconds = np.arange(span.first_ns // SECOND_NS + 1, span.until_ns // SECOND_NS + 1)
        number, age_s = np.divmod(
            seconds - seconds[0] + dice.integers(SIGNAL_EVERY_S), SIGNAL_EVERY_S
        )
        sides = np.resize([1.0, -1.0], number[-1] + 1)
        dice.shuffle(sides)
        expected = sides[number] * SIGNAL_BPS * 0.5 ** (age_s / SIGNAL_HALF_LIFE_S)
        columns = {"t_ns": seconds * SECOND_NS, "expected_bps": expected}
        parts.append(pa.table({"symbol": [symbol] * len(seconds), **columns}))
    return signal_model(settings, pa.concat_tables(parts), f"drawn {seed}")


# -- the session -----------------------------------------------------------------------------------


def session(
    market: Callable[..., Span],
    cells: Mapping[str, tuple[str, ...]],
    seed: int,
    source: str = "synthetic",
    draws: bool = False,
) -> dict[str, Figures]:
    """The sums of every cell over the market of a seed."""
    with tempfile.TemporaryDirectory(prefix="l2-desk-") as folder:
        lake = Lake(Path(folder) / "lake", source)
        span = market(seed, lake)
        instruments, _ = instruments_of_span(lake, SYMBOLS, span)
        plain = settings_of(lake, ())
        found = {"champion": drawn(plain, span, seed)} if draws else models()
        places = {"champion": 0, LEGACY: len(found) - 1}
        given = list(found.values())
        foresee(plain, instruments, span, given, SYMBOLS, Path(folder))
        # What is imported by now is never garbage, and need not be looked at; the last session's cycles are.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        runs: dict[str, tuple[Run, Mapping[str, list[Row]]]] = {}
        for cell, overrides in cells.items():
            settings = settings_of(lake, overrides)
            number = places[settings.desk.model]
            files = {symbol: file_of(Path(folder), number, symbol) for symbol in SYMBOLS}
            rows, trader = defaultdict[str, list[Row]](list), partial(ForesightTrader, files=files)
            keep = partial(lambda rows, table, more: rows[table].extend(more), rows)
            runs[cell] = Run(settings, instruments, given[number], trader=trader, rows=keep), rows
        replay(lake, instruments, span, [run for run, _ in runs.values()])
        return {cell: sums(run, rows) for cell, (run, rows) in runs.items()}


_OF_PARENTS: Final = ("parents_usdt", "cost", "cost_without_fees", "filled", "filled_maker")


def sums(run: Run, rows: Mapping[str, Sequence[Row]]) -> Figures:
    """A session in sums that add up over seeds; money in USDT, costs in bps times USDT.

    Costs and filled shares are of measured parents, abandoned ones too: what they did not fill is in their cost,
    valued at the mid of their deadline. ``bias …`` is cost less its estimate, by algorithm and third of urgency,
    ``stated …`` the standard deviation that the estimate states of its own bias.
    """
    row, capital = run.settings.model.fee_row, run.settings.execution.capital_usdt
    totals, trades = run.blotter.totals.values(), run.blotter.trades
    out = {
        "net": run.curve.equity[row][-1],
        "capital": capital,
        "drawdown": run.curve.drawdown[row],
        "turnover": sum(t.turnover_e8 for t in totals) / E8,
        "turnover_maker": sum(t.maker_e8 for t in totals) / E8,
        "funding": sum(t.funding_e8 for t in totals) / E8,
        "trips": len(trades),
        "hits": sum(trade.net_usdt(row) > 0 for trade in trades),
        "errors": len(run.errors),
        "parents": len(rows.get("tca", ())),
    }
    out |= dict.fromkeys(_OF_PARENTS, 0.0)
    estimates = {p.parent_id: p for p in rows.get("parents", ()) if isinstance(p, ParentRow)}
    for cost in rows.get("tca", ()):
        if not isinstance(cost, Shortfall) or not np.isfinite(cost.total_bps):
            continue
        usdt, filled = cost.size_usdt, cost.fill_rate
        bare, made = cost.total_bps - cost.fees_bps, cost.maker_share * filled if filled else 0.0
        values = np.array((1.0, cost.total_bps, bare, filled, made)) * usdt
        more = dict(zip(_OF_PARENTS, values.tolist(), strict=True))
        parent = estimates.get(cost.parent_id)
        expected = sum(getattr(parent, name) for name in ESTIMATES) if parent else np.nan
        if parent and np.isfinite(expected) and (filled == 1 or cost.end_ns >= parent.deadline_ns):
            group = group_of(cost.picked or cost.algorithm, parent.urgency)
            more[f"bias {group}"] = cost.total_bps - expected
            more[f"biased {group}"] = 1.0
            more[f"stated {group}"] = parent.estimate_bias_bps
        for name, value in more.items():
            out[name] = out.get(name, 0.0) + value
    return out


class Market(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table: its runs by name, the fee row at which each part is tried alone, if any, whether its
    signals are drawn, and how many seeds it takes: over one recording more of them say little more."""

    runs: Mapping[str, Callable[[int], dict[str, Figures]]]
    parts_at: str
    draws: bool
    seeds: int


def row(
    market: Callable[..., Span], parts_at: str = "", draws: bool = False, source: str = "synthetic"
) -> Market:
    """A row over a market."""
    cells = {"whole": whole(), **({"parts": parts(parts_at, draws)} if parts_at else {})}
    runs = {
        n: partial(session, market, each, source=source, draws=draws) for n, each in cells.items()
    }
    seeds = 20 if source == "synthetic" else 8
    return Market(runs=runs, parts_at=parts_at, draws=draws, seeds=seeds)


DEMO: Final = profile("demo")
NULL: Final = altered(DEMO, ic=0.0)
ROWS: Final[dict[str, Market]] = {
    "planted": row(partial(engine, DEMO), "zero"),
    "null": row(partial(engine, NULL)),
    "parents": row(partial(engine, NULL), "vip0", draws=True),
    **{
        name: row(partial(recording, name), source="recorded", draws=True)
        for name in ("usdm-20240718", "usdm-20240808")
    },
}
