"""A signal ends a verb as interrupted, whatever the code inside it does with the exception."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from market.interruption import STATUS

#: What libraries were seen to do while a verb runs; each prints "ready" when the signal may come.
BODIES = {
    "plain": "print('ready', flush=True); time.sleep(60)",
    "handlers replaced": """
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
print('ready', flush=True)
while True:
    time.sleep(0.1)""",
    "exception swallowed": """
print('ready', flush=True)
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass""",
    "swallowed, then ended well": """
print('ready', flush=True)
try:
    time.sleep(60)
except BaseException:
    pass""",
    "turned into another error": """
print('ready', flush=True)
try:
    time.sleep(60)
except BaseException:
    raise ValueError('a broken pool')""",
    "waiting for worker processes": """
import subprocess, multiprocessing
from market.compute import map_tasks
print('ready', flush=True)
map_tasks(time.sleep, [(60,), (60,)], 2, lambda *_: None)""",
    "waiting for a child": """
import subprocess
print('ready', flush=True)
subprocess.run([sys.executable, '-c', 'import time; time.sleep(61.5)'])""",
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("body", BODIES, ids=list(BODIES))
def test_a_signal_ends_a_verb_as_interrupted(
    body: str, number: signal.Signals, tmp_path: Path
) -> None:
    inside = "\n".join(" " * 4 + line for line in BODIES[body].splitlines())
    module = tmp_path / "verb.py"
    module.write_text(
        f"""
import argparse, signal, sys, time
def arguments(parser): pass
def command(settings, options):
{inside}
"""
    )
    text = (
        "import sys; from orchestration import cli\n"
        "cli.VERBS['data']['verb'] = cli.Verb('verb', 'one'); sys.exit(cli.main(['verb']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=45)
    assert process.returncode == STATUS
    assert said.splitlines()[-1] == "l2 verb: interrupted"
