"""The report of `l2 synth --check`: charts of the synthetic market over recorded ones, and the table.

One self-contained HTML file, or Markdown with pictures beside it. Solid blue is the synthetic market,
dashed lines are the recordings; a recording that is too short for a chart is left out of it.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from market.console import Result, names, say, seeds, significant, table
from market.settings import Settings, with_symbols
from proving.realism import facts, liquidity, metaorders, stylised
from proving.realism.check import DAY, HEAD, HOURS, SEEDS, Checked, check, lines, remarks
from proving.realism.facts import Observations
from proving.realism.metaorders import READ_S, Impact
from proving.realism.observation import PROFILE_BPS
from proving.realism.stylised import Floats

_BLUE: Final = "#2b5c9e"
_GREYS: Final = ("#8c8c8c", "#c9803a", "#5b9a68", "#8a63a8")
_MARKOUT_S: Final = (0.1, 0.5, 1, 2, 5, 10, 20, 30)
_SIGNATURE_S: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200)

_READING: Final = """\
Values stand with their 95 % interval (jackknife over blocks of two hours; of recordings, of some forty
seconds) and the number of observations. Accepted ranges come from what is known of markets in general,
or span the recordings and a tenth more (depth half-lives and tail indices: three tenths), because one
recorded day differs from the next by more than any such share. Distributions are compared by their
Kolmogorov–Smirnov distance to the nearest recording; 0.1 is accepted, or the distance between the
recordings. *In*: inside the range. *open*: outside, but the interval of the market or of a recording
reaches over. *OUT*: outside for certain. *reported*: no range applies. *too short*: needs more time.

Fills and markouts are those of hypothetical orders of one lot placed at the touch every second, which
wait 30 s at the front or at the back of the queue; the back moves forward by prints only. Impact is the
difference between two markets of one seed, with and without injected metaorders.
"""

_STYLE: Final = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2rem auto; max-width: 78rem;
       padding: 0 1rem; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { text-align: right; padding: .18rem .6rem; border-bottom: 1px solid #ececec; }
th:first-child, td:first-child { text-align: left; }
td:last-child, th:last-child { text-align: left; }
tr.in td:last-child { color: #2e7d4f; }
tr.open td:last-child, tr.short td:last-child { color: #8a6d1a; }
tr.out td { background: #fbeceb; } tr.out td:last-child { color: #b3261e; font-weight: 600; }
img { width: 100%; } small { color: #666; } h1, h2 { font-weight: 600; }
"""


def write(checked: Checked, path: Path) -> None:
    """Write the report: HTML with its pictures inside, or, if the name ends in ``.md``, Markdown with
    the pictures in files beside it."""
    if path.suffix != ".md":
        path.write_text(page(checked), encoding="utf-8")
        return
    images = {}
    for symbol in checked.rows:
        image = path.with_name(f"{path.stem}-{symbol.lower()}.png")
        image.write_bytes(pictures(checked, symbol))
        images[symbol] = image.name
    path.write_text(markdown(checked, images), encoding="utf-8")


def _summary(checked: Checked) -> str:
    verdicts = ", ".join(f"{count} {name}" for name, count in sorted(checked.counted().items()))
    seeds = ", ".join(map(str, checked.seeds))
    return (
        f"Profile {checked.profile}, seeds {seeds}, {checked.hours:g} h of each; synthetic and "
        f"recorded books alike conflated to 100 ms. {verdicts}."
    )


def markdown(checked: Checked, images: Mapping[str, str]) -> str:
    """The report as Markdown; ``images`` names the picture of each symbol."""
    command = (
        f"    l2 synth --check --profile {checked.profile} --seeds {','.join(map(str, checked.seeds))} "
        f"--hours {checked.hours:g} --recordings DIR --page FILE.md"
    )
    title = "# The synthetic market beside recordings"
    parts = [title, _summary(checked), command, _READING.strip()]
    for symbol, rows in checked.rows.items():
        names = ", ".join(each.label for each in rows[0].recorded) or "none"
        table = [HEAD, ("---",) * len(HEAD), *lines(rows)]
        parts += [
            f"## {symbol}",
            f"![pictures of {symbol}]({images[symbol]})",
            f"Recordings, in this order: {names}.",
            "\n".join(
                "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table
            ),
        ]
    notes: dict[str, str] = {}
    for row in (row for rows in checked.rows.values() for row in rows if row.note):
        notes[row.name] = max(row.note, notes.get(row.name, ""), key=len)
    parts += ["## Notes", "\n".join(f"- *{name}*: {note}." for name, note in notes.items())]
    return "\n\n".join(parts) + "\n"


