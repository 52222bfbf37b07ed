"""How the venue says no: a code that clients go by, and a text for people."""

from __future__ import annotations


class RefusedError(Exception):
    """A request that is not carried out; nothing has changed. ``status`` is the HTTP status."""

    def __init__(self, code: int, message: str, status: int = 200) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status
