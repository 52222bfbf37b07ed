"""The fill report of `l2 fills`: scores, reliability and fit; Markdown with the formula and a picture beside it, or HTML."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from execution.hazard import COVARIATES, Fitted
from market.console import NONE, estimate, fixed
from orchestration import report_page
from orchestration.fills.evaluation import (
    AWAY_BPS,
    EDGES_S,
    HORIZONS_S,
    MINUTES,
    FillReport,
    ReliabilityDiagram,
    SourceScore,
)

HEAD: Final = ("source", "symbol", "queue", "looks", "model", "constant", "gain [95 %]", "refused")

_ENDS: Final = ", ".join(f"{edge:g}" for edge in EDGES_S)

TEXT: Final = f"""\
# When a resting order fills

Written by `l2 fills --page`. A resting order is *filled*, or the price *runs away* from it (the
own touch is {AWAY_BPS:g} bps nearer to the other side, where an algorithm would follow); what we cancel
ourselves is censored. Time since an observation (a look) is cut into intervals that end at
{_ENDS} s.
With x the covariates of the order when observed, interval k of mid-time t ends in cause c, given
survival up to it, with probability

    h_c(k) = exp(η_c) / (1 + Σ exp(η)),    η_c = base_c(k) + x · (level_c + slope_c · ln(1 + t))

| covariate | definition |
|---|---|
| `ahead` | ln(1 + value in thousands of USDT) of the queue ahead, and of the order but for one lot |
| `opposite` | the same of the quantity displayed at the opposite touch |
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
simulator, with the settings' latencies, and are watched for a minute; they are observed when sent
and again after 2, 5 and 15 s, with the queue ahead as our own views estimate it. Both bounds of
the queue model are used: `risk_averse` (cancels all come from behind, until less is shown than stood ahead) and `power3`, a generous one.
Post-only orders that would have crossed on arrival are rejected, never rest, and are counted
apart. Of synthetic days the first {MINUTES:g} minutes of every hour are used, with the best signal that
can be known there; recordings have none. Intervals that a watch would not have covered whole are
left out, whatever happened in them.

**Fit.** Multinomial logit on person-periods by Newton's method, covariates standardised and
shrunk by a ridge that is chosen by cross-validation over stretches of time. Recorded and
synthetic markets are fitted apart: one model of both was wrong on either, because the queue
ahead predicts more on recorded ones.

    l2 fills --fit --frames usdm-20240718.frames.zst --seeds 1001-1002     # writes parameters.json

**Scores.** The right-censored log-likelihood of an observation, under the model and under two
constant rates from the same fit, and the gain with its 95 % interval over stretches of 30 s. The
picture is a reliability diagram: orders are binned by prediction; bars are 95 % intervals that
count the orders of 30 s as one.

**Results.** On days out of sample the synthetic model is on the diagonal at every horizon. The
recorded model was fitted on eight quiet minutes and is scored on a market more than twice as
volatile: it ranks orders and gains on constant hazards, but its low probabilities are too low and
its high ones too high. Bybit's own 42 seconds are too few to judge by. On recorded markets the
hazard of a fill falls with the queue ahead at all times. On synthetic ones it hardly depends on
it once the imbalance is known, and rises a little with it after some seconds.

