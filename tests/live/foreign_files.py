"""Events as files of other formats: what the doors are tested with."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from market.events import PLACES, Events, Field, Flag, Kind
from market.instruments import Instrument

TICKER_COLUMNS = {
    "funding_timestamp": Field.NEXT_FUNDING_MS,
    "funding_rate": Field.FUNDING_RATE,
    "predicted_funding_rate": None,
    "open_interest": Field.OPEN_INTEREST,
    "last_price": Field.LAST_PRICE,
    "index_price": Field.INDEX_PRICE,
    "mark_price": Field.MARK_PRICE,
}
BOOK_HEADER = "exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount"
TRADE_HEADER = "exchange,symbol,timestamp,local_timestamp,id,side,price,amount"


def tardis_files(
    folder: Path, events: Events, instrument: Instrument, exchange: str = "bybit"
) -> list[Path]:
    """The three CSV.gz files of some events, as the vendor would have them; empty ones are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    common = pd.DataFrame(
        {
            "exchange": exchange,
            "symbol": instrument.symbol,
            "timestamp": events["exchange_ns"] // 1000,
            "local_timestamp": events["receive_ns"] // 1000,
        }
    )
    price = [f"{n:.10g}" for n in events["price_ticks"] * instrument.tick_size]
    amount = [f"{n:.10g}" for n in events["qty_lots"] * instrument.lot_size]
    made = []
    for name, rows, names in (
        ("incremental_book_L2", events["kind"] <= Kind.DELTA, ("bid", "ask")),
        ("trades", events["kind"] == Kind.TRADE, ("buy", "sell")),
    ):
        frame = common.copy()
        if name == "trades":
            frame["id"] = events["update_id"]
        else:
            frame["is_snapshot"] = np.where(events["kind"] == Kind.SNAPSHOT, "true", "false")
        frame["side"] = np.where(events["side"] > 0, *names)
        frame["price"], frame["amount"] = price, amount
        made.append((name, frame[rows & (events["side"] != 0)]))
    made.append(("derivative_ticker", _tickers(common, events)))
    paths = []
    for name, frame in made:
        if len(frame):
            paths.append(folder / f"{exchange}_{name}_{instrument.symbol}.csv.gz")
            frame.to_csv(paths[-1], index=False, float_format="%.10g")
    return paths


def _tickers(common: pd.DataFrame, events: Events) -> pd.DataFrame:
    """A line for each ticker frame, with the state of all fields so far, as the vendor's are."""
    rows = np.flatnonzero(events["kind"] == Kind.TICKER)
    lines, state = [], dict.fromkeys(TICKER_COLUMNS)
    for n in rows:
        for column, field in TICKER_COLUMNS.items():
            if field is not None and events["field"][n] == field:
                scale = 1000 if field == Field.NEXT_FUNDING_MS else 10.0 ** -PLACES[field]
                state[column] = f"{events['value'][n] * scale:.12g}"
        if events["flags"][n] & Flag.LAST:
            lines.append({**common.iloc[n].to_dict(), **state})
    return pd.DataFrame(lines)


def csv(path: Path, header: str, rows: Iterable[str], end: str = "\n") -> Path:
    """A small file; gzip by its name."""
    text = end.join([header, *rows, ""]).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def book_rows(
    levels: Sequence[tuple[int, str, str, str, str]], symbol: str = "BTCUSDT"
) -> list[str]:
    """Lines of (ms since the epoch's start of the test, is_snapshot, side, price, amount)."""
    return [
        f"bybit,{symbol},{_us(ms)},{_us(ms) + 5000},{snapshot},{side},{price},{amount}"
        for ms, snapshot, side, price, amount in levels
    ]


def _us(ms: int) -> int:
    return 1_780_000_000_000_000 + ms * 1000
