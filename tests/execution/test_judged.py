"""The simulator in mode ``whole`` against two others: an independent engine and a readable one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from execution.simulation.queue import MODELS
from execution.simulation.state import MODES
from market.events import Flag, Kind
from market.instruments import BUILT_IN
from market.wire.capture import read_blocks
from market.wire.decode import Decoder
from tests.execution.judged import (
    FILLED,
    KEPT,
    PEER,
    PUBLISHED,
    Answer,
    Case,
    ask,
    kept_cases,
    outcome_lines,
    outcomes,
    random_case,
    recorded_case,
    simulate,
    unpack,
)
from tests.execution.reference_exchange import replay


@pytest.fixture(scope="module")
def judged() -> list[tuple[Case, Answer]]:
    with np.load(KEPT) as archive:
        stored = dict(archive)
    return unpack(stored, stored)


def test_the_stored_answers_have_every_model_and_every_final_state(
    judged: list[tuple[Case, Answer]],
) -> None:
    assert len(judged) == 200
    assert {int(case.setting["model"]) for case, _ in judged} == set(range(6))
    assert sum(len(case.records) > 0 for case, _ in judged) == 100
    ends = [row[2] for _, answer in judged for row in answer.log]
    assert min(ends.count(status) for status in (1, 2, 3, 4)) > 50


def test_the_simulator_answers_as_the_independent_engine_did(
    judged: list[tuple[Case, Answer]],
) -> None:
    for n, (case, theirs) in enumerate(judged):
        assert simulate(case, theirs.sent) == theirs, f"case {n}"


def any_case(number: int, seed: int) -> Case:
    """A random case in any queue model, some of its prints hidden ones."""
    case = random_case(number, seed=seed)
    rng = np.random.Generator(np.random.Philox(key=(seed << 32) + number + (1 << 31)))
    prints = np.flatnonzero(case.rows["kind"] == Kind.TRADE)
    hidden = prints[rng.random(len(prints)) < 0.1]
    case.rows["flags"][hidden] |= rng.choice((Flag.RPI, Flag.BLOCK), len(hidden)).astype("u1")
    case.setting["model"] = number // 4 % len(MODELS)
    return case


@pytest.mark.parametrize("mode", MODES)
def test_the_simulator_agrees_with_the_reference_engine(mode: str) -> None:
    """Outcome for outcome, in every queue model, with constant and with recorded latencies."""
    filled = 0
    for n in range(320):
        case = any_case(n, seed=2)
        sent = [True] * len(case.actions)
        ours = outcome_lines(outcomes(case, sent, mode=mode))
        assert ours == replay(case, sent, whole=mode == "whole"), f"case {n}"
        filled += sum(line[2] == "filled" for line in ours)
    assert filled > 1_500


@settings(derandomize=True, max_examples=60, deadline=None)
@given(number=st.integers(0, 2**31 - 1), seed=st.integers(100, 2**30), mode=st.sampled_from(MODES))
def test_the_reference_engine_agrees_on_any_market(number: int, seed: int, mode: str) -> None:
    case = any_case(number, seed)
    sent = [True] * len(case.actions)
    assert outcome_lines(outcomes(case, sent, mode=mode)) == replay(
        case, sent, whole=mode == "whole"
    )


def test_a_wrong_queue_ahead_is_noticed(judged: list[tuple[Case, Answer]]) -> None:
    """The cases can tell queue models apart: with another model some fills change."""
    changed = 0
    for case, theirs in judged[1:60:6]:
        other = case.setting.copy()
        other["model"] = 0
        changed += simulate(case._replace(setting=other), theirs.sent) != theirs
    assert changed >= 2


needs_the_peer = pytest.mark.skipif(
    not PEER.exists(), reason="the peer is not installed: make bench-peers"
)


@pytest.mark.peers
@needs_the_peer
def test_the_stored_answers_are_still_the_peers(
    judged: list[tuple[Case, Answer]], tmp_path: Path
) -> None:
    for (case, answer), (kept, kept_answer) in zip(
        ask(kept_cases(), tmp_path), judged, strict=True
    ):
        assert answer == kept_answer
        assert (case.rows == kept.rows).all()
        assert (case.actions == kept.actions).all()
        assert (case.records == kept.records).all()


@pytest.mark.peers
@needs_the_peer
@pytest.mark.parametrize("batch", range(5))
def test_ten_thousand_random_markets_have_the_same_answers(batch: int, tmp_path: Path) -> None:
    """Half of them with constant latencies, half with recorded ones."""
    cases = [random_case(n, seed=10 + batch) for n in range(2_000)]
    pairs = ask(cases, tmp_path)
    differ = [n for n, (case, theirs) in enumerate(pairs) if simulate(case, theirs.sent) != theirs]
    assert differ == []
    assert sum(row[2] == FILLED for _, theirs in pairs for row in theirs.log) > 10_000


@pytest.mark.peers
@needs_the_peer
@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
@pytest.mark.parametrize("recording", ["bybit-linear-20260809", "usdm-20240718", "usdm-20240808"])
def test_recorded_markets_have_the_same_answers_in_every_model(
    recording: str, symbol: str, data_dir: Path, tmp_path: Path
) -> None:
    """Two thousand requests in every queue model, with constant and with recorded latencies."""
    # The re-framed recordings trade ETH in thousandths.
    ether = msgspec.structs.replace(BUILT_IN["ETHUSDT"], lot="0.001")
    decoder = Decoder(BUILT_IN | ({"ETHUSDT": ether} if recording.startswith("usdm") else {}))
    blocks = read_blocks(data_dir / f"{recording}.frames.zst")
    parts = [decoder.decode_block(block).events.get(symbol) for block in blocks]
    events = np.concatenate([part for part in parts if part is not None])
    cases = [
        recorded_case(events, model, count=1_000, interpolated=interpolated)
        for model in range(len(PUBLISHED))
        for interpolated in (False, True)
    ]
    filled = 0
    for case, theirs in ask(cases, tmp_path):
        assert simulate(case, theirs.sent) == theirs
        filled += sum(row[2] == FILLED for row in theirs.log)
    assert filled > 1_000
