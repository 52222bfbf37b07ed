"""What acts on the page: an operator's command, with token and reason, and the controls of a log."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any, Final

from nicegui import run, ui

from live.control import send
from live.messages import Command
from market.console import utc_time
from market.errors import L2Error
from market.units import SECOND_NS
from orchestration.dashboard.follow import Follower

#: Of a log that is played.
SPEEDS: Final = (1, 4, 16, 64)


def order(follow: Follower, verb: str, symbol: str, token: str) -> None:
    """Ask for token and reason, then send the command."""
    with ui.dialog() as dialog, ui.card().classes("w-96"):
        ui.label(f"{verb.capitalize()} {symbol or 'all symbols'}?").classes("text-lg")
        reason = ui.input("Reason, kept on record").classes("w-full").props("autofocus")
        given = ui.input("Token", password=True).classes("w-full")
        said = ui.label().classes("text-negative")

        async def go() -> None:
            # Of a log, which nobody orders, there is no token: an empty one never fits.
            if not (token and hmac.compare_digest((given.value or "").encode(), token.encode())):
                said.set_text(
                    "wrong token: it is in the line that `l2 dashboard` printed at its start"
                )
                return
            if not (reason.value or "").strip():
                said.set_text("a reason is kept on record: say why")
                return
            command = Command(command=verb, who="page", reason=reason.value.strip(), symbol=symbol)
            try:
                await run.io_bound(send, follow.path.parent, command)
            except L2Error as error:
                said.set_text(str(error))
                return
            dialog.close()
            ui.notify(f"{verb}: done", type="positive")

        with ui.row():
            ui.button(f"Yes, {verb}", color="negative", on_click=go)
            ui.button("Cancel", on_click=dialog.close).props("flat")
    dialog.open()


def _turn(again: Any) -> str:
    return "Play" if again.paused else "Pause"


def controls(again: Any) -> Callable[[], None]:
    """Play, pause, speed and time of an `again.Again`."""
    with ui.row().classes("items-center gap-4 w-full max-w-7xl mx-auto"):
        button = ui.button(_turn(again)).props("dense no-caps")

        def turn() -> None:
            again.paused = not again.paused
            button.set_text(_turn(again))

        button.on_click(turn)
        speed = ui.toggle({each: f"{each} x" for each in SPEEDS}, value=int(again.speed))
        speed.props("dense no-caps").on_value_change(lambda e: setattr(again, "speed", e.value))
        span_s = max(1, (again.ends_ns - again.begins_ns) // SECOND_NS)
        slider = ui.slider(min=0, max=span_s, value=0).classes("grow").props("aria-label=time")
        slider.on("change", lambda e: again.jump(again.begins_ns + int(e.args) * SECOND_NS))
        at = ui.label().classes("tabular-nums").mark("time")

    def renew() -> None:
        at.set_text(utc_time(again.now_ns))
        slider.set_value((again.now_ns - again.begins_ns) // SECOND_NS)

    return renew
