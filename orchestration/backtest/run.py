"""One backtest run: the model, the trader, its venues and books; and the replay that drives runs."""

from __future__ import annotations

import math
import tempfile
import time
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from execution.blotter import Blotter, EntryReason
from execution.orders import Event, Filled
from execution.simulation.queue import BOUNDS
from execution.tca import Row
from live.core import Core
from live.decisions import Decision
from live.funding import FundingPayment
from live.gateway import PlainCodec
from live.history import SymbolHistory, book_states, join_history
from live.journal import journal_rows
from live.messages import Append, Effect
from live.messages import Say as Said
from live.paper import PaperDriver, on_paper, paper_venues
from live.trader import Model, Trader
from market.columns import C
from market.console import Say
from market.errors import DataError, UsageError
from market.features import feature_hash
from market.instruments import Instrument
from market.lake import Lake
from market.settings import FEE_ROWS_BPS, Settings
from market.units import HOUR_NS, MINUTE_NS, SECOND_NS
from models_registry.ensemble import SCALE_FEATURE, SCALE_WINDOW_S
from models_registry.manifest import (
    LEGACY,
    MANIFEST_FILE,
    Bundle,
    BundleError,
    Gate,
    Pointer,
    load_champion,
    new_manifest,
)
from models_registry.pointed import load_frozen
from models_registry.recipe import Recipe, Regime, Scale
from orchestration.backtest.span import Span, instant_text, merged, seconds_of

#: Finished orders and parents leave memory this often, so that memory does not grow with the span.
FLUSH_NS: Final = HOUR_NS

#: Seconds of wall time between progress lines.
PROGRESS_EVERY_S: Final = 10.0

_EVENT = msgspec.json.Decoder(Event)
_FUNDING = msgspec.json.Decoder(FundingPayment)
_SWEEPS: Final = {
    side: tuple(getattr(C, f"sweep_{name}_{size}") for size in ("10k", "100k", "1m"))
    for side, name in ((1, "buy"), (-1, "sell"))
}


class BacktestError(DataError):
    """A backtest cannot be run; the message says why and what to do."""


# -- the model -------------------------------------------------------------------------------------


class FixedModel(msgspec.Struct, frozen=True):
    """One model version for the whole run. ``foreign`` says why its source is not the lake's, or ``""``.

    A ``signal`` takes the place of what the bundle would predict: by symbol the decision times (n,), rising,
    and expected returns (n,) in bps; at other times, and at NaN, nothing is expected.
    """

    pointer: Pointer
    bundle: Bundle
    foreign: str = ""
    signal: Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] | None = None

    @property
    def name(self) -> str:
        """Registered name and version."""
        return f"{self.pointer.name} {self.pointer.version}"


def load_model(
    settings: Settings, which: str, symbols: Sequence[str], *, in_spite_of_source: bool = False
) -> FixedModel:
    """The model to run: ``champion``, ``legacy``, a version of the registry, a bundle's folder, or (empty)
    that of ``desk.model``.

    BundleError when it was trained for other features, another book topic, other symbols or, unless
    ``in_spite_of_source``, on another source than the lake's; BacktestError when there is none.
    """
    pointer, bundle = _bundle(settings, which or settings.desk.model)
    bundle.require(feature_hash(), f"orderbook.{settings.market.book_depth}")
    manifest = bundle.manifest
    if missing := set(symbols) - set(manifest.symbols):
        raise BundleError(
            f"model {pointer.name} {pointer.version} was not trained on "
            f"{', '.join(sorted(missing))}; name its symbols with --symbols, or train again"
        )
    foreign = ""
    if manifest.source != settings.source:
        foreign = f"a model of {manifest.source} data on {settings.source} data"
        if not in_spite_of_source:
            raise BundleError(
                f"{foreign} says nothing about either; --in-spite-of-source runs it, and its report "
                "says so"
            )
    return FixedModel(pointer, bundle, foreign)


def _bundle(settings: Settings, which: str) -> tuple[Pointer, Bundle]:
    if which == LEGACY:
        return load_frozen(settings)
    folder = Path(which)
    if (folder / MANIFEST_FILE).is_file():
        bundle = Bundle.load(folder)
        return _pointer(bundle, folder.name), bundle
    if which == "champion":
        champion = load_champion(settings.root, settings.model_name)
        if champion is None:
            from models_registry.resolver import resolve

            resolve(settings)
            champion = load_champion(settings.root, settings.model_name)
        if champion is None:
            raise BacktestError(
                f"no champion of {settings.model_name} in {settings.root}: train with `l2 pipeline` "
                "and promote a version, or name a version or a bundle's folder with --model"
            )
        return champion
    from models_registry.store import fetch_bundle

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        fetch_bundle(settings, which, folder)
        bundle = Bundle.load(folder)
    return _pointer(bundle, which), bundle


