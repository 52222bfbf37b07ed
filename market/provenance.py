"""Provenance and lineage: which code makes which table, and from which tables.

A producer declares its tables beside the code that makes them, at module level:

    BARS = Table("bars", version=1, upstream=("events",))

A table's code hash covers the schema version, the syntax tree of every module that the producer
imports at any remove (comments, docstrings and layout do not count), the SQL that it runs, and the
code hashes of the tables it is made from. So better words never make a lake stale, and changed
fee arithmetic always does (fee rates are settings, which belong to a partition's inputs). Declarations are read from the source, not by importing it: whoever reads a table
need not load the room that makes it.

Code that was changed but still makes the same rows is written down in ``equivalent_code.toml``:
partitions of a hash in it are read as if the present code had made them.
tests/test_earlier_lakes.py holds that to be true for what earlier versions left.

    python -m market.provenance                     the tables, their hashes and producers
    python -m market.provenance of MODULE           the tables that a module decides
    python -m market.provenance same [TABLE…]       the edited code makes the same rows (of all, or these)
    python -m market.provenance changed [TABLE…]    it makes other rows: users make them again
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
import threading
import tomllib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from market.cache import beside, user_folder
from market.errors import DataError

ROOT: Final = Path(__file__).resolve().parents[1]
ROOMS: Final = (
    "market", "execution", "models_registry", "assets", "orchestration", "live", "proving",
)  # fmt: skip
#: Modules that store, configure, report and fail, and decide no value of any table: what a setting
#: decides is part of a partition's inputs. A change of these leaves every code hash as it is.
#: The definitions of features decide by the SQL that is generated of them, which is hashed itself.
NEUTRAL: Final = frozenset(
    {
        "market.cache",
        "market.compute",
        "market.console",
        "market.errors",
        "market.features.definitions",
        "market.interruption",
        "market.lake",
        "market.locks",
        "market.place",
        "market.provenance",
        "market.settings",
        "market.store",
    }
)
#: Files that decide what a machine computes.
_SOURCES: Final = frozenset({".py", ".sql", ".yml", ".toml", ".json", ".npz"})
EQUIVALENT: Final = Path(__file__).with_name("equivalent_code.toml")


class ProvenanceError(DataError):
    """A table is not declared, or what makes it is not here."""


class Table(msgspec.Struct, frozen=True):
    """A table of the lake, declared beside the code that makes it."""

    name: str
    #: Of the schema; raised when columns change their name, type or meaning.
    version: int
    #: Tables that it is made from.
    upstream: tuple[str, ...] = ()
    #: SQL and YAML files that decide its content, relative to the project.
    files: tuple[str, ...] = ()
    #: A record of what happened, which cannot be made again: its code hash is of the version alone.
    record: bool = False


# -- what a module is made of ----------------------------------------------------------------------


@cache
def module_file(name: str) -> Path | None:
    """The source file of a project module, None for a name that is none."""
    if name.split(".")[0] not in ROOMS:
        return None
    path = ROOT.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


class _Source(msgspec.Struct, frozen=True):
    """Imports, syntax and tables of a source file, cached on disk by a digest of its bytes: every process that
    runs kernels needs those of some seventy files, which take seconds to parse."""

    digest: bytes
    #: ``import name`` is (name,), ``from name import part`` is (name, part).
    imported: tuple[tuple[str, ...], ...]
    syntax: str
    declared: tuple[Table, ...]


#: Of Python and of the code that reads a source file: either may read it otherwise than what was kept.
_READER: Final = f"{sys.version}\0".encode() + Path(__file__).read_bytes()


@cache
def _source(path: Path) -> _Source:
    text = path.read_bytes()
    digest = hashlib.sha256(_READER + text).digest()
    if beside(path.parent):
        kept = path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.syntax"
    else:
        kept = user_folder() / "syntax" / hashlib.sha256(str(path).encode()).hexdigest()
    with suppress(OSError, msgspec.MsgspecError):
        found = msgspec.msgpack.decode(kept.read_bytes(), type=_Source)
        if found.digest == digest:
            return found
    tree = ast.parse(text)
    imported = tuple(_imported(tree))
    declares = ("market.provenance", "Table") in imported
    declared = tuple(_declarations(tree)) if declares else ()
    found = _Source(digest, imported, syntax(tree), declared)
    with suppress(OSError):
        kept.parent.mkdir(exist_ok=True)
        written = kept.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        written.write_bytes(msgspec.msgpack.encode(found))
        written.replace(kept)
    return found


def _imported(tree: ast.Module) -> Iterator[tuple[str, ...]]:
    """Project modules that a file imports anywhere but under ``if TYPE_CHECKING``."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] in ROOMS:
                yield from ((node.module, item.name) for item in node.names)
        elif isinstance(node, ast.Import):
            yield from ((item.name,) for item in node.names if item.name.split(".")[0] in ROOMS)
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            pending.extend(ast.iter_child_nodes(node))


