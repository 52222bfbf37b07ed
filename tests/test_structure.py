"""The house stays readable: sizes of modules and functions, names of tests, one tree of errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.coverage_by_room import is_kernel
from tests.test_imports import MODULES, TREES

MODULE_LINES, FUNCTION_LINES, TEST_NAME = 500, 80, 80
MAP = REPOSITORY / "docs" / "architecture.md"


def test_no_module_is_longer_than_500_lines() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > MODULE_LINES} == {}


def test_no_function_but_a_kernel_is_longer_than_80_lines() -> None:
    long = {
        f"{module}.{node.name}": count
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_kernel(node)
        if (count := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    }
    assert long == {}


def test_names_of_tests_are_under_80_characters() -> None:
    names = (
        node.name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )
    assert [name for name in names if len(name) >= TEST_NAME] == []


def test_the_map_draws_the_tree_of_errors_as_it_is() -> None:
    drawn = "\n".join(error_tree())
    assert drawn in MAP.read_text(), f"docs/architecture.md draws another tree than\n\n{drawn}"


def error_tree() -> list[str]:
    """Lines of the tree of every class that derives from L2Error."""
    parents = {
        node.name: (base.id, module)
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases[:1]
        if isinstance(base, ast.Name)
    }

    def below(name: str, indent: str) -> Iterator[str]:
        children = sorted(child for child, (base, _) in parents.items() if base == name)
        for child in children:
            last = child == children[-1]
            branch, more = ("└── ", "    ") if last else ("├── ", "│   ")
            yield f"    {indent}{branch}{child:{30 - len(indent)}}{parents[child][1]}"
            yield from below(child, indent + more)

    return ["    L2Error", *below("L2Error", "")]


def test_the_fields_terms_are_found_where_the_glossary_leads() -> None:
    table = (REPOSITORY / "docs" / "glossary.md").read_text().partition("Where the field")[2]
    rows = [line.split("|")[1:3] for line in table.splitlines() if "`" in line and "|" in line]
    terms = [
        (term.strip(), module.strip(" `")) for cell, module in rows for term in cell.split(",")
    ]
    assert len(terms) >= 40
    missing = [
        f"{term} in {module}"
        for term, module in terms
        if term.lower() not in " ".join(MODULES[module].read_text().lower().split())
    ]
    assert not missing


def test_every_module_that_the_map_names_exists() -> None:
    path = MAP.read_text().partition("## Rooms")[0]
    named = [
        line.split("`")[1] for line in path.splitlines() if line.startswith("| ") and "`" in line
    ]
    assert len(named) == 20
    assert [name for name in named if name not in MODULES] == []


def test_every_markdown_link_of_the_docs_leads_somewhere() -> None:
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        for target in links(page):
            assert (page.parent / target).exists(), f"{page.name} links {target}"


def links(page: Path) -> Iterator[str]:
    for part in page.read_text().split("](")[1:]:
        target = part.split(")")[0].split("#")[0]
        if target and "://" not in target:
            yield target