def _pointer(bundle: Bundle, version: str) -> Pointer:
    return Pointer(
        name=bundle.manifest.name,
        version=version,
        folder="",
        manifest_sha256=bundle.manifest_sha256,
    )


def signal_model(settings: Settings, signal: Any, name: str) -> FixedModel:
    """A table (Arrow, Polars or pandas) of symbol, t_ns and expected_bps in the place of a model.

    UsageError for a column or value that is missing, or two of one second.
    """
    columns, rows = ["symbol", "t_ns", "expected_bps"], pa.table(signal)
    if missing := [column for column in columns if column not in rows.column_names]:
        raise UsageError(f"{name}: no column {missing[0]}; a signal has {', '.join(columns)}")
    frame = rows.select(columns).to_pandas().sort_values("t_ns")
    if not len(frame) or frame.duplicated(["symbol", "t_ns"]).any():
        raise UsageError(f"{name}: a signal has a row, and one for each symbol and second")
    parts = {symbol: frame[frame["symbol"] == symbol] for symbol in settings.market.symbols}
    recipe = Recipe(
        features=(SCALE_FEATURE,), primary_s=settings.model.primary_s, members=(), gain=1.0,
        scale=Scale(feature=SCALE_FEATURE, window_s=SCALE_WINDOW_S, floor_bps=1.0),
        regimes=(Regime(name="all", up_to_bps=None, threshold_bps=0.0),),
    )  # fmt: skip
    manifest = new_manifest(
        settings, feature_hash(), recipe, (int(frame["t_ns"].iloc[0]), int(frame["t_ns"].iloc[-1])),
        rows=len(frame), git_sha="", gate=Gate(verdict="abstain", reasons=("a signal is no model",)),
    )  # fmt: skip
    values = {
        s: (p["t_ns"].to_numpy(), p["expected_bps"].to_numpy(float)) for s, p in parts.items()
    }
    pointer = Pointer(name="signal", version=name, folder="", manifest_sha256="")
    return FixedModel(pointer, Bundle(manifest, [], ""), signal=values)


# -- the bounds of the queue model -----------------------------------------------------------------
#
# Public data do not say where in the queue our orders are, so fills of resting orders are a model's.
# Two bounds hold for every model: what leaves a level without a trade was all behind us (pessimistic),
# or all in front as far as possible (optimistic). At every moment the same resting orders have filled,
# together, at least as much as at the one and at most as much as at the other; an order that is alone
# at its price also by itself (tests/execution/test_queue.py, test_invariants.py).
#
# That holds for fills of the same orders, not for money: an order that fills earlier may lose by it,
# and the trader goes on from its fills. Results at the bounds need not bracket the run's own; they say
# how much of the result the queue model decides.


def bound_settings(settings: Settings) -> list[Settings]:
    """The settings with each bound as the queue model, pessimistic first."""
    return [
        msgspec.structs.replace(
            settings, execution=msgspec.structs.replace(settings.execution, queue=bound)
        )
        for bound in BOUNDS
    ]


# -- the books -------------------------------------------------------------------------------------


