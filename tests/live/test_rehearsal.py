"""The rehearsal goes the whole path, from frame to fill, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from execution.algorithms import ALGORITHMS
from live.champion import Champion
from live.paper import PaperDriver
from live.rehearsal import _frames, rehearse
from live.trader import Trader
from market.features import feature_hash
from market.instruments import BUILT_IN, Instrument
from market.wire.decode import Decoder
from tests.live.live_market import live_settings, promote

SYMBOLS = ("BTCUSDT", "ETHUSDT")
INSTRUMENTS = {symbol: BUILT_IN[symbol] for symbol in SYMBOLS}
CHEAP = {
    symbol: msgspec.structs.replace(found, tick="0.0000001", lot="100", min_qty="100")
    for symbol, found in INSTRUMENTS.items()
}


def champion(root: Path) -> Champion:
    promote(root)
    return Champion(live_settings(root), feature_hash=feature_hash(), log=None)


@pytest.mark.parametrize("instruments", [INSTRUMENTS, CHEAP], ids=["built in", "cheap"])
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_rehearsal_decides_orders_and_fills_for_every_symbol(
    algorithm: str,
    instruments: dict[str, Instrument],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = live_settings(tmp_path, algorithm=algorithm)
    model = champion(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    ended: list[Trader] = []
    close = PaperDriver.close

    def closing(driver: PaperDriver, flatten: bool) -> None:
        close(driver, flatten)
        ended.append(driver.trader)

    monkeypatch.setattr(PaperDriver, "close", closing)
    assert rehearse(settings, instruments, model) > 0
    [trader] = ended
    assert trader.decisions == 2 * 2, "two whole seconds of two symbols"
    assert trader.desk.parents >= 2
    assert trader.desk.sent >= 2
    if instruments is INSTRUMENTS:  # slices of a schedule may be below the least that a venue takes
        assert trader.desk.fills >= 2
    assert all(trader.desk.position_lots(symbol) == 0 for symbol in SYMBOLS)
    assert sorted(tmp_path.rglob("*")) == before
    model.close()


def test_every_frame_of_the_rehearsal_is_accepted() -> None:
    decoder = Decoder(INSTRUMENTS, 200, INSTRUMENTS, follow=False)
    for now_ns, frame in _frames(INSTRUMENTS, 200):
        decoded = decoder.decode_frame(now_ns, frame)
        assert not decoded.rejects, decoded.rejects
        assert sum(map(len, decoded.events.values()))
