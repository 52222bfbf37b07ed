"""Look-ahead probes: does a backtest use anything before it was received?

truncation   The run is repeated on events that end at random instants T. Everything it recorded for
             times before T (decisions with their vectors, parents, orders, fills, funding) must be
             bit-identical: later events changed nothing.
shift        The run is repeated on expectations one bar late and one bar early. A late run stays near
             the unshifted one; an early one should jump: whether it does says if a leak
             would have shown. Neither decides the verdict; the unshifted run and the truncations do.

Leakage shows in the innovations of the expectation. With e(t) the expectation at t (bps, before its
threshold), u(t) its innovation (the residual of e(t) on e(t-1)), and r(t) the return of the mid from t
to t + 1 s,

    past = corr(u(t), r(t-1))      the second that the features describe
    next = corr(u(t), r(t))        the second that a decision at t trades in

Innovations follow the second that has passed and predict little of the next one (Cont, Kukanov & Stoikov
2014: order-flow imbalance explains two thirds of the variance of the same interval's price change; its
forecasts explain a fraction of a percent). With features one bar early the two change places. The
statistic is the contrast z = (|past| - |next|) / its bootstrap error: above 3 the backtest is clean,
below -3 it looks ahead, in between the innovations say too little to tell.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from live.decisions import Decision
from live.messages import Append
from live.run import followed
from live.trader import Trader
from market.console import Say, fixed, table
from market.lake import Lake
from market.settings import Settings
from market.units import DAY_NS, SECOND_NS
from models_registry.recipe import Prediction
from models_registry.validation import stationary_indices
from orchestration.backtest.run import Run, load_model, replay
from orchestration.backtest.span import Span, instant_text, instruments_of_span, span_of

#: Probes take no more than this from the span's beginning: they need several runs.
MAX_SPAN_NS: Final = DAY_NS

#: Errors that the contrast must be from zero to decide.
Z_DECIDES: Final = 3.0

#: Mean block of the contrast's bootstrap (s); honest while returns and innovations decorrelate sooner.
BLOCK_S: Final = 300
SAMPLES: Final = 500

Floats = npt.NDArray[np.float64]

#: Predictions of a run by symbol and time.
Recorded = dict[tuple[str, int], Prediction]


class ShiftedTrader(Trader):
    """A trader that decides at t by what another run predicted at ``t + lead_s``."""

    def __init__(self, *arguments: Any, recorded: Recorded, lead_s: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._recorded, self._lead_ns = recorded, lead_s * SECOND_NS

    def _expect(self, symbol: str, t_ns: int, vector: Floats) -> Prediction:
        return self._recorded.get((symbol, t_ns + self._lead_ns)) or self._nothing()


class RunDigest:
    """A running digest of what a run records, frozen per symbol before each of some instants."""

    def __init__(self, instants_ns: Sequence[int]) -> None:
        self._instants = sorted(instants_ns)
        self._digests: dict[str, Any] = {}
        self._latest: dict[str, int] = {}
        self._frozen: dict[int, dict[str, str]] = {instant: {} for instant in self._instants}
        self.records = 0
        self.disordered = 0  #: records of an earlier time than the one before them

    def decided(self, decision: Decision) -> None:
        """Add a decision and its feature vector."""
        fields = {name: getattr(decision, name) for name in decision.__struct_fields__[:-1]}
        self._add(
            decision.symbol,
            decision.t_ns,
            msgspec.json.encode(fields, order="sorted") + decision.vector.tobytes(),
        )

    def written(self, record: Append) -> None:
        """Add a record of the ledger."""
        if record.kind in ("parent", "intent", "event", "funding"):
            self._add(record.symbol, record.time_ns, record.kind.encode() + record.body)

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


class Innovations:
    """Expectations and mids second by second, for the contrast of past and next."""

    def __init__(self) -> None:
        self._rows: dict[str, list[tuple[int, float, float]]] = {}

    def decided(self, decision: Decision) -> None:
        """Add a decision's expectation and mid."""
        self._rows.setdefault(decision.symbol, []).append(
            (decision.t_ns, decision.raw_bps, decision.mid)
        )

    def contrast(self, seed: int) -> dict[str, float]:
        """``past``, ``next``, ``z`` and the number of seconds ``n``; NaN with less than two blocks."""
        parts = [_products(rows) for rows in self._rows.values()]
        parts = [part for part in parts if len(part)]
        n = sum(map(len, parts))
        if n < 2 * BLOCK_S:
            return {"past": math.nan, "next": math.nan, "z": math.nan, "n": float(n)}
        products = np.concatenate(parts)
        past, following = _correlations(products.sum(axis=0))
        generator = np.random.Generator(np.random.Philox(key=seed))
        drawn = np.empty(SAMPLES)
        for sample in range(SAMPLES):
            totals = products[stationary_indices(generator, n, BLOCK_S)].sum(axis=0)
            drawn[sample] = np.subtract(*np.abs(_correlations(totals)))
        return {
            "past": past,
            "next": following,
            "z": float((abs(past) - abs(following)) / drawn.std()),
            "n": float(n),
        }


