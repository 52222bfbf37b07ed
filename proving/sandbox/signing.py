"""Who sends a request: keys, signatures over the bytes received, and the receive window.

Signed is timestamp + key + receive window + payload, the payload being the raw query string of a GET
and the raw body of a POST; the signature is the lower-case hex of its HMAC-SHA256 under the secret.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final

from proving.sandbox.refusal import RefusedError
from proving.sandbox.trading import Client

#: How far ahead of ours a client's clock may be, exclusive.
AHEAD_MS: Final = 1000
WINDOW_MS: Final = 5000


def signature(secret: str, text: bytes) -> str:
    """HMAC-SHA256 of a text, lower-case hex."""
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def client_of(
    headers: Mapping[str, str], payload: bytes, now_ms: int, clients: Mapping[str, Client]
) -> Client:
    """The client that signed a request (``clients`` by key); refused as the venue refuses."""
    key, sign = headers.get("X-BAPI-API-KEY", ""), headers.get("X-BAPI-SIGN", "")
    stamp = headers.get("X-BAPI-TIMESTAMP", "")
    window = headers.get("X-BAPI-RECV-WINDOW", str(WINDOW_MS))
    if not key or not sign or not stamp:
        raise RefusedError(10003, "API key, timestamp and signature are required", 401)
    client = clients.get(key)
    if client is None:
        raise RefusedError(10003, "API key is invalid.")
    check_window(stamp, window, now_ms)
    origin = f"{stamp}{key}{window}".encode() + payload
    if not _same(signature(client.secret, origin), sign.lower()):
        text = origin.decode("utf-8", "replace")
        raise RefusedError(10004, f"error sign! origin_string[{text}]")
    return client


def client_of_socket(args: Any, now_ms: int, clients: Mapping[str, Client]) -> Client:
    """The client that a WebSocket authenticates: key, expiry in ms (a string or a number) and signature
    of `GET/realtime` with the expiry."""
    if not isinstance(args, list) or len(args) != 3:
        raise RefusedError(10001, "Params Error")
    key, expires, sign = (str(part) if isinstance(part, str | int) else "" for part in args)
    if not _whole(expires):
        raise RefusedError(10001, "Params Error")
    client = clients.get(key)
    if client is None:
        raise RefusedError(10003, "API key is invalid.")
    if int(expires) <= now_ms:
        raise RefusedError(10004, "The signature has expired.")
    if not _same(signature(client.secret, f"GET/realtime{expires}".encode()), sign):
        raise RefusedError(10004, "error sign!")
    return client


def _same(ours: str, given: str) -> bool:
    """Compared in constant time, whatever characters were given."""
    return hmac.compare_digest(ours.encode(), given.encode("utf-8", "surrogateescape"))


def check_window(stamp: str, window: str, now_ms: int) -> None:
    """Whether a request is neither too old nor from the future."""
    if not _whole(stamp) or not _whole(window):
        raise RefusedError(10001, "params error: timestamp or recv_window invalid")
    if not now_ms - int(window) <= int(stamp) < now_ms + AHEAD_MS:
        raise RefusedError(
            10002,
            "invalid request, please check your server timestamp or recv_window param. "
            f"req_timestamp[{stamp}],server_timestamp[{now_ms}],recv_window[{window}]",
        )


def _whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 15
