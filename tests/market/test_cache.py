"""Code that may only be read, without a home: kernels compile, and are kept where the user may write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from market.cache import settle_home, user_folder
from market.provenance import ROOT

TINY = "from market.kernel import kernel\n\n@kernel\ndef add(n):\n    return n + 1\n"


@pytest.fixture(autouse=True)
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No home, and a temporary folder of the test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def found() -> Path:
    user_folder.cache_clear()
    try:
        return user_folder()
    finally:
        user_folder.cache_clear()


def test_a_user_without_a_home_has_a_folder_of_their_own(tmp_path: Path) -> None:
    assert found() == found() == tmp_path / f"l2-cache-{os.getuid()}"
    assert found().stat().st_mode & 0o777 == 0o700


def test_a_home_comes_first_and_is_never_a_folder_named_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "~")
    assert found().parent == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert found() == tmp_path / "home" / ".cache" / "l2"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert found() == tmp_path / "caches" / "l2"
    assert not Path("~").exists()


def test_a_user_unknown_to_the_machine_gets_a_home_and_others_keep_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle_home()
    assert os.environ["HOME"] == str(tmp_path / "file" / "home")
    monkeypatch.setenv("HOME", "~")  # what such a user's home is read as
    user_folder.cache_clear()
    settle_home()
    assert os.environ["HOME"] == str(tmp_path / f"l2-cache-{os.getuid()}")
    user_folder.cache_clear()


@pytest.mark.parametrize("kind", ["writable by others", "a link", "a file"])
def test_a_folder_that_others_may_fill_is_not_loaded_from(kind: str, tmp_path: Path) -> None:
    shared = tmp_path / f"l2-cache-{os.getuid()}"
    if kind == "a link":
        (tmp_path / "theirs").mkdir(0o700)
        shared.symlink_to(tmp_path / "theirs")
    elif kind == "a file":
        shared.write_text("")
    else:
        shared.mkdir()
        shared.chmod(0o777)
    assert found() != shared
    assert found().stat().st_mode & 0o777 == 0o700


def test_kernels_of_code_that_may_only_be_read_compile_and_are_kept(tmp_path: Path) -> None:
    code = tmp_path / "code"
    shutil.copytree(ROOT / "market", code / "market", ignore=shutil.ignore_patterns("__pycache__"))
    (code / "market" / "tiny.py").write_text(TINY)
    command = [sys.executable, "-c", "from market import tiny; print(tiny.__file__, tiny.add(1))"]
    if os.geteuid() == 0:  # whom permissions do not stop
        bind = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", bind, str(code), *command]
        if subprocess.run([*command[:6], "true"], capture_output=True).returncode:
            pytest.skip("this superuser may not mount a folder read-only")
    else:
        for folder in (code, *filter(Path.is_dir, code.rglob("*"))):
            folder.chmod(0o555)
    environment = os.environ | {"PYTHONPATH": str(code), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True)
    assert done.stdout == f"{code}/market/tiny.py 2\n", done.stderr
    assert not list(code.rglob("*.nbc"))
    assert list((tmp_path / f"l2-cache-{os.getuid()}").rglob("tiny.add*.nbc"))
