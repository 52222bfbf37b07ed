"""What must hold of the rows of events, bars and features (`assets.quality_batches`), table by table.

dbt's tests hold the shape of tables (keys, uniqueness, one row per bar); these hold the quality of the data.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec


class Bound(msgspec.Struct, frozen=True):
    """One expectation: ``why``, on the column ``figure`` of the batch; None is an open end.

    metric    "values": each value that is not NULL is from ``low`` to ``high``, but for a share ``outside``;
              "present": no value is NULL, but for a share ``outside``;
              "min", "max", "mean", "median", "sum": that of the column is from ``low`` to ``high``.

    One on a column that is all NULL is not asked, except "present".
    """

    figure: str
    why: str
    metric: str = "values"
    low: float | None = None
    high: float | None = None
    outside: float = 0.0
    severity: str = "critical"

    def expectation(self, order: int) -> Any:
        """As Great Expectations states it; ``order`` finds this bound again in a result."""
        import great_expectations.expectations as gxe

        told = {"severity": self.severity, "notes": self.why, "meta": {"order": order}}
        rows = {"mostly": round(1 - self.outside, 9)}  # the decimal: 1 - 0.01 is less than 0.99
        limits = {"min_value": self.low, "max_value": self.high}
        if self.metric == "present":
            return gxe.ExpectColumnValuesToNotBeNull(column=self.figure, **rows, **told)
        if self.metric == "values":
            return gxe.ExpectColumnValuesToBeBetween(column=self.figure, **limits, **rows, **told)
        kind = getattr(gxe, f"ExpectColumn{self.metric.title()}ToBeBetween")
        return kind(column=self.figure, **limits, **told)


#: Severity of what is only shown.
_WARN: Final = "warning"

_FRAMES = "most seconds must have a book frame; even a quiet book sends ten a second"
_REJECTED = "a line was rejected; table quarantine has it with file, line and reason"
_LEFT_OUT = "the clock was set back over a second: frames have no time; table quarantine has where"
_STEPS = "frames received before their predecessors: the clock stepped back, or files are mixed"
_TRADES = "trades more than 20 % from the day's median are another symbol's or a wrong scale"
_STALL = "frames came seconds later than the fastest: the network or the reader stalled"
_CLOCK = "the minimum lag per minute shifted: one of the two clocks was stepped"
_LAG = "our clock is behind the exchange's; only differences of lags are then meaningful"

EVENTS: Final = (
    Bound("frames", _FRAMES, low=1, outside=0.5),
    Bound(
        "frames", "a sound recording misses hardly a second", low=1, outside=0.02, severity=_WARN
    ),
    Bound("gaps", "frames are missing in more than 1 % of the seconds", high=0, outside=0.01),
    Bound("steps_back", "ingest orders by receive time; it is a defect of it", "max", high=0),
    Bound("priceless", "no order and no trade has a price of zero", "sum", high=0),
    Bound("empty_trades", "a trade moves a quantity", "sum", high=0),
    Bound("off_market", _TRADES, high=0, outside=0.001),
    Bound("lag_min_s", _LAG, "min", low=0, severity=_WARN),
    Bound("stall_s", _STALL, high=2, outside=0.001, severity=_WARN),
    Bound("clock_step_s", _CLOCK, "max", high=0.2, severity=_WARN),
    Bound("steps_back_share", _STEPS, "max", high=0.001, severity=_WARN),
    Bound("left_out", _LEFT_OUT, "max", high=0, severity=_WARN),
    Bound("rejected_share", "the decoder rejected more than 1 % of the lines", "max", high=0.01),
    Bound("rejected_share", _REJECTED, "max", high=0, severity=_WARN),
)

_GAP = "with a fifth of the seconds without a valid book hardly a row is warm"
_GAPS = "rows after a gap are not warm: a minute for 60 s of it, 12 minutes for more than three"
_JUMP = "1 % in a second happens a few times a year; inspect it before training"
_CROSSED = "a book crossed after more than 1 % of its frames was rebuilt wrongly"
_EMPTY_SIDE = "a book with an empty side after more than 1 % of its frames is unusable"
_TICKER = "mark, index, funding and open interest were older than a minute"
_FAR = "the sum of trades is far from the ticker's 24 h turnover: another market or scale"
_DIFFERS = "the sum of trades differs from the ticker's turnover: some are missing or doubled"

BARS: Final = (
    Bound("gap", _GAP, high=0, outside=0.2),
    Bound("gap", _GAPS, high=0, outside=0.01, severity=_WARN),
    Bound("mid_close", "bars without a mid have no label", "present", outside=0.2),
    Bound("jump_pct", "5 % in a second is a wrong price, not a market", "max", high=5),
    Bound("jump_pct", _JUMP, "max", high=1, severity=_WARN),
    Bound(
        "spread_bps", "it is a tick nearly always; more is a broken book", "median", low=0, high=2
    ),
    Bound("crossed_frames", _CROSSED, "max", high=0.01),
    Bound("crossed_frames", "the venue's book never is", "max", high=0, severity=_WARN),
    Bound("one_sided_frames", _EMPTY_SIDE, "max", high=0.01),
    Bound("one_sided", "a valid book has two sides", high=0, outside=0.001),
    Bound("volume_without_trades", "both come from the same rows", "sum", high=0),
    Bound("frames", "seconds without a book frame", low=1, outside=0.05, severity=_WARN),
    Bound("ticker_age_s", _TICKER, high=60, outside=0.05, severity=_WARN),
    Bound("volume_to_turnover", _FAR, "max", low=0.5, high=2),
    Bound("volume_to_turnover", _DIFFERS, "max", low=0.95, high=1.05, severity=_WARN),
)

_WARM = "rows after a gap do not train; a sound date is warm but for minutes"
_UNIT = "20 interquartile ranges from the week before is another unit, not another market"
_DRIFT = "the median of a steady feature is over an interquartile range from the week before"

FEATURES: Final = (
    Bound("null_share", "half of the features are NULL: an input is missing", "mean", high=0.5),
    Bound("null_share", "the ticker's are some 15 %", "mean", high=0.25, severity=_WARN),
    Bound(
        "absent", "features without a value: an input is missing", "sum", high=40, severity=_WARN
    ),
    Bound("constant", "features that never change: frozen input", "sum", high=20, severity=_WARN),
    Bound("warm_share", _WARM, "min", low=0.9, severity=_WARN),
    Bound("drift", _UNIT, "max", high=20),
    Bound("drift", _DRIFT, high=1, severity=_WARN),
)
#: Table -> its expectations.
SUITES: Final = {"events": EVENTS, "bars": BARS, "features": FEATURES}
