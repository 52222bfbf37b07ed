"""The page of `l2 fills`, Markdown and a picture beside it: formula, fit, scores, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from execution.hazard import COVARIATES, Fitted
from orchestration.fills import AWAY_BPS, EDGES_S, HORIZONS_S, MINUTES, Diagram, Judged, Report

HEAD: Final = ("source", "symbol", "queue", "looks", "model", "constant", "gain [95 %]", "refused")

_ENDS: Final = ", ".join(f"{edge:g}" for edge in EDGES_S)

TEXT: Final = f"""\
# When a resting order fills

Written by `l2 fills --page`. An order that rests is *filled*, or the price *runs away* from it
(the own touch stands {AWAY_BPS:g} bps nearer to the other side, where an algorithm would follow);
what we cancel ourselves is censored. Time since a look is cut into intervals that end at
{_ENDS} s.
With x the covariates of the order as it was looked at, interval k of mid-time t ends in cause c,
given that neither had come before, with probability

    h_c(k) = exp(η_c) / (1 + Σ exp(η)),    η_c = base_c(k) + x · (level_c + slope_c · ln(1 + t))

| covariate | what it is |
|---|---|
| `ahead` | ln(1 + value in thousands of USDT) of the queue in front, and of the order but for one lot |
| `opposite` | the same of what is displayed at the opposite touch |
| `imbalance` | own minus opposite touch, over their sum |
| `spread` | ln of the spread in ticks |
| `intensity` | ln(1 + thousands of USDT a second) that takers take from the own touch, over a minute |
| `volatility` | ln of the mid's bps per square root of a second, over a minute |
| `signal` | expected return in bps, signed for the order's side: positive runs away |
| `distance` | bps of the order behind the own touch |

    from execution.hazard import FillModel, Queued
    model = FillModel.load("risk_averse", "recorded")  # queue bound, kind of market
    state = Queued.of(monitor, view, side, lots)       # of an order that joins the touch now
    model.fill_probability(state, 30.0)                # filled within 30 s, before running away
    model.pegged_fill_probability(state, 30.0)         # the same when it follows the touch
    model.expected_fill_s(state)

**Data.** A bid and an ask of the venue's least quantity join their touch every second in the
simulator, with the settings' latencies, and are watched for a minute; they are looked at when
sent and again after 2, 5 and 15 s, with the queue in front as our own views tell it. Both bounds
of the queue are asked: `risk_averse` (only trades move an order forward) and `power3`. Orders
that would have crossed when they came are refused by the venue, never rest, and are counted
apart. Of synthetic days the first {MINUTES:g} minutes of every hour are looked at, with the best
signal that can be known there; recordings have none. Intervals that a watch would not have
covered whole are left out, whatever happened in them.

**Fit.** Multinomial logit on person-periods by Newton's method, covariates standardised and
shrunk by a ridge that is chosen by leaving out stretches of time. Recorded and synthetic markets
are fitted apart: one model of both was wrong on either, because the queue ahead tells more on
recorded ones.

    l2 fills --fit --frames usdm-20240718.frames.zst --seeds 1001-1002     # writes parameters.json

**Scores.** The right-censored log-likelihood of a look, under the model and under two constant
rates from the same fit, and the gain with its 95 % interval over stretches of 30 s. In the
picture orders are grouped by what was predicted; bars are 95 % intervals that count the orders of
30 s as one.

**What holds.** On days it has not seen the synthetic model is on the diagonal at every horizon.
The recorded model was fitted on eight quiet minutes and is asked of a market more than twice as
volatile: it keeps its order and gains on constant hazards, but what it calls unlikely happens
more often than it says, and what it calls sure less often. Bybit's own 42 seconds are too few to
judge by. On recorded markets the hazard of a fill falls with the queue ahead at all times. On
synthetic ones it hardly depends on it once the imbalance is known, and rises a little with it
after some seconds.

