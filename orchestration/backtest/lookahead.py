"""Look-ahead probes: does a backtest know anything before it could?

truncation   The run is repeated on events that end at random instants T. Everything it recorded for
             times before T (decisions with their vectors, parents, orders, fills, funding) must be the
             same to the bit: what came later changed nothing.
shift        The run is repeated on expectations one bar late and one bar early. A late run stays near
             the honest one; an early one must jump, or the probe could not have seen a leak.

Whether features are early is told by their news: with e(t) the expectation at t (bps, before its
threshold), u(t) what of it the expectation a second before did not say (the residual of e(t) on e(t-1)),
and r(t) the return of the mid from t to t + 1 s,

    past = corr(u(t), r(t-1))      the second that the features describe
    next = corr(u(t), r(t))        the second that a decision at t trades in

A model's news comes from the second that has passed; it tells little of the one to come (Cont, Kukanov &
Stoikov 2014 against their own forecasts: two thirds of the variance against a fraction of a percent). In
a backtest whose features are a bar early the two change places. The statistic is the contrast
z = (|past| - |next|) / its bootstrap error: above 3 the backtest is clean, below -3 it looks ahead, and in
between this model's news says too little to tell.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from live.decisions import Decision
from live.journal import Entry
from live.trader import Trader
from live.worker import followed
from market.instruments import Instrument
from market.lake import Lake
from market.settings import Settings
from market.units import DAY_NS, SECOND_NS
from models_registry.manifest import Prediction
from models_registry.validation import stationary_indices
from orchestration.backtest import Fixed, Run, load_model, replay
from orchestration.backtest.span import Span, instant_text, instruments_held, span_of

#: Probes look at no more than this from the span's beginning: they take several runs.
LONGEST_NS: Final = DAY_NS

#: The contrast has to be this many errors from zero to say anything.
CERTAIN: Final = 3.0

#: Mean block of the bootstrap of the contrast, seconds; returns and news hardly outlast a minute.
BLOCK_S: Final = 300
SAMPLES: Final = 500

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Seen = dict[tuple[str, int], Prediction]


class Shifted(Trader):
    """A trader that decides at t by what was expected at ``t + ahead_s`` in a run before."""

    def __init__(self, *arguments: Any, seen: Seen, ahead_s: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._seen, self._ahead_ns = seen, ahead_s * SECOND_NS

    def _expect(self, symbol: str, t_ns: int, vector: Float) -> Prediction:
        return self._seen.get((symbol, t_ns + self._ahead_ns)) or self._nothing()


class Trail:
    """A running digest of what a run records, as it stood for times before each of some instants."""

    def __init__(self, instants_ns: Sequence[int]) -> None:
        self._instants = sorted(instants_ns)
        self._digests: dict[str, Any] = {}
        self._latest: dict[str, int] = {}
        self._frozen: dict[int, dict[str, str]] = {instant: {} for instant in self._instants}
        self.records = 0
        self.disordered = 0  #: records of an earlier time than one before them

    def decided(self, decision: Decision) -> None:
        told = {name: getattr(decision, name) for name in decision.__struct_fields__[:-1]}
        self._add(
            decision.symbol,
            decision.t_ns,
            msgspec.json.encode(told, order="sorted") + decision.vector.tobytes(),
        )

    def written(self, entry: Entry) -> None:
        if entry.kind in ("parent", "intent", "event", "funding"):
            self._add(entry.symbol, entry.time_ns, entry.kind.encode() + entry.body)

    def before(self, instant_ns: int) -> dict[str, str]:
        """Each symbol's digest of what was recorded for times before an instant."""
        for symbol in self._digests:
            self._freeze(symbol, instant_ns)
        return self._frozen[instant_ns]

    def _add(self, symbol: str, time_ns: int, data: bytes) -> None:
        if symbol not in self._digests:
            self._digests[symbol] = hashlib.blake2b(digest_size=16)
        self.disordered += time_ns < self._latest.get(symbol, 0)
        self._latest[symbol] = time_ns
        for instant in self._instants:
            if instant <= time_ns:
                self._freeze(symbol, instant)
        self._digests[symbol].update(time_ns.to_bytes(8, "big") + data)
        self.records += 1

    def _freeze(self, symbol: str, instant_ns: int) -> None:
        self._frozen[instant_ns].setdefault(symbol, self._digests[symbol].hexdigest())


