"""One picture per row of certification: every line's figure with its bounds, passed or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from proving.certify.verdict import Line


def draw(path: Path, lines: Sequence[tuple[Line, str]]) -> None:
    """Write a row's picture; each line has an axis of its own, as its figures have their own units."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(
        len(lines), 1, figsize=(7.5, 0.75 * len(lines) + 0.4), squeeze=False, layout="constrained"
    )
    for axis, (one, status) in zip(axes[:, 0], lines, strict=True):
        colour = {"pass": "tab:green", "FAIL": "tab:red"}.get(status, "tab:gray")
        low, high = (x if math.isfinite(x) else one.figure for x in (one.low, one.high))
        axis.plot([low, high], [0, 0], color=colour, lw=3, solid_capstyle="butt")
        axis.plot([one.figure], [0], "o", color=colour)
        axis.set_yticks([])
        axis.margins(x=0.25)
        axis.tick_params(labelsize=7)
        axis.set_title(
            f"{one.what}: {one.figure:.3g}   needs {one.needs}   {one.seeds} seeds   {status}",
            fontsize=8, loc="left", pad=2,
        )  # fmt: skip
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    figure.savefig(path, dpi=80, metadata={"Software": None})
    plt.close(figure)
