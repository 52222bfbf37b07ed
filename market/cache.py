"""Where compiled kernels and dbt's manifest are kept: beside the code, or where this user may write."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path


def beside(folder: Path) -> bool:
    """Whether what is made of the code in ``folder`` may be kept there."""
    made = folder / "__pycache__"
    return os.access(made if made.exists() else folder, os.W_OK)


@cache
def user_folder() -> Path:
    """This user's folder for what is made of code that may only be read; OSError when there is none.

    Kernels are loaded from it, so in the machine's temporary folder it has to be this user's alone.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    shared = Path(tempfile.gettempdir(), f"l2-cache-{os.getuid()}")
    for folder in (Path(home, "l2"), shared):
        if not folder.is_absolute():  # a user without a home
            continue
        try:
            folder.mkdir(0o700, parents=True, exist_ok=True)
            found = folder.stat(follow_symlinks=False)
        except OSError:
            continue
        if found.st_uid == os.getuid() and not found.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="l2-cache-"))


def settle_home() -> None:
    """Give a user whom the machine does not know, as in a container, a home: libraries ask for one."""
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = str(user_folder())