def page(checked: Checked) -> str:
    """The report as HTML."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<title>Synthetic market: {html.escape(checked.profile)}</title><style>{_STYLE}</style>",
        f"<h1>Synthetic market <q>{html.escape(checked.profile)}</q> beside recordings</h1>",
        f"<p>{html.escape(_summary(checked))}</p>",
    ]
    for symbol, rows in checked.rows.items():
        image = base64.b64encode(pictures(checked, symbol)).decode()
        head = "".join(f"<th>{html.escape(title)}</th>" for title in HEAD)
        body = "".join(
            f"<tr class='{_class(line[-1])}'>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in line)
            + "</tr>"
            for line in lines(rows)
        )
        notes = "".join(
            f"<li>{html.escape(row.name)}: {html.escape(row.note)}</li>" for row in rows if row.note
        )
        names = ", ".join(each.label for each in rows[0].recorded) or "none"
        parts += [
            f"<h2>{html.escape(symbol)}</h2>",
            f"<img alt='pictures of {html.escape(symbol)}' src='data:image/png;base64,{image}'>",
            f"<p><small>Recordings, in this order: {html.escape(names)}.</small></p>",
            f"<table><tr>{head}</tr>{body}</table><small><ul>{notes}</ul></small>",
        ]
    return "\n".join([*parts, "</html>"])


def _class(verdict: str) -> str:
    return verdict.lower().split()[-1]


def pictures(checked: Checked, symbol: str) -> bytes:
    """Twelve charts of one symbol as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    market, recorded = checked.markets[symbol], checked.recorded[symbol]
    drawn: list[tuple[str, Observations, dict[str, Any]]] = [
        ("synthetic", market, {"color": _BLUE, "lw": 1.8, "zorder": 3})
    ]
    drawn += [
        (each.label, [each], {"color": colour, "lw": 1.2, "ls": "--"})
        for each, colour in zip(recorded, _GREYS, strict=False)
    ]
    figure, grid = plt.subplots(4, 3, figsize=(15, 16), layout="constrained")
    draw = (
        _price,
        _returns,
        _autocorrelations,
        _signs,
        _signature,
        _spread,
        _profile,
        _flow,
        _recovery,
        _fills,
        _markouts,
    )
    for axes, picture in zip(grid.flat, draw, strict=False):
        picture(axes, drawn)
        axes.spines[["top", "right"]].set_visible(False)
    _impact(grid.flat[len(draw)], checked.impacts[symbol])
    grid.flat[len(draw)].spines[["top", "right"]].set_visible(False)
    grid.flat[1].legend(fontsize=8, frameon=False)
    out = io.BytesIO()
    figure.savefig(out, dpi=80, metadata={"Software": None})
    plt.close(figure)
    return out.getvalue()


Drawn = Sequence[tuple[str, Observations, dict[str, Any]]]


def _price(axes: Any, drawn: Drawn) -> None:
    """The first synthetic day: its mid by the minute."""
    first = drawn[0][1][0]
    mid = first.bars["mid_close"][59::60]
    axes.plot(np.arange(1, len(mid) + 1) / 60, mid, color=_BLUE, lw=0.8)
    axes.set(title=f"mid, {first.label}", xlabel="h")