class News:
    """Expectations and mids second by second, for the contrast of past and next."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[int, float, float]]] = {}

    def decided(self, decision: Decision) -> None:
        self._rows.setdefault(decision.symbol, []).append(
            (decision.t_ns, decision.raw_bps, decision.mid)
        )

    def contrast(self, seed: int) -> dict[str, float]:
        """``past``, ``next``, ``z`` and the number of seconds ``n``; NaN when nothing is known."""
        parts = [_products(rows) for rows in self._rows.values()]
        parts = [part for part in parts if len(part)]
        n = sum(map(len, parts))
        if n < 2 * BLOCK_S:
            return {"past": math.nan, "next": math.nan, "z": math.nan, "n": float(n)}
        found = np.concatenate(parts)
        past, following = _correlations(found.sum(axis=0))
        generator = np.random.Generator(np.random.Philox(key=seed))
        drawn = np.empty(SAMPLES)
        for sample in range(SAMPLES):
            totals = found[stationary_indices(generator, n, BLOCK_S)].sum(axis=0)
            drawn[sample] = np.subtract(*np.abs(_correlations(totals)))
        return {
            "past": past,
            "next": following,
            "z": float((abs(past) - abs(following)) / drawn.std()),
            "n": float(n),
        }


def _products(rows: Sequence[tuple[int, float, float]]) -> Float:
    """Per second: news·past, news·next, news², past², next²; both in units of their deviations."""
    t_ns = np.array([row[0] for row in rows], np.int64)
    expected = np.array([row[1] for row in rows])
    move = np.diff(np.log(np.array([row[2] for row in rows])))
    joined = np.diff(t_ns) == SECOND_NS
    before, after = expected[:-2], expected[1:-1]
    past, following = move[:-1], move[1:]
    known = joined[:-1] & joined[1:] & ~np.isnan(before + after + past + following)
    before, after, past, following = (v[known] for v in (before, after, past, following))
    news = after - _slope(after, before) * before
    columns = [
        (values - values.mean()) / (values.std() or 1.0) if len(values) else values
        for values in (news, past, following)
    ]
    news, past, following = columns
    return np.column_stack([news * past, news * following, news**2, past**2, following**2])


def _slope(y: Float, x: Float) -> float:
    """Least-squares slope of y on x; 0 when x does not vary."""
    if not len(x) or not x.std():
        return 0.0
    return float(np.mean((x - x.mean()) * (y - y.mean())) / x.var())


def _correlations(totals: Float) -> tuple[float, float]:
    with_past, with_next, news, past, following = totals.tolist()
    if min(news, past, following) <= 0:
        return 0.0, 0.0
    return with_past / math.sqrt(news * past), with_next / math.sqrt(news * following)


def verdict(z: float) -> str:
    """What a contrast says: clean, looks ahead, or too little news to tell."""
    if math.isnan(z) or abs(z) < CERTAIN:
        return "cannot tell"
    return "clean" if z > 0 else "LOOKS AHEAD"


def instants(span: Span, count: int, seed: int) -> list[int]:
    """Random instants in a span's second half, where most is under way."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    middle = (span.first_ns + span.until_ns) // 2
    return sorted(int(t) for t in generator.integers(middle, span.until_ns, count))


