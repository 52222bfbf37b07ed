"""REST through ccxt's implicit endpoints, within the venue's rate limits, signed by the venue's clock."""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from live.bybit.codec import Call, unreadable
from live.bybit.venues import Keys, VenueAddress
from market.errors import VenueError
from market.units import MS_NS, SECOND_NS

#: Requests a second of each path, where it is not 10; the venue's headers overrule it.
_LIMITS: Final = dict.fromkeys(
    (
        *("order/realtime", "order/history", "execution/list", "position/list"),
        *("account/wallet-balance", "account/info"),
    ),
    50,
) | {"account/fee-rate": 5, "account/transaction-log": 25}
#: The venue counts by seconds of arrival; requests that were slower on their way may meet later ones.
WINDOW_S: Final = 1.25
#: A wall clock further off the venue's than this makes no start (ns).
MOST_SKEW_NS: Final = 5 * SECOND_NS


class BybitError(VenueError):
    """The venue cannot be connected to, or refuses us; the message says what to do."""


class NoAnswerError(Exception):
    """A request ended without an answer: whether it was carried out is not known."""


class Reply(NamedTuple):
    """An answer: HTTP status, headers, and the venue's own bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ServerClock:
    """The venue's time, as measured by ``measure`` against the monotonic clock of this machine."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()
        self.error_ns = 0  #: half of the round trip of the measurement in force

    def now_ms(self) -> int:
        return (time.monotonic_ns() + self._offset_ns) // MS_NS

    @property
    def skew_ns(self) -> int:
        """How far this machine's wall clock is ahead of the venue's, as far as the error leaves it sure."""
        ahead = time.time_ns() - time.monotonic_ns() - self._offset_ns
        sure = max(0, abs(ahead) - self.error_ns)
        return sure if ahead > 0 else -sure

    def measure(self, rest: Rest, times: int = 3) -> None:
        """Take the shortest of several round trips; NoAnswerError and BybitError when there is none."""
        best: tuple[int, int] | None = None
        for _ in range(times):
            before = time.monotonic_ns()
            reply = rest.call(Call("market/time", False, {}))
            after = time.monotonic_ns()
            try:
                server = int(msgspec.json.decode(reply.body)["result"]["timeNano"])
            except (msgspec.DecodeError, LookupError, TypeError, ValueError):
                raise BybitError(
                    f"{rest.address.rest}: does not say its time (HTTP {reply.status}); is this the venue?"
                ) from None
            best = min(
                best or (1 << 62, 0), ((after - before) // 2, server - (before + after) // 2)
            )
        assert best is not None
        self.error_ns, self._offset_ns = best


class Rest:
    """Blocking calls; any number of threads, each with a session of its own."""

    def __init__(
        self, address: VenueAddress, keys: Keys, clock: ServerClock, receive_window_ms: int
    ) -> None:
        self.address, self._keys, self._clock = address, keys, clock
        self._window_ms = receive_window_ms
        self._local = threading.local()

    def call(self, call: Call, timeout_s: float = 10.0) -> Reply:
        """The answer to a call, whatever its return code; NoAnswerError when none came."""
        import ccxt

        exchange = getattr(self._local, "exchange", None) or self._session()
        exchange.timeout, self._local.reply = timeout_s * 1000, None
        kind = "public" if call.path.startswith("market/") else "private"
        words = "".join(word.capitalize() for word in re.split("[/-]", call.path))
        method = getattr(exchange, f"{kind}{'Post' if call.is_post else 'Get'}V5{words}")
        try:
            method(call.params)
        except ccxt.BaseError as error:
            if self._local.reply is None:
                raise NoAnswerError(f"{type(error).__name__} at {call.path}") from error
        reply: Reply = self._local.reply
        return reply

    def _session(self) -> Any:
        import ccxt

        exchange = ccxt.bybit({"apiKey": self._keys.key, "secret": self._keys.secret})
        exchange.urls["api"] = dict.fromkeys(("public", "private"), self.address.rest)
        exchange.options["recvWindow"] = self._window_ms
        exchange.enableRateLimit = False  # the venue's headers say better
        exchange.nonce = self._clock.now_ms
        exchange.logger.setLevel("WARNING")  # its debug lines hold the key
        exchange.session.hooks["response"].append(self._heard)
        self._local.exchange = exchange
        return exchange

    def _heard(self, response: Any, *_: Any, **__: Any) -> None:
        body: bytes = self._keys.hidden(response.content)
        if not body.lstrip().startswith(b"{"):
            body = unreadable(response.status_code, body)
        self._local.reply = Reply(response.status_code, response.headers, body)


class Budget:
    """When a request may leave: within the limit of its path in any second, and not before the venue's
    headers allow it. Times in seconds of one monotonic clock.
    """

    def __init__(self) -> None:
        self._limits = dict(_LIMITS)
        self._left: dict[str, deque[float]] = {}
        self._closed: dict[str, float] = {}  #: by path, empty for all

    def take(self, path: str, now_s: float, most_s: float = 60.0) -> float | None:
        """Take the next place of a path: how long to wait for it; None, and no place, when longer than
        ``most_s``.
        """
        limit = self._limits.get(path, 10)
        left = self._left.setdefault(path, deque())
        while left and left[0] <= now_s - WINDOW_S:
            left.popleft()
        at_s = max(now_s, self._closed.get(path, 0.0), self._closed.get("", 0.0))
        if len(left) >= limit:
            at_s = max(at_s, left[-limit] + WINDOW_S)
        if at_s - now_s > most_s:
            return None
        left.append(at_s)
        return at_s - now_s

    def heard(self, path: str, headers: Mapping[str, Any], now_s: float, server_ms: int) -> None:
        """What an answer's headers say of the rest of this second."""
        try:
            limit, free = int(headers["X-Bapi-Limit"]), int(headers["X-Bapi-Limit-Status"])
            reset_s = (int(headers["X-Bapi-Limit-Reset-Timestamp"]) - server_ms) / 1000
        except (KeyError, TypeError, ValueError):
            return
        if limit > 0:
            self._limits[path] = limit
        if free <= 0:
            self._closed[path] = now_s + min(max(reset_s, 0.0), 5.0)

    def close(self, until_s: float) -> None:
        """Ask for nothing until a time: the venue closed itself to our address."""
        self._closed[""] = max(until_s, self._closed.get("", 0.0))
