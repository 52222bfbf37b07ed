"""What the page computes from files rather than from the stream, in a process of its own: models take memory.

    python -m orchestration.dashboard.reader      settings, then questions on stdin; answers on stdout

One JSON object a line: {"ask": NAME, ...} and its answer, of which "error" says why there is none. The process
ends with the page, whose end closes its stdin.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from market.errors import L2Error
from market.settings import Settings

#: After a process that failed the next question waits so long (s).
_AGAIN_S: Final = 10.0
#: Answers that are kept.
_MOST: Final = 64


class Reader:
    """Asks the process in a thread; nothing waits for it. ``answer`` gives what is known by now.

    ``source`` is the worker's, by which its model has its name: on the exchange on loopback it is synthetic.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self.source = settings, settings.source
        self._asked: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._answers: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._new = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self._run, name="reader", daemon=True).start()

    def answer(self, name: str, key: Any, **given: Any) -> dict[str, Any]:
        """The last answer to the question of this name, empty before; asked anew for another ``key``."""
        if len(self._answers) > _MOST:
            self._answers, self._asked = {}, {}
        if (known := self._answers.get(name, (None, {})))[0] != key:
            self._asked[name] = key, {
                "ask": name.partition("/")[0], "source": self.source, **given
            }  # fmt: skip
            self._new.set()
        return known[1]

    def is_answered(self, name: str, key: Any) -> bool:
        """Whether `answer` gives the one that was asked for with this ``key``."""
        return bool(self._answers.get(name, (None,))[0] == key)

    def _run(self) -> None:
        while self._new.wait():
            self._new.clear()
            for name, (key, question) in list(self._asked.items()):
                if self._answers.get(name, (None,))[0] != key:
                    self._answers[name] = key, self._ask(question)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "orchestration.dashboard.reader"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
                self._tell(msgspec.to_builtins(self._settings))
            self._tell(question)
            assert self._process.stdout is not None
            found: dict[str, Any] = msgspec.json.decode(self._process.stdout.readline())
            return found
        except (OSError, msgspec.DecodeError) as error:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._process = None
            threading.Event().wait(_AGAIN_S)
            return {"error": f"the page's reader of files ended: {error}"}

    def _tell(self, line: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(line) + b"\n")
        self._process.stdin.flush()


# -- the process -----------------------------------------------------------------------------------


def _moved(settings: Settings, question: dict[str, Any]) -> dict[str, Any]:
    """Value and contribution (bps) of each feature to a prediction, the largest first, then the constant part."""
    from live.why import bundle_of, contributions

    sha = question["bundle_sha"]
    names = bundle_of(settings.root, settings.model_name, sha).manifest.features
    values = dict(zip(names, question["values"], strict=True))
    moved = contributions(settings, {"bundle_sha": sha, **values})
    return {"t_ns": question["t_ns"], "moved": [(n, values.get(n), part) for n, part in moved]}


def _record(settings: Settings, question: dict[str, Any]) -> dict[str, Any]:
    from orchestration.dashboard.model_record import record

    return record(settings)


def _why(settings: Settings, question: dict[str, Any]) -> dict[str, Any]:
    """`l2 why`: one screen of text."""
    from live.why import explained

    return {"text": explained(settings, Path(question["state"]), question["what"])[0]}


_ANSWERS: Final[dict[str, Callable[[Settings, dict[str, Any]], dict[str, Any]]]] = {
    "moved": _moved,
    "record": _record,
    "why": _why,
}


def main() -> None:
    """Answer until stdin ends."""
    os.nice(10)
    lines, told = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no answer
    settings = msgspec.json.decode(lines.readline(), type=Settings)
    for line in lines:
        question = msgspec.json.decode(line)
        try:
            its = msgspec.structs.replace(settings, source=question["source"])
            answer = _ANSWERS[question["ask"]](its, question)
        except L2Error as error:
            answer = {"error": str(error)}
        except Exception as error:  # said on the page, which goes on
            answer = {"error": f"{type(error).__name__}: {error}"}
        told.write(msgspec.json.encode(answer) + b"\n")
        told.flush()


if __name__ == "__main__":
    main()
