"""The backtest: the live trader over recorded events, with the books of it kept at every fee row.

    lake's events ─► seconds, symbol by symbol ─► live.trader ─► paper venue
                                                      └─► ledger ─► blotter ─► figures, tear sheet

Nothing here decides, orders or fills: `live.trader` and `live.paper` do, as they do live, fed with the
same rows at the same times. So the same capture gives the same decisions, orders and fills here and
under `l2 live --venue paper`. What this module adds is reading the lake, and book-keeping.

Assumptions, which every report states: a decision at t uses what was received before t and its orders
leave at t; computing takes no time of its own beyond the entry latency; our orders move nobody; the
queue model is the settings', and the run is repeated at both bounds of all models beside it; what is
in the market when a book is lost stays until it is back, and is then closed.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from execution.blotter import Blotter, EntryReason
from execution.orders import Event, Filled
from execution.simulation.queue import BOUNDS
from execution.tca import Row
from live.collect import journal_rows
from live.decisions import Decision
from live.desk import Funding
from live.history import join, stood
from live.journal import Entry, Ledger
from live.paper import paper_venues
from live.trader import Model, Trader
from live.worker import followed
from market.columns import C
from market.console import Result, names, say
from market.errors import DataError
from market.features import feature_hash
from market.instruments import Instrument
from market.lake import Lake
from market.settings import FEE_ROWS_BPS, Settings, with_symbols
from market.units import MINUTE_NS, SECOND_NS
from models_registry.manifest import (
    MANIFEST_FILE,
    Bundle,
    BundleError,
    Pointer,
    load_champion,
)
from orchestration.backtest import bounds, figures, tear_sheet
from orchestration.backtest.figures import text
from orchestration.backtest.span import (
    Span,
    instant_text,
    instruments_held,
    merged,
    seconds_of,
    span_of,
)

#: What is settled leaves memory this often; what a run holds does not grow with its length then.
SETTLE_NS: Final = 3_600 * SECOND_NS

#: Progress is told this often (seconds of wall time).
TELL_EVERY_S: Final = 10.0

_EVENT = msgspec.json.Decoder(Event)
_FUNDING = msgspec.json.Decoder(Funding)
_SWEEPS: Final = {
    side: tuple(getattr(C, f"sweep_{name}_{size}") for size in ("10k", "100k", "1m"))
    for side, name in ((1, "buy"), (-1, "sell"))
}


class BacktestError(DataError):
    """A backtest cannot be run as asked; the message says why and what to do."""


# -- what decides ----------------------------------------------------------------------------------


class Fixed(msgspec.Struct, frozen=True):
    """A model that stays the same for the whole run. ``foreign`` says why its source is not the lake's."""

    pointer: Pointer
    bundle: Bundle
    foreign: str = ""

    def refresh(self) -> bool:
        return False

    @property
    def name(self) -> str:
        return f"{self.pointer.name} {self.pointer.version}"


def load_model(
    settings: Settings, named: str, symbols: Sequence[str], *, in_spite_of_source: bool = False
) -> Fixed:
    """The model to run: ``champion``, a version of the registry, or a bundle's folder.

    BundleError when it was made for other features, another book topic, other symbols or, unless
    ``in_spite_of_source``, another source than the lake's; BacktestError when there is none.
    """
    pointer, bundle = _bundle(settings, named)
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
    return Fixed(pointer, bundle, foreign)


def _bundle(settings: Settings, named: str) -> tuple[Pointer, Bundle]:
    if (Path(named) / MANIFEST_FILE).is_file():
        bundle = Bundle.load(named)
        return _pointer(bundle, Path(named).name), bundle
    if named == "champion":
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
    from models_registry.registry import fetch_bundle

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        fetch_bundle(settings, named, folder)
        bundle = Bundle.load(folder)
    return _pointer(bundle, named), bundle


def _pointer(bundle: Bundle, version: str) -> Pointer:
    return Pointer(
        name=bundle.manifest.name,
        version=version,
        folder="",
        manifest_sha256=bundle.manifest_sha256,
    )


# -- the books -------------------------------------------------------------------------------------


