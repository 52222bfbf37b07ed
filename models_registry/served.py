"""A version as an MLflow model that loads anywhere: its script and the modules that this needs.

MLflow runs the script when a version is loaded for review or served over HTTP; the trading process loads
the bundle itself. The modules are copied into a package named by the version, so that neither a project
installed beside it nor another version's code is taken for them.
"""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Final, NamedTuple

from market.provenance import ROOMS, imports, module_file

_SCRIPT: Final = Path(__file__).with_name("served_script.py")
_ENTRY: Final = "models_registry.manifest"
#: Imported by MLflow with a model's script, or by the script itself.
_ALWAYS: Final = ("mlflow", "pandas")


class ServedModel(NamedTuple):
    """What MLflow logs: the script, the package beside it, and requirements (``name==version``)."""

    script: Path
    package: Path
    requirements: tuple[str, ...]


def served_model(folder: Path, digest: str) -> ServedModel:
    """Write script and package of the bundle with this digest into the new ``folder``."""
    package = folder / f"l2_served_{digest[:16]}"
    files, pending = {}, [_ENTRY]
    while pending:
        name = pending.pop()
        if name not in files and (file := module_file(name)):
            files[name] = file
            pending.extend(imports(name))
    needed = set(_ALWAYS)
    for name, file in files.items():
        to = package.joinpath(*name.split(".")).with_suffix(".py")
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(_moved(file, package.name))
        needed |= _third_party(file)
    script = folder / "served.py"
    script.write_text(_moved(_SCRIPT, package.name))
    # Several distributions may hold parts of one package; the one of its name brings the others.
    holders = packages_distributions()
    found = {name if name in holders[name] else holders[name][0] for name in needed}
    return ServedModel(script, package, tuple(f"{name}=={version(name)}" for name in sorted(found)))


def _moved(file: Path, package: str) -> str:
    """A module's text with the project's imports below ``package``."""
    rooms = "|".join(ROOMS)
    return re.sub(rf"(?m)^(\s*from )({rooms})\b", rf"\1{package}.\2", file.read_text())


def _third_party(file: Path) -> set[str]:
    """Top-level names of the installed packages that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            names |= {item.name.split(".")[0] for item in node.names}
    return names - sys.stdlib_module_names - {*ROOMS, "__future__"}
