"""Where a lake may lie, and which folder of this machine goes with it."""

from __future__ import annotations

import os
import re
from pathlib import Path

#: In the name of a folder: DuckDB takes key=value for a column of the tables below and ends a name at
#: a backslash, whatever is quoted; Dagster's database URLs end at ? and decode %20.
_UNUSABLE = re.compile(r"[^/=]+=[^/]*|[\\?]|%[0-9a-fA-F]{2}|[\x00-\x1f\x7f\ud800-\udfff]")


def home_of(root: str | Path) -> Path:
    """This machine's folder of a lake: a local root itself, else one below ``L2_HOME`` (by default
    ``~/.local/share/l2``), where recorder and worker write, and tables are staged.
    """
    if "://" not in str(root):
        return Path(root)
    home = Path(os.environ.get("L2_HOME") or "~/.local/share/l2").expanduser().absolute()
    return home / str(root).partition("://")[2].strip("/")


def unusable(root: str) -> str:
    """Why a lake cannot live at ``root``, and what to do; empty for one that can."""
    if not root:
        return "is empty; name a folder"
    scheme, _, place = root.rpartition("://")
    if scheme not in ("", "s3") or (scheme and not place.strip("/")):
        return f"{root!r}: a lake is a folder or s3://bucket/prefix"
    found = _UNUSABLE.search(place if scheme else os.path.abspath(root))
    if found is None:
        return ""
    return (
        f"{root!r}: DuckDB or Dagster cannot read below a folder named with {found[0]!r} "
        "(key=value, ?, %20, backslash, control character); use another folder"
    )