def _products(rows: Sequence[tuple[int, float, float]]) -> Floats:
    """(n, 5) of u·past, u·next, u², past², next² by second; all in units of their deviations."""
    t_ns = np.array([row[0] for row in rows], np.int64)
    expected = np.array([row[1] for row in rows])
    returns = np.diff(np.log(np.array([row[2] for row in rows])))
    joined = np.diff(t_ns) == SECOND_NS
    before, after = expected[:-2], expected[1:-1]
    past, following = returns[:-1], returns[1:]
    valid = joined[:-1] & joined[1:] & ~np.isnan(before + after + past + following)
    before, after, past, following = (v[valid] for v in (before, after, past, following))
    innovation = after - _slope(after, before) * before
    columns = [
        (values - values.mean()) / (values.std() or 1.0) if len(values) else values
        for values in (innovation, past, following)
    ]
    u, past, following = columns
    return np.column_stack([u * past, u * following, u**2, past**2, following**2])


def _slope(y: Floats, x: Floats) -> float:
    """Least-squares slope of y on x; 0 when x does not vary."""
    if not len(x) or not x.std():
        return 0.0
    return float(np.mean((x - x.mean()) * (y - y.mean())) / x.var())


def _correlations(totals: Floats) -> tuple[float, float]:
    """Correlations with past and next from column sums of `_products`."""
    with_past, with_next, innovation, past, following = totals.tolist()
    if min(innovation, past, following) <= 0:
        return 0.0, 0.0
    return with_past / math.sqrt(innovation * past), with_next / math.sqrt(innovation * following)


def verdict(z: float) -> str:
    """The verdict on a contrast: ``clean``, ``LOOKS AHEAD`` or ``cannot tell``."""
    if math.isnan(z) or abs(z) < Z_DECIDES:
        return "cannot tell"
    return "clean" if z > 0 else "LOOKS AHEAD"


