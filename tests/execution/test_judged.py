"""The simulator in mode ``whole`` against two others: an independent engine and a readable one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest

from market.capture import read_blocks
from market.decode import Decoder
from market.instruments import BUILT_IN
from tests.conftest import REPOSITORY
from tests.execution.judged import (
    FILLED,
    Answer,
    Case,
    pack,
    random_case,
    recorded_case,
    simulate,
    unpack,
)
from tests.execution.reference_exchange import replay

FIXTURES = Path(__file__).parent / "fixtures" / "judged.npz"
PEER = REPOSITORY / "peers" / "hftbacktest" / "bin" / "python"
JUDGE = REPOSITORY / "tests" / "peers" / "hftbacktest_judge.py"


@pytest.fixture(scope="module")
def judged() -> list[tuple[Case, Answer]]:
    with np.load(FIXTURES) as archive:
        stored = dict(archive)
    return unpack(stored, stored)


def test_the_kept_answers_are_of_every_model_and_every_end_of_an_order(
    judged: list[tuple[Case, Answer]],
) -> None:
    assert len(judged) == 200
    assert {int(case.setting["model"]) for case, _ in judged} == set(range(6))
    ends = [row[2] for _, answer in judged for row in answer.log]
    assert min(ends.count(status) for status in (1, 2, 3, 4)) > 50


def test_the_simulator_answers_as_the_independent_engine_did(
    judged: list[tuple[Case, Answer]],
) -> None:
    for n, (case, theirs) in enumerate(judged):
        assert simulate(case, theirs.sent) == theirs, f"case {n}"


def test_the_simulator_answers_as_the_readable_engine() -> None:
    """On markets of their own, where the readable engine says which quantity fills."""
    for n in range(60):
        case = random_case(n, seed=2)
        sent = [True] * len(case.actions)
        assert simulate(case, sent, as_peer=False).log == replay(case, sent), f"case {n}"


def test_a_wrong_quantity_in_front_is_noticed(judged: list[tuple[Case, Answer]]) -> None:
    """The cases can tell queue models apart: with another model some fills change."""
    changed = 0
    for case, theirs in judged[1:60:6]:
        other = case.setting.copy()
        other["model"] = 0
        changed += simulate(case._replace(setting=other), theirs.sent) != theirs
    assert changed >= 2


def answers_of_the_peer(cases: list[Case], folder: Path) -> list[tuple[Case, Answer]]:
    if not PEER.exists():
        pytest.skip("the peer is not installed: make bench-peers")
    given, answered = folder / "cases.npz", folder / "answers.npz"
    pack(given, cases)
    subprocess.run([PEER, JUDGE, given, answered], check=True)
    with np.load(given) as stored, np.load(answered) as answers:
        return unpack(dict(stored), dict(answers))


@pytest.mark.peers
@pytest.mark.parametrize("batch", range(5))
def test_ten_thousand_random_markets_have_the_same_answers(batch: int, tmp_path: Path) -> None:
    cases = [random_case(n, seed=10 + batch) for n in range(2_000)]
    pairs = answers_of_the_peer(cases, tmp_path)
    differ = [n for n, (case, theirs) in enumerate(pairs) if simulate(case, theirs.sent) != theirs]
    assert differ == []
    assert sum(row[2] == FILLED for _, theirs in pairs for row in theirs.log) > 10_000


@pytest.mark.peers
@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_recorded_markets_have_the_same_answers_in_every_model(
    symbol: str, data_dir: Path, tmp_path: Path
) -> None:
    # The re-framed recordings trade ETH in thousandths.
    ether = msgspec.structs.replace(BUILT_IN["ETHUSDT"], lot="0.001")
    decoder = Decoder(BUILT_IN | {"ETHUSDT": ether})
    blocks = read_blocks(data_dir / "usdm-20240808.frames.zst")
    parts = [decoder.decode_block(block).events.get(symbol) for block in blocks]
    events = np.concatenate([part for part in parts if part is not None])
    cases = [recorded_case(events, model, count=1_000) for model in range(6)]
    for case, theirs in answers_of_the_peer(cases, tmp_path):
        assert simulate(case, theirs.sent) == theirs
        assert sum(row[2] == FILLED for row in theirs.log) > 100