def imports(module: str) -> Iterator[str]:
    """Project modules that a module imports anywhere but under ``if TYPE_CHECKING``."""
    path = module_file(module)
    if path is None:
        raise ProvenanceError(f"{module}: no such module in {ROOT}")
    for name, *parts in _source(path).imported:
        # Of a package that is only passed through, the submodule alone.
        whole = ".".join((name, *parts))
        found = whole if module_file(whole) else name
        if module_file(found):
            yield found


@cache
def closure(module: str) -> tuple[str, ...]:
    """A module and every project module below it, sorted; NEUTRAL ones and theirs left out."""
    reached: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name not in reached and name not in NEUTRAL:
            reached.add(name)
            pending.extend(imports(name))
    return tuple(sorted(reached))


def syntax(tree: ast.AST) -> str:
    """A syntax tree as text, without docstrings; the same under every supported Python."""
    parts: list[str] = []
    for field, value in ast.iter_fields(tree):
        if (
            field == "body"
            and isinstance(tree, _DOCUMENTED)
            and ast.get_docstring(tree) is not None
        ):
            value = value[1:]
        # Left out: what newer versions of Python add empty, and the prefix of a string.
        if value is None or value == [] or field in ("kind", "type_comment"):
            continue
        items = value if isinstance(value, list) else [value]
        texts = (syntax(item) if isinstance(item, ast.AST) else repr(item) for item in items)
        parts.append(f"{field}={','.join(texts)}")
    return f"{type(tree).__name__}({' '.join(parts)})"


_DOCUMENTED: Final = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def closure_hash(*modules: str) -> str:
    """Hash of the syntax of modules and of everything below them (16 hex digits)."""
    digest = hashlib.sha256()
    for name in sorted({each for module in modules for each in closure(module)}):
        path = module_file(name)
        assert path is not None  # closure() holds modules alone
        digest.update(f"{name}\0{_source(path).syntax}\0".encode())
    return digest.hexdigest()[:16]


