"""`l2 watch`: a small process that says when a worker, a recorder or the daily run is late, which they cannot.

It follows the worker's state stream, looks at the newest capture and at yesterday's bars, and sends through
Apprise (mail, chat, webhook) to the addresses in the environment variable ``L2_NOTIFY``, separated by spaces,
since they hold secrets; without it, it prints. A subject is said once, again when it is over, and while it lasts
every ``notify.again_s`` at most.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from live.control import state_of
from live.shadow import decay_alarm
from market.console import Result, say
from market.errors import L2Error, UsageError
from market.lake import Lake
from market.settings import Settings
from market.units import DAY_NS, utc_date
from orchestration.dashboard.follow import Follower
from orchestration.dashboard.machine import newest_capture

NOTIFY: Final = "L2_NOTIFY"
#: How often everything is looked at, and how long the daily run may take after its time (seconds).
_EVERY_S: Final = 2.0
_DAILY_S: Final = 2 * 3600.0
#: Messages are so far apart (seconds), of so many lines at most.
_APART_S: Final = 30.0
_TOGETHER: Final = 20


class Subject(NamedTuple):
    """Something that is wrong now, by a name that stays while it lasts."""

    name: str
    text: str


class Watch:
    """What is wrong, from one look to the next; ``clock`` gives epoch seconds."""

    def __init__(
        self, settings: Settings, follow: Follower, recorder: bool, clock: Callable[[], float]
    ) -> None:
        self._settings, self._follow, self._recorder, self._clock = (
            settings,
            follow,
            recorder,
            clock,
        )
        self._lake = Lake(settings.root, settings.source)
        self._alarm, self._alarm_s = decay_alarm(settings), 0.0
        self._began = self._read_s = clock()
        self._run, self._fills, self._seen, self._due = "", 0, False, ""

    def look(self) -> Iterator[Subject]:
        """Everything that is wrong now."""
        yield from self._worker()
        if (alarm_s := self._alarm.look()) is not None:
            self._alarm_s = alarm_s
        if self._alarm_s:
            day = utc_date(int(self._alarm_s * 1e9))
            yield Subject("decay", f"the model's predictions decay since {day}: docs/decay.md")
        try:
            if self._recorder:
                yield from self._captures()
            if self._settings.pipeline.daily != "off" and self._settings.source == "recorded":
                yield from self._daily()
        except (L2Error, OSError) as error:
            yield Subject("lake", f"the lake cannot be read: {error}")

    def _worker(self) -> Iterator[Subject]:
        follow, patience_s = self._follow, self._settings.notify.silence_s
        if follow.age_s > patience_s and (self._seen or self._clock() - self._began > patience_s):
            why = follow.status or "its stream stands still"
            yield Subject("worker silent", f"no word of the worker for {patience_s:g} s: {why}")
        if not follow.state:
            if follow.age_s <= patience_s < self._clock() - self._read_s:
                yield Subject("worker not understood", follow.status or "it tells no state")
            return
        self._seen, self._read_s = True, self._clock()
        for symbol, row in follow.state["symbols"].items():
            if row["mode"] not in ("normal", "passive"):
                why = "; ".join(row["why"]) or "no reason is told"
                yield Subject(f"{symbol} {row['mode']}", f"{symbol}: {row['mode']} ({why})")

    def news(self) -> Iterator[str]:
        """What happened since the last call and is over: restarts, and fills where they are asked for."""
        state = self._follow.state
        if not state:
            return
        run, fills = state["worker"]["run"], int(state.get("costs", {}).get("fills", 0))
        if run != self._run:
            if self._run:
                yield f"the worker was started again: {run}"
            self._run, self._fills = run, fills
        if fills > self._fills and self._settings.notify.fills:
            yield f"{fills - self._fills} executions"
        self._fills = fills

    def _captures(self) -> Iterator[Subject]:
        now, limit_s = self._clock(), self._settings.notify.silence_s
        newest = newest_capture(self._lake, now)
        written = 0.0 if newest is None else newest.written_s
        if now - written > limit_s and now - self._began > limit_s:
            yield Subject("recorder", f"no capture was written to for {limit_s:g} s: `l2 record`")

    def _daily(self) -> Iterator[Subject]:
        now_ns = int(self._clock() * 1e9)
        hour, minute = map(int, self._settings.pipeline.daily.split(":"))
        if now_ns % DAY_NS >= (hour * 3600 + minute * 60 + _DAILY_S) * 1e9:
            self._due = utc_date(
                now_ns - DAY_NS
            )  # until the next one is: late stays late at midnight
        symbols = self._settings.market.symbols if self._due else ()
        missing = [s for s in symbols if not self._lake.exists("bars", s, self._due)]
        if missing:
            yield Subject(
                "daily run", f"no bars of {self._due} for {', '.join(missing)}: see `l2 ui`"
            )


class Notifier:
    """Prints lines, and sends them: at once, but the next ones together `_APART_S` later at the soonest.

    What a service refuses is sent again `_APART_S` later. ``clock`` is monotonic.
    """

    def __init__(self, addresses: str, clock: Callable[[], float] = time.monotonic) -> None:
        import apprise

        self._send, self._clock = apprise.Apprise(), clock
        self._waiting: list[str] = []
        self._sent_s, self._refused = -_APART_S, False
        for number, address in enumerate(addresses.split(), 1):
            if not self._send.add(address):
                # Not the address itself: it holds secrets.
                raise UsageError(f"{NOTIFY}: address {number} is none that Apprise knows")

    def __call__(self, text: str) -> None:
        say(text)
        self._waiting.append(text)
        self.send()

    def send(self, last: bool = False) -> None:
        """Send what waits, if it is time or the ``last`` that is sent."""
        if not self._waiting or not (last or self._clock() - self._sent_s >= _APART_S):
            return
        told, more = self._waiting[:_TOGETHER], len(self._waiting) - _TOGETHER
        body = "\n".join([*told, *([f"and {more} more"] if more > 0 else [])])
        self._sent_s = self._clock()
        # What comes from the worker is text: a service is not to read it as HTML or Markdown.
        if len(self._send) and not self._send.notify(body=body, title="l2", body_format="text"):
            if not self._refused:
                say("a service did not take it; it is sent again until it does")
            self._refused = True
            return
        self._waiting, self._refused = [], False


class Told:
    """Which subjects were said, and when: each once, again after a while, and when it is over."""

    def __init__(self, tell: Callable[[str], None], again_s: float) -> None:
        self._tell, self._again_s = tell, again_s
        self._since: dict[str, float] = {}

    def __call__(self, now_s: float, subjects: Iterator[Subject]) -> None:
        found = {subject.name: subject.text for subject in subjects}
        for name, text in found.items():
            if now_s - self._since.get(name, -1e18) >= self._again_s:
                self._since[name] = now_s
                self._tell(text)
        for name in self._since.keys() - found.keys():
            del self._since[name]
            self._tell(f"over: {name}")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `l2 watch`."""
    parser.add_argument("--venue", metavar="NAME", help="default: that of the worker that runs")
    parser.add_argument("--recorder", action="store_true", help="a recorder has to write captures")
    parser.add_argument("--for", dest="seconds", type=float, metavar="S", help="end after so long")
    parser.add_argument(
        "--metrics", type=int, metavar="PORT", help="serve metrics for Prometheus there"
    )
    parser.add_argument("--try", dest="trial", action="store_true", help="send one line, and end")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """Watch until interrupted. UsageError for an address that is none."""
    tell = Notifier(os.environ.get(NOTIFY, ""))
    if options.trial:
        tell("a trial of `l2 watch`")
        return None
    follow = Follower(state_of(settings, options.venue) / "state.sock")
    watch = Watch(settings, follow, options.recorder, time.time)
    if options.metrics is not None:
        from orchestration.metrics import Metrics, serve

        port = serve(Metrics(settings, follow), options.metrics)
        say(f"metrics: http://127.0.0.1:{port}/metrics")
    told, end = Told(tell, settings.notify.again_s), threading.Event()
    until = time.monotonic() + (options.seconds or 1e18)
    try:
        while time.monotonic() < until and not end.wait(_EVERY_S):
            told(time.monotonic(), watch.look())
            for line in watch.news():
                tell(line)
            tell.send()
    finally:
        follow.close()
        tell.send(last=True)
    return None