def _returns(axes: Any, drawn: Drawn) -> None:
    edges = np.linspace(-8, 8, 65)
    for name, market, style in drawn:
        moves = stylised.pooled(facts.returns(market, 1))
        if len(moves) < 300 or moves.std() == 0:
            continue
        share, _ = np.histogram((moves - moves.mean()) / moves.std(), edges, density=True)
        axes.plot(
            (edges[1:] + edges[:-1]) / 2, np.where(share > 0, share, np.nan), label=name, **style
        )
    x = np.linspace(-4.5, 4.5, 91)
    axes.plot(
        x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), color="k", lw=0.7, ls=":", label="normal"
    )
    axes.set(yscale="log", ylim=(1e-5, 3), title="returns of 1 s", xlabel="standard deviations")


def _autocorrelations(axes: Any, drawn: Drawn) -> None:
    for _, market, style in drawn:
        longest = min(600, min(obs.seconds for obs in market) // 4)
        if longest < 60:
            continue
        lags = np.arange(1, longest + 1)
        axes.plot(lags, facts.magnitude_memory(market, 1, longest), **style)
        plain = stylised.autocorrelation(facts.returns(market, 1), longest)
        axes.plot(lags, plain, **{**style, "lw": 0.6, "alpha": 0.7})
    axes.axhline(0, color="k", lw=0.5)
    axes.set(
        xscale="log",
        ylim=(-0.15, 0.6),
        title="autocorrelation of |r| (thick) and r (thin), 1 s",
        xlabel="lag, s",
    )


def _signs(axes: Any, drawn: Drawn) -> None:
    for _, market, style in drawn:
        if facts.orders(market) < 2000:
            continue
        curve = facts.sign_correlation(market, 500)
        edges = np.unique(np.geomspace(1, 500, 24).astype(int))
        middle = [float(np.mean(curve[a - 1 : b - 1])) for a, b in itertools.pairwise(edges)]
        axes.plot(edges[:-1], np.where(np.array(middle) > 0, middle, np.nan), **style)
    axes.set(
        xscale="log", yscale="log", title="autocorrelation of order signs", xlabel="lag, orders"
    )


def _signature(axes: Any, drawn: Drawn) -> None:
    for _, market, style in drawn:
        longest = min(obs.seconds for obs in market) // 8
        steps = [step for step in _SIGNATURE_S if step <= longest]
        if len(steps) > 1:
            axes.plot(steps, [math.sqrt(facts.signature(market, step)) for step in steps], **style)
    axes.set(
        xscale="log",
        title="signature: √RV per second, bps",
        xlabel="return over, s",
        ylim=(0, None),
    )


def _spread(axes: Any, drawn: Drawn) -> None:
    for _, market, style in drawn:
        spread = stylised.pooled([obs.frames["ask"] - obs.frames["bid"] for obs in market])
        ticks = np.unique(np.geomspace(1, 500, 40).astype(int))
        share = np.array([np.mean(spread > tick) for tick in ticks])
        axes.plot(ticks, np.where(share > 0, share, np.nan), **style)
    axes.set(
        xscale="log", yscale="log", title="share of frames with a wider spread", xlabel="ticks"
    )


def _profile(axes: Any, drawn: Drawn) -> None:
    for _, market, style in drawn:
        bid, ask = facts.mean_profile(market) / 1e6
        axes.plot(-PROFILE_BPS, bid, **style)
        axes.plot(PROFILE_BPS, ask, **style)
    axes.set(title="depth up to a distance, million quote", xlabel="bps from mid", ylim=(0, None))


def _flow(axes: Any, drawn: Drawn) -> None:
    """Mean return by the imbalance of the same, and of the preceding, ten seconds."""
    for _, market, style in drawn:
        flow, same = facts.same_bar(market, 10)
        after = np.concatenate([np.append(part[1:], np.nan) for part in _split(same, market)])
        if len(flow) < 30:
            continue
        edges = np.quantile(flow, np.linspace(0, 1, 13 if len(flow) > 500 else 6))
        place = np.clip(np.searchsorted(edges, flow, "right") - 1, 0, len(edges) - 2)
        scale = flow.std()
        at = [facts.mean([flow[place == n] / scale]) for n in range(len(edges) - 1)]
        axes.plot(at, [facts.mean([same[place == n]]) for n in range(len(at))], **style)
        axes.plot(
            at,
            [facts.mean([after[place == n]]) for n in range(len(at))],
            **{**style, "lw": 0.7},
        )
    axes.axhline(0, color="k", lw=0.5)
    axes.set(
        title="mean 10 s return by OFI: same bar (thick), next (thin), bps",
        xlabel="OFI, standard deviations",
    )


def _split(values: Floats, market: Observations) -> list[Floats]:
    """Ten-second returns, split again by observation."""
    sizes = [max(0, obs.seconds // 10 - 1) for obs in market]
    return np.split(values, np.cumsum(sizes)[:-1])


def _recovery(axes: Any, drawn: Drawn) -> None:
    for _, market, style in drawn:
        if facts.seconds(market) < 300:
            continue
        lags = 0.1 * np.arange(1, 101)
        axes.plot(lags, liquidity.depth_memory(market, 100), **style)
    axes.axhline(0.5, color="k", lw=0.5, ls=":")
    axes.set(title="autocorrelation of log depth within 1 bps", xlabel="s", ylim=(-0.2, 1))


def _fills(axes: Any, drawn: Drawn) -> None:
    """Time to fill: front thick, back thin."""
    at = np.linspace(0.1, 30, 200)
    for _, market, style in drawn:
        if facts.probes(market) < 200:
            continue
        for back, width in ((0, 1.8), (1, 0.8)):
            waited = np.sort(liquidity.time_to_fill(market, back))
            share = np.searchsorted(waited, at, "right") / len(waited)
            axes.plot(at, share, **{**style, "lw": width})
    axes.set(title="filled within: front of queue (thick), back (thin)", xlabel="s", ylim=(0, 1.02))


def _markouts(axes: Any, drawn: Drawn) -> None:
    for _, market, style in drawn:
        if facts.probes(market) < 200:
            continue
        for back, width in ((0, 1.8), (1, 0.8)):
            means = [facts.mean([liquidity.markouts(market, back, after)]) for after in _MARKOUT_S]
            axes.plot(_MARKOUT_S, means, **{**style, "lw": width})
    axes.axhline(0, color="k", lw=0.5)
    axes.set(
        xscale="log", title="markout of fills: front (thick), back (thin), bps", xlabel="s after"
    )


def _impact(axes: Any, impacts: Sequence[Impact]) -> None:
    """Impact of injected metaorders over time, by size."""
    if not any(len(each.path) for each in impacts):
        axes.text(0.5, 0.5, "no metaorders were injected", ha="center", transform=axes.transAxes)
        return
    for place, each in enumerate(impacts):
        shade = 0.25 + 0.75 * (place + 1) / len(impacts)
        axes.plot(
            READ_S,
            np.nanmean(each.path, axis=0),
            color=_BLUE,
            alpha=shade,
            lw=1.4,
            label=f"{each.share:.0%} of volume",
        )
    axes.axvline(metaorders.DURATION_S, color="k", lw=0.5, ls=":")
    axes.legend(fontsize=8, frameon=False)
    delta = significant(metaorders.concavity(list(impacts)))
    axes.set(title=f"impact of metaorders, bps; exponent of quantity {delta}", xlabel="s")


# -- the verb --------------------------------------------------------------------------------------


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """`l2 synth --check`: the table on standard output, the pictures in a page."""
    settings = with_symbols(settings, names(options.symbols))
    checked = check(
        settings,
        name=options.profile or settings.synthetic.profile,
        seeds=seeds(options.seeds) or SEEDS,
        hours=HOURS if options.hours is None else options.hours,
        day=options.day or DAY,
        folder=Path(options.recordings) if options.recordings else None,
        only=options.only,
        workers=options.workers,
        say=say,
    )
    if not options.json:
        for symbol, rows in checked.rows.items():
            print(f"\n{symbol}\n{table(lines(rows), HEAD)}\n")
            print(table(remarks(rows)))
    say(", ".join(f"{count} rows {verdict}" for verdict, count in checked.counted().items()))
    result = {"failed": checked.counted().get("OUT", 0) > 0, **checked.data()}
    if options.only:
        return result
    target = Path(options.page or "synthetic-check.html")
    write(checked, target)
    say(f"pictures in {target}")
    return {"page": str(target), **result}
