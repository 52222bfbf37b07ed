"""Readers of the worker's state see a snapshot, then each change; a slow one costs only itself."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live.state_stream import QUEUE_LINES, StateStream, changes, read_states
from live.status import screen


def patched(state: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """RFC 7396 on two levels."""
    result = {section: dict(values) for section, values in state.items()}
    for section, values in patch.items():
        for key, value in values.items():
            if value is None:
                result[section].pop(key, None)
            else:
                result.setdefault(section, {})[key] = value
    return result


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[StateStream]:
    served = StateStream(tmp_path / "state.sock")
    yield served
    served.close()


KEYS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3), max_size=4)
STATES = st.fixed_dictionaries({"orders": KEYS, "worker": KEYS})


@settings(derandomize=True, max_examples=200, deadline=None)
@given(before=STATES, after=STATES)
def test_a_change_makes_the_next_state_of_the_one_before(
    before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]
) -> None:
    assert patched(before, changes(before, after)) == after


def test_a_state_told_as_a_change_before_the_first_parent_is_shown() -> None:
    told: dict[str, dict[str, Any]] = {
        "worker": {"time_ns": 10**18, "venue": "sandbox", "model": "m 1", "phase": "trading"},
        "account": {"equity": 1000.0, "day_result": 0.0},
        "costs": {"parents": 0, "fills": 0, "all_in_cost_bps": None},
        "counters": {"gaps": 0, "limits_reached": {}},
        **{name: {} for name in ("symbols", "parents", "orders", "latency", "markets")},
    }
    shown = list(screen(changes({}, told)))
    assert shown == list(screen(told))
    assert shown[1] == "equity 1,000.00 USDT, today 0.00; 0 parents, 0 fills, all-in cost – bps"


def test_a_reader_gets_a_snapshot_and_then_each_change(stream: StateStream) -> None:
    stream.publish({"orders": {"a": {"state": "NEW"}}, "worker": {"time_ns": 1}})
    lines = read_states(stream.path, 10)
    first = next(lines)
    while not first["state"]:  # connected before the state was told
        first = {"type": "snapshot", "version": 1} | {"state": next(lines)["state"]}
    assert (first["type"], first["version"]) == ("snapshot", 1)
    assert first["state"]["orders"] == {"a": {"state": "NEW"}}
    stream.publish({"orders": {"b": {"state": "NEW"}}, "worker": {"time_ns": 1}})
    change = next(lines)
    assert change["type"] == "change"
    assert change["state"] == {"orders": {"a": None, "b": {"state": "NEW"}}}


def test_a_reader_that_never_reads_is_told_what_it_missed_and_holds_up_nobody(
    stream: StateStream,
) -> None:
    deaf = socket.socket(socket.AF_UNIX)
    deaf.connect(str(stream.path))
    awake = read_states(stream.path, 10)
    next(awake)
    for number in range(1, 40 * QUEUE_LINES):
        stream.publish({"worker": {"number": number, "filler": "x" * 2000 + str(number)}})
        assert next(awake)["state"]["worker"]["number"] == number
    assert stream.dropped > QUEUE_LINES
    # It wakes up: first the old lines that the socket held, then what was lost, then all of it.
    with deaf, deaf.makefile("rb") as file:
        import msgspec

        deaf.settimeout(10)
        lines = (msgspec.json.decode(line) for line in file)
        old = list(itertools.takewhile(lambda line: line["type"] != "dropped", lines))
        assert [line["type"] for line in old[1:]] == ["change"] * (len(old) - 1)
        again = next(lines)
        assert again["type"] == "snapshot"
        assert again["state"]["worker"]["number"] == 40 * QUEUE_LINES - 1


def test_a_reader_that_leaves_as_a_state_is_published_ends_nothing(stream: StateStream) -> None:
    """Telling it finds it gone, and then its end is heard of too, in the same round."""
    for number in range(300):
        lines = read_states(stream.path, 10)
        next(lines)
        stream.publish({"worker": {"number": number}})
        lines.close()  # type: ignore[attr-defined]
    stream.publish({"worker": {"number": -1}})
    last = read_states(stream.path, 10)
    while next(last)["state"]["worker"]["number"] != -1:
        pass


def test_a_reader_that_goes_away_and_a_path_of_any_length_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 40) / "state.sock"
    path.parent.mkdir()
    stream = StateStream(path)
    for number in range(3):
        lines = read_states(path, 10)
        assert next(lines)["type"] == "snapshot"
        lines.close()  # type: ignore[attr-defined]
        stream.publish({"worker": {"number": number}})
    last = read_states(path, 10)
    while next(last)["state"].get("worker", {}).get("number") != 2:
        pass
    stream.close()
    assert list(last) == []
    assert not path.is_symlink()
    with pytest.raises(OSError, match="No such file"):
        next(read_states(path, 10))