@cache
def source_hash() -> str:
    """Hash of all that this installation runs, comments and all (16 hex digits): the same on every machine of
    a cluster."""
    digest = hashlib.sha256()
    for folder in (*ROOMS, "dbt_project"):
        for file in sorted((ROOT / folder).rglob("*")):
            name = file.relative_to(ROOT)
            if file.suffix in _SOURCES and "target" not in name.parts:
                digest.update(f"{name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _statement(path: Path) -> str:
    """SQL, macros or YAML without comments and layout."""
    text = path.read_text()
    if path.suffix == ".sql":
        text = re.sub(r"\{#.*?#\}|--[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    else:
        text = re.sub(r"(?m)(^|\s)#[^\n]*", " ", text)
    return " ".join(text.split())


# -- what a table is made by -----------------------------------------------------------------------


@cache
def tables() -> dict[str, tuple[Table, str]]:
    """Every declared table -> (its declaration, the module that declares it), producers first."""
    declared: dict[str, tuple[Table, str]] = {}
    for path in sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py")):
        if b"Table(" not in path.read_bytes():
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for table in _source(path).declared:
            if table.name in declared:
                raise ProvenanceError(
                    f"table {table.name} is declared in {declared[table.name][1]} and in {module}"
                )
            declared[table.name] = table, module
    ordered: dict[str, tuple[Table, str]] = {}

    def put(name: str) -> None:
        if name not in ordered:
            for upstream in declared[name][0].upstream:
                put(upstream)
            ordered[name] = declared[name]

    for name in declared:
        put(name)
    return ordered


def _declarations(tree: ast.Module) -> Iterator[Table]:
    """Calls of `Table` at module level; their arguments are literals."""
    for statement in tree.body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            continue
        for node in ast.walk(statement.value):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Table":
                yield Table(
                    *map(ast.literal_eval, node.args),
                    **{str(word.arg): ast.literal_eval(word.value) for word in node.keywords},
                )


def declaration(table: str) -> Table:
    """The declaration of a table; ProvenanceError for one that none makes."""
    try:
        return tables()[table][0]
    except KeyError:
        raise ProvenanceError(
            f"{table}: no such table; known are {', '.join(sorted(tables()))}"
        ) from None


@cache
def code_hash(table: str) -> str:
    """Hash of the code that decides a table's content, upstream tables included (16 hex digits)."""
    declared = declaration(table)
    digest = hashlib.sha256(f"{table} {declared.version}".encode())
    if not declared.record:
        digest.update(closure_hash(tables()[table][1]).encode())
        for name in declared.files:
            path = ROOT / name
            if not path.is_file():
                raise ProvenanceError(
                    f"{path}, which makes table {table}, is missing; run from a checkout"
                )
            digest.update(_statement(path).encode())
        for name in declared.upstream:
            digest.update(code_hash(name).encode())
    return digest.hexdigest()[:16]


# -- earlier code that made the same rows ----------------------------------------------------------


class Equivalent(msgspec.Struct):
    """Of one table: the code hash as it was last written down, and earlier ones of equal rows."""

    code: str
    same: list[str] = []


@cache
def _equivalent() -> dict[str, Equivalent]:
    return msgspec.convert(tomllib.loads(EQUIVALENT.read_text()), dict[str, Equivalent])


def is_current(table: str, code: str | None) -> bool:
    """Whether rows made by code of this hash are what the present code makes."""
    if code == code_hash(table):
        return True
    # What the file says holds for the code it was written for, and for no later one.
    noted = _equivalent().get(table)
    return noted is not None and noted.code == code_hash(table) and code in noted.same


def _renewed(equal: bool, named: Collection[str]) -> dict[str, Equivalent]:
    """The file for the present code of the tables named: earlier hashes are kept where rows are equal."""
    noted = _equivalent()
    renewed: dict[str, Equivalent] = {}
    for table in tables():
        before = noted.get(table, Equivalent(code=code_hash(table)))
        if before.code == code_hash(table) or table not in named:
            renewed[table] = before
        else:
            same = [*before.same, before.code] if equal else []
            renewed[table] = Equivalent(code=code_hash(table), same=same)
    return renewed


def main(arguments: Sequence[str]) -> int:
    """The command of the module's docstring; the exit status."""
    word, *named = arguments or ("",)
    if word in ("same", "changed"):
        for table in named:
            declaration(table)
        lines = ["# Written by `python -m market.provenance same` or `changed`; see there."]
        for table, each in _renewed(word == "same", named or tables()).items():
            same = ", ".join(f'"{code}"' for code in each.same)
            lines += ["", f"[{table}]", f'code = "{each.code}"', f"same = [{same}]"]
        EQUIVALENT.write_text("\n".join(lines) + "\n")
    elif word == "of" and len(named) == 1:
        for table, (_, producer) in tables().items():
            if named[0] in closure(producer) and not declaration(table).record:
                print(table)
    elif not word:
        for table, (_, producer) in tables().items():
            known = _equivalent().get(table)
            noted = "" if known and known.code == code_hash(table) else "  (not written down)"
            print(
                f"{table:15} {code_hash(table)}  {producer}, {len(closure(producer))} modules{noted}"
            )
    else:
        print(
            "usage: python -m market.provenance [of MODULE | same [TABLE…] | changed [TABLE…]]",
            file=sys.stderr,
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
