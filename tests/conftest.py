"""What every room's tests share: where the recordings are, and a network of loopback alone."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

REPOSITORY = Path(__file__).resolve().parent.parent
#: Files whose tests run several processes by the clock. Two of them side by side starve on two cores, so one of
#: xdist's workers has them all, and has them first; any other file is one worker's too.
BY_THE_CLOCK = {
    *("tests/cluster/test_compute.py", "tests/live/test_live_on_loopback.py"),
    *("tests/orchestration/test_dashboard.py", "tests/orchestration/test_links.py"),
    *("tests/proving/test_bench_live.py", "tests/proving/test_bench_page.py"),
}

# A shell's background ignores SIGINT, nohup SIGHUP. Dagster lets SIGTERM do what SIGINT does, and children inherit
# that: nothing that a test starts would end when it is told to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class ByFile(LoadFileScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "by the clock" if file in BY_THE_CLOCK else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.relative_to(REPOSITORY).as_posix() not in BY_THE_CLOCK)


def _only_loopback(event: str, details: tuple[Any, ...]) -> None:
    """Refuse, as a network without a route does, whatever is not on this machine."""
    error: type[OSError]
    if event == "socket.connect" and isinstance(details[1], tuple):
        host, error = str(details[1][0]), ConnectionRefusedError
    elif event == "socket.getaddrinfo":
        host, error = str(details[0] or "localhost"), socket.gaierror
    else:
        return
    if not host.startswith("127.") and host not in ("localhost", "::1"):
        raise error(f"{host}: tests reach loopback only")


sys.addaudithook(_only_loopback)


def recordings() -> Path:
    """The folder of recorded market data: ``L2_TEST_DATA``, else beside the project."""
    named = os.environ.get("L2_TEST_DATA")
    return Path(named) if named else REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    folder = recordings()
    if not any(folder.glob("*.frames.zst")):
        pytest.skip(f"no recorded market data in {folder} (set L2_TEST_DATA)")
    return folder


@pytest.fixture(scope="module", autouse=True)
def environment_of_one_file() -> Iterator[None]:
    """Undoes what a file's tests set in the environment: a command run in this process sets DAGSTER_HOME."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def minutes_at_most() -> Iterator[None]:
    """Fails a test that waits for ever, as pybit's streams do for a connection that was lost."""

    def ring(*_: object) -> None:
        raise TimeoutError("not done within two minutes")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


#: Limits the size of files within a block, as a full disk does.
Limit = Callable[[int], AbstractContextManager[None]]


@pytest.fixture
def file_limit() -> Limit:
    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited
