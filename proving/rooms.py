"""The map of the code, made from the code: the picture docs/rooms.svg and the list docs/modules.md.

    python -m proving.rooms        writes both (`make generate`)

A box is a room, with the first sentence of its package's docstring; an arrow from a room points at
one whose modules it imports. Arrows that follow from others are left out (who imports a room may
import what that room imports); those into `proving` are the product's named exceptions
(tests/test_imports.py), drawn dashed. The list has the first line of every module's docstring.
"""

from __future__ import annotations

import ast
import html
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from market.provenance import ROOMS, ROOT, imports

PICTURE: Final = ROOT / "docs" / "rooms.svg"
LIST: Final = ROOT / "docs" / "modules.md"

_WIDTH, _HEIGHT = 196, 112
#: Where a room is drawn: column and row of its box. Imports point to the left.
_PLACES: Final = {
    "market": (0, 0.5),
    "execution": (1, 0.5),
    "models_registry": (2, 0.5),
    "live": (3, 0),
    "assets": (3, 1),
    "orchestration": (4, 0.5),
    "proving": (4, 1.75),
}
_COLUMN, _ROW, _MARGIN = 240, 140, 16
#: Two rooms that import each other have their arrows this far apart.
_APART: Final = 9

_HEAD: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif">
<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 8 4 0 8z" fill="#5f6b7a"/></marker></defs>
<rect width="100%" height="100%" fill="#ffffff"/>"""


def arrows() -> set[tuple[str, str]]:
    """(room, room that it imports), of every import anywhere in a room."""
    found = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for name in imports(module.removesuffix(".__init__")):
                if name.split(".")[0] != room:
                    found.add((room, name.split(".")[0]))
    return found


def drawn(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The arrows that do not follow from others, and those into `proving`."""
    exceptions = {edge for edge in edges if edge[1] == "proving"}
    product = edges - exceptions
    return exceptions | {
        (start, end)
        for start, end in product
        if not any((start, between) in product and (between, end) in product for between in ROOMS)
    }


def first_line(path: Path) -> str:
    """The first paragraph of a module's docstring; empty where there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def sentences() -> dict[str, str]:
    """Room -> what it is for."""
    return {room: first_line(ROOT / room / "__init__.py") for room in ROOMS}


def listing() -> str:
    """Every module by room and package, in the words of its docstring, as Markdown."""
    lines = [
        "# Modules",
        "",
        "Written by `make generate`; the map is [architecture.md](architecture.md).",
    ]
    for room in ROOMS:
        lines += ["", f"## {room}", "", first_line(ROOT / room / "__init__.py"), ""]
        for path in sorted((ROOT / room).rglob("*.py"), key=lambda p: (len(p.parents), p)):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if path.parent != ROOT / room or path.name != "__init__.py":
                lines.append(f"- `{name.removesuffix('.__init__')}` {first_line(path)}")
    return "\n".join(lines) + "\n"


def svg(edges: set[tuple[str, str]], texts: Mapping[str, str]) -> str:
    """The picture as SVG text."""
    corners = {
        room: (_MARGIN + column * _COLUMN, _MARGIN + row * _ROW)
        for room, (column, row) in _PLACES.items()
    }
    width = max(x for x, _ in corners.values()) + _WIDTH + _MARGIN
    height = max(y for _, y in corners.values()) + _HEIGHT + _MARGIN
    parts = [_HEAD.format(width=f"{width:.0f}", height=f"{height:.0f}")]
    for start, end in sorted(edges):
        (x1, y1), (x2, y2) = (
            _edge(corners[a], corners[b]) for a, b in ((start, end), (end, start))
        )
        if (end, start) in edges:
            shift = _APART if end == "proving" else -_APART
            x1, x2 = x1 + shift, x2 + shift
        dashed = ' stroke-dasharray="5 4"' if end == "proving" else ""
        parts.append(
            f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" stroke="#5f6b7a" '
            f'stroke-width="1.4" marker-end="url(#tip)"{dashed}/>'
        )
    for room, (x, y) in corners.items():
        fill = "#fdf3e4" if room == "proving" else "#e9f0f9"
        parts.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{fill}" '
            'stroke="#2b5c9e"/>'
            f'<text x="{x + 12:.0f}" y="{y + 22:.0f}" font-size="15" font-weight="600">{room}/</text>'
        )
        for n, line in enumerate(textwrap.wrap(texts[room], 29)[:5]):
            parts.append(
                f'<text x="{x + 12:.0f}" y="{y + 40 + 15 * n:.0f}" font-size="11.5" fill="#333">'
                f"{html.escape(line)}</text>"
            )
    return "\n".join([*parts, "</svg>\n"])


def _edge(inside: tuple[float, float], towards: tuple[float, float]) -> tuple[float, float]:
    """Where the line between the middles of two boxes leaves the first."""
    dx, dy = towards[0] - inside[0], towards[1] - inside[1]
    scale = min(
        _WIDTH / 2 / abs(dx) if dx else float("inf"), _HEIGHT / 2 / abs(dy) if dy else float("inf")
    )
    return inside[0] + _WIDTH / 2 + dx * scale, inside[1] + _HEIGHT / 2 + dy * scale


def main() -> None:
    """Write the picture and the list."""
    PICTURE.write_text(svg(drawn(arrows()), sentences()))
    LIST.write_text(listing())
    print(f"wrote {PICTURE.relative_to(ROOT)} and {LIST.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
