"""Operators' commands to a running worker: `l2 halt`, `flatten`, `pause`, `resume`, `limits`, `handover`.

A command is a file in ``ROOT/live/VENUE/control``, renamed into place: ``NAME.json`` holds a
`messages.Command`; an empty file ``halt`` or ``flatten`` does the same from any shell. The worker answers
in ``NAME.done`` and removes the command. A halt that finds no worker waits for the next one.
"""

from __future__ import annotations

import argparse
import fcntl
import getpass
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from live.log import LogError
from live.messages import Command
from live.safety import SETTINGS_ALONE
from market.console import Result
from market.errors import UsageError, VenueError
from market.settings import Risk, Settings

#: How often the folder is read; how long a halt waits for the main loop before it is done without it.
POLL_S: Final = 0.1
PATIENCE_S: Final = 2.0
#: How long the verbs wait for an answer.
_ANSWER_S: Final = 15.0

COMMANDS: Final = ("halt", "flatten", "resume", "pause", "limits", "handover")


class ControlError(VenueError):
    """A command reached no worker, or the worker refused it; the message says what to do."""


def check(command: Command, symbols: Collection[str] = ()) -> Command:
    """The command; UsageError when no worker, or not the one that knows ``symbols``, can honour it."""
    if command.command not in COMMANDS:
        raise UsageError(f"{command.command}: expected one of {', '.join(COMMANDS)}")
    if command.command == "resume" and not command.reason:
        raise UsageError("resume: say why with --reason TEXT; it is kept on record")
    if symbols and command.symbol not in ("", *symbols):
        raise UsageError(
            f"{command.symbol}: not a symbol here; known: {', '.join(sorted(symbols))}"
        )
    if command.command == "limits":
        known = {*msgspec.structs.asdict(Risk())} - SETTINGS_ALONE
        if fixed := sorted(SETTINGS_ALONE.intersection(command.limits)):
            raise UsageError(
                f"{', '.join(fixed)}: set in [risk] of the settings alone; start anew with them"
            )
        if unknown := sorted(set(command.limits) - known):
            raise UsageError(f"{', '.join(unknown)}: no limit; known: {', '.join(sorted(known))}")
        if not command.limits:
            raise UsageError("limits: name at least one, as order_usdt=20000")
    return command


class Control:
    """Reads a folder's commands in a thread and gives each to ``put`` once, with its name.

    Who handles it calls `answer`. A halt that has no answer after `PATIENCE_S` calls ``emergency``, in
    the thread, once.
    """

    def __init__(
        self,
        folder: Path,
        put: Callable[[str, Command], None],
        emergency: Callable[[Command], None],
        symbols: Collection[str] = (),
    ) -> None:
        self._folder, self._put, self._emergency = folder, put, emergency
        self._symbols = symbols
        self._waiting: dict[str, tuple[float, Command]] = {}
        self._end = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.done"):
            old.unlink()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def answer(self, name: str, answer: Mapping[str, Any]) -> None:
        """A command was handled; ``answer`` is what its sender reads."""
        # The file goes before it is forgotten, or it would be taken again.
        with suppress(OSError):  # a full disk: what was done is done
            _write(self._folder / f"{name.removesuffix('.json')}.done", answer)
        (self._folder / name).unlink(missing_ok=True)
        self._waiting.pop(name, None)

    def close(self) -> None:
        """Read no more commands; those that have no answer yet stay for the next worker."""
        self._end.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._end.wait(POLL_S):
            for look in (self._look_at_halts, self._look_at_files):
                with suppress(Exception):  # whatever it is, the next halt is taken
                    look()

    def _look_at_files(self) -> None:
        for path in sorted(self._folder.iterdir()):
            if path.name not in self._waiting:
                self._take(path)

    def _look_at_halts(self) -> None:
        for name, (since, command) in list(self._waiting.items()):
            if command.command == "halt" and time.monotonic() - since > PATIENCE_S:
                self._waiting[name] = (float("inf"), command)
                self._emergency(command)

    def _take(self, path: Path) -> None:
        try:
            if path.name in ("halt", "flatten"):
                owner = path.owner()
                command = Command(command=path.name, who=owner, reason=path.read_text().strip())
            elif path.suffix == ".json":
                command = check(msgspec.json.decode(path.read_bytes(), type=Command), self._symbols)
            else:
                return
        except (msgspec.MsgspecError, UsageError, UnicodeDecodeError) as error:
            self.answer(path.name, {"error": str(error)})
        except (OSError, KeyError):
            return  # gone, or of nobody
        else:
            self._waiting[path.name] = (time.monotonic(), command)
            self._put(path.name, command)


def _write(path: Path, content: object) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(msgspec.json.encode(content))
    os.replace(temporary, path)