class Curve:
    """What a run was worth over time, every minute; and by every second how far it fell.

    ``equity`` is profit by fee row, ``net_usdt`` the signed position and ``mids`` the price by symbol.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        self.t_ns = array("q")
        self.equity = {row: array("d") for row in FEE_ROWS_BPS}
        self.position_usdt = {symbol: array("d") for symbol in symbols}
        self.price = {symbol: array("d") for symbol in symbols}
        self.drawdown = dict.fromkeys(FEE_ROWS_BPS, 0.0)
        self._peak = dict.fromkeys(FEE_ROWS_BPS, 0.0)
        self.seconds = self.invested_s = 0.0
        self.exposure_usdt_s = self.net_usdt_s = self.largest_usdt = 0.0


class _Ledger(Ledger):
    """A ledger that tells a blotter what was opened, executed and paid."""

    def __init__(
        self,
        blotter: Blotter,
        reason: Callable[[str, int], EntryReason],
        written: Callable[[Entry], None] | None,
    ) -> None:
        super().__init__()
        self._blotter, self._reason, self._seen = blotter, reason, written

    def _apply(self, entry: Entry) -> None:
        super()._apply(entry)
        if self._seen is not None:
            self._seen(entry)
        if entry.kind == "parent":
            side = int(msgspec.json.decode(entry.body)["side"])
            self._blotter.opened(entry.symbol, self._reason(entry.symbol, side))
        elif entry.kind == "event":
            event = _EVENT.decode(entry.body)
            if isinstance(event, Filled):
                self._blotter.filled(event)
        elif entry.kind == "funding":
            funding = _FUNDING.decode(entry.body)
            self._blotter.funded(funding.symbol, funding.paid_e8)


class Silent:
    """A log for runs that are reported at their end; it keeps what is wrong."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def info(self, *_: object, **__: object) -> None:
        """What a worker would say while it runs."""

    def warning(self, *_: object, **__: object) -> None:
        """What is counted in the figures: orders that a limit denied."""

    def error(self, event: str, **about: object) -> None:
        self.errors.append(f"{event}: {', '.join(f'{k} {v}' for k, v in about.items())}")


