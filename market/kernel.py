"""How kernels over event rows are compiled, and when a compiled one may be used again.

Without reference counting: numba would count at every array that a kernel hands on, which costs
several times the work of a row. A kernel therefore allocates nothing; numba refuses one that does.

numba keeps machine code on disk and renews it when the kernel's own file changes, but not when a
file changes whose kernels or constants are compiled into it. Stale code would then run under a new
code hash. So the name under which code is kept carries a hash of the file and of all files of the
project that it imports, at any remove.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from numba import njit

_PROJECT: Final = ("market", "execution", "models_registry", "proving")


def kernel(function: Callable[..., Any]) -> Any:
    """Compile in numba's nopython mode, kept on disk; division by zero gives inf or NaN."""
    return njit(cache=True, error_model="numpy", _nrt=False)(_named(function))


def inlined(function: Callable[..., Any]) -> Any:
    """A kernel that becomes part of its callers: for small ones that run at every row."""
    return njit(cache=True, error_model="numpy", _nrt=False, forceinline=True)(_named(function))


def compiled(function: Callable[..., Any]) -> Any:
    """The same for functions that allocate or that Python calls by the row; Python's division."""
    return njit(cache=True)(_named(function))


def _named(function: Callable[..., Any]) -> Callable[..., Any]:
    function.__qualname__ += f"_{sources_hash(function.__module__)}"
    return function


@cache
def sources_hash(module: str) -> str:
    """Hash (12 hex digits) of a loaded module's source and of the project's modules below it."""
    sources: dict[str, bytes] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        file = sys.modules[name].__file__
        if name not in sources and file is not None:
            sources[name] = Path(file).read_bytes()
            pending.extend(_imports(sources[name]))
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(name.encode() + b"\0" + sources[name])
    return digest.hexdigest()[:12]


def _imports(source: bytes) -> Iterator[str]:
    """Loaded modules of the project that a source text imports."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{item.name}" for item in node.names)]
        elif isinstance(node, ast.Import):
            names = [item.name for item in node.names]
        yield from (n for n in names if n.split(".")[0] in _PROJECT and n in sys.modules)
