"""The venue's public REST API: instruments and funding settlements; HTTP with retries.

A request that fails for a transient reason (HTTP 408, 425, 429, 5xx, a timeout, a reset connection) is
retried after a wait that doubles, or after the server's ``Retry-After``.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from email.message import Message
from http.client import HTTPException
from typing import Any, Final, NamedTuple, TypeVar

from market.errors import VenueError
from market.instruments import Instrument

USER_AGENT: Final = "l2-platform/0.1"
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S: Final = 60.0
#: Rates and candles per page; the venue's limits.
_FUNDING_PAGE: Final = 200
_CANDLE_PAGE: Final = 1000

_T = TypeVar("_T")


class RequestError(VenueError):
    """A request failed for good; ``status`` is the HTTP status, 0 when there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class RetryPolicy(NamedTuple):
    """Retries of a request: number of attempts, first wait and timeout of an attempt (seconds)."""

    attempts: int = 6
    wait_s: float = 1.0
    timeout_s: float = 30.0

    def run(
        self, label: str, attempt: Callable[[], _T], sleep: Callable[[float], None] = time.sleep
    ) -> _T:
        """The result of ``attempt``; RequestError, naming ``label``, when retries do not help."""
        for number in range(1, self.attempts + 1):
            try:
                return attempt()
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in _TRANSIENT or number == self.attempts:
                    raise RequestError(
                        f"{label}: HTTP {error.code} {error.reason}", error.code
                    ) from error
                retry_after_s = _retry_after_s(error.headers)
            except (OSError, HTTPException) as error:
                if number == self.attempts:
                    raise RequestError(f"{label}: {error}") from error
                retry_after_s = 0.0
            backoff_s = self.wait_s * 2 ** (number - 1)
            sleep(min(max(retry_after_s, backoff_s), _LONGEST_WAIT_S))
        raise RequestError(f"{label}: no attempt allowed; history.attempts must be at least 1")


def request(url: str, **headers: str) -> urllib.request.Request:
    """A GET with our user agent; RequestError unless the address is http or https."""
    if not url.startswith(("http://", "https://")):
        raise RequestError(f"{url}: expected an http:// or https:// address")
    return urllib.request.Request(url, headers={"User-Agent": USER_AGENT, **headers})


def instruments(base_url: str, symbols: Iterable[str], retry: RetryPolicy) -> list[Instrument]:
    """Tick, lot and minimum sizes as listed now; RequestError when a symbol is not listed."""
    return [_instrument(base_url, symbol, retry) for symbol in symbols]


def _instrument(base_url: str, symbol: str, retry: RetryPolicy) -> Instrument:
    result = _get(
        base_url, "/v5/market/instruments-info", {"category": "linear", "symbol": symbol}, retry
    )
    try:
        (listed,) = [entry for entry in result["list"] if entry["symbol"] == symbol]
        return Instrument(
            symbol=symbol,
            tick=_normalised(listed["priceFilter"]["tickSize"]),
            lot=_normalised(listed["lotSizeFilter"]["qtyStep"]),
            min_qty=_normalised(listed["lotSizeFilter"]["minOrderQty"]),
            min_notional=_normalised(listed["lotSizeFilter"].get("minNotionalValue") or "5"),
            valid_from=time.time_ns(),
            source=f"{base_url}/v5/market/instruments-info",
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{base_url}: {symbol} is not listed as a linear instrument") from error


class Settlement(NamedTuple):
    """A funding settlement: its time (epoch ms), rate and mark price as the venue writes them.

    ``mark`` is empty where the venue does not say it.
    """

    ms: int
    rate: str
    mark: str = ""


def settlements(
    base_url: str, symbol: str, from_ms: int, to_ms: int, retry: RetryPolicy
) -> list[Settlement]:
    """The funding settlements in [from_ms, to_ms], oldest first. RequestError.

    Settlements are on whole hours, and an hour's candle opens at the mark price of that instant.
    """
    query = {"category": "linear", "symbol": symbol}
    rates = _pages(
        base_url, "/v5/market/funding/history", query, ("startTime", "endTime"), _FUNDING_PAGE,
        (from_ms, to_ms), retry, lambda row: (int(row["fundingRateTimestamp"]), row["fundingRate"]),
    )  # fmt: skip
    if not rates:
        return []
    marks = _pages(
        base_url, "/v5/market/mark-price-kline", query | {"interval": "60"}, ("start", "end"),
        _CANDLE_PAGE, (min(rates), max(rates)), retry, lambda row: (int(row[0]), row[1]),
    )  # fmt: skip
    return [Settlement(ms, rate, marks.get(ms, "")) for ms, rate in sorted(rates.items())]


def _pages(
    base_url: str,
    path: str,
    query: dict[str, str],
    bounds: tuple[str, str],
    limit: int,
    span_ms: tuple[int, int],
    retry: RetryPolicy,
    read: Callable[[Any], tuple[int, Any]],
) -> dict[int, str]:
    """All rows in a span by their time; the venue gives the newest first, a page at a time."""
    found: dict[int, str] = {}
    from_ms, end_ms = span_ms
    while end_ms >= from_ms:
        span = dict(zip(bounds, (str(from_ms), str(end_ms)), strict=True))
        result = _get(base_url, path, query | span | {"limit": str(limit)}, retry)
        try:
            rows = result["list"]
            page = {ms: str(value) for ms, value in map(read, rows)}
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RequestError(f"{base_url}{path}: {query['symbol']} cannot be read") from error
        page = {ms: value for ms, value in page.items() if from_ms <= ms <= end_ms}
        found |= page
        if len(rows) < limit or not page:
            break
        end_ms = min(page) - 1
    return found


def _get(base_url: str, path: str, query: dict[str, str], retry: RetryPolicy) -> dict[str, Any]:
    """The ``result`` of a V5 response; RequestError."""
    url = f"{base_url}{path}?{urllib.parse.urlencode(query)}"

    def attempt() -> Any:
        with urllib.request.urlopen(request(url), timeout=retry.timeout_s) as response:
            return json.loads(response.read())

    try:
        content = retry.run(url, attempt)
    except ValueError as error:
        raise RequestError(f"{url}: the response is not JSON") from error
    if not isinstance(content, dict) or content.get("retCode") != 0:
        reason = content.get("retMsg") if isinstance(content, dict) else content
        raise RequestError(f"{url}: refused ({reason})")
    result = content.get("result")
    if not isinstance(result, dict):
        raise RequestError(f"{url}: the response has no result")
    return result


def _normalised(number: str) -> str:
    """A decimal without trailing zeros: ``0.10`` is the tick ``0.1``."""
    return number.rstrip("0").rstrip(".") if "." in number else number


def _retry_after_s(headers: Message) -> float:
    """The server's Retry-After in seconds, zero when there is none."""
    text = headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0
