"""Imports run one way through the rooms, and the rooms below do no network I/O."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

#: Room -> rooms it may import.
ALLOWED = {
    "market": set(),
    "execution": {"market"},
    "models_registry": {"market", "execution"},
    "assets": {"market", "execution", "models_registry"},
    "live": {"market", "execution", "models_registry.manifest"},
    "orchestration": {"market", "execution", "models_registry", "assets", "live"},
}
NETWORK = {"socket", "ssl", "http", "urllib", "requests", "httpx", "aiohttp", "websockets", "ccxt"}
#: Run by MLflow itself when it loads a version (its "model from code"); nothing of ours imports it.
LOADED_BY_MLFLOW = "served.py"
HEAVY = {"dagster", "dbt", "mlflow", "great_expectations", "optuna", "lightgbm", "matplotlib"}


def modules(room: str) -> list[Path]:
    return sorted((REPOSITORY / room).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    """Absolute names that a module imports; with ``top_level_only`` those that loading it runs."""
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif top_level_only and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _type_checking(node)
        ):
            continue
        pending.extend(ast.iter_child_nodes(node))


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    allowed = ALLOWED[room] | {room}
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path in modules(room)
        for name in imports(path)
        if name.split(".")[0] in ALLOWED
        and not any(name == room_ or name.startswith(f"{room_}.") for room_ in allowed)
    ]
    assert not wrong


@pytest.mark.parametrize("room", ["market", "execution"])
def test_market_and_execution_do_no_network_io(room: str) -> None:
    wrong = [
        f"{path.name} imports {name}"
        for path in modules(room)
        for name in imports(path)
        if name.split(".")[0] in NETWORK
    ]
    assert not wrong


@pytest.mark.parametrize("room", ["market", "execution", "live", "models_registry"])
def test_loading_a_room_below_loads_no_heavy_library(room: str) -> None:
    wrong = [
        f"{path.name} imports {name}"
        for path in modules(room)
        if path.name != LOADED_BY_MLFLOW
        for name in imports(path, top_level_only=True)
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong
