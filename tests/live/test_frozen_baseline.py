"""With every part of the desk off, orders and fills are those of before there were parts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest

from market.settings import PROFILES, Desk
from orchestration.backtest.run import load_model
from tests.live.live_market import live_settings, promote
from tests.live.test_trader import SECONDS, Traded, by_seconds
from tests.live.warm import SYMBOLS, minutes


@pytest.mark.parametrize(
    ("algorithm", "digest"), [("market", "8889a36930762094"), ("passive", "0d6a4cdd062cab8f")]
)
def test_with_all_parts_off_orders_and_fills_are_those_of_before(
    algorithm: str, digest: str, data_dir: Path, tmp_path: Path
) -> None:
    """The digests were taken at 231b58c, before the desk had parts."""
    off = Desk(**PROFILES["legacy"]["desk"] | {"model": "champion"})
    settings = msgspec.structs.replace(live_settings(tmp_path, algorithm=algorithm), desk=off)
    promote(tmp_path, follows="ofi_now")
    market = minutes(data_dir / "usdm-20240808.frames.zst", SECONDS)
    model = load_model(settings, "champion", SYMBOLS)
    traded = by_seconds(Traded(model, settings, market), market)
    told: list[object] = []
    for record in traded.records:
        if record.kind in ("intent", "event"):
            body = msgspec.json.decode(record.body)
            told.append((record.kind, record.time_ns, record.symbol, sorted(body.items())))
    told += [(d.t_ns, d.symbol, d.target, d.position_lots) for d in traded.decisions]
    found = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
    assert (len(told) > 50, found) == (True, digest)
