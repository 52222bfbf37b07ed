"""The exchange on loopback for `l2 live --venue sandbox`: one that serves, or one started as a child."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import msgspec

from live.history import SymbolHistory, capture_history
from market.errors import VenueError
from market.instruments import Instrument
from market.settings import Settings
from market.wire.topics import public_topics

#: Where an exchange on loopback says its addresses, keys and clock, as JSON.
DESCRIPTION_PATH: Final = "/control/description"
#: What a worker has to have seen to be warm from its first second, with a margin.
PAST_S: Final = 1200


class LoopbackError(VenueError):
    """The exchange on loopback does not start; the message says what to do."""


@contextmanager
def exchange(
    settings: Settings, rest: str | None, speed: float, symbols: Sequence[str]
) -> Iterator[Settings]:
    """Settings that name the exchange which serves at ``rest`` or `live.sandbox`; without either, one that
    ends with this context. Without keys in the environment its first account's are there meanwhile.
    """
    rest = rest or settings.live.sandbox
    with ExitStack() as stack:
        if not rest:
            described = stack.enter_context(_started(settings, speed, symbols))
            stack.enter_context(_keys(described))
        elif "L2_API_KEY" not in os.environ:
            described = _described(rest)
            stack.enter_context(_keys(described))
        live = msgspec.structs.replace(
            settings.live, venue="sandbox", sandbox=rest or described["rest"]
        )
        yield msgspec.structs.replace(settings, live=live)


@contextmanager
def _started(settings: Settings, speed: float, symbols: Sequence[str]) -> Iterator[Any]:
    """An exchange of our own, as a child process; what its first line says."""
    command = [
        *(sys.executable, "-m", "orchestration.cli", "sandbox", "--symbols", ",".join(symbols)),
        *("--speed", f"{speed:g}", "--past", str(PAST_S), "--no-rate-limit"),
    ]
    if settings.source == "synthetic":
        command += ["--profile", settings.synthetic.profile]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise LoopbackError(
                f"the exchange did not start (exit status {process.wait()}); it said why above"
            )
        yield msgspec.json.decode(line)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _described(rest: str) -> Any:
    try:
        with urlopen(rest.rstrip("/") + DESCRIPTION_PATH, timeout=10.0) as answer:
            return msgspec.json.decode(answer.read())
    except (OSError, HTTPException, msgspec.DecodeError) as error:
        raise LoopbackError(
            f"{rest}: no exchange of `l2 sandbox` serves there ({error})"
        ) from error


@contextmanager
def _keys(described: Any) -> Iterator[None]:
    """The first account's keys in the environment, where keys belong."""
    key = described["keys"][0]
    before = {name: os.environ.get(name) for name in ("L2_API_KEY", "L2_API_SECRET")}
    os.environ |= {"L2_API_KEY": key["key"], "L2_API_SECRET": key["secret"]}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


def past_of(
    rest: str, instruments: Mapping[str, Instrument], settings: Settings
) -> dict[str, SymbolHistory] | None:
    """The exchange's past up to now; None when it keeps none."""
    topics = ",".join(public_topics(list(instruments), [settings.market.book_depth]))
    url = f"{rest.rstrip('/')}/control/past?seconds={PAST_S}&topics={topics}"
    try:
        with urlopen(url, timeout=60.0) as answer:
            past = answer.read()
    except (OSError, HTTPException):
        return None
    with tempfile.TemporaryDirectory(prefix="l2-") as folder:
        path = Path(folder) / "past.frames.zst"
        path.write_bytes(past)
        return capture_history(path, instruments, settings)
