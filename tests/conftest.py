"""What every room's tests share: where the recordings are."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


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
