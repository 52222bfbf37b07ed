"""What requests and answers look like: refusals, signatures, parameters, decimal strings and pages.

Every module of the sandbox may import this one, and it imports none of them. A refused request is a
`RefusedError` with the venue's code and text, byte for byte: clients branch on them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from market.units import DAY_MS, E8

Row = dict[str, Any]  #: a JSON object of an answer
Query = Mapping[str, str]  #: parameters of a GET
Body = Mapping[str, Any]  #: parameters of a POST

#: How far a client's clock may lead the venue's, exclusive.
MAX_CLOCK_LEAD_MS: Final = 1000
RECV_WINDOW_MS: Final = 5000
WEEK_MS: Final = 7 * DAY_MS
_DECIMAL: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,18})?")


class Credentials(Protocol):
    """A client as authentication sees it."""

    secret: str


ClientT = TypeVar("ClientT", bound=Credentials)


class RefusedError(Exception):
    """A request that is refused; the state of the exchange is unchanged.

    ``status`` is the HTTP status, ``result`` the result that the answer carries all the same.
    """

    def __init__(
        self, code: int, message: str, status: int = 200, result: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status
        self.result = dict(result or {})


def invalid(name: str) -> RefusedError:
    """The refusal of a parameter that is missing, malformed or unknown."""
    return RefusedError(10001, f"params error: {name} invalid")


# -- authentication --------------------------------------------------------------------------------


def signature(secret: str, text: bytes) -> str:
    """HMAC-SHA256 of a text under a secret, lower-case hex."""
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def authenticate(
    headers: Mapping[str, str], payload: bytes, now_ms: int, clients: Mapping[str, ClientT]
) -> ClientT:
    """The client that signed a REST request; ``clients`` by API key.

    Signed are timestamp + key + receive window + payload, the payload being the raw query string of a
    GET and the raw body of a POST. Refused when unsigned, unknown, wrong or outside the receive window.
    """
    key, sign = headers.get("X-BAPI-API-KEY", ""), headers.get("X-BAPI-SIGN", "")
    stamp = headers.get("X-BAPI-TIMESTAMP", "")
    window = headers.get("X-BAPI-RECV-WINDOW", str(RECV_WINDOW_MS))
    if not key or not sign or not stamp:
        raise RefusedError(10003, "API key, timestamp and signature are required", 401)
    client = clients.get(key)
    if client is None:
        raise RefusedError(10003, "API key is invalid.")
    check_recv_window(stamp, window, now_ms)
    origin = f"{stamp}{key}{window}".encode() + payload
    if not _equal(signature(client.secret, origin), sign.lower()):
        text = origin.decode("utf-8", "replace")
        raise RefusedError(10004, f"error sign! origin_string[{text}]")
    return client


def authenticate_socket(args: Any, now_ms: int, clients: Mapping[str, ClientT]) -> ClientT:
    """The client that a WebSocket authenticates as; ``clients`` by API key.

    ``args`` are key, expiry (ms, a string or a number) and the signature of `GET/realtime` + expiry.
    """
    if not isinstance(args, list) or len(args) != 3:
        raise RefusedError(10001, "Params Error")
    key, expires, sign = (str(part) if isinstance(part, str | int) else "" for part in args)
    if not _is_integer(expires):
        raise RefusedError(10001, "Params Error")
    client = clients.get(key)
    if client is None:
        raise RefusedError(10003, "API key is invalid.")
    if int(expires) <= now_ms:
        raise RefusedError(10004, "The signature has expired.")
    if not _equal(signature(client.secret, f"GET/realtime{expires}".encode()), sign):
        raise RefusedError(10004, "error sign!")
    return client


def check_recv_window(stamp: str, window: str, now_ms: int) -> None:
    """Refuse a timestamp older than the receive window or too far in the future."""
    if not _is_integer(stamp) or not _is_integer(window):
        raise invalid("timestamp or recv_window")
    if not now_ms - int(window) <= int(stamp) < now_ms + MAX_CLOCK_LEAD_MS:
        raise RefusedError(
            10002,
            "invalid request, please check your server timestamp or recv_window param. "
            f"req_timestamp[{stamp}],server_timestamp[{now_ms}],recv_window[{window}]",
        )


def _equal(expected: str, given: str) -> bool:
    """Constant-time comparison that also takes characters outside ASCII."""
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogateescape"))


def _is_integer(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 15


# -- parameters ------------------------------------------------------------------------------------


def require_linear(params: Mapping[str, Any]) -> None:
    """Refuse every category but linear."""
    if params.get("category") != "linear":
        raise RefusedError(10001, "Illegal category")


def text(body: Body, name: str, default: str = "") -> str:
    """A string parameter."""
    value = body.get(name, default)
    if not isinstance(value, str):
        raise invalid(name)
    return value


def flag(body: Body, name: str) -> bool:
    """A boolean parameter, false by default."""
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise invalid(name)
    return value


def choice(body: Body, name: str, options: tuple[str, ...]) -> str:
    """One of several words, the first by default."""
    value = text(body, name) or options[0]
    if value not in options:
        raise invalid(name)
    return value


def decimal(value: Any, name: str) -> Decimal:
    """A decimal string: no sign, no exponent, at most 15 digits before the point."""
    if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
        raise invalid(name)
    return Decimal(value)


def integer(query: Query, name: str, default: int) -> int:
    """A non-negative integer of a query."""
    value = query.get(name, "")
    if not value:
        return default
    if not _is_integer(value):
        raise invalid(name)
    return int(value)


# -- answers ---------------------------------------------------------------------------------------


def money(value_e8: int) -> str:
    """An amount at 1e-8 without trailing zeros: 65370500000 → "653.705"."""
    whole, fraction = divmod(abs(value_e8), E8)
    digits = f"{whole}.{fraction:08d}".rstrip("0").rstrip(".")
    return f"-{digits}" if value_e8 < 0 else digits


def rounded(value_e8: int, places: int) -> str:
    """An amount at 1e-8 rounded to a fixed number of decimals."""
    return f"{Decimal(value_e8).scaleb(-8):.{places}f}"


def plain_price(price_e8: int) -> str:
    """A price at 1e-8 rounded to two decimals, without trailing zeros."""
    return money(round(price_e8, -6))


def page_limit(query: Query, default: int, maximum: int) -> int:
    """Rows requested for one page, capped at the maximum."""
    limit = integer(query, "limit", integer(query, "size", default))
    if limit < 1:
        raise invalid("limit")
    return min(limit, maximum)


def page(
    rows: Iterable[Row], query: Query, time_field: str, default: int, maximum: int, **equal: str
) -> Row:
    """One page of rows that come newest first, as ``list`` and ``nextPageCursor``.

    Filters on ``startTime`` and ``endTime`` (at most a week apart; one alone means a week) and on the fields in ``equal``, an
    empty value matching anything. ``rows`` may be lazy: it is consumed only as far as the page needs.
    """
    start, end = integer(query, "startTime", 0), integer(query, "endTime", 0)
    if start and not end:
        end = start + WEEK_MS
    elif end and not start:
        start = max(0, end - WEEK_MS)
    if start and end and not 0 <= end - start <= WEEK_MS:
        raise RefusedError(10001, "params error: endTime - startTime has to be within 7 days")
    matching = (
        row
        for row in rows
        if start <= int(row[time_field]) <= (end or 1 << 62)
        and all(not value or row[name] == value for name, value in equal.items())
    )
    offset, limit = integer(query, "cursor", 0), page_limit(query, default, maximum)
    chosen = list(islice(matching, offset, offset + limit + 1))
    return {
        "list": chosen[:limit],
        "nextPageCursor": str(offset + limit) if len(chosen) > limit else "",
        "category": "linear",
    }
