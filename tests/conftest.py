"""What every room's tests share: where the recordings are."""

from __future__ import annotations

import os
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
