"""The page in headless Chromium, over a worker that trades on the exchange on loopback."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from live.state_stream import StateStream, read_states
from market.console import NONE, fixed, percent
from market.instruments import BUILT_IN
from orchestration.cli import main
from orchestration.dashboard.command import PAGES
from proving.bench.page import served
from tests.live.live_market import promote
from tests.live.loopback_worker import SYMBOLS, Worker, holds, serving
from tests.orchestration.browser import CHROMIUM, Tab, browser
from tests.proving.sandbox_server import eventually

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

TOKEN = "the token"
HOSTILE = '<img src="x" onerror="document.title=1"> & "why"'


@contextmanager
def page(root: Path, *more: str) -> Iterator[str]:
    """The page's address; its process is of its own."""
    with served(root, *more, L2_DASHBOARD_TOKEN=TOKEN) as (process, address):
        yield address
        process.send_signal(signal.SIGINT)  # killed, or at SIGTERM, nothing of it is measured
        process.wait(60)


def click(tab: Tab, text: str) -> None:
    tab.until(
        f"(() => {{ const b = [...document.querySelectorAll('button')].find("
        f"b => b.innerText.toLowerCase() === {json.dumps(text.lower())});"
        " if (b) b.click(); return !!b })()"
    )


def type_in(tab: Tab, label: str, text: str) -> None:
    tab.until(
        f"(() => {{ const i = document.querySelector('input[aria-label={json.dumps(label)}]');"
        " if (!i) return false; Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value')"
        f".set.call(i, {json.dumps(text)}); i.dispatchEvent(new Event('input')); return true }})()"
    )


def figure(name: str) -> str:
    """The expression of a labelled figure's text."""
    return (
        "([...document.querySelectorAll('.text-xs')].find(e => e.innerText === "
        f"{json.dumps(name)})?.nextSibling?.innerText)"
    )


def agree(tab: Tab, lines: Iterator[dict[str, Any]], script: str, of: Callable[..., Any]) -> str:
    """What a page shows by an expression and the worker told about the same time; other than nothing."""
    shown, told, state = set[str](), set[str](), dict[str, Any]()
    deadline = time.monotonic() + 120
    while not shown & told - {"", NONE}:
        assert time.monotonic() < deadline, (script, shown, told)
        line = next(lines).get("state", {})  # a patch of what was told before
        for section, patch in line.items():
            merged = state.get(section, {}) | patch
            state[section] = {k: v for k, v in merged.items() if v is not None}
        told |= {text for text in of(state) if text}
        shown.add(str(tab.run(script)))
    return (shown & told).pop()


def cell(heading: str, column: int, row: str = "") -> str:
    """The expression of a cell in the table below a heading, of the first row or that which begins so."""
    return (
        "(() => { const h = [...document.querySelectorAll('[role=heading]')].find("
        f"e => e.innerText === {json.dumps(heading)});"
        " const t = h && [...document.querySelectorAll('table')].find("
        "t => h.compareDocumentPosition(t) & Node.DOCUMENT_POSITION_FOLLOWING);"
        " const r = [...t?.querySelectorAll('tbody tr') ?? []].find("
        f"r => r.innerText.startsWith({json.dumps(row)}));"
        f" return r?.children[{column}]?.innerText.trim() ?? '' }})()"
    )


def state_of(worker: Worker) -> dict[str, Any]:
    return worker.until(lambda state: True)


def test_without_a_worker_the_page_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with page(tmp_path) as address, browser() as tab:
        for name in PAGES:
            tab.open(f"{address}{name}")
            tab.until(
                "document.body.innerText.includes('no worker runs; start one with `l2 live`')"
            )
        assert tab.errors == []


def test_a_stream_of_another_version_and_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    state = tmp_path / "live" / "sandbox"
    state.mkdir(parents=True)
    stream = StateStream(state / "state.sock")
    try:
        with page(tmp_path) as address, browser() as tab:
            stream.publish({"worker": {"time_ns": time.time_ns(), "phase": HOSTILE, "venue": "v",
                                       "run": "r", "model": HOSTILE},
                            "links": {"private": {"up": False, "since_ns": 1, "why": HOSTILE}},
                            "account": {"equity": 1.0, "peak": 1.0, "day_result": 0.0}})  # fmt: skip
            tab.open(f"{address}system")
            tab.until(f"{figure('phase')} === {json.dumps(HOSTILE)}")
            for name in PAGES:  # each says that the worker has lost its venue
                tab.open(f"{address}{name}")
                lost = json.dumps(f"private: no connection to the venue ({HOSTILE})")
                tab.until(f"document.body.innerText.includes({lost})")
                assert tab.run("document.querySelectorAll('img').length") == 0
    finally:
        stream.close()


