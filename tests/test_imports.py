"""Imports run one way through the rooms, in no circle, and the rooms below do no network I/O."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from orchestration.cli import VERBS
from tests.conftest import REPOSITORY

#: Room -> rooms it may import. The product imports `proving` in the functions of
#: EXCEPTIONS alone; `proving` may import all of the product.
ALLOWED = {
    "market": set(),
    "execution": {"market"},
    "models_registry": {"market", "execution"},
    "assets": {"market", "execution", "models_registry"},
    "live": {
        "market",
        "execution",
        "models_registry.manifest",
        "models_registry.pointed",
        "models_registry.recipe",
    },
    "orchestration": {"market", "execution", "models_registry", "assets", "live"},
    "proving": {"market", "execution", "models_registry", "assets", "live", "orchestration"},
}
#: The only ways from the product into `proving`: module -> function -> what it imports there.
EXCEPTIONS = {
    "assets.market_data": {"synthetic_bars": {"proving.synthetic", "proving.synthetic.reduced"}},
    "orchestration.fills.evaluation": {"_open": {"proving.study.forecast"}},
    "orchestration.study.command": {"command": {"proving.study.command"}},
}
NETWORK = {
    *("socket", "ssl", "http", "urllib", "urllib3", "requests", "httpx", "aiohttp", "websockets"),
    *("ccxt", "boto3", "botocore"),
}
#: The object store of a lake: the one module below that reaches a network.
REACHES = "market.store"
#: Run by MLflow itself when it loads a version (its "model from code"); nothing of ours imports it.
LOADED_BY_MLFLOW = "models_registry.served"
HEAVY = {"dagster", "dbt", "mlflow", "great_expectations", "optuna", "lightgbm", "matplotlib"}


def sources() -> dict[str, Path]:
    """Module -> its file, of all rooms."""
    found = {}
    for room in ALLOWED:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = sources()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports(root: ast.AST, *, of_functions: bool = True) -> Iterator[str]:
    """What code imports: modules of ours by their whole name, others by their package's.

    Without ``of_functions`` what loading a module imports: nothing that a function would when called,
    and nothing that type checkers alone see.
    """
    pending = [root]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in names)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if of_functions or not (function or typing):
            pending.extend(ast.iter_child_nodes(node))


def room_of(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    allowed = ALLOWED[room] | {room}
    wrong = [
        f"{module} imports {name}"
        for module, tree in TREES.items()
        for name in imports(tree)
        if room_of(module) == room and room_of(name) in ALLOWED and room_of(name) != "proving"
        if not any(name == below or name.startswith(f"{below}.") for below in allowed)
    ]
    assert not wrong


def test_the_product_reaches_proving_by_the_named_exceptions_alone() -> None:
    reached: dict[str, dict[str, set[str]]] = {}
    for module, tree in TREES.items():
        if room_of(module) == "proving":
            continue
        for node in tree.body:
            for name in imports(node):
                if room_of(name) == "proving":
                    function = getattr(node, "name", "the module itself")
                    reached.setdefault(module, {}).setdefault(function, set()).add(name)
    assert reached == EXCEPTIONS


def test_the_command_line_names_proving_in_the_verbs_of_that_group_alone() -> None:
    for group, verbs in VERBS.items():
        for name, verb in verbs.items():
            assert (room_of(verb.module) == "proving") == (group == "proving"), name


def test_no_modules_import_each_other_in_a_circle() -> None:
    below = {m: {n for n in imports(tree) if n in MODULES and n != m} for m, tree in TREES.items()}
    # A verb's front door may load the parts of its own package when it is called.
    TopologicalSorter(below).prepare()


@pytest.mark.parametrize("room", ["market", "execution"])
def test_market_and_execution_do_no_network_io(room: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, tree in TREES.items()
        for name in imports(tree)
        if room_of(module) == room and module != REACHES and room_of(name) in NETWORK
    ]
    assert not wrong


@pytest.mark.parametrize("room", ["market", "execution", "live", "models_registry"])
def test_loading_a_room_below_loads_no_heavy_library(room: str) -> None:
    wrong = [
        f"{module} imports {name}"
        for module, tree in TREES.items()
        if room_of(module) == room and module != LOADED_BY_MLFLOW
        for name in imports(tree, of_functions=False)
        if room_of(name) in HEAVY
    ]
    assert not wrong
