"""The model card's charts, as PNG."""

from __future__ import annotations

import io
import math
from typing import Any, Final

import numpy as np

from models_registry import decay
from models_registry.evaluation import Evaluation
from models_registry.manifest import DecayReference
from models_registry.recipe import CalibrationBin
from models_registry.training import TrainedModel

_COLOURS: Final = {"vip0": "#c44e52", "vip3": "#dd8452", "zero": "#4c72b0"}
_INK: Final = "#333333"
_BLUE: Final = "#4c72b0"
#: Bins of the reliability chart, and features of the importance chart.
_BINS: Final = 10
_FEATURES: Final = 20


def pictures(evaluation: Evaluation, model: TrainedModel | None) -> dict[str, bytes]:
    """Charts by file name; only those with data."""
    if evaluation.pooled is None:
        return {}
    found = {"ic_by_block.png": _ic_picture(evaluation), "net.png": _net_picture(evaluation)}
    found["folds.png"] = _folds_picture(evaluation)
    if model is not None:
        found["calibration.png"] = _calibration_picture(model)
        found["reliability.png"] = _reliability_picture(evaluation, model)
        found["importance.png"] = _importance_picture(model)
        found["decay.png"] = _decay_picture(evaluation, model.manifest.decay)
    return found


def _figure(title: str, panels: int = 1) -> tuple[Any, Any]:
    """A figure as wide as the text of MLflow's page (834 pixels beside its open panels), two panels a row;
    its axis, or axes if several."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = -(-panels // 2), min(panels, 2)
    figure = Figure(figsize=(7.5, 3.8 if rows == 1 else 3.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for spare in axes[panels:]:
        spare.set_visible(False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#dddddd", linewidth=0.7)
        axis.set_axisbelow(True)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=_INK)
    return figure, axes[0] if panels == 1 else axes[:panels]


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    # No software version in the file, so that equal charts are equal bytes.
    figure.savefig(out, format="png", dpi=110, metadata={"Software": None})
    return out.getvalue()


def _ic_picture(evaluation: Evaluation) -> bytes:
    figure, axis = _figure(f"Rank IC at {evaluation.primary_s} s by test block")
    ranks = [block.ic.rank for block in evaluation.blocks]
    error = [1.96 / math.sqrt(block.ic.n_eff) for block in evaluation.blocks]
    position = np.arange(len(ranks))
    axis.bar(position, ranks, color="#4c72b0", width=0.6, yerr=error, ecolor=_INK, capsize=3)
    axis.axhline(0.0, color=_INK, linewidth=0.8)
    if math.isfinite(evaluation.ic_lower):
        axis.axhline(evaluation.ic.rank, color="#55a868", linewidth=1.2, label="pooled")
        axis.axhline(
            evaluation.ic_lower,
            color="#55a868",
            linewidth=1.2,
            linestyle="--",
            label="always-valid lower bound",
        )
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axis.set_xticks(position, [block.first_date[5:] for block in evaluation.blocks])
    axis.set_ylabel("rank IC (± 1.96 / √n_eff)")
    return _png(figure)


def _net_picture(evaluation: Evaluation) -> bytes:
    figure, axes = _figure("Cumulative net result of the target rule, bps", len(evaluation.results))
    axes = np.atleast_1d(axes)
    pooled = evaluation.pooled
    # of all fee rows the same, also of one with a single trade
    t_ns = pooled.rows.t_ns if pooled is not None else np.empty(0, np.int64)
    span = np.array([t_ns.min(), t_ns.max()], "datetime64[ns]") if len(t_ns) else None
    for axis, result in zip(axes, evaluation.results, strict=True):
        found = evaluation.round_trips[result.row]
        axis.set_title(
            f"{result.row}: {result.taker_bps:g} bps a side, {result.trades:,} trades", fontsize=9
        )
        if not len(found):
            axis.text(
                0.5, 0.5, "no expectation\nexceeded the cost", transform=axis.transAxes, ha="center"
            )
            axis.set_axis_off()
            continue
        axis.axhline(0.0, color=_INK, linewidth=0.8)
        left = found.exit_ns.astype("datetime64[ns]")
        order = np.argsort(left, kind="stable")
        for label, values, style in (
            ("before costs", found.gross_bps, ":"),
            ("net", found.net_bps(result.taker_bps), "-"),
        ):
            path = np.cumsum(values[order])
            keep = np.unique(np.linspace(0, len(path) - 1, min(len(path), 2000)).astype(int))
            axis.plot(
                left[order][keep],
                path[keep],
                style,
                color=_COLOURS[result.row],
                linewidth=1.3,
                marker="o" if len(keep) == 1 else None,
                label=label,
            )
        axis.legend(frameon=False, fontsize=8)
        if span is not None:
            axis.set_xlim(*span)
        _dates(axis)
    return _png(figure)


def _calibration_picture(model: TrainedModel) -> bytes:
    members = [m for m in model.manifest.recipe.members if m.objective == "return"]
    figure, axes = _figure("Predicted and realised return by decile, bps", len(members))
    for axis, member in zip(np.atleast_1d(axes), members, strict=True):
        table: tuple[CalibrationBin, ...] = member.calibration.table
        axis.set_title(f"{member.horizon_s} s, weight {member.weight:.2f}", fontsize=9)
        if not table:
            axis.text(0.5, 0.5, "no positive slope", transform=axis.transAxes, ha="center")
            axis.set_xticks([])
            axis.set_yticks([])
            continue
        predicted = [row.predicted_bps for row in table]
        ends = [min(predicted), max(predicted)]
        axis.plot(ends, ends, color="#999999", linewidth=1.0, label="as predicted")
        axis.plot(predicted, [row.realised_bps for row in table], "o", color="#4c72b0", ms=4.5)
        axis.set_xlabel("predicted")
        axis.legend(frameon=False, fontsize=8)
    for axis in np.atleast_1d(axes)[::2]:
        axis.set_ylabel("realised")
    return _png(figure)


def _decay_picture(evaluation: Evaluation, reference: DecayReference) -> bytes:
    figure, axis = _figure("Decay monitor over its own reference: CUSUM and its limit")
    pooled = evaluation.pooled
    assert pooled is not None
    label = pooled.rows.labels_bps[:, evaluation.horizons_s.index(evaluation.primary_s)]
    ends, x = decay.observations(
        pooled.rows.t_ns,
        pooled.rows.symbol,
        pooled.raw_bps / pooled.scale_bps,
        label / pooled.scale_bps,
        reference.spacing_s,
    )
    path = decay.cusum(x, reference.drift)
    axis.plot(ends.astype("datetime64[ns]"), path, color="#4c72b0", linewidth=0.9)
    if reference.limit is not None:
        axis.axhline(
            reference.limit,
            color="#c44e52",
            linestyle="--",
            linewidth=1.2,
            label=f"limit: one false alarm in {reference.arl0_days:g} days",
        )
        axis.set_ylim(top=1.2 * max(reference.limit, float(path.max())))
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    _dates(axis)
    return _png(figure)


def _dates(axis: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=6)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _folds_picture(evaluation: Evaluation) -> bytes:
    rows = list(evaluation.blocks[0].trades)
    head = [
        "block",
        "dates",
        "train rows",
        "rank IC",
        "n_eff",
        *(f"net {row}, bps" for row in rows),
    ]
    cells = [
        [
            str(block.number + 1),
            f"{block.first_date} to {block.last_date[5:]}",
            f"{block.train_rows:,}",
            f"{block.ic.rank:.4f}",
            f"{block.ic.n_eff:,.0f}",
            *(f"{block.net_total_bps[row]:,.0f} ({block.trades[row]:,})" for row in rows),
        ]
        for block in evaluation.blocks
    ]
    figure, axis = _figure("Test blocks; net totals, trades in brackets")
    figure.set_size_inches(7.5, 0.8 + 0.24 * len(cells))
    axis.set_axis_off()
    drawn = axis.table(cells, colLabels=head, loc="upper center", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    drawn.auto_set_column_width(range(len(head)))
    return _png(figure)


def _reliability_picture(evaluation: Evaluation, model: TrainedModel) -> bytes:
    """How often the sign was right, out of sample, by what the version would have said of it."""
    pooled, confidence = evaluation.pooled, model.manifest.recipe.confidence
    assert pooled is not None
    realised = pooled.rows.labels_bps[:, evaluation.horizons_s.index(evaluation.primary_s)]
    size = np.abs(pooled.raw_bps) / pooled.scale_bps
    known = ~np.isnan(size) & ~np.isnan(realised) & (realised != 0.0) & (size > 0.0)
    right = (np.sign(pooled.raw_bps) == np.sign(realised))[known]
    said = size[known]
    if confidence is not None:
        said = 1.0 / (1.0 + np.exp(-confidence.sign_slope * said))
    figure, axis = _figure(f"Share of right signs at {evaluation.primary_s} s, out of sample")
    for chosen in np.array_split(np.argsort(said, kind="stable"), _BINS):
        if len(chosen):
            n_eff = max(1.0, evaluation.ic.n_eff / _BINS)
            share = float(right[chosen].mean())
            error = 1.96 * math.sqrt(share * (1.0 - share) / n_eff)
            axis.errorbar(said[chosen].mean(), share, error, fmt="o", color=_BLUE, ms=4, capsize=3)
    if confidence is not None:
        ends = [0.5, max(0.5, float(said.max(initial=0.5)))]
        axis.plot(ends, ends, color="#999999", linewidth=1.0, label="as predicted")
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    else:
        axis.axhline(0.5, color="#999999", linewidth=1.0)
    axis.set_xlabel("predicted probability" if confidence is not None else "|prediction| / scale")
    axis.set_ylabel("share (± 1.96 standard errors)")
    return _png(figure)


def _importance_picture(model: TrainedModel) -> bytes:
    shown = [(name, share) for name, share in model.importance[:_FEATURES] if share > 0][::-1]
    selection = model.manifest.selection
    title = "Share of the boosters' gain"
    if selection is not None:
        title += f"; share of {selection.folds} folds that selected the feature in brackets"
    names = [
        name if selection is None else f"{name} ({selection.frequency.get(name, 0.0):.0%})"
        for name, _ in shown
    ]
    figure, axis = _figure(title)
    figure.set_size_inches(7.8, 1.0 + 0.2 * len(shown))
    axis.barh(names, [100 * share for _, share in shown], color=_BLUE, height=0.6)
    axis.tick_params(axis="y", labelsize=8)
    axis.set_xlabel("%")
    return _png(figure)
