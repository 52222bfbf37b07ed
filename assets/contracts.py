"""Generates the column lists of the dbt contracts: bars, features and labels.

A dbt contract lists every column, and these lists are defined in `market.columns`, `market.features` and
the settings. ``python -m assets.contracts`` writes them between the markers of the YAML files; the rest
of the files is written by hand. With other horizons in the settings dbt runs on a copy of the project
(`project_for`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from assets.dbt import PROJECT
from market.columns import COLUMNS
from market.settings import Model

#: Horizons of the contracts in the repository.
HORIZONS_S: Final = Model().horizons_s
#: Files with markers.
FILES: Final = ("models/staging/staging.yml", "models/marts/marts.yml")

_MARKED: Final = re.compile(
    r"^(?P<indent> *)# -- columns: (?P<name>\w+) \(python -m assets\.contracts\)\n"
    r"(?:.*\n)*?(?P=indent)# -- end\n",
    re.MULTILINE,
)


def columns(name: str, horizons_s: Sequence[int]) -> Iterator[tuple[str, str]]:
    """(column, description) of one list, in table order; every column is a double."""
    if name == "bars":
        for column, (unit, meaning) in COLUMNS.items():
            yield column, f"{unit}: {meaning}"
    elif name == "features":
        from market.features import FEATURES

        for feature in FEATURES:
            yield feature.name, f"{feature.family}: {feature.rationale}"
    elif name == "labels":
        for horizon in horizons_s:
            yield f"y_{horizon}", f"Log return over {horizon} s from one second after the bar."
    else:
        raise ValueError(f"no column list {name!r}: use bars, features or labels")


def fill(text: str, horizons_s: Sequence[int] = HORIZONS_S) -> str:
    """The YAML text with every list between markers regenerated."""

    def block(match: re.Match[str]) -> str:
        indent, name = match["indent"], match["name"]
        lines = [f"# -- columns: {name} (python -m assets.contracts)"]
        for column, description in columns(name, horizons_s):
            lines += [
                f"- name: {column}",
                "  data_type: double",
                f"  description: {json.dumps(description, ensure_ascii=False)}",
            ]
        lines.append("# -- end")
        return "".join(f"{indent}{line}\n" for line in lines)

    return _MARKED.sub(block, text)


def project_for(project: Path, horizons_s: Sequence[int], folder: Path) -> Path:
    """The project, or for other horizons a copy in ``folder`` with regenerated contracts."""
    if tuple(horizons_s) == HORIZONS_S:
        return project
    copy = folder / "project"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns("target", "logs"))
    for name in FILES:
        path = copy / name
        path.write_text(fill(path.read_text(), horizons_s))
    return copy


def main() -> None:
    """Regenerate the files in place."""
    for name in FILES:
        path = PROJECT / name
        path.write_text(fill(path.read_text()))
        print(f"wrote {path.relative_to(PROJECT.parent)}")


if __name__ == "__main__":
    main()