def probe(
    settings: Settings,
    *,
    model: str = "champion",
    first: str | None = None,
    last: str | None = None,
    truncations: int = 2,
    in_spite_of_source: bool = False,
    trader: Callable[..., Trader] = Trader,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run all probes over a span (at most `LONGEST_NS`); plain data, with ``failed`` set when one fails.

    ``trader`` makes the trader that is probed. Errors are those of `orchestration.backtest.backtest`.
    """
    lake = Lake(settings.root, settings.source)
    symbols = followed(settings.market.symbols)
    span = span_of(lake, symbols, first, last)
    held, _ = instruments_held(lake, symbols, span)
    span = Span(
        span.first_ns, min(span.until_ns, span.first_ns + LONGEST_NS, _end(lake, held, span))
    )
    found = load_model(
        settings, model, settings.market.symbols, in_spite_of_source=in_spite_of_source
    )
    cuts = instants(span, truncations, settings.model.seed)
    trail, news, seen = Trail(cuts), News(), Seen()

    def decided(decision: Decision) -> None:
        trail.decided(decision)
        news.decided(decision)
        if not math.isnan(decision.raw_bps):
            seen[decision.symbol, decision.t_ns] = Prediction(
                expected_bps=decision.expected_bps,
                raw_bps=decision.raw_bps,
                by_horizon=decision.by_horizon,
                regime=decision.regime,
            )

    honest = Run(settings, held, found, trader=trader, decided=decided, written=trail.written)
    replay(lake, held, span, [honest], say)
    truncated = [
        _truncated(settings, lake, held, found, Span(span.first_ns, cut), trail, trader, say)
        for cut in cuts
    ]
    shifts = [_shift(honest, 0, news, settings.model.seed)]
    runs: list[tuple[int, Run, News]] = []
    for ahead_s in (-1, 1):
        heard = News()
        make = partial(Shifted, seen=seen, ahead_s=ahead_s)
        runs.append(
            (ahead_s, Run(settings, held, found, trader=make, decided=heard.decided), heard)
        )
    replay(lake, held, span, [run for _, run, _ in runs], say)
    shifts += [_shift(run, ahead_s, heard, settings.model.seed) for ahead_s, run, heard in runs]
    shifts.sort(key=lambda row: row["ahead_s"])
    said = verdict(next(row["z"] for row in shifts if row["ahead_s"] == 0))
    early = verdict(next(row["z"] for row in shifts if row["ahead_s"] == 1))
    return {
        "model": found.name,
        "from": instant_text(span.first_ns),
        "to": instant_text(span.until_ns),
        "records": trail.records,
        "truncated": truncated,
        "shifts": shifts,
        "verdict": said,
        "would_be_caught": early == "LOOKS AHEAD",
        "failed": said == "LOOKS AHEAD" or not all(row["same"] for row in truncated),
    }


def _end(lake: Lake, held: Mapping[str, Instrument], span: Span) -> int:
    """Where the lake's events of the span end, from the files' footers."""
    ends = [span.first_ns]
    for symbol in held:
        for day in span.dates:
            if lake.exists("events", symbol, day):
                with lake.open("events", symbol, day) as source:
                    place = source.schema_arrow.get_field_index("receive_ns")
                    groups = range(source.num_row_groups)
                    ends += [
                        source.metadata.row_group(n).column(place).statistics.max for n in groups
                    ]
    return max(ends) + 1


def _truncated(
    settings: Settings,
    lake: Lake,
    held: Mapping[str, Instrument],
    model: Fixed,
    span: Span,
    whole: Trail,
    trader: Callable[..., Trader],
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    """Run on what came before the span's end, and hold it against the whole run's record of that."""
    trail = Trail([span.until_ns])
    run = Run(settings, held, model, trader=trader, decided=trail.decided, written=trail.written)
    replay(lake, held, span, [run], say, close=False)
    same = trail.before(span.until_ns) == whole.before(span.until_ns)
    return {
        "at": instant_text(span.until_ns),
        "at_ns": span.until_ns,
        "records": trail.records,
        "same": same and not trail.disordered,
    }


def _shift(run: Run, ahead_s: int, news: News, seed: int) -> dict[str, Any]:
    trades = run.blotter.trades
    gross = np.array([trade.gross_bps for trade in trades])
    row = run.settings.model.fee_row
    return {
        "ahead_s": ahead_s,
        "trades": len(trades),
        "gross_bps": float(gross.mean()) if len(gross) else math.nan,
        "error_bps": float(gross.std(ddof=1) / math.sqrt(len(gross)))
        if len(gross) > 1
        else math.nan,
        "net_usdt": run.curve.equity[row][-1],
        **news.contrast(seed),
    }


def text(found: Mapping[str, Any]) -> str:
    """The probes for a terminal."""
    from market.console import table

    names = {-1: "one bar late", 0: "as it is", 1: "one bar early"}
    rows = [
        (
            names[row["ahead_s"]], f"{row['trades']:,}",
            f"{row['gross_bps']:.3f} ± {row['error_bps']:.3f}", f"{row['net_usdt']:,.2f}",
            f"{row['past']:.3f}", f"{row['next']:.3f}", f"{row['z']:.1f}", verdict(row["z"]),
        )
        for row in found["shifts"]
    ]  # fmt: skip
    cut = [
        f"cut at {row['at']}: {row['records']:,} records before it "
        + ("are the same" if row["same"] else "DIFFER")
        for row in found["truncated"]
    ]
    caught = "would be caught" if found["would_be_caught"] else "would NOT be caught"
    return "\n".join(
        [
            f"Look-ahead probes of {found['model']}, {found['from']} to {found['to']} UTC",
            *cut,
            "",
            table(
                rows,
                ("expectations", "trades", "gross bps", "net USDT", "past", "next", "z", "verdict"),
            ),
            "",
            f"The backtest: {found['verdict']}; features one bar early {caught}.",
        ]
    )
