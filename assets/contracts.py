"""Columns of the dbt contracts that are decided elsewhere: bars, features and horizons.

dbt wants every column of a contract written out, and the lists already stand in `market.bars`, in
`market.features` and in the settings. ``python -m assets.contracts`` writes them into the marked
places of the YAML files; what stands outside the marks is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from market.bars import COLUMNS
from market.settings import Model

PROJECT: Final = Path(__file__).resolve().parent.parent / "dbt_project"

#: Files with marked places.
FILES: Final = ("models/staging/staging.yml", "models/marts/marts.yml")

_MARKED: Final = re.compile(
    r"^(?P<indent> *)# -- columns: (?P<name>\w+) \(python -m assets\.contracts\)\n"
    r"(?:.*\n)*?(?P=indent)# -- end\n",
    re.MULTILINE,
)


def columns(name: str) -> Iterator[tuple[str, str]]:
    """(column, description) of one list, in table order; all are double."""
    if name == "bars":
        for column, (unit, meaning) in COLUMNS.items():
            yield column, f"{unit}: {meaning}"
    elif name == "features":
        from market.features import FEATURES

        for feature in FEATURES:
            yield feature.name, f"{feature.family}: {feature.rationale}"
    elif name == "labels":
        for horizon in Model().horizons_s:
            yield f"y_{horizon}", f"Log return over {horizon} s from one second after the bar."
    else:
        raise ValueError(f"no list of columns is called {name}: use bars, features or labels")


def fill(text: str) -> str:
    """The YAML text with every marked place renewed."""

    def block(match: re.Match[str]) -> str:
        indent, name = match["indent"], match["name"]
        lines = [f"# -- columns: {name} (python -m assets.contracts)"]
        for column, description in columns(name):
            lines += [
                f"- name: {column}",
                "  data_type: double",
                f"  description: {json.dumps(description, ensure_ascii=False)}",
            ]
        lines.append("# -- end")
        return "".join(f"{indent}{line}\n" for line in lines)

    return _MARKED.sub(block, text)


def main() -> None:
    for name in FILES:
        path = PROJECT / name
        path.write_text(fill(path.read_text()))
        print(f"wrote {path.relative_to(PROJECT.parent)}")


if __name__ == "__main__":
    main()
