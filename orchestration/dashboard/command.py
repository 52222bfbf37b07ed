"""`l2 dashboard`: serves the page on loopback, in a process of its own that a worker never waits for.

NiceGUI, because what the browser needs (Vue, Quasar, ECharts, fonts) comes with its wheel: the page works
offline and asks no other host. It only reads the state stream; what acts goes through the worker's
control folder, as the verbs do, and takes a token.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from live.control import state_of
from market.console import Result, say
from market.errors import UsageError
from market.pages import DATA_DOCS, REPORTS
from market.settings import Settings
from orchestration.dashboard.follow import Follower
from orchestration.dashboard.machine import Machine
from orchestration.dashboard.reader import Reader
from orchestration.report_page import write_index
from orchestration.ui import port_of

if TYPE_CHECKING:
    from nicegui import ui
    from starlette.requests import Request
    from starlette.responses import Response

#: What is served of reports, and what such a page may do.
_SERVED: Final = (".html", ".png", ".svg", ".css", ".ico", ".csv", ".json", ".md")
_POLICY: Final = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'"
)
#: Updates a second.
RENEWALS: Final = 5
PAGES: Final = ("market", "execution", "risk", "model", "system")
#: The token of what acts; made at the start where it is not set.
TOKEN: Final = "L2_DASHBOARD_TOKEN"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 dashboard`."""
    parser.add_argument("--again", metavar="LOG", help="a folder of a log: a run of it once more")
    parser.add_argument(
        "--segment",
        type=int,
        default=0,
        metavar="N",
        help="of LOG: of which run; default: the last",
    )
    parser.add_argument("--venue", metavar="NAME", help="default: that of the worker that runs")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    parser.add_argument(
        "--port", type=int, help="default: that of pages.dashboard, 8300; 0 takes a free one"
    )


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """Serve until interrupted. UsageError for a port in use."""
    port = port_of(settings.pages.dashboard, 8300) if options.port is None else options.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, port))
            port = probe.getsockname()[1]
        except OSError as error:
            raise UsageError(
                f"{options.host}:{port}: {error.strerror}; name another with --port"
            ) from error
    token = os.environ.get(TOKEN) or secrets.token_urlsafe(12)
    if options.again:
        from orchestration.dashboard.again import Again  # brings the core, which takes memory

        if Path(options.again).is_file():
            raise UsageError(
                f"{options.again}: is a recording; `l2 live --frames` of it shows here as any worker does, and "
                "leaves a log to be played again"
            )
        follow: Follower = (again := Again(Path(options.again), options.segment))
        settings, token = again.settings, ""  # nothing to order there
    else:
        follow = Follower(state_of(settings, options.venue) / "state.sock")
    with suppress(OSError):  # a lake that may only be read
        if "://" in settings.root or (settings.home / "lake.json").exists():
            write_index(settings)
    serve(follow, settings, options.host, port, token)
    return None


def published(root: Path, path: str) -> Path | None:
    """A file of the lake's reports or Data Docs; None for anything else."""
    if "\0" in path:
        return None
    found = (root / path).resolve()
    allowed = any(
        found.is_relative_to((root / folder).resolve()) for folder in (REPORTS, DATA_DOCS)
    )
    return found if allowed and found.suffix in _SERVED and found.is_file() else None


def _file(root: Path, request: Request) -> Response:
    from starlette.responses import FileResponse, PlainTextResponse

    # A report is a page without scripts that asks nothing of another host, whatever it was made of.
    safe = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
    path = str(request.path_params["path"])
    if (found := published(root, path)) is None:
        said = f"{path}: no such report; `l2 tca --html` makes one"
        return PlainTextResponse(said, 404, headers=safe)
    return FileResponse(found, headers=safe)


def _down(state: Mapping[str, Any]) -> Iterator[str]:
    """What the worker is not connected to, for every page."""
    for name, link in state.get("links", {}).items():
        if not link["up"]:
            yield f"{name}: no connection to the venue" + (
                f" ({link['why']})" if link["why"] else ""
            )


def _header(name: str) -> ui.label:
    """The bar with links to the pages; where the worker's venue, model and phase are shown."""
    from nicegui import ui

    ui.page_title(f"{name} · l2")
    with ui.header().classes("items-center gap-4 py-2 bg-slate-800 text-white flex-wrap"):
        ui.label("l2").classes("text-xl font-bold")
        for page in PAGES:
            link = ui.link(page, f"/{page}").classes("text-white no-underline")
            if page == name:
                link.classes("font-bold border-b-2 border-white").props("aria-current=page")
        return ui.label().classes("ml-auto text-sm tabular-nums").mark("status")


def serve(follow: Follower, settings: Settings, host: str, port: int, token: str) -> None:
    """Serve the pages of a worker until the process is interrupted."""
    from nicegui import app, ui
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from orchestration.dashboard import acts, execution, market, model, risk, system, why

    reader, machine = Reader(settings), Machine(settings)

    # A page of another site that resolves to this machine gets nothing.
    app.add_middleware(
        TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", host]
    )
    app.add_route("/files/{path:path}", lambda request: _file(settings.home, request))

    @ui.page("/")
    def first() -> None:
        ui.navigate.to(f"/{PAGES[0]}")

    def built(name: str, what: str = "") -> None:
        ui.dark_mode(None)
        status = _header(name)
        warning = ui.label().classes(
            "w-full max-w-7xl mx-auto p-3 rounded bg-amber-200 text-black text-base"
        ).mark("warning").props("role=status")  # fmt: skip
        with ui.row().classes("w-full max-w-7xl mx-auto") as choice:
            chosen = ui.toggle(list(settings.market.symbols), value=settings.market.symbols[0])
            chosen.props("no-caps aria-label=symbol")

        played = acts.controls(follow) if follow.is_played else None

        def symbol() -> str:
            return str(chosen.value)

        with ui.column().classes("w-full max-w-7xl mx-auto gap-2") as body:
            renew: Callable[[], None] = {
                "market": lambda: market.build(follow, symbol, reader),
                "execution": lambda: execution.build(follow),
                "risk": lambda: risk.build(follow, settings.market.symbols, token),
                "model": lambda: model.build(follow, symbol, settings.model.primary_s, reader),
                "system": lambda: system.build(follow, machine, settings),
                "why": lambda: why.build(follow.path.parent, reader, what),
            }[name]()

        def tick() -> None:
            silent = follow.status
            if not silent and follow.age_s > 3.0:
                silent = f"the worker has said nothing for {follow.age_s:.0f} s"
            if silent and follow.state and played is None:
                silent += "; what follows is old"
            told = silent or "; ".join(_down(follow.state))
            warning.set_text(told)
            warning.set_visibility(bool(told))
            if worker := follow.state.get("worker"):
                reader.source = worker.get("source", settings.source)
                status.set_text(f"{worker['venue']} · {worker['model']} · {worker['phase']}")
            shown = bool(worker) or name in ("system", "why")
            body.set_visibility(shown)
            choice.set_visibility(shown and name in ("market", "model"))
            if shown:
                renew()
            if played is not None:
                played()

        tick()
        ui.timer(1.0 / RENEWALS, tick)

    for name in PAGES:
        ui.page(f"/{name}")(lambda name=name: built(name))

    @ui.page("/why")
    def explains(order: str = "") -> None:
        built("why", order)

    more = f"  token for what acts: {token}" if token else ""
    app.on_startup(lambda: say(f"the page: http://{host}:{port}/{more}"))
    ui.run(
        host=host, port=port, show=False, reload=False, title="l2", show_welcome_message=False,
        uvicorn_logging_level="warning",
    )  # fmt: skip
