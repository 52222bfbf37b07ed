"""The model card for a reviewer, as Markdown and charts."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Final

import msgspec
import numpy as np

from market.console import table
from models_registry.evaluation import Evaluation
from models_registry.statistics import days_to_resolve, moments, sharpe_difference
from models_registry.trades import FeeResult
from models_registry.training import TrainedModel

#: Maximum length of a version's description in MLflow.
DESCRIPTION_LIMIT: Final = 5000
#: Characters of a fixed-width line that MLflow's page shows.
PAGE_COLUMNS: Final = 97

_VERDICTS: Final = {
    "promote": "promote",
    "abstain": "abstain",
    "not_enough_data": "not enough data",
}


class About(msgspec.Struct, frozen=True, kw_only=True):
    """Origin of a card's evaluation; ``block_s`` is the mean block length of its bootstrap."""

    name: str
    source: str
    git_sha: str
    fingerprint: str
    fee_row: str
    block_s: int


def description(evaluation: Evaluation, about: About, run_id: str, pictures: Iterable[str]) -> str:
    """What MLflow shows on a version's page: the card's first sections and the run's pictures, by file name.

    The page gives tables no space between their columns, so that they are set as fixed-width text, of which
    it shows `PAGE_COLUMNS`; the pictures are served from the run. Sections that would exceed `DESCRIPTION_LIMIT`
    are left out.
    """
    images = "\n\n".join(
        f"![{name}](get-artifact?path=pictures/{name}&run_uuid={run_id})" for name in pictures
    )
    text = ""
    for section in (_verdict(evaluation, about), _costs(evaluation), images):
        fixed = fixed_width(section)
        if len(text) + len(fixed) + 2 <= DESCRIPTION_LIMIT:
            text += f"{fixed}\n\n"
    return text.rstrip()


