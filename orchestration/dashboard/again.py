"""The same page over a run's log: the core handles its inputs again, as fast and as far as somebody asks."""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import msgspec

from live import log
from live.decisions import Decision
from live.log import Header
from live.messages import Effect, Input, Say
from live.replay import LoggedCore, blocks_of, run_of
from live.state_stream import VERSION
from live.state_view import view
from market.console import utc_time
from market.units import SECOND_NS
from orchestration.dashboard.follow import Follower

#: How often the state is shown, in the log's time and at most by the wall clock.
_STEP_NS: Final = SECOND_NS // 4
_STEP_S: Final = 0.1


class Again(Follower):
    """Follows the run of a segment of a log folder, 0 for the last; ``paused``, ``speed`` and `jump` are the page's controls.

    LogError for a log that cannot be read.
    """

    is_played = True

    def __init__(self, folder: Path, segment: int = 0) -> None:
        self.folder = folder.resolve()
        headers = {n: log.header_of(path) for n, path in log.segments(self.folder).items()}
        self.run, self._mine = run_of(self.folder, headers, segment)
        self._header = headers[self._mine[0]]
        self.settings = LoggedCore(self.folder, self._header).settings
        files = log.segments(self.folder)
        first = next(blocks_of(self.folder, self._mine))
        self.begins_ns = first.records[0][0]
        self.ends_ns = max(log.last_ns(files[number]) for number in self._mine[-2:])
        self.now_ns, self.speed, self.paused = self.begins_ns, 1.0, False
        #: What lies before is not shown, and what is said meanwhile.
        self._until_ns, self._reading = 0, ""
        self._from_start = threading.Event()
        super().__init__(self.folder)

    @property
    def age_s(self) -> float:
        """A log is never late."""
        return 0.0

    def jump(self, to_ns: int) -> None:
        """Go on at a time of the log."""
        self._until_ns, self._reading = to_ns, f"reading on to {utc_time(to_ns)}"
        if to_ns < self.now_ns:
            self._from_start.set()

    def _run(self) -> None:
        while not self._end.is_set():
            self._from_start.clear()
            try:
                self._play()
                self.status = "" if self._from_start.is_set() else "the log ends here"
            except Exception as error:
                self.status = f"the log cannot be replayed: {error}"
            while not (self._from_start.is_set() or self._end.wait(0.05)):
                pass

    def _play(self) -> None:
        decisions: dict[str, Decision] = {}
        replica = LoggedCore(
            self.folder, self._header, lambda d, _: decisions.__setitem__(d.symbol, d)
        )
        shell = SimpleNamespace(
            core=replica.core,
            keeper=SimpleNamespace(lost_frames=0, lost_decisions=0),
            settings=self.settings,
            champion=replica,
            log=SimpleNamespace(header=self._header, position=0, synced_to=0),
            latency={},
            stream=None,
            feed=None,
            links={},
            lines=deque[tuple[str, str]](maxlen=40),
            decisions=decisions,
            now_ns=0,
        )
        begun, shown_ns, said, wall_s = False, 0, 0, time.monotonic()
        for block in blocks_of(self.folder, self._mine):
            for now_ns, body in block.records:
                if self._end.is_set() or self._from_start.is_set():
                    return
                if not begun and not isinstance(body, Header):
                    begun = bool(
                        replica.begin(now_ns if isinstance(body, Effect) else self.begins_ns)
                    )
                if isinstance(body, Input):
                    replica.step(now_ns, body)
                elif isinstance(body, Say):
                    said += 1
                    line = {"timestamp": utc_time(now_ns), "level": body.level, "event": body.event}
                    text = msgspec.json.encode(line | body.fields).decode()
                    shell.lines.append((str(said), text))
                self.now_ns = shell.now_ns = now_ns
                if now_ns < self._until_ns:
                    self.status = self._reading
                    shown_ns = 0  # the next state comes at once
                    continue
                if now_ns < shown_ns + _STEP_NS:
                    continue
                if time.monotonic() - wall_s < _STEP_S and self.speed > 16:
                    continue
                shell.champion = SimpleNamespace(
                    pointer=replica.model.pointer, bundle=replica.model.bundle
                )
                shell.log.position = shell.log.synced_to = block.end
                self._show(view(shell))
                passed_s = (now_ns - shown_ns) / SECOND_NS / self.speed if shown_ns else 0.0
                self._end.wait(max(0.0, min(passed_s, 5.0) - (time.monotonic() - wall_s)))
                shown_ns, wall_s = now_ns, time.monotonic()
                while self.paused and not (self._from_start.is_set() or self._until_ns > now_ns):
                    if self._end.wait(0.05):
                        return
        self._show(view(shell))

    def _show(self, state: Any) -> None:
        plain = msgspec.json.decode(msgspec.json.encode(state))
        self._take({"type": "snapshot", "version": VERSION, "state": plain})
