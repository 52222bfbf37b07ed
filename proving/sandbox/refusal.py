"""How the venue says no: a code that clients go by, and a text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RefusedError(Exception):
    """A request that is not carried out; nothing has changed.

    ``status`` is the HTTP status, ``result`` what the answer holds all the same.
    """

    def __init__(
        self,
        code: int,
        message: str,
        status: int = 200,
        result: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status
        self.result = dict(result or {})