def fixed_width(markdown: str) -> str:
    """The text with its tables as blocks of fixed width."""
    lines: list[str] = []
    for is_table, group in groupby(markdown.split("\n"), lambda line: line.startswith("|")):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in group]
        if is_table:
            head, _, *body = rows
            others = zip(*(row[:-1] for row in (head, *body)), strict=True)
            wide = sum(max(map(len, cells)) + 2 for cells in others)
            left = max(PAGE_COLUMNS - wide, PAGE_COLUMNS // 4)  # a table may be wider than the page
            wrapped = [line for row in body for line in _wrapped(row, left)]
            lines += ["```", table(wrapped, head), "```"]
        else:
            lines += ["|".join(row) for row in rows]
    return "\n".join(lines)


def _wrapped(row: list[str], width: int) -> list[list[str]]:
    """A table's row as lines whose last cell, the only one that is ever long, has at most ``width`` characters."""
    *cells, last = row
    first, *more = textwrap.wrap(last, width) or [""]
    return [[*cells, first], *([""] * len(cells) + [line] for line in more)]


def text(evaluation: Evaluation, model: TrainedModel | None, about: About) -> str:
    """The whole card as Markdown."""
    sections = [
        f"# {about.name}",
        _verdict(evaluation, about),
        _data(evaluation, about),
        _costs(evaluation),
        _versus(evaluation),
        _baselines(evaluation, about),
        _blocks(evaluation),
        _horizons(evaluation),
    ]
    if model is not None:
        sections += [_recipe(model), _acting(model), _importance(model)]
    sections.append(_limits(evaluation, about))
    return "\n\n".join(section for section in sections if section) + "\n"


def _verdict(evaluation: Evaluation, about: About) -> str:
    reasons = "\n".join(f"- {reason}" for reason in evaluation.gate.reasons)
    rows = "\n".join(
        f"| {row.name} | {'pass' if row.passed else 'FAIL'} | "
        f"{'blocking' if row.blocking else 'advisory'} | {row.text} |"
        for row in evaluation.gate.rows
    )
    table = f"\n\n| row | holds | kind | figure |\n|---|---|---|---|\n{rows}" if rows else ""
    return (
        f"## Verdict: {_VERDICTS[evaluation.gate.verdict]} (fee row {about.fee_row})\n\n{reasons}"
        f"{table}"
    )


def _data(evaluation: Evaluation, about: About) -> str:
    span = f"{evaluation.dates[0]} to {evaluation.dates[-1]}" if evaluation.dates else "none"
    return "\n".join(
        [
            "## Data",
            "",
            f"- source: **{about.source}**, fingerprint `{about.fingerprint}`, code "
            f"`{about.git_sha}`",
            f"- symbols: {', '.join(evaluation.symbols)}; dates with warm rows: {len(evaluation.dates)} "
            f"({span})",
            f"- training rows: {evaluation.train_rows:,}; test blocks: {len(evaluation.blocks)}; independent "
            f"labels in them at {evaluation.primary_s} s: {evaluation.ic.n_eff:,.0f}",
            *(f"- left out: {line}" for line in evaluation.skipped),
        ]
    )


def _costs(evaluation: Evaluation) -> str:
    if not evaluation.results:
        return ""
    return (
        "## Net of costs\n\nTaker on both legs, one second after the decision; bps per round trip, "
        "bounds one-sided 95 %.\n\n" + _fee_table(evaluation.results)
    )


def _fee_table(results: tuple[FeeResult, ...]) -> str:
    """A column per fee row: MLflow's page is too narrow for a column per figure."""
    lines = {
        "fee a side": [f"{r.taker_bps:g}" for r in results],
        "trades": [f"{r.trades:,}" for r in results],
        "gross": [_n(r.gross_bps) for r in results],
        "spread": [_n(r.spread_bps) for r in results],
        "net": [_n(r.net_bps) for r in results],
        "net, at least": [_n(r.net_lower_bps) for r in results],
        "break-even fee a side": [_n(r.break_even_bps) for r in results],
        "false signals, gross": [_p(r.false_gross) for r in results],
        "false signals, net": [_p(r.false_net) for r in results],
        "false signals, net, at most": [_p(r.false_net_upper) for r in results],
        "coverage": [_p(r.coverage) for r in results],
    }
    head = f"| fee row | {' | '.join(r.row for r in results)} |\n|---{'|---' * len(results)}|"
    return "\n".join((head, *(f"| {what} | {' | '.join(each)} |" for what, each in lines.items())))


def _versus(evaluation: Evaluation) -> str:
    if evaluation.versus is None:
        return "## Against the champion\n\nThere is no champion yet."
    found = evaluation.versus
    title = f"## Against the champion (version {found.champion})"
    if found.note:
        return f"{title}\n\nNo comparison: {found.note}."
    lines = [
        f"| {mine.row} | {mine.trades:,} | {_n(mine.net_bps)} | {_n(mine.net_total_bps, 0)} "
        f"| {theirs.trades:,} | {_n(theirs.net_bps)} | {_n(theirs.net_total_bps, 0)} |"
        for mine, theirs in zip(found.candidate, found.incumbent, strict=True)
    ]
    return "\n".join(
        [
            f"{title}\n\nThe {found.hours:.1f} h of the test blocks after the champion's training; "
            "net bps per trade and in total.\n",
            "| fee row | trades | net | total | champion's trades | net | total |",
            "|---|---|---|---|---|---|---|",
            *lines,
            f"\nThe rank IC is larger by {_n(found.gain_lower, 4)} at least, by whole days. Sharpe ratio of daily "
            f"results less the champion's: {_apart(*found.daily)}.",
        ]
    )


def _apart(mine: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """The paired difference of the Sharpe ratios of daily results, and what would resolve it."""
    days = sorted(mine.keys() & theirs.keys())
    a, b = (np.array([each[day] for day in days]) for each in (mine, theirs))
    if len(days) < 2 or not (a.std() > 0 and b.std() > 0):
        return "–"
    found, rho = sharpe_difference(a, b), float(np.corrcoef(a, b)[0, 1])
    needed = days_to_resolve(moments(a).sharpe, moments(b).sharpe, rho)
    return f"{found.value:+.2f} ≥ {found.lower:+.2f}, {_n(needed, 0)} days"


def _baselines(evaluation: Evaluation, about: About) -> str:
    if not evaluation.baselines or not evaluation.results:
        return ""
    own = next(r for r in evaluation.results if r.row == about.fee_row)
    lines = [
        f"| {name} | {_n(ic, 4)} | {_n(lower, 4)} | {r.trades:,} | {_n(r.net_bps)} | {_n(r.net_lower_bps)} | {apart} |"
        for name, ic, lower, r, apart in (
            ("**this model**", evaluation.ic.rank, evaluation.ic_lower, own, ""),
            *(
                (b.name, b.ic, b.ic_lower, b.result, _apart(evaluation.daily, b.daily))
                for b in evaluation.baselines
            ),
        )
    ]
    return "\n".join(
        [
            f"## Baselines\n\nThe same test blocks; net in bps per trade at fee row {about.fee_row}. Last, this model's "
            "Sharpe ratio of daily results less the baseline's, its bound, and the days that would tell the two apart "
            "at 95 % with a power of 80 %.\n",
            "| | rank IC | ≥ | trades | net | net ≥ | Sharpe, paired |",
            "|---|---|---|---|---|---|---|",
            *lines,
        ]
    )


def _blocks(evaluation: Evaluation) -> str:
    if not evaluation.blocks:
        return ""
    rows = list(evaluation.blocks[0].trades)
    head = ["block", "dates", "train rows", "rank IC", "Pearson", "n_eff", "open regimes"]
    head += [f"net total, {row}" for row in rows]
    lines = []
    for block in evaluation.blocks:
        dates = block.first_date
        if block.last_date != block.first_date:
            dates += f" – {block.last_date}"
        cells = [
            str(block.number + 1),
            dates,
            f"{block.train_rows:,}",
            f"{block.ic.rank:.4f}",
            f"{block.ic.pearson:.4f}",
            f"{block.ic.n_eff:,.0f}",
            str(block.open_regimes),
            *(f"{block.net_total_bps[row]:,.0f} ({block.trades[row]:,})" for row in rows),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    pooled = (
        f"Pooled rank IC **{evaluation.ic.rank:.4f}**, lower bound {_n(evaluation.ic_lower, 4)}. Net totals "
        "in bps, trades in brackets."
    )
    return "\n".join(
        [
            f"## Test blocks\n\n{pooled}\n",
            f"| {' | '.join(head)} |",
            "|---" * len(head) + "|",
            *lines,
        ]
    )


def _horizons(evaluation: Evaluation) -> str:
    if not evaluation.ic_by_horizon:
        return ""
    lines = [
        f"| {horizon} s | {ic.rank:.4f} | {ic.pearson:.4f} | {ic.n_eff:,.0f} |"
        for horizon, ic in zip(evaluation.horizons_s, evaluation.ic_by_horizon, strict=True)
    ]
    return "\n".join(
        [
            "## By horizon\n\nEach booster against its own label, out of sample.\n",
            "| horizon | rank IC | Pearson | n_eff |",
            "|---|---|---|---|",
            *lines,
        ]
    )


def _recipe(model: TrainedModel) -> str:
    recipe = model.manifest.recipe
    lines = [
        f"| {m.horizon_s} s {m.objective} | {m.calibration.fitted:.3f} ± {_n(m.calibration.error)} "
        f"| {m.calibration.slope:.3f} | {m.to_primary:.3f} | {m.weight:.3f} |"
        for m in recipe.members
    ]
    regimes = ", ".join(
        f"{r.name} ({'open' if r.threshold_bps is not None else 'closed'}"
        + (f", up to {r.up_to_bps:.1f} bps)" if r.up_to_bps is not None else ")")
        for r in recipe.regimes
    )
    return "\n".join(
        [
            "## Calibration and combination of the final boosters\n",
            "| horizon | slope | shrunk | to the primary | weight |",
            "|---|---|---|---|---|",
            *lines,
            "",
            f"Gain {recipe.gain:.3f}. Regimes by {recipe.scale.feature}: {regimes}.",
        ]
    )


def _acting(model: TrainedModel) -> str:
    """What the model acts on, the certified rates of false signals, and how features were selected."""
    manifest, found = model.manifest, model.manifest.metrics
    lines = [
        f"| {regime.name} | {c.basis} | {c.fee_row} | {c.scope} | {_n(c.least_score)} "
        f"| {_p(chosen.coverage if chosen else 0.0)} | {_p(chosen.upper if chosen else math.nan)} |"
        for regime in manifest.recipe.regimes
        for c in regime.certificates
        for chosen in (next((s for s in c.steps if s.score == c.least_score), None),)
    ]
    rates = "; ".join(
        f"{basis} {_p(found[f'signals.false_{basis}'])} (at most "
        f"{_p(found[f'signals.false_{basis}_upper'])})"
        for basis in ("gross", "net")
        if f"signals.false_{basis}" in found
    )
    parts = [
        f"## When it acts: {manifest.recipe.act.replace('_', ' ')}\n",
        f"Signals out of sample: {_p(found.get('signals.coverage', math.nan))} of seconds; false: "
        f"{rates or 'none'}. A score is |expectation| over volatility; from the least score on, the share "
        "of false signals is certified, in the regime or in all together.\n",
        "| regime | basis | fee row | signals of | least score | coverage | false at most |",
        "|---|---|---|---|---|---|---|",
        *lines,
    ]
    if (how := manifest.selection) is not None:
        parts.append(
            f"\n{len(manifest.features)} features of {how.candidates} in {how.clusters} clusters; "
            f"stability over {how.folds} folds {_n(how.stability, 2)} ({_n(how.stability_lower, 2)} to "
            f"{_n(how.stability_upper, 2)}); {how.decoys_selected} of {how.decoys * how.folds} noise "
            "columns were selected."
        )
    return "\n".join(parts)


def _importance(model: TrainedModel) -> str:
    lines = [f"| {name} | {_p(share)} |" for name, share in model.importance[:15] if share > 0]
    if not lines:
        return ""
    return "\n".join(
        ["## Where the boosters' gain comes from\n", "| feature | share |", "|---|---|", *lines]
    )


def _limits(evaluation: Evaluation, about: About) -> str:
    source = (
        "- The data are synthetic: the figures say that the pipeline finds what was planted, and "
        "nothing about Bybit."
        if about.source == "synthetic"
        else "- The figures hold for the dates above; they are no forecast of other regimes."
    )
    return "\n".join(
        [
            "## Limits",
            "",
            source,
            "- Trades take the touch at its displayed price; size, impact and funding are not in "
            "the figures. Execution is measured separately, by parent order.",
            f"- Bounds: stationary bootstrap over time, mean block {about.block_s} s, both symbols "
            "in the same blocks. Days differ more than blocks of an hour can tell from few days.",
            "- The bound of the IC holds at all daily looks at once, its error divided by the procedures tried; the "
            "deflated Sharpe ratio counts every look at these data.",
        ]
    )


def _n(value: float | None, digits: int = 3) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.{digits}f}" if math.isfinite(value) else "none"


def _p(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f} %"


def fold_csv(evaluation: Evaluation) -> str:
    """CSV with one line per test block: dates, IC by horizon, trades and net result by fee row."""
    head = ["block", "first_date", "last_date", "train_rows", "calibration_rows", "rows", "n_eff"]
    head += ["rank_ic", "pearson_ic", *(f"rank_ic_{h}s" for h in evaluation.horizons_s)]
    rows: Mapping[str, int] = evaluation.blocks[0].trades if evaluation.blocks else {}
    head += [f"{what}_{row}" for row in rows for what in ("trades", "net_total_bps")]
    lines = [",".join(head)]
    for block in evaluation.blocks:
        cells: list[object] = [
            block.number + 1,
            block.first_date,
            block.last_date,
            block.train_rows,
            block.calibration_rows,
            block.ic.rows,
            round(block.ic.n_eff, 1),
            block.ic.rank,
            block.ic.pearson,
            *(ic.rank for ic in block.ic_by_horizon),
        ]
        for row in rows:
            cells += [block.trades[row], block.net_total_bps[row]]
        lines.append(",".join(str(cell) for cell in cells))
    return "\n".join(lines) + "\n"
