"""The venue's public REST API: instruments and settled funding rates; HTTP with retries.

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
#: Rates per page; the venue's limit.
_FUNDING_PAGE: Final = 200

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


def funding_rates(
    base_url: str, symbol: str, from_ms: int, to_ms: int, retry: RetryPolicy
) -> list[tuple[int, str]]:
    """(settlement time in epoch ms, rate per interval) in [from_ms, to_ms], oldest first.

    The venue returns at most 200 rates, newest first, so pages go backwards in time. RequestError.
    """
    rates: dict[int, str] = {}
    end_ms = to_ms
    while end_ms >= from_ms:
        result = _get(
            base_url,
            "/v5/market/funding/history",
            {
                "category": "linear",
                "symbol": symbol,
                "startTime": str(from_ms),
                "endTime": str(end_ms),
                "limit": str(_FUNDING_PAGE),
            },
            retry,
        )
        try:
            page = {
                int(entry["fundingRateTimestamp"]): str(entry["fundingRate"])
                for entry in result["list"]
            }
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{base_url}: funding rates of {symbol} cannot be read") from error
        page = {ms: rate for ms, rate in page.items() if from_ms <= ms <= end_ms}
        rates |= page
        if len(result["list"]) < _FUNDING_PAGE or not page:
            break
        end_ms = min(page) - 1
    return sorted(rates.items())


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