class EquityCurve:
    """Equity, positions and prices every minute; drawdown and exposure over every second.

    Of each minute ``equity`` has the profit by fee row, ``position_usdt`` the signed position and
    ``price`` the mid by symbol. ``drawdown`` is the deepest so far, in USDT.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.t_ns = array("q")
        self.equity = {row: array("d") for row in FEE_ROWS_BPS}
        self.position_usdt = {symbol: array("d") for symbol in symbols}
        self.price = {symbol: array("d") for symbol in symbols}
        self.drawdown = dict.fromkeys(FEE_ROWS_BPS, 0.0)
        self.seconds = self.invested_s = 0.0
        self.exposure_usdt_s = self.net_usdt_s = self.largest_usdt = 0.0
        self._peak = dict.fromkeys(FEE_ROWS_BPS, 0.0)

    def value(self, equity: Mapping[str, float]) -> None:
        """Update peaks and drawdowns by the present equity."""
        for row, value in equity.items():
            self._peak[row] = max(self._peak[row], value)
            self.drawdown[row] = max(self.drawdown[row], self._peak[row] - value)

    def expose(self, positions: Mapping[str, float], seconds: float) -> None:
        """Add time during which positions (USDT by symbol, signed) were open."""
        self.seconds += seconds
        if positions:
            gross = math.fsum(map(abs, positions.values()))
            self.invested_s += seconds
            self.exposure_usdt_s += gross * seconds
            self.net_usdt_s += math.fsum(positions.values()) * seconds
            self.largest_usdt = max(self.largest_usdt, gross)

    def append(
        self,
        now_ns: int,
        equity: Mapping[str, float],
        positions: Mapping[str, float],
        prices: Mapping[str, float],
    ) -> None:
        """Add a point."""
        self.t_ns.append(now_ns)
        for row, value in equity.items():
            self.equity[row].append(value)
        for symbol, price in prices.items():
            self.position_usdt[symbol].append(positions.get(symbol, 0.0))
            self.price[symbol].append(price)


class Ledger:
    """The records of a run in memory: parents, requests, evidence, costs and funding, booked as they come.

    ``written`` gets every record. `drain_finished` bounds the memory.
    """

    def __init__(
        self,
        blotter: Blotter,
        reason: Callable[[str, int], EntryReason],
        written: Callable[[Append], None] | None = None,
    ) -> None:
        self._blotter, self._reason, self._written = blotter, reason, written
        self._records: list[Append] = []

    def add(self, record: Append) -> None:
        """Take a record."""
        self._records.append(record)
        if self._written is not None:
            self._written(record)
        if record.kind == "parent":
            side = int(msgspec.json.decode(record.body)["side"])
            self._blotter.opened(record.symbol, self._reason(record.symbol, side))
        elif record.kind == "event":
            event = _EVENT.decode(record.body)
            if isinstance(event, Filled):
                self._blotter.filled(event)
        elif record.kind == "funding":
            funding = _FUNDING.decode(record.body)
            self._blotter.funded(funding.symbol, funding.paid_e8, funding.time_ns)

    def drain_finished(self) -> list[Append]:
        """Remove and return records of finished parents and of no parent."""
        ended = {record.parent_id for record in self._records if record.kind == "end"} | {""}
        finished = [record for record in self._records if record.parent_id in ended]
        self._records = [record for record in self._records if record.parent_id not in ended]
        return finished


class Books(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished run leaves: the data of its figures and pages, which may cross processes.

    ``worker`` is `Trader.summary` with ``limits``, how often each limit of `live.safety` was reached; the
    rest is as in `Run` and `Trader`.
    """

    settings: Settings
    symbols: tuple[str, ...]
    blotter: Blotter
    curve: EquityCurve
    regimes: dict[str, int]
    errors: list[str]
    events: int
    warm_decisions: int
    unpriced_funding: int
    worker: dict[str, Any]


