"""Compiled code is renewed when anything compiled into it changes."""

from __future__ import annotations

import sys
from pathlib import Path

import numba
import pytest

from market import kernel, provenance


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that stands in for the project: ``upper`` compiles ``lower``'s constant in."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "ROOMS", ("standin",))
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "standin"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "lower.py").write_text("STEP = 1\n")
    (folder / "upper.py").write_text(
        "from market.kernel import kernel\n"
        "from standin.lower import STEP\n\n"
        "@kernel\n"
        "def add(n):\n"
        "    return n + STEP\n"
    )
    return folder


def fresh_add(n: int) -> int:
    """What a new process would compute."""
    for name in [name for name in sys.modules if name.startswith("standin")]:
        del sys.modules[name]
    for cached in (
        provenance.module_file,
        provenance._source,
        provenance.closure,
        provenance.closure_hash,
    ):
        cached.cache_clear()
    from standin.upper import add  # type: ignore[import-not-found]

    return int(add(n))


def test_a_changed_constant_of_another_module_is_compiled_anew(pair: Path):
    assert fresh_add(1) == 2
    assert list((pair / "__pycache__").glob("upper.add*.nbc"))
    (pair / "lower.py").write_text("STEP = 1000\n")
    assert fresh_add(1) == 1001


def test_a_kernel_that_allocates_is_refused():
    @kernel.kernel
    def allocate(n):
        return [n]

    with pytest.raises(numba.core.errors.NumbaError):
        allocate(3)
