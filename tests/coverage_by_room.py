"""Coverage by room after a run of the tests with --cov: what is not a kernel, and the kernels apart.

    python -m tests.coverage_by_room [--least 90] [--least-room 87] [--json]

A statement or branch of Python counts as covered when a test runs it. Compiled kernels run where no
tracer sees them: their lines are counted apart, and held by parity and property tests.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import coverage

from market.console import table

ROOT = Path(__file__).resolve().parent.parent
COMPILED = {"kernel", "inlined", "compiled"}


def is_kernel(node: ast.AST) -> bool:
    """Whether a node is a function that is compiled."""
    return isinstance(node, ast.FunctionDef) and any(
        isinstance(each, ast.Name) and each.id in COMPILED for each in node.decorator_list
    )


def kernel_lines(path: Path) -> int:
    """Lines of the functions of a file that are compiled."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return sum((n.end_lineno or 0) - n.lineno + 1 for n in nodes if is_kernel(n))  # type: ignore[attr-defined]


def by_room() -> dict[str, dict[str, int]]:
    """Room -> statements and branches, those covered, and kernel lines."""
    measured = coverage.Coverage()
    measured.load()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        measured.json_report(outfile=str(report))
        files = json.loads(report.read_text())["files"]
    rooms: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, entry in files.items():
        room, summary = rooms[Path(name).parts[0]], entry["summary"]
        room["all"] += summary["num_statements"] + summary["num_branches"]
        room["covered"] += summary["covered_lines"] + summary["covered_branches"]
        room["kernel"] += kernel_lines(ROOT / name)
    return {room: dict(rooms[room]) for room in sorted(rooms)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.coverage_by_room")
    parser.add_argument(
        "--least", type=float, default=0.0, help="percent that all rooms together need"
    )
    parser.add_argument(
        "--least-room", type=float, default=0.0, help="percent that every room needs"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rooms = by_room()
    if not rooms:
        print("no coverage was measured; run the tests with --cov first", file=sys.stderr)
        return 1
    total = {
        key: sum(room.get(key, 0) for room in rooms.values())
        for key in ("all", "covered", "kernel")
    }
    rows = {**rooms, "together": total}
    percent = {name: 100 * row["covered"] / row["all"] for name, row in rows.items()}
    if options.json:
        print(json.dumps({name: {**row, "percent": percent[name]} for name, row in rows.items()}))
    else:
        lines = [
            (name, f"{row['all']:,}", f"{percent[name]:.1f} %", f"{row['kernel']:,}")
            for name, row in rows.items()
        ]
        print(table(lines, ("room", "statements and branches", "covered", "kernel lines apart")))
    least = {name: options.least if name == "together" else options.least_room for name in rows}
    low = [f"{name} (needs {least[name]:g} %)" for name in rows if percent[name] < least[name]]
    if low:
        print(f"covered too little: {', '.join(low)}", file=sys.stderr)
    return int(bool(low))


if __name__ == "__main__":
    sys.exit(main())