class Run:
    """One model's trader, venues and books.

    Callbacks: ``decided`` gets every decision, ``written`` every record of the ledger, ``rows`` every
    hour the finished rows of the execution tables. ``trader`` is called as `Trader` is.
    """

    def __init__(
        self,
        settings: Settings,
        instruments: Mapping[str, Instrument],
        model: Model,
        *,
        trader: Callable[..., Trader] = Trader,
        decided: Callable[[Decision], None] | None = None,
        written: Callable[[Append], None] | None = None,
        rows: Callable[[str, Sequence[Row]], None] | None = None,
    ) -> None:
        self.settings, self.model = settings, model
        self.symbols = tuple(instruments)
        self.blotter = Blotter(instruments, FEE_ROWS_BPS)
        self.ledger = Ledger(self.blotter, self._reason, written)
        self.errors: list[str] = []  #: what the trader said of errors
        self.curve = EquityCurve(self.symbols)
        self.regimes: dict[str, int] = {}  #: regime -> decisions in it
        self._decided, self._rows = decided, rows
        self._latest: dict[str, tuple[str, float]] = {}
        self._sampled_ns = self._sampled_changes = 0
        self._equity = dict.fromkeys(FEE_ROWS_BPS, 0.0)
        settings = on_paper(settings)
        core = Core(
            settings,
            instruments,
            model=model,
            codec=PlainCodec(),
            name="backtest",
            at_venue=False,
            on_decision=self._note,
            trader=trader,
        )
        self.trader, self.safety = core.trader, core.safety
        self.driver = PaperDriver(core, paper_venues(instruments, settings), self._take)

    def _take(self, effect: Effect) -> None:
        if isinstance(effect, Append):
            self.ledger.add(effect)
        elif isinstance(effect, Said) and effect.level == "error":
            about = ", ".join(f"{key} {value}" for key, value in effect.fields.items())
            self.errors.append(f"{effect.event}: {about}")

    def _note(self, decision: Decision, _: tuple[int, ...]) -> None:
        self._latest[decision.symbol] = decision.regime, decision.expected_bps
        self.regimes[decision.regime] = self.regimes.get(decision.regime, 0) + 1
        if self._decided is not None:
            self._decided(decision)

    def _reason(self, symbol: str, side: int) -> EntryReason:
        regime, expected_bps = self._latest.get(symbol, ("unknown", math.nan))
        row = self.trader.symbols[symbol].row
        sweeps = (math.nan,) * 3 if row is None else tuple(float(row[c]) for c in _SWEEPS[side])
        return EntryReason(regime=regime, expected_bps=expected_bps, sweeps_bps=sweeps)

    def sample(self, now_ns: int) -> None:
        """Value the books at a whole second, by the latest mids."""
        curve, blotter = self.curve, self.blotter
        mids = self._mids()
        positions = {
            symbol: total.lots * mids[symbol] * total.instrument.tick_size
            * total.instrument.lot_size
            for symbol, total in blotter.totals.items()
            if total.lots
        }  # fmt: skip
        if positions or blotter.changes != self._sampled_changes:
            self._sampled_changes = blotter.changes
            self._equity = blotter.equity(mids)
            curve.value(self._equity)
        seconds = (now_ns - self._sampled_ns) / SECOND_NS if self._sampled_ns else 0.0
        self._sampled_ns = now_ns
        curve.expose(positions, seconds)
        if now_ns % MINUTE_NS == 0 or not curve.t_ns:
            curve.append(now_ns, self._equity, positions, self._prices(mids))

    def _mids(self) -> dict[str, float]:
        """The latest mid of each symbol, in ticks."""
        return {s: recorder.at(recorder.until_ns) for s, recorder in self.trader.desk.mids.items()}

    def _prices(self, mids: Mapping[str, float]) -> dict[str, float]:
        totals = self.blotter.totals
        return {s: mids[s] * totals[s].instrument.tick_size for s in self.symbols}

    def flush(self) -> None:
        """Hand on the rows of finished orders and parents, and drop them from memory."""
        records = self.ledger.drain_finished()
        if self._rows is not None:
            for table, rows in journal_rows(records, "backtest").items():
                self._rows(table, [row for _, row in rows])

    def close(self) -> None:
        """At the end of the events: close open positions, value the books a last time."""
        self.driver.close(flatten=True)
        now_ns = self.driver.market_ns
        self.sample(-(-now_ns // SECOND_NS) * SECOND_NS)
        if self.curve.t_ns[-1] < self._sampled_ns:
            prices = self._prices(self._mids())
            self.curve.append(self._sampled_ns, self._equity, {}, prices)
        self.flush()

    def books(self, events: int) -> Books:
        """The books of a run that is closed, over ``events`` rows."""
        trader = self.trader
        return Books(
            settings=self.settings,
            symbols=self.symbols,
            blotter=self.blotter,
            curve=self.curve,
            regimes=self.regimes,
            errors=self.errors,
            events=events,
            warm_decisions=trader.warm_decisions,
            unpriced_funding=trader.unpriced_funding,
            worker=trader.summary() | {"limits": self.safety.counts},
        )


# -- the replay ------------------------------------------------------------------------------------


def opening(
    lake: Lake, instruments: Mapping[str, Instrument], second_ns: int, watched: Collection[str]
) -> dict[str, SymbolHistory] | None:
    """What a run begins with at ``second_ns``: the hour before, or only the books, or nothing."""
    joined = join_history(lake, instruments, second_ns, watched)
    return joined or book_states(lake, instruments, second_ns, watched)


def replay(
    lake: Lake,
    instruments: Mapping[str, Instrument],
    span: Span,
    runs: Sequence[Run],
    say: Say | None = None,
    *,
    close: bool = True,
) -> int:
    """Drive runs over the lake's events of a span, all of them over the same rows; the rows read.

    The hour before is joined where the lake holds it (`live.history.join_history`); else runs begin with the
    book of the first second and warm up from there. At the end runs are closed, or without ``close``
    left with what is open at the span's end. BacktestError when the span holds no event.
    """
    progress = time.monotonic()
    events = flushed = 0
    for second_ns, rows in merged({s: seconds_of(lake, s, span) for s in instruments}):
        if not flushed:
            history = opening(lake, instruments, second_ns, runs[0].settings.market.watch)
            for run in runs:
                run.driver.begin(second_ns, history)
        elif second_ns // FLUSH_NS != flushed:
            for run in runs:
                run.flush()
        flushed = second_ns // FLUSH_NS
        for run in runs:
            run.driver.advance(second_ns)
            run.sample(second_ns)
            for symbol, part in rows.items():
                run.driver.on_events(symbol, part)
        events += sum(map(len, rows.values()))
        if say is not None and time.monotonic() - progress >= PROGRESS_EVERY_S:
            progress = time.monotonic()
            done = (second_ns - span.first_ns) / (span.until_ns - span.first_ns)
            trades = " and ".join(f"{len(run.blotter.trades):,}" for run in runs)
            say(f"{instant_text(second_ns)}: {done:.0%}, {events:,} events, {trades} round trips")
    if not events:
        raise BacktestError(f"{lake.uri}: no event from {span.dates[0]} to {span.dates[-1]}")
    for run in runs:
        if close:
            run.close()
        else:
            run.driver.advance_exactly(span.until_ns)
    return events
