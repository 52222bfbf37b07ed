"""Errors that a person reads: one clear line each, of what went wrong, where, and what to do.

Whatever ends a command on purpose is an `L2Error`; the command line prints its message alone. Any
other exception is a defect of ours, and is printed with its type.

    L2Error
    ├── UsageError          what was typed or configured cannot be used; exit status 2
    ├── DataError           captures, archives or tables cannot serve a request
    ├── ModelError          a model, its data or the registry cannot serve a request
    └── VenueError          the venue or the link to it cannot serve a request

Exit status 3 is of those after which a worker must not be started again before a person has looked.

Each room derives its own from these, beside the code that raises them; docs/architecture.md draws
the whole tree.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

#: What the kernel says, SQLite, and Python of a limit on file sizes; libraries pass on the words alone.
_NO_SPACE: Final = re.compile(
    "No space left on device|disk is full|Disk quota exceeded|File too large"
)


def no_space(error: BaseException | str) -> bool:
    """Whether an error, or a line that a library printed, says that the disk took no more."""
    return _NO_SPACE.search(str(error)) is not None


class L2Error(Exception):
    """Base of every error whose message is written for a person; ``exit_status`` is what a command exits with."""

    exit_status: ClassVar[int] = 1


class UsageError(L2Error, ValueError):
    """What was typed or configured cannot be used; the message names what the user typed."""

    exit_status = 2


class DataError(L2Error, RuntimeError):
    """Captures, archives or tables cannot serve a request; the message names the file or date."""


class ModelError(L2Error, RuntimeError):
    """A model, its data or the registry cannot serve a request."""


class VenueError(L2Error, RuntimeError):
    """The venue, or the link to it, cannot serve a request."""