**What to know.** Fills are conditional on not being refused. On synthetic BTC four to eight
orders in a hundred were refused, on synthetic ETH none, and why was not found out: orders are
placed on whole tenths of a second, the pace of the synthetic book too, so where its frames fall
within that pace may decide it. Seeds 1003 and 1004 stand for days that the fit has not seen;
other seeds are judged by `l2 fills --seeds 1-4`.
"""


def write(report: Report, path: Path) -> None:
    """Write the page, and its picture beside it under the same name."""
    image = path.with_suffix(".png")
    drawn = picture(report)
    drawn.savefig(image, dpi=110)
    path.write_text(text(report, image.name), encoding="utf-8")


def text(report: Report, image: str) -> str:
    """The page as Markdown."""
    parts = [TEXT, f"![predicted and observed fills]({image})", "## Scores"]
    for fitted, title in (
        (False, "Not seen by the fit:"),
        (True, "What the model was fitted on:"),
    ):
        rows = [row for row in report.judged if row.fitted == fitted]
        if rows:
            parts += [title, _table(HEAD, lines(rows))]
    for kind, fits in report.fits.items():
        parts += [f"## Coefficients, {kind}", coefficients(fits)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def lines(judged: Sequence[Judged]) -> list[tuple[str, ...]]:
    """Scores as cells of a table for people."""
    return [
        (
            row.source,
            row.symbol,
            row.queue,
            f"{row.score.orders:,}",
            f"{row.score.model:.3f}",
            f"{row.score.constant:.3f}",
            f"{row.score.gain:+.3f} [{row.score.low:+.3f}, {row.score.high:+.3f}]",
            f"{row.refused:,}",
        )
        for row in judged
    ]


def coefficients(fits: dict[str, Fitted]) -> str:
    """Effect of each covariate on either hazard, one second after the look, at both bounds."""
    head = ["covariate"]
    columns = []
    for queue, fit in fits.items():
        for name, cause in (("filled", fit.causes.filled), ("ran away", fit.causes.ran_away)):
            head.append(f"{name}, {queue}")
            columns.append(
                [
                    f"{level:+.2f} {slope:+.2f} ln(1 + t)"
                    for level, slope in zip(cause.level, cause.slope, strict=True)
                ]
            )
    made = [
        f"- {queue}: {fit.looks:,} looks of {', '.join(fit.fitted_on)}, ridge {fit.ridge:g}"
        for queue, fit in fits.items()
    ]
    rows = [(f"`{name}`", *(column[n] for column in columns)) for n, name in enumerate(COVARIATES)]
    return "Fitted on\n\n" + "\n".join(made) + "\n\n" + _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table)


def picture(report: Report) -> Any:
    """Predicted against observed fills, a panel for each kind of market and horizon."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(each.kind for each in report.diagrams))
    figure, grid = plt.subplots(
        len(kinds),
        len(HORIZONS_S),
        figsize=(11, 3.6 * len(kinds)),
        squeeze=False,
        layout="constrained",
    )
    for row, kind in enumerate(kinds):
        for column, horizon in enumerate(HORIZONS_S):
            axes = grid[row][column]
            axes.plot([0, 1], [0, 1], color="k", lw=0.6, ls=":")
            for each in report.diagrams:
                if (each.kind, each.horizon_s) == (kind, horizon) and each.queue == "risk_averse":
                    _draw(axes, each)
            axes.set(
                xlim=(0, 1),
                ylim=(0, 1),
                title=f"{kind}: filled within {horizon:g} s",
                xlabel="predicted",
                ylabel="observed",
            )
            axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def _draw(axes: Any, diagram: Diagram) -> None:
    x = [each.predicted for each in diagram.bins]
    y = [each.observed for each in diagram.bins]
    reach = [
        [each.observed - each.low for each in diagram.bins],
        [each.high - each.observed for each in diagram.bins],
    ]
    color, name = ("#b0b0b0", "fitted on") if diagram.fitted else ("#2b5c9e", "not seen")
    count = sum(each.n for each in diagram.bins)
    axes.errorbar(x, y, reach, color=color, fmt="o-", ms=3, lw=1, label=f"{name}, n {count:,}")
