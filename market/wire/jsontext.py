"""Parsers and writers of pieces of compact JSON in byte arrays, compiled.

A parser takes a text (uint8), a position and the text's end, and returns the position after the piece;
NOT_PLAIN (-1) means "not in the plain form that is known here", never "wrong". A writer takes a text
with room enough, and returns the position after the piece.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from market.kernel import kernel

Text = npt.NDArray[np.uint8]

#: Bytes of JSON.
NEWLINE, SPACE, QUOTE, COMMA, DOT, COLON = 10, 32, 34, 44, 46, 58
ZERO, NINE, BACKSLASH = 48, 57, 92
OPEN_LIST, CLOSE_LIST, OPEN_OBJECT, CLOSE_OBJECT = 91, 93, 123, 125

NOT_PLAIN: Final = -1
MAX_INT: Final = (1 << 63) - 1
_POW10: Final = np.array([10**n for n in range(19)], np.int64)
#: The largest value that can be multiplied by the power.
_ROOM10: Final = MAX_INT // _POW10


def packed(name: str) -> tuple[int, int]:
    """A key of up to 16 characters as two integers, as `key_at` reads it."""
    raw = name.encode().ljust(16, b"\0")
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")


@kernel
def integer(text: Text, at: int, end: int) -> tuple[int, int]:
    """A JSON integer of at most 19 digits that fits in int64; (value, position after it)."""
    start = at
    value = 0
    while at < end and ZERO <= text[at] <= NINE:
        value = value * 10 + (text[at] - ZERO)
        at += 1
        if at - start > 19:
            return 0, NOT_PLAIN
    size = at - start
    if size == 0 or (text[start] == ZERO and size > 1) or (size == 19 and text[start] == NINE):
        return 0, NOT_PLAIN
    return value, at


@kernel
def key_at(text: Text, at: int, end: int) -> tuple[int, int, int]:
    """A key and its colon; (first 8 characters, next 8, position after). Longer keys give zeros."""
    if at >= end or text[at] != QUOTE:
        return 0, 0, NOT_PLAIN
    at += 1
    low = 0
    high = 0
    size = 0
    while at < end:
        byte = int(text[at])
        if byte == QUOTE:
            break
        if not (97 <= byte <= 122 or 65 <= byte <= 90 or ZERO <= byte <= NINE):
            return 0, 0, NOT_PLAIN
        if size < 8:
            low |= byte << (8 * size)
        elif size < 16:
            high |= byte << (8 * (size - 8))
        size += 1
        at += 1
    if at + 1 >= end or text[at + 1] != COLON or size == 0:
        return 0, 0, NOT_PLAIN
    if size > 16:
        low = 0
        high = 0
    return low, high, at + 2


@kernel
def string_end(text: Text, at: int, end: int) -> int:
    """The position after a string of plain ASCII without escapes that starts at ``at``."""
    if at >= end or text[at] != QUOTE:
        return NOT_PLAIN
    at += 1
    while at < end:
        byte = text[at]
        if byte == QUOTE:
            return at + 1
        if byte < SPACE or byte > 126 or byte == BACKSLASH:
            return NOT_PLAIN
        at += 1
    return NOT_PLAIN


#: How deep values may lie in one another: the bits of an integer.
_MAX_DEPTH: Final = 60
_NAMES: Final = tuple(np.frombuffer(name, np.uint8) for name in (b"true", b"false", b"null"))


@kernel
def value_end(text: Text, at: int, end: int) -> int:
    """The position after a value of plain strings, integers, names, and lists and objects of them."""
    objects = 0  # a bit for each open value: 1 for an object, the innermost lowest
    depth = 0
    while True:
        if at >= end:
            return NOT_PLAIN
        byte = int(text[at])
        opened = byte in (OPEN_LIST, OPEN_OBJECT)
        if opened:
            if depth == _MAX_DEPTH:
                return NOT_PLAIN
            depth += 1
            objects = objects << 1 | int(byte == OPEN_OBJECT)
            at += 1
        elif byte == QUOTE:
            at = string_end(text, at, end)
        elif ZERO <= byte <= NINE:
            _, at = integer(text, at, end)
        else:
            at = _name_end(text, at, end)
        if at < 0:
            return NOT_PLAIN
        # Open values close here or go on with a comma; one that was just opened needs none.
        while depth > 0 and at < end and text[at] == (CLOSE_OBJECT if objects & 1 else CLOSE_LIST):
            at += 1
            depth -= 1
            objects >>= 1
            opened = False
        if depth == 0:
            return at
        if not opened:
            if at >= end or text[at] != COMMA:
                return NOT_PLAIN
            at += 1
        if objects & 1:
            at = string_end(text, at, end)
            if at < 0 or at >= end or text[at] != COLON:
                return NOT_PLAIN
            at += 1


@kernel
def _name_end(text: Text, at: int, end: int) -> int:
    for name in _NAMES:
        if starts(text, at, end, name):
            return at + len(name)
    return NOT_PLAIN


@kernel
def same(text: Text, at: int, stop: int, name: Text, start: int, size: int) -> bool:
    """Whether ``text[at:stop]`` is ``name[start:start + size]``."""
    if stop - at != size:
        return False
    for n in range(size):  # noqa: SIM110 - numba compiles no generator
        if text[at + n] != name[start + n]:
            return False
    return True


@kernel
def starts(text: Text, at: int, end: int, name: Text) -> bool:
    """Whether ``text`` goes on with ``name`` at ``at``."""
    return at + len(name) <= end and same(text, at, at + len(name), name, 0, len(name))


@kernel
def decimal(text: Text, at: int, end: int) -> tuple[int, int, int]:
    """A quoted decimal of at most 18 digits; (its digits as an integer, decimals, position after)."""
    if at >= end or text[at] != QUOTE:
        return 0, 0, NOT_PLAIN
    at += 1
    start = at
    value = 0
    point = -1
    while at < end:
        byte = int(text[at])
        if ZERO <= byte <= NINE:
            value = value * 10 + (byte - ZERO)
        elif byte == DOT and point < 0 and at > start:
            point = at
        elif byte == QUOTE and at > start and at - 1 != point:
            if at - start > (18 if point < 0 else 19):
                return 0, 0, NOT_PLAIN
            return value, 0 if point < 0 else at - 1 - point, at + 1
        else:
            return 0, 0, NOT_PLAIN
        at += 1
        if at - start > 20:
            return 0, 0, NOT_PLAIN
    return 0, 0, NOT_PLAIN


@kernel
def scaled(value: int, decimals: int, places: int, unit: int, limit: int) -> int:
    """``value * 10^-decimals`` in units of ``unit * 10^-places``; -1 when not whole or too large."""
    if decimals <= places:
        if value > _ROOM10[places - decimals]:
            return -1
        value *= _POW10[places - decimals]
    else:
        factor = _POW10[decimals - places]
        if value % factor != 0:
            return -1
        value //= factor
    if unit != 1:
        if value % unit != 0:
            return -1
        value //= unit
    return value if value <= limit else -1


@kernel
def put(text: Text, at: int, piece: Text) -> int:
    """Write bytes as they are."""
    for n in range(len(piece)):
        text[at + n] = piece[n]
    return at + len(piece)


@kernel
def put_number(text: Text, at: int, value: int, places: int) -> int:
    """Write a non-negative integer of units of 10^-places, all of its decimals."""
    digits, rest = 1, value // 10
    while rest > 0 or digits <= places:
        digits += 1
        rest //= 10
    end = at + digits + (places > 0)
    here = end - 1
    for n in range(digits):
        if places > 0 and n == places:
            text[here] = DOT
            here -= 1
        text[here] = ZERO + value % 10
        value //= 10
        here -= 1
    return end