def random_instants(span: Span, count: int, seed: int) -> list[int]:
    """Random instants in a span's second half, where most orders are open."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    middle = (span.first_ns + span.until_ns) // 2
    return sorted(int(t) for t in generator.integers(middle, span.until_ns, count))


def probe(
    settings: Settings,
    *,
    model: str = "",
    first: str | None = None,
    last: str | None = None,
    truncations: int = 2,
    in_spite_of_source: bool = False,
    trader: Callable[..., Trader] = Trader,
    say: Say | None = None,
) -> dict[str, Any]:
    """Run all probes over a span (at most `MAX_SPAN_NS`); plain data, ``failed`` set when one fails.

    ``trader`` makes the trader that is probed. Raises what `command.backtest` raises.
    """
    lake = Lake(settings.root, settings.source)
    symbols = followed(settings.market)
    span = span_of(lake, symbols, first, last)
    instruments, _ = instruments_of_span(lake, symbols, span, settings.market.watch)
    end_ns = _events_end_ns(lake, instruments, span)
    span = Span(span.first_ns, min(span.until_ns, span.first_ns + MAX_SPAN_NS, end_ns))
    fixed_model = load_model(
        settings, model, settings.market.symbols, in_spite_of_source=in_spite_of_source
    )
    seed = settings.model.seed
    cuts = random_instants(span, truncations, seed)
    digest, innovations, recorded = RunDigest(cuts), Innovations(), Recorded()

    def decided(decision: Decision) -> None:
        digest.decided(decision)
        innovations.decided(decision)
        if not math.isnan(decision.raw_bps):
            recorded[decision.symbol, decision.t_ns] = Prediction(
                expected_bps=decision.expected_bps,
                raw_bps=decision.raw_bps,
                error_bps=decision.error_bps,
                scale_bps=decision.scale_bps,
                by_horizon=decision.by_horizon,
                regime=decision.regime,
            )

    run = partial(Run, settings, instruments, fixed_model)
    whole = run(trader=trader, decided=decided, written=digest.written)
    replay(lake, instruments, span, [whole], say)
    truncated = []
    for cut in cuts:
        cut_digest = RunDigest([cut])
        cut_run = run(trader=trader, decided=cut_digest.decided, written=cut_digest.written)
        replay(lake, instruments, Span(span.first_ns, cut), [cut_run], say, close=False)
        truncated.append(_truncation(cut, cut_digest, digest))
    shifted: list[tuple[int, Run, Innovations]] = []
    for lead_s in (-1, 1):
        own = Innovations()
        make = partial(ShiftedTrader, recorded=recorded, lead_s=lead_s)
        shifted.append((lead_s, run(trader=make, decided=own.decided), own))
    replay(lake, instruments, span, [one for _, one, _ in shifted], say)
    late, early = (_shift(one, lead_s, own, seed) for lead_s, one, own in shifted)
    unshifted = _shift(whole, 0, innovations, seed)
    judged = verdict(unshifted["z"])
    return {
        "model": fixed_model.name,
        "from": instant_text(span.first_ns),
        "to": instant_text(span.until_ns),
        "records": digest.records,
        "truncated": truncated,
        "shifts": [late, unshifted, early],
        "verdict": judged,
        "would_be_caught": verdict(early["z"]) == "LOOKS AHEAD",
        "failed": judged == "LOOKS AHEAD" or not all(row["same"] for row in truncated),
    }


def _events_end_ns(lake: Lake, symbols: Iterable[str], span: Span) -> int:
    """Just after the last event of the span's dates, from the footers of the files."""
    ends = [span.first_ns]
    for symbol in symbols:
        for day in span.dates:
            if lake.exists("events", symbol, day):
                with lake.open("events", symbol, day) as source:
                    column = source.schema_arrow.get_field_index("receive_ns")
                    ends += [
                        source.metadata.row_group(n).column(column).statistics.max
                        for n in range(source.num_row_groups)
                    ]
    return max(ends) + 1


def _truncation(cut_ns: int, cut: RunDigest, whole: RunDigest) -> dict[str, Any]:
    """A truncated run's record against what the whole run recorded before the cut."""
    same = cut.before(cut_ns) == whole.before(cut_ns)
    return {
        "at": instant_text(cut_ns),
        "at_ns": cut_ns,
        "records": cut.records,
        "same": same and not cut.disordered,
    }


def _shift(run: Run, lead_s: int, innovations: Innovations, seed: int) -> dict[str, Any]:
    """Results and contrast of a run whose expectations are ``lead_s`` early."""
    gross = np.array([trade.gross_bps for trade in run.blotter.trades])
    n = len(gross)
    return {
        "ahead_s": lead_s,
        "trades": n,
        "gross_bps": float(gross.mean()) if n else math.nan,
        "error_bps": float(gross.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        "net_usdt": run.curve.equity[run.settings.model.fee_row][-1],
        **innovations.contrast(seed),
    }


def report_text(result: Mapping[str, Any]) -> str:
    """The probes for a terminal."""
    names = {-1: "one bar late", 0: "unshifted", 1: "one bar early"}
    rows = [
        (
            names[row["ahead_s"]], f"{row['trades']:,}",
            f"{fixed(row['gross_bps'], 3)} ± {fixed(row['error_bps'], 3)}", fixed(row["net_usdt"]),
            fixed(row["past"], 3), fixed(row["next"], 3), fixed(row["z"], 1), verdict(row["z"]),
        )
        for row in result["shifts"]
    ]  # fmt: skip
    head = ("expectations", "trades", "gross bps", "net USDT", "past", "next", "z", "verdict")
    cuts = [
        f"cut at {row['at']}: {row['records']:,} records before it "
        + ("are the same" if row["same"] else "DIFFER")
        for row in result["truncated"]
    ]
    caught = "would be caught" if result["would_be_caught"] else "would NOT be caught"
    return "\n".join(
        [
            f"Look-ahead probes of {result['model']}, {result['from']} to {result['to']} UTC",
            *cuts,
            "",
            table(rows, head),
            "",
            f"The backtest: {result['verdict']}; features one bar early {caught}.",
        ]
    )
