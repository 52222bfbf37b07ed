"""Headless Chromium by its DevTools protocol: what a page shows, says on its console, and asks for."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Tab:
    """One page of a browser; ``errors`` are those of its console, ``hosts`` all that it asked."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._numbers = connection, itertools.count(1)
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=60))
            if message.get("id") == number:
                return message.get("result", {})
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        given = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                url = given["request"]["url"]
                if not url.startswith(("data:", "blob:")):
                    self.hosts.add(url.split("/")[2])
            case "Runtime.exceptionThrown":
                self.errors.append(str(given["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if given["type"] == "error":
                self.errors.append(str(given["args"]))
            case "Log.entryAdded" if given["entry"]["level"] == "error":
                self.errors.append(f"{given['entry']['text']} {given['entry'].get('url')}")

    def open(self, url: str, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return found.get("result", {}).get("value")

    def text(self) -> str:
        return str(self.run("document.body.innerText") or "")

    def until(self, script: str, within_s: float = 60.0) -> Any:
        """The first value of an expression that is true."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if value := self.run(script):
                return value
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}\n{self.text()}")

    def picture(self, path: Path) -> None:
        import base64

        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self._call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser() -> Iterator[Tab]:
    """A tab of a browser of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--remote-debugging-port=0", f"--user-data-dir={profile}", "--no-first-run",
            "--disable-background-networking", "about:blank",
        ]  # fmt: skip
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                port = Path(profile) / "DevToolsActivePort"
                deadline = time.monotonic() + 60
                while not (port.exists() and port.read_text().count("\n")):
                    assert time.monotonic() < deadline, "the browser does not start"
                    time.sleep(0.05)
                number = port.read_text().splitlines()[0]
                with urllib.request.urlopen(f"http://127.0.0.1:{number}/json") as answer:
                    pages = [p for p in json.load(answer) if p["type"] == "page"]
                with connect(pages[0]["webSocketDebuggerUrl"], max_size=None) as connection:
                    yield Tab(connection)
            finally:
                process.terminate()
