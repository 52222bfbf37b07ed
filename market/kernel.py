"""How kernels over event rows are compiled, and when a compiled one may be used again.

Without reference counting: numba would count at every array that a kernel hands on, which costs
several times the work of a row. A kernel therefore allocates nothing; numba refuses one that does.

numba keeps machine code on disk and renews it when the kernel's own file changes, but not when a
file changes whose kernels or constants are compiled into it. Stale code would then run under a new
code hash. So the name under which code is cached carries the hash of the module's import closure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from numba import config, njit

from market.cache import beside, user_folder
from market.provenance import ROOT, closure_hash, module_file

if not (config.CACHE_DIR or beside(ROOT / "market")):
    # numba itself gives up where neither the code's folder nor a home can be written
    config.CACHE_DIR = str(user_folder() / "numba")


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
    module = function.__module__
    if module == "__main__":
        spec = getattr(sys.modules[module], "__spec__", None)
        module = spec.name if spec else module
    if module_file(module) is not None:
        function.__qualname__ += f"_{closure_hash(module)}"
    return function