class Run:
    """One model's trader, venues and books.

    What the run leaves behind is seen by ``decided`` (every decision), ``written`` (every entry of the
    ledger) and ``rows`` (every hour the settled rows of the execution tables). ``trader`` makes
    the trader, from the arguments of `Trader`.
    """

    def __init__(
        self,
        settings: Settings,
        instruments: Mapping[str, Instrument],
        model: Model,
        *,
        trader: Callable[..., Trader] = Trader,
        decided: Callable[[Decision], None] | None = None,
        written: Callable[[Entry], None] | None = None,
        rows: Callable[[str, Sequence[Row]], None] | None = None,
    ) -> None:
        self.settings, self.model = settings, model
        self.symbols = tuple(instruments)
        self.blotter = Blotter(instruments, FEE_ROWS_BPS)
        self.ledger = _Ledger(self.blotter, self._reason, written)
        self.log = Silent()
        self.curve = Curve(self.symbols)
        self.regimes: dict[str, int] = {}  #: regime -> decisions in it
        self._decided, self._rows = decided, rows
        self._latest: dict[str, tuple[str, float]] = {}
        self._sampled_ns = self._sampled_changes = 0
        self._equity = dict.fromkeys(FEE_ROWS_BPS, 0.0)
        self.trader = trader(
            settings,
            instruments,
            model=model,
            venues=paper_venues(instruments, settings),
            journal=self.ledger,
            name="backtest",
            log=self.log,
            decided=self._note,
        )

    def _note(self, decision: Decision, _: tuple[int, ...]) -> None:
        self._latest[decision.symbol] = decision.regime, decision.expected_bps
        self.regimes[decision.regime] = self.regimes.get(decision.regime, 0) + 1
        if self._decided is not None:
            self._decided(decision)

    def _reason(self, symbol: str, side: int) -> EntryReason:
        regime, expected_bps = self._latest.get(symbol, ("unknown", math.nan))
        row = self.trader.lanes[symbol].row
        sweeps = (math.nan,) * 3 if row is None else tuple(float(row[c]) for c in _SWEEPS[side])
        return EntryReason(regime=regime, expected_bps=expected_bps, sweeps_bps=sweeps)

    def sample(self, now_ns: int) -> None:
        """Value the books at a whole second, by the mids last known."""
        curve, blotter = self.curve, self.blotter
        mids = {symbol: recorded.at(recorded.until_ns) for symbol, recorded in self._mids().items()}
        held = {
            symbol: holding.lots * mids[symbol] * holding.instrument.tick_size
            * holding.instrument.lot_size
            for symbol, holding in blotter.totals.items()
            if holding.lots
        }  # fmt: skip
        if held or blotter.changes != self._sampled_changes:
            self._sampled_changes = blotter.changes
            self._equity = blotter.equity(mids)
            for row, value in self._equity.items():
                curve._peak[row] = max(curve._peak[row], value)
                curve.drawdown[row] = max(curve.drawdown[row], curve._peak[row] - value)
        passed_s = (now_ns - self._sampled_ns) / SECOND_NS if self._sampled_ns else 0.0
        self._sampled_ns = now_ns
        curve.seconds += passed_s
        if held:
            gross = math.fsum(map(abs, held.values()))
            curve.invested_s += passed_s
            curve.exposure_usdt_s += gross * passed_s
            curve.net_usdt_s += math.fsum(held.values()) * passed_s
            curve.largest_usdt = max(curve.largest_usdt, gross)
        if now_ns % MINUTE_NS == 0 or not curve.t_ns:
            self._append(now_ns, held, mids)

    def _append(self, now_ns: int, held: Mapping[str, float], mids: Mapping[str, float]) -> None:
        curve = self.curve
        curve.t_ns.append(now_ns)
        for row, value in self._equity.items():
            curve.equity[row].append(value)
        for symbol in self.symbols:
            curve.position_usdt[symbol].append(held.get(symbol, 0.0))
            tick = self.blotter.totals[symbol].instrument.tick_size
            curve.price[symbol].append(mids[symbol] * tick)

    def _mids(self) -> dict[str, Any]:
        return self.trader.desk.mids

    def settle(self) -> None:
        """Hand on what is settled, so that memory does not grow with the days."""
        entries = self.ledger.drain()
        if self._rows is not None:
            for table, found in journal_rows(entries, "backtest").items():
                self._rows(table, [row for _, row in found])

    def close(self) -> None:
        """The events have ended: close what is open, value the books a last time."""
        self.trader.close(flatten=True)
        now_ns = max(lane.now_ns for lane in self.trader.lanes.values())
        self.sample(-(-now_ns // SECOND_NS) * SECOND_NS)
        if self.curve.t_ns[-1] < self._sampled_ns:
            mids = {s: recorded.at(recorded.until_ns) for s, recorded in self._mids().items()}
            self._append(self._sampled_ns, {}, mids)
        self.settle()


def replay(
    lake: Lake,
    instruments: Mapping[str, Instrument],
    span: Span,
    runs: Sequence[Run],
    say: Callable[[str], None] | None = None,
    *,
    close: bool = True,
) -> int:
    """Drive runs over the lake's events of a span, all of them over the same rows; rows read.

    History of the hour before is joined where the lake holds it; else the run begins with the book of
    that second and warms up from there. At the end the runs are closed, or
    without ``close`` left as they stand at the span's end.
    """
    told = time.monotonic()
    events = settled = 0
    for second_ns, rows in merged({s: seconds_of(lake, s, span) for s in instruments}):
        if not settled:
            history = join(lake, instruments, second_ns) or stood(lake, instruments, second_ns)
            for run in runs:
                run.trader.begin(second_ns, history)
        elif second_ns // SETTLE_NS != settled:
            for run in runs:
                run.settle()
        settled = second_ns // SETTLE_NS
        for run in runs:
            run.trader.advance(second_ns)
            run.sample(second_ns)
            for symbol, part in rows.items():
                run.trader.on_events(symbol, part)
        events += sum(map(len, rows.values()))
        if say is not None and time.monotonic() - told >= TELL_EVERY_S:
            told = time.monotonic()
            share = (second_ns - span.first_ns) / (span.until_ns - span.first_ns)
            trades = " and ".join(f"{len(run.blotter.trades):,}" for run in runs)
            say(f"{instant_text(second_ns)}: {share:.0%}, {events:,} events, {trades} round trips")
    if not events:
        raise BacktestError(f"{lake.uri}: no event from {span.dates[0]} to {span.dates[-1]}")
    for run in runs:
        if close:
            run.close()
        else:
            run.trader.reach(span.until_ns)
    return events


def chosen(
    settings: Settings, fee_row: str | None = None, algorithm: str | None = None
) -> Settings:
    """The settings with another fee row or algorithm in force; ValueError when there is none such."""
    data = msgspec.to_builtins(settings)
    if fee_row is not None:
        data["model"]["fee_row"] = fee_row
    if algorithm is not None:
        data["execution"]["algorithm"] = algorithm
    try:
        return msgspec.convert(data, Settings)
    except msgspec.ValidationError as error:
        raise BacktestError(f"--fees {fee_row} --algorithm {algorithm}: {error}") from error


def backtest(
    settings: Settings,
    *,
    model: str = "champion",
    against: str | None = None,
    first: str | None = None,
    last: str | None = None,
    fee_row: str | None = None,
    algorithm: str | None = None,
    in_spite_of_source: bool = False,
    bounded: bool = True,
    page: str | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run a model over a span of the lake's events and report; plain data (`figures.figures`).

    ``against`` names a second model, which trades the same events with books of its own. ``bounded``
    repeats the run at both bounds of all queue models (`bounds`). ``page`` is the HTML file to write,
    with the tables beside it. Raises BacktestError, SpanError, BundleError, LakeError, one line each.
    """
    settings = chosen(settings, fee_row, algorithm)
    lake = Lake(settings.root, settings.source)
    symbols = followed(settings.market.symbols)
    span = span_of(lake, symbols, first, last)
    instruments, inputs = instruments_held(lake, symbols, span)

    def load(named: str) -> Fixed:
        return load_model(
            settings, named, settings.market.symbols, in_spite_of_source=in_spite_of_source
        )

    found = load(model)
    other = None if against is None else load(against)
    kept = tear_sheet.Tables(Path(page).with_suffix("")) if page else None
    trader = partial(bounds.Agreeing, expected={})
    run = Run(settings, instruments, found, trader=trader, rows=kept)
    at_bounds = [
        Run(at, instruments, found, trader=trader)
        for at in (bounds.settings_at(settings) if bounded else ())
    ]
    rival = None if other is None else Run(settings, instruments, other)
    started = time.monotonic()
    try:
        runs = [run, *at_bounds, *([rival] if rival else [])]
        events = replay(lake, instruments, span, runs, say)
    finally:
        if kept is not None:
            kept.close()

    def told(one: Run, model: Fixed) -> dict[str, Any]:
        return figures.figures(one, model, span, inputs, lake.source, events)

    result = told(run, found) | {"seconds": time.monotonic() - started}
    if bounded:
        result["bounds"] = {
            bound: bounds.beside(told(one, found))
            for bound, one in zip(BOUNDS, at_bounds, strict=True)
        }
    if rival is not None and other is not None:
        result["against"] = told(rival, other) | {"difference": figures.difference(run, rival)}
    if page:
        result["files"] = tear_sheet.write(run, at_bounds, result, Path(page))
    return result


# -- the verb --------------------------------------------------------------------------------------


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 backtest`."""
    parser.add_argument(
        "--model",
        default="champion",
        metavar="MODEL",
        help="champion, a version of the registry, or a bundle's folder",
    )
    parser.add_argument("--against", metavar="MODEL", help="a second model on the same events")
    parser.add_argument("--from", dest="first", metavar="DATE", help="UTC date or instant")
    parser.add_argument("--to", dest="last", metavar="DATE", help="the last one, included")
    parser.add_argument("--symbols", metavar="A,B", help="default: market.symbols")
    parser.add_argument(
        "--fees", choices=["vip0", "vip3", "zero"], help="row that decides (default: model.fee_row)"
    )
    parser.add_argument("--algorithm", metavar="NAME", help="default: execution.algorithm")
    parser.add_argument("--html", metavar="FILE", help="write the page, and tables beside it")
    parser.add_argument(
        "--in-spite-of-source", action="store_true", help="run a synthetic model on recorded data"
    )
    parser.add_argument(
        "--no-bounds",
        action="store_true",
        help="leave out the same run at both bounds of queue models: half the time",
    )
    parser.add_argument(
        "--probe",
        type=int,
        nargs="?",
        const=2,
        metavar="N",
        help="look for look-ahead instead: N random truncations, features a bar late and early",
    )


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 backtest`: figures, tear sheet, a comparison of two models, or look-ahead probes."""
    settings = with_symbols(settings, names(options.symbols))
    if options.probe is not None:
        from orchestration.backtest import lookahead

        probed = lookahead.probe(
            chosen(settings, options.fees, options.algorithm),
            model=options.model,
            first=options.first,
            last=options.last,
            truncations=options.probe,
            in_spite_of_source=options.in_spite_of_source,
            say=say,
        )
        if not options.json:
            print(lookahead.text(probed))
        return probed
    result = backtest(
        settings,
        model=options.model,
        against=options.against,
        first=options.first,
        last=options.last,
        fee_row=options.fees,
        algorithm=options.algorithm,
        in_spite_of_source=options.in_spite_of_source,
        bounded=not options.no_bounds,
        page=options.html,
        say=say,
    )
    if not options.json:
        print(text(result))
    return result
