"""A loopback server of the venue's archives, with the faults of real ones."""

from __future__ import annotations

import gzip
import io
import json
import re
import threading
import time
import urllib.parse
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HEADER = (
    "timestamp,symbol,side,size,price,tickDirection,trdMatchID,grossValue,homeNotional,"
    "foreignNotional,RPI"
)


def book_zip(name: str, frames: Sequence[bytes]) -> bytes:
    """A zip as the venue makes it: one member, CRLF."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, b"".join(frame + b"\r\n" for frame in frames))
    return out.getvalue()


def trade_gz(rows: Sequence[str], header: str = HEADER) -> bytes:
    return gzip.compress("\n".join([header, *rows, ""]).encode())


class Archives:
    """Files by path, and faults by path: each fault is used up by one request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: defaultdict[str, list[str]] = defaultdict(list)
        self.requests: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.funding: list[tuple[int, str]] = []
        self.busiest = self.busy = 0
        self.url = ""

    def settings(self, root: object) -> list[str]:
        """Setting overrides that direct a lake's downloads here."""
        urls = {"books_url": "books", "trades_url": "trades", "rest_url": "rest"}
        named = [f"history.{key}={self.url}/{path}" for key, path in urls.items()]
        return [f"root={root}", *named, "history.wait_s=0.01", "history.timeout_s=0.5"]


def _answer(entries: list[Any]) -> dict[str, Any]:
    result = {"category": "linear", "list": entries}
    return {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": 1}


class _Handler(BaseHTTPRequestHandler):
    """Serves ``served``, which a subclass sets."""

    served: Archives
    lock: threading.Lock

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        with self.lock:
            self.served.requests[path] += 1
            self.served.busy += 1
            self.served.busiest = max(self.served.busiest, self.served.busy)
            fault = self.served.faults[path].pop(0) if self.served.faults[path] else ""
        try:
            self._answer(path, query, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.lock:
                self.served.busy -= 1

    def _answer(self, path: str, query: str, fault: str) -> None:
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if path == "/rest/v5/market/funding/history":
            body = json.dumps(self._funding(dict(urllib.parse.parse_qsl(query)))).encode()
        elif path in self.served.files:
            body = self.served.files[path]
        elif path == "/rest/v5/market/mark-price-kline":
            body = json.dumps(self._marks(dict(urllib.parse.parse_qsl(query)))).encode()
        else:
            self.send_error(404)
            return
        if fault == "damaged":
            body = body[: len(body) // 2] + b"\0" * 40 + body[len(body) // 2 + 40 :]
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if requested:
            self.served.ranges.append(f"{path} {requested[1]}")
            self.send_response(206)
            body = body[int(requested[1]) :]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "short":
            body = body[: len(body) // 2]
        elif fault == "stalls":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(1.0)
            return
        self.wfile.write(body)
        self.close_connection = True

    def _funding(self, query: dict[str, str]) -> dict[str, Any]:
        start, end, limit = (int(query[key]) for key in ("startTime", "endTime", "limit"))
        rows = [row for row in self.served.funding if start <= row[0] <= end]
        newest = sorted(rows, reverse=True)[:limit]
        entries = [
            {"symbol": query["symbol"], "fundingRate": rate, "fundingRateTimestamp": str(at)}
            for at, rate in newest
        ]
        return _answer(entries)

    def _marks(self, query: dict[str, str]) -> dict[str, Any]:
        """Hourly candles of the mark price: the hour of the epoch is its opening price."""
        hour = 3_600_000
        assert query["interval"] == "60"
        start, end, limit = (int(query[key]) for key in ("start", "end", "limit"))
        starts = range(end - end % hour, start - 1, -hour)[:limit]
        return _answer([[str(at), str(at // hour), "0", "0", "0"] for at in starts])

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: requests are counted in `Archives.requests`."""


@contextmanager
def archives() -> Iterator[Archives]:
    """A server on loopback; its files and faults may change while it runs."""
    served = Archives()
    handler = type("Handler", (_Handler,), {"served": served, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
