"""Research on a lake, from a column of one's own to a backtest beside the champion, with pictures.

python docs/research_example.py LAKE [FOLDER]      pictures go to FOLDER (here); see docs/research.md
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.impute import SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from execution.algorithms.placement import PassivePeg
from market.settings import FEE_ROWS_BPS
from orchestration.research import Lab, Look

FEATURES = ("ofi_60", "ofi_300", "queue_now", "tfi_60")


def surge(ofi_1: pd.Series, mid_close: pd.Series) -> pd.Series:
    """Order flow of 15 s against its own of 5 minutes; a second without a mid has none."""
    short, long = ofi_1.rolling(15, min_periods=12).mean(), ofi_1.rolling(300, min_periods=240)
    return ((short - long.mean()) / long.std()).where(mid_close.notna())


class Patient(PassivePeg):
    """An algorithm of one's own: ours that waits, and gives up sooner when the venue refuses."""

    max_failures = 2


def main(lake: str, folder: str = ".", features: Sequence[str] = FEATURES) -> list[Look]:
    lab, out = Lab(lake), Path(folder)

    # A table with its units.
    mids = lab.table("bars", columns=["mid_close", "spread_bps"], kind="pandas")
    print(
        mids.groupby("symbol", observed=True)["spread_bps"].describe(),
        mids.attrs["units"],
        sep="\n",
    )

    # Columns of one's own, as SQL and as a function; the last one looks a minute ahead on purpose.
    columns = [
        lab.column("pressure", "avg(ofi_1) over (order by t_ns rows 29 preceding)"),
        lab.column("surge", surge),
        lab.column("oracle", "lead(mid_close, 61) over (order by t_ns) / mid_close - 1"),
    ]
    looks = [lab.feature(column) for column in (features[0], *columns)]
    for look in looks:
        print(look)

    # A model of one's own on them, by walk-forward and on every combinatorial purged path.
    model = make_pipeline(SimpleImputer(), StandardScaler(), Ridge(alpha=100.0))
    chosen = [*features, *columns[:2]]
    walk = lab.judge(model, chosen, "ridge")
    paths = lab.judge(model, chosen, "ridge", folds="combinatorial", groups=5)
    print(walk, paths, sep="\n")
    print("kept as run", lab.keep(walk, "docs/research_example.py"))

    draw_columns(looks, out / "research_columns.png")
    draw_models(walk, paths, out / "research_models.png")
    looks += [walk, paths]

    # What it expected out of sample, over events; an algorithm beside two of ours.
    if "events" in lab.lake.tables() and walk.expectations is not None:
        dates = sorted({day for _, day in lab.lake.partitions("events")})
        first, last = f"{dates[0]}T10:00", f"{dates[-1]}T11:00"
        if pc.max(walk.expectations["t_ns"]).as_py() > pd.Timestamp(first).value:
            looks.append(lab.backtest(walk.expectations, "ridge", first, last))
            print(looks[-1])
            print(
                lab.study({"patient": Patient}, first=first, last=last, symbols=["BTCUSDT"]).text()
            )
    return looks


def draw_columns(looks: Sequence[Look], file: Path) -> None:
    """Rank IC of each column with its 95 % interval, and whether its probes pass."""
    figure, axis = _figure("Rank IC at the primary horizon, 95 % interval")
    for at, look in enumerate(looks):
        ic, low, high = (look.figures[name] for name in ("ic", "ic_low", "ic_high"))
        failed = [probe.name for probe in look.probes if not probe.passed]
        colour = "#c44e52" if failed else "#4c72b0"
        axis.errorbar(at, ic, [[ic - low], [high - ic]], fmt="o", color=colour, capsize=4)
        said = f"fails {', '.join(failed)}" if failed else "probes pass"
        axis.annotate(f"{ic:.3f}\n{said}", (at, high), (0, 6), textcoords="offset points", ha="center",
                      va="bottom", fontsize=8, color=colour)  # fmt: skip
    axis.set_xticks(range(len(looks)), [look.name for look in looks])
    axis.set_xlim(-0.6, len(looks) - 0.2)
    axis.margins(y=0.25)
    axis.axhline(0.0, color="#333333", linewidth=0.7)
    figure.savefig(file, dpi=110)


def draw_models(walk: Look, paths: Look, file: Path) -> None:
    """Rank IC of the model, of its paths and of the baselines; net result by fee row."""
    figure, (left, right) = _figure("A model of one's own, judged as the pipeline's is", 2)
    one = walk.evaluations[0]
    bars = [("walk-forward", one.ic.rank), *((b.name, b.ic) for b in one.baselines)]
    bars[1:1] = [(f"path {n}", e.ic.rank) for n, e in enumerate(paths.evaluations, 1)]
    colours = ["#4c72b0"] * (1 + len(paths.evaluations)) + ["#999999"] * len(one.baselines)
    left.barh([name for name, _ in bars], [ic for _, ic in bars], color=colours)
    left.invert_yaxis()
    left.set_xlabel("rank IC (grey: baselines)")
    rows = {result.row: result for result in one.results}
    for at, row in enumerate(FEE_ROWS_BPS):
        found = rows[row]
        if found.trades:
            low = found.net_lower_bps if np.isfinite(found.net_lower_bps) else found.net_bps
            right.errorbar(
                at, found.net_bps, [[found.net_bps - low], [0]], fmt="o", capsize=4, color="#4c72b0"
            )
        right.annotate(f"{found.trades:,} trades", (at, found.net_bps if found.trades else 0.0), (8, 0),
                       textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    right.set_xticks(range(len(rows)), list(FEE_ROWS_BPS))
    right.set_xlim(-0.5, len(rows) - 0.2)
    right.axhline(0.0, color="#333333", linewidth=0.7)
    right.set_ylabel("net bps a trade, to its 95 % lower bound")
    right.set_xlabel("fee row")
    figure.savefig(file, dpi=110)


def _figure(title: str, columns: int = 1):  # type: ignore[no-untyped-def]
    figure = Figure(figsize=(4.5 + 4.0 * (columns - 1) + 2.5, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns)
    for axis in np.atleast_1d(axes):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure, axes


if __name__ == "__main__":
    main(*sys.argv[1:])