# -- the verbs -------------------------------------------------------------------------------------


def runs(state: Path) -> bool:
    """Whether a worker holds the lock of a state folder."""
    try:
        descriptor = os.open(state / "worker.lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def lock(file: Path, what: str) -> int:
    """Lock ``file`` for this process, which is the one writer of ``what``; the descriptor to close.

    It ends with the process, however that ends. LogError names the process that has it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode().strip() or "?"
        os.close(descriptor)
        raise LogError(f"{what}: process {holder} works on it ({file}); stop it first") from error
    with suppress(OSError):  # a full disk: the lock holds, without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
    return descriptor


def lock_account(rest: str, account: str, what: str) -> socket.socket:
    """Lock an account of a venue's address for this process, on this machine, whoever runs it; the socket to close.

    The name is the kernel's: users, sessions and services share no folder for certain. It ends with the
    process. LogError names the process that has it.
    """
    name = b"\0l2-account-" + sha256(f"{rest} {account}".encode()).hexdigest()[:16].encode()
    held = socket.socket(socket.AF_UNIX)
    try:
        held.bind(name)
        held.listen()
    except OSError as error:
        holder = 0
        with held, suppress(OSError):  # it is of who listens
            held.settimeout(1.0)
            held.connect(name)
            holder = int.from_bytes(
                held.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), sys.byteorder
            )
        raise LogError(f"{what}: process {holder or '?'} works on it; stop it first") from error
    return held


def state_of(settings: Settings, venue: str | None) -> Path:
    """The state folder that a command is for: of the venue, else of the one worker that runs."""
    live = settings.home / "live"
    if venue is None:
        running = [lock.parent for lock in sorted(live.glob("*/worker.lock")) if runs(lock.parent)]
        if len(running) > 1:
            names = ", ".join(state.name for state in running)
            raise UsageError(f"workers run on {names}: say which with --venue")
        if running:
            return running[0]
    return live / (venue or settings.live.venue)


def send(state: Path, command: Command, wait_s: float = _ANSWER_S) -> dict[str, Any]:
    """Give a worker a command and wait for its answer. ControlError without one."""
    check(command)
    folder = state / "control"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{time.time_ns()}-{os.getpid()}"
    request, done = folder / f"{name}.json", folder / f"{name}.done"
    _write(request, command)
    until = time.monotonic() + wait_s
    while runs(state) and time.monotonic() < until:
        if done.exists():
            answer: dict[str, Any] = msgspec.json.decode(done.read_bytes())
            done.unlink()
            if "error" in answer:
                raise ControlError(f"{state.name}: the worker refused it: {answer['error']}")
            return answer
        time.sleep(0.02)
    if command.command == "halt":
        what = "has not answered yet" if runs(state) else "none runs; the next one starts halted"
        raise ControlError(f"{state.name}: no answer of a worker: {what} ({request})")
    with suppress(FileNotFoundError):
        request.unlink()
        raise ControlError(
            f"{state.name}: no worker took it within {wait_s:g} s"
            if runs(state)
            else f"{state.name}: no worker runs there; start one, or name another --venue"
        )
    raise ControlError(f"{state.name}: the worker took it and ended before it answered")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of these verbs."""
    parser.add_argument("--venue", metavar="NAME", help="default: that of the worker that runs")
    parser.add_argument("--reason", metavar="TEXT", default="", help="kept on record")
    verb = parser.prog.rpartition(" ")[2]
    parser.set_defaults(verb=verb, limits=[], symbol="")
    if verb == "limits":
        parser.add_argument(
            "limits", nargs="+", metavar="KEY=VALUE", help="of [risk]; only tighter"
        )
    elif verb == "pause":
        parser.add_argument("symbol", metavar="SYMBOL")
    elif verb != "handover":
        parser.add_argument("symbol", nargs="?", default="", metavar="SYMBOL", help="default: all")


def command(settings: Settings, options: argparse.Namespace) -> Result:
    """Send a command to the worker, and print what it did."""
    limits = {}
    for text in options.limits:
        name, _, value = text.partition("=")
        try:
            limits[name] = float(value)
        except ValueError:
            raise UsageError(f"{text}: expected KEY=VALUE, as order_usdt=20000") from None
    state = state_of(settings, options.venue)
    given = Command(
        command=options.verb,
        who=f"{getpass.getuser()}@{socket.gethostname()}",
        reason=options.reason,
        symbol=options.symbol,
        limits=limits,
    )
    if not runs(state):  # a halt waits for the next worker, which has the settings' symbols
        check(given, settings.market.recorded)
    answer = send(state, given)
    if not options.json:
        for said in answer["said"]:
            print(said)
        for symbol, mode in answer["modes"].items():
            print(f"{symbol:<12} {mode}")
    return answer