def test_the_page_shows_the_worker_obeys_an_operator_and_outlives_a_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promote(tmp_path)
    with serving(*SYMBOLS) as exchange, page(tmp_path) as address, browser() as tab:
        worker = Worker(tmp_path, exchange)
        worker.until(holds)

        # Each page renders, and its numbers are the worker's own.
        for name in PAGES:
            for width, dark in ((1440, False), (390, True)):
                tab.open(f"{address}{name}", width, dark=dark)
                tab.until("document.body.innerText.includes('trading')")
                assert tab.run("document.documentElement.scrollWidth") <= width
        lines = read_states(worker.state / "state.sock", 5)
        tick, btc = BUILT_IN["BTCUSDT"].tick_size, "BTCUSDT"
        tab.open(f"{address}market")
        agree(tab, lines, figure("mid"), lambda state: [
            f"{(m['bids'][0][0] + m['asks'][0][0]) / 2 * tick:,.2f}"
            for m in [state.get("markets", {}).get(btc)] if m
        ])  # fmt: skip
        agree(tab, lines, cell("Trades", 2), lambda state: [
            f"{trade[2] * tick:,.1f}" for trade in state.get("markets", {}).get(btc, {}).get("trades", [])[:1]
        ])  # fmt: skip
        # What moved the prediction sums to it.
        parts = (
            "[...document.querySelectorAll('table')].at(-1).innerText.match(/[+-][0-9]+[.][0-9]{3}(?![0-9])/g)"
            "?.reduce((a, b) => a + Number(b), 0)"
        )
        tab.until(f"Number.isFinite({parts})")
        agree(tab, lines, f"String(Math.round({parts} * 50))", lambda state: [
            str(round(row["decision"]["raw_bps"] * 50) + near)
            for row in [state.get("symbols", {}).get(btc)]
                if row and row["decision"] and row["decision"]["raw_bps"] is not None for near in (-1, 0, 1)
        ])  # fmt: skip
        tab.open(f"{address}execution")
        for column, name in ((6, "ahead_lots"), (7, "fill_chance")):
            agree(tab, lines, cell("Open orders", column), lambda state, name=name: [
                f"{row[name]:,} lots" if name == "ahead_lots" else percent(row[name])
                for row in list(state.get("orders", {}).values())[:1] if name in row
            ])  # fmt: skip
        agree(tab, lines, cell("Parents at work", 8), lambda state: [
            fixed(row["estimate_bps"], 3) for row in list(state.get("parents", {}).values())[:1]
        ])  # fmt: skip
        parent = tab.until(cell("Parents at work", 0))
        tab.open(f"{address}risk")
        agree(tab, lines, cell("Correlated exposure and liquidation", 1, btc), lambda state: [
            f"{fixed(row['own_usdt'], 0)} USDT" for row in [state.get("exposure", {}).get(btc)] if row
        ])  # fmt: skip
        agree(tab, lines, cell("Limits", 1, "gross usdt"), lambda state: [
            f"{used:,.0f}" for used in [state.get("used", {}).get("gross_usdt", 0)] if used >= 1000
        ])  # fmt: skip
        tab.open(f"{address}model")
        tab.until("document.body.innerText.includes('no served decision with its label')")
        for what, said in ((parent, f"parent {parent}"), (HOSTILE, "neither an id")):
            tab.open(f"{address}why?order={urllib.parse.quote(what)}")
            tab.until(f"document.body.innerText.includes({json.dumps(said)})")
            assert tab.run("document.querySelectorAll('img').length") == 0

        # So do they in a terminal; the worker may be reconciling at any moment.
        def status() -> str:
            assert main(["status", "--root", str(tmp_path), "--venue", "sandbox"]) == 0
            text = capsys.readouterr().out
            return text if text.startswith("sandbox, synthetic-l2 1, trading, ") else ""

        text = eventually(status)
        assert re.search(r"^BTCUSDT +normal +-?\d+ +-?\d+ ", text, re.MULTILINE)

        # Updates arrive without a reload.
        tab.open(f"{address}market")
        tab.until("document.body.innerText.includes('trading')")
        tab.run(
            "window.seen = new Set(); setInterval(() => window.seen.add(document.body.innerText), 50)"
        )
        tab.until("window.seen.size >= 12")

        # Nothing acts without the token; a halt halts, and its reason is text.
        tab.open(f"{address}risk")
        click(tab, "halt")
        type_in(tab, "Reason, kept on record", HOSTILE)
        type_in(tab, "Token", "another")
        click(tab, "yes, halt")
        tab.until("document.body.innerText.includes('wrong token')")
        assert {row["mode"] for row in state_of(worker)["symbols"].values()} <= {"normal", "pause"}
        type_in(tab, "Token", TOKEN)
        click(tab, "yes, halt")
        state = worker.until(lambda state: state["symbols"]["BTCUSDT"]["mode"] == "halt")
        assert HOSTILE in state["symbols"]["BTCUSDT"]["why"]
        tab.until(f"document.body.innerText.includes({json.dumps(HOSTILE)})")

        # A worker that dies is said, and the next one is followed.
        worker.kill()
        tab.until("/says nothing|no worker runs|cannot be read/.test(document.body.innerText)")
        worker = Worker(tmp_path, exchange)
        worker.until(lambda state: state["worker"]["phase"] == "trading")
        tab.until(
            "!/says nothing|has said nothing|cannot be read/.test(document.body.innerText)"
            " && document.body.innerText.includes('trading')"
        )
        worker.stop()
        assert tab.errors == []
        assert tab.hosts == {address.split("/")[2]}

    # The log of the run that was halted shows it again, as fast as asked, and takes no orders.
    log = str(worker.state / "log")
    with page(tmp_path, "--again", log, "--segment", "1") as address, browser() as tab:
        tab.open(f"{address}risk")
        click(tab, "64 x")
        tab.until(f"document.body.innerText.includes({json.dumps(HOSTILE)})")
        assert not tab.run("/halt|flatten/i.test([...document.querySelectorAll('button')].map("
                           "b => b.innerText).join())")  # fmt: skip
        tab.until("document.body.innerText.includes('the log ends here')")
        click(tab, "pause")
        tab.open(f"{address}market")
        tab.until("[...document.querySelectorAll('button')].some(b => /play/i.test(b.innerText))")
        assert tab.errors == []
