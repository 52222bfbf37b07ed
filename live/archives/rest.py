"""The venue's public REST endpoints: instruments and settled funding rates.

Politeness is built in: a request that fails for a reason that may pass (429, 5xx, a timeout, a reset
connection) is made again after a wait that doubles, or after the time the server names.
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

AGENT: Final = "l2-platform/0.1"
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S: Final = 60.0
_FUNDING_PAGE: Final = 200

_T = TypeVar("_T")


class RequestError(VenueError):
    """A request failed for good; ``status`` is the HTTP status, 0 when there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Patience(NamedTuple):
    """How long to insist: attempts, the first wait between two (seconds), and the timeout."""

    attempts: int = 6
    wait_s: float = 1.0
    timeout_s: float = 30.0

    def insist(
        self, what: str, attempt: Callable[[], _T], sleep: Callable[[float], None] = time.sleep
    ) -> _T:
        """The result of ``attempt``; RequestError when it fails for good or too often."""
        for number in range(1, self.attempts + 1):
            try:
                return attempt()
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in _PASSING or number == self.attempts:
                    raise RequestError(
                        f"{what}: HTTP {error.code} {error.reason}", error.code
                    ) from error
                named = _retry_after(error.headers)
            except (OSError, HTTPException) as error:
                if number == self.attempts:
                    raise RequestError(f"{what}: {error}") from error
                named = 0.0
            sleep(min(max(named, self.wait_s * 2 ** (number - 1)), _LONGEST_WAIT_S))
        raise RequestError(f"{what}: no attempt allowed; history.attempts must be at least 1")


def request(url: str, **headers: str) -> urllib.request.Request:
    """A GET that says who asks; RequestError unless the address is http or https."""
    if not url.startswith(("http://", "https://")):
        raise RequestError(f"{url}: expected an http:// or https:// address")
    return urllib.request.Request(url, headers={"User-Agent": AGENT, **headers})


def instruments(base_url: str, symbols: Iterable[str], patience: Patience) -> list[Instrument]:
    """Tick, lot and minimum sizes as the venue lists them now; RequestError."""
    return [_instrument(base_url, symbol, patience) for symbol in symbols]


def _instrument(base_url: str, symbol: str, patience: Patience) -> Instrument:
    result = _get(
        base_url, "/v5/market/instruments-info", {"category": "linear", "symbol": symbol}, patience
    )
    try:
        (listed,) = [entry for entry in result["list"] if entry["symbol"] == symbol]
        return Instrument(
            symbol=symbol,
            tick=_plain(listed["priceFilter"]["tickSize"]),
            lot=_plain(listed["lotSizeFilter"]["qtyStep"]),
            min_qty=_plain(listed["lotSizeFilter"]["minOrderQty"]),
            min_notional=_plain(listed["lotSizeFilter"].get("minNotionalValue") or "5"),
            valid_from=time.time_ns(),
            source=f"{base_url}/v5/market/instruments-info",
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{base_url}: {symbol} is not listed as a linear instrument") from error


def funding(
    base_url: str, symbol: str, from_ms: int, to_ms: int, patience: Patience
) -> list[tuple[int, str]]:
    """(settlement time in epoch ms, rate per interval) in [from_ms, to_ms], oldest first.

    The venue answers at most 200 rates, newest first, so pages go backwards.
    """
    found: dict[int, str] = {}
    end = to_ms
    while end >= from_ms:
        result = _get(
            base_url,
            "/v5/market/funding/history",
            {
                "category": "linear",
                "symbol": symbol,
                "startTime": str(from_ms),
                "endTime": str(end),
                "limit": str(_FUNDING_PAGE),
            },
            patience,
        )
        try:
            page = {
                int(entry["fundingRateTimestamp"]): str(entry["fundingRate"])
                for entry in result["list"]
            }
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{base_url}: funding rates of {symbol} cannot be read") from error
        page = {at: rate for at, rate in page.items() if from_ms <= at <= end}
        found |= page
        if len(result["list"]) < _FUNDING_PAGE or not page:
            break
        end = min(page) - 1
    return sorted(found.items())


def _get(base_url: str, path: str, query: dict[str, str], patience: Patience) -> dict[str, Any]:
    url = f"{base_url}{path}?{urllib.parse.urlencode(query)}"

    def attempt() -> Any:
        with urllib.request.urlopen(request(url), timeout=patience.timeout_s) as answer:
            return json.loads(answer.read())

    try:
        content = patience.insist(url, attempt)
    except ValueError as error:
        raise RequestError(f"{url}: the answer is not JSON") from error
    if not isinstance(content, dict) or content.get("retCode") != 0:
        said = content.get("retMsg") if isinstance(content, dict) else content
        raise RequestError(f"{url}: refused ({said})")
    result = content.get("result")
    if not isinstance(result, dict):
        raise RequestError(f"{url}: the answer has no result")
    return result


def _plain(number: str) -> str:
    """A decimal without trailing zeros: ``0.10`` is the tick ``0.1``."""
    return number.rstrip("0").rstrip(".") if "." in number else number


def _retry_after(headers: Message) -> float:
    """Seconds that a server asks to wait, zero when it does not say."""
    text = headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0