**Limits.** Fills are conditional on not being rejected. On synthetic BTC four to eight orders in a
hundred were rejected, on synthetic ETH none; the cause was not established: orders are placed on
whole tenths of a second, the pace of the synthetic book too, so the phase of its frames within
that pace may decide it. Seeds 1003 and 1004 are out of sample; other seeds are scored by
`l2 fills --seeds 1-4`.
"""


def write(report: FillReport, path: Path) -> None:
    """Write the page, and its picture beside it under the same name."""
    image = path.with_suffix(".png")
    picture(report).savefig(image, dpi=110)
    path.write_text(document(report, image.name), encoding="utf-8")


def document(report: FillReport, image: str) -> str:
    """The page as Markdown; ``image`` is the name of its picture."""
    parts = [TEXT, f"![predicted and observed fills]({image})", "## Scores"]
    for title, scores in _samples(report):
        parts += [f"{title}:", report_page.markdown_table(score_rows(scores), HEAD)]
    for kind, fits in report.fits.items():
        parts += [f"## Coefficients, {kind}", coefficients(fits)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def page(report: FillReport) -> str:
    """The report as HTML, without formula and definitions, which docs/fills.md has."""
    body = [
        "<h1>When a resting order fills</h1>",
        "<p>docs/fills.md has the formula, the covariates and what the scores mean.</p>",
        report_page.svg(picture(report)),
    ]
    for title, scores in _samples(report):
        body += [f"<h2>{title}</h2>", report_page.table(score_rows(scores), HEAD)]
    for kind, fits in report.fits.items():
        rows, head, provenance = _effects(fits)
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in provenance)
        body += [
            f"<h2>Coefficients, {kind}</h2><p>Fitted on</p><ul>{lines}</ul>",
            report_page.table(rows, head),
        ]
    return report_page.document("When a resting order fills", body)


def _samples(report: FillReport) -> Iterator[tuple[str, list[SourceScore]]]:
    """Scores apart by whether the model was fitted on their source, where there are any."""
    for fitted, title in ((False, "Out of sample"), (True, "In sample")):
        if scores := [score for score in report.judged if score.fitted == fitted]:
            yield title, scores


def score_rows(scores: Sequence[SourceScore]) -> list[tuple[str, ...]]:
    """Scores as cells of a table under `HEAD`."""
    return [
        (
            each.source, each.symbol, each.queue, f"{each.score.orders:,}",
            fixed(each.score.model, 3), fixed(each.score.constant, 3),
            estimate(each.score.gain, each.score.low, each.score.high, _signed),
            f"{each.refused:,}",
        )
        for each in scores
    ]  # fmt: skip


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+.3f}"


def coefficients(fits: Mapping[str, Fitted]) -> str:
    """Effect of each covariate on both hazards by time, at both queue bounds, as Markdown."""
    rows, head, provenance = _effects(fits)
    table = report_page.markdown_table([(f"`{name}`", *cells) for name, *cells in rows], head)
    return "Fitted on\n\n" + "\n".join(f"- {line}" for line in provenance) + "\n\n" + table


def _effects(fits: Mapping[str, Fitted]) -> tuple[list[tuple[str, ...]], list[str], list[str]]:
    """Cells and head of the table of coefficients, and what each fit rests on."""
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
    provenance = [
        f"{queue}: {fit.looks:,} looks of {', '.join(fit.fitted_on)}, ridge {fit.ridge:g}"
        for queue, fit in fits.items()
    ]
    rows = [(name, *(column[n] for column in columns)) for n, name in enumerate(COVARIATES)]
    return rows, head, provenance


def picture(report: FillReport) -> Any:
    """Reliability diagrams at the pessimistic queue bound, a panel for each kind and horizon."""
    kinds = list(dict.fromkeys(each.kind for each in report.diagrams))
    figure, grid = report_page.axes(
        len(kinds), [1] * len(kinds), 3.6 * len(kinds), len(HORIZONS_S), layout="constrained"
    )
    for row, kind in enumerate(kinds):
        for column, horizon in enumerate(HORIZONS_S):
            ax = grid[row][column]
            ax.plot([0, 1], [0, 1], color="k", lw=0.6, ls=":")
            for each in report.diagrams:
                if (each.kind, each.horizon_s) == (kind, horizon) and each.queue == "risk_averse":
                    _draw(ax, each)
            title = f"{kind}: filled within {horizon:g} s"
            ax.set(xlim=(0, 1), ylim=(0, 1), title=title, xlabel="predicted", ylabel="observed")
            ax.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


def _draw(ax: Any, diagram: ReliabilityDiagram) -> None:
    predicted = [each.predicted for each in diagram.bins]
    observed = [each.observed for each in diagram.bins]
    errors = [
        [each.observed - each.low for each in diagram.bins],
        [each.high - each.observed for each in diagram.bins],
    ]
    colour, name = ("#b0b0b0", "in sample") if diagram.fitted else ("#2b5c9e", "out of sample")
    label = f"{name}, n {sum(each.n for each in diagram.bins):,}"
    ax.errorbar(predicted, observed, errors, color=colour, fmt="o-", ms=3, lw=1, label=label)
