"""A fetch brings what the venue has, whatever the way is like, says what it has not, and asks once."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from live.archives.download import Fetched, FetchError, fetch
from live.archives.rest import RequestError, RetryPolicy, instruments
from live.coverage import coverage
from market.bars import make_bars
from market.events import Field, from_arrow
from market.ingest import ingest
from market.lake import Lake
from market.settings import Settings, load
from market.units import day_start_ns
from market.wire.capture import read_lines
from orchestration.cli import main
from tests.live.archive_files import Archives, archives, book_zip, trade_gz

SYMBOL = "BTCUSDT"
DAYS = ("2025-08-20", "2025-08-21", "2025-08-22")
HOUR_MS = 3_600_000


def put(served: Archives, day: str, depth: int, trades: bool = True) -> None:
    """The archives of a date: a book frame and a trade a minute."""
    start = day_start_ns(day) // 1_000_000
    frames = []
    for n in range(300):
        data = {"s": SYMBOL, "b": [["100.0", f"{n + 1}"]], "a": [["100.1", "1"]], "u": n + 1}
        content = {
            "topic": f"orderbook.{depth}.{SYMBOL}",
            "type": "delta" if n else "snapshot",
            "ts": start + n * 60_000,
            "data": data | {"seq": n},
            "cts": start + n * 60_000,
        }
        frames.append(msgspec.json.encode(content))
    name = f"{day}_{SYMBOL}_ob{depth}.data"
    served.files[f"/books/{SYMBOL}/{name}.zip"] = book_zip(name, frames)
    if trades:
        rows = [
            f"{(start + n * 60_000) / 1000:.4f},{SYMBOL},Sell,0.001,100.0,PlusTick,{n},1,1,1,0"
            for n in range(300)
        ]
        served.files[f"/trades/{SYMBOL}/{SYMBOL}{day}.csv.gz"] = trade_gz(rows)


def settings_of(served: Archives, root: Path) -> Settings:
    return load(environ={}, overrides=served.settings(root))


def run(served: Archives, root: Path, days: tuple[str, ...] = DAYS) -> Fetched:
    return fetch(settings_of(served, root), [SYMBOL], days[0], days[-1], lambda text: None)


def test_a_range_is_downloaded_once_at_the_depth_of_its_dates(tmp_path: Path) -> None:
    with archives() as served:
        for day, depth in zip(DAYS, (500, 500, 200), strict=True):
            put(served, day, depth)
        served.funding = [
            (day_start_ns(DAYS[0]) // 1_000_000 + n * 8 * HOUR_MS, f"0.000{n}") for n in range(9)
        ]
        first = run(served, tmp_path)
        requests = served.requests.copy()
        second = run(served, tmp_path)

    assert [(day.day, day.depth, day.book_lines, day.trades) for day in first.made] == [
        (DAYS[0], 500, 300, 300),
        (DAYS[1], 500, 300, 300),
        (DAYS[2], 200, 300, 300),
    ]
    assert (first.lacking, first.failures) == ((), ())
    assert (second.made, second.standing) == ((), 3)
    again = {path: n - requests[path] for path, n in served.requests.items() if n > requests[path]}
    assert again == {
        f"/rest/v5/market/{name}": 1 for name in ("funding/history", "mark-price-kline")
    }
    assert served.busiest <= Settings().history.connections
    rates = (tmp_path / "archive" / "funding" / f"{SYMBOL}.csv").read_text().splitlines()
    assert len(rates) == 10
    assert rates[1].endswith(f"2025-08-20T00:00:00+00:00,0.0000,{served.funding[0][0] // HOUR_MS}")
    assert first.doubtful == ()


def test_short_stalled_busy_and_damaged_responses_are_retried(tmp_path: Path) -> None:
    day = DAYS[2]
    books = f"/books/{SYMBOL}/{day}_{SYMBOL}_ob200.data.zip"
    trades = f"/trades/{SYMBOL}/{SYMBOL}{day}.csv.gz"
    with archives() as served:
        put(served, day, 200)
        expected = run(served, tmp_path / "calm", (day,)).made
        served.faults[books] = ["503", "short", "stalls", "429"]
        served.faults[trades] = ["damaged"]
        found = run(served, tmp_path / "storm", (day,))
        resumed = list(served.ranges)

    assert found.made == expected
    assert found.failures == ()
    assert {line.split()[0] for line in resumed} == {books}
    assert all(int(line.split()[1]) > 0 for line in resumed)
    captures = [Lake(tmp_path / name).archive(SYMBOL, day) for name in ("calm", "storm")]
    assert list(read_lines(captures[0])) == list(read_lines(captures[1]))


def test_an_interrupted_download_resumes_where_it_ended(tmp_path: Path) -> None:
    day = DAYS[2]
    path = f"/books/{SYMBOL}/{day}_{SYMBOL}_ob200.data.zip"
    with archives() as served:
        put(served, day, 200)
        raw = tmp_path / "archive" / "raw" / SYMBOL
        raw.mkdir(parents=True)
        (raw / f"{Path(path).name}.part").write_bytes(served.files[path][:1000])
        assert len(run(served, tmp_path, (day,)).made) == 1
        assert served.ranges == [f"{path} 1000"]


def test_dates_missing_at_the_venue_are_listed_and_do_not_stop_the_others(tmp_path: Path) -> None:
    with archives() as served:
        put(served, DAYS[0], 500)
        put(served, DAYS[1], 200, trades=False)
        found = run(served, tmp_path)

    assert [day.day for day in found.made] == [DAYS[0]]
    assert found.lacking == (
        f"{SYMBOL} {DAYS[1]}: trades",
        f"{SYMBOL} {DAYS[2]}: trades and books",
    )
    assert found.failures == ()


def test_a_venue_that_stays_down_fails_with_the_date(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    day = DAYS[2]
    with archives() as served:
        put(served, day, 200)
        served.faults[f"/trades/{SYMBOL}/{SYMBOL}{day}.csv.gz"] = ["503"] * 20
        named = [item for pair in served.settings(tmp_path) for item in ("--set", pair)]
        status = main(["fetch", *named, "--symbols", SYMBOL, "--from", day, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert status == 1
    assert [text[:18] for text in result["failures"]] == [f"{SYMBOL} {day}"]
    assert "HTTP 503" in result["failures"][0]


@pytest.mark.parametrize("status", ["403", "451", "404"])
def test_a_symbol_that_the_venue_refuses_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], status: str
) -> None:
    """Both archives and the funding rates of one symbol: the other's dates are all fetched."""
    day, gone = DAYS[2], "GONEUSDT"
    with archives() as served:
        put(served, day, 200)
        served.faults["/rest/v5/market/funding/history"] = [status]
        for path in (
            f"/trades/{gone}/{gone}{day}.csv.gz",
            *(f"/books/{gone}/{day}_{gone}_ob{depth}.data.zip" for depth in (200, 500)),
        ):
            served.faults[path] = [status]
        named = [item for pair in served.settings(tmp_path) for item in ("--set", pair)]
        symbols = f"{gone},{SYMBOL}"
        code = main(["fetch", *named, "--symbols", symbols, "--from", day, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert code == 1
    assert [(made["symbol"], made["day"]) for made in result["made"]] == [(SYMBOL, day)]
    assert f"HTTP {status}" in result["failures"][-1]
    assert {text.split()[0] for text in result["failures"]} == {gone}
    assert result["lacking"] == ([f"{gone} {day}: trades and books"] if status == "404" else [])


def test_another_latency_converts_the_downloaded_files_again(tmp_path: Path) -> None:
    day = DAYS[2]
    with archives() as served:
        put(served, day, 200)
        run(served, tmp_path, (day,))
        before = [ns for ns, _ in read_lines(Lake(tmp_path).archive(SYMBOL, day))]
        books = served.requests[f"/books/{SYMBOL}/{day}_{SYMBOL}_ob200.data.zip"]
        slower = load(
            environ={}, overrides=[*served.settings(tmp_path), "market.archive_latency_ms=50"]
        )
        assert len(fetch(slower, [SYMBOL], day, day, lambda text: None).made) == 1
        assert served.requests[f"/books/{SYMBOL}/{day}_{SYMBOL}_ob200.data.zip"] == books
    after = [ns for ns, _ in read_lines(Lake(tmp_path).archive(SYMBOL, day))]
    assert [b - a for a, b in zip(before[1:], after[1:], strict=True)] == [30_000_000] * 600


def test_funding_rates_are_paged_backwards(tmp_path: Path) -> None:
    day = DAYS[2]
    start = day_start_ns(day) // 1_000_000
    with archives() as served:
        put(served, day, 200)
        served.funding = [(start + n * 60_000, f"{n}e-6") for n in range(450)]
        assert run(served, tmp_path, (day,)).funding_rates == {SYMBOL: 450}
        assert served.requests["/rest/v5/market/funding/history"] == 3


def test_coverage_names_the_archive_as_the_source(tmp_path: Path) -> None:
    with archives() as served:
        put(served, DAYS[2], 200)
        run(served, tmp_path, DAYS[2:])
    (day,) = coverage(Lake(tmp_path), 200)
    assert (day.symbol, day.source, day.frames, day.gaps) == (SYMBOL, "archive", 600, 0)
    assert len(day.holes) == 299  # a frame a minute


def test_an_invalid_range_or_address_is_refused(tmp_path: Path) -> None:
    wrong = Settings(root=str(tmp_path))
    for first, last in (("2026-03-02", "2026-03-01"), ("yesterday", "today")):
        with pytest.raises(FetchError, match=first):
            fetch(wrong, [SYMBOL], first, last, lambda text: None)
    with pytest.raises(RequestError, match="expected an http"):
        instruments("file:///etc", [SYMBOL], RetryPolicy(1, 0.0, 1.0))


def test_settled_funding_reaches_the_bars_without_look_ahead(tmp_path: Path) -> None:
    """A date fetched while the rates could not be had is made anew, from its files, when they can."""
    day, path = DAYS[2], "/rest/v5/market/funding/history"
    start = day_start_ns(day)
    with archives() as served:
        put(served, day, 200)
        served.funding = [(start // 1_000_000 - 4 * HOUR_MS, "0.0003")]
        served.funding += [(start // 1_000_000 + 4 * HOUR_MS, "-0.0001")]
        served.faults[path] = ["503"] * 20
        without = run(served, tmp_path, (day,))
        served.faults[path].clear()
        requests = served.requests[f"/trades/{SYMBOL}/{SYMBOL}{day}.csv.gz"]
        found = run(served, tmp_path, (day,))
        again = run(served, tmp_path, (day,))
        assert served.requests[f"/trades/{SYMBOL}/{SYMBOL}{day}.csv.gz"] == requests
    assert [text.split(":")[0] for text in without.failures] == [f"{SYMBOL} funding"]
    assert (len(without.made), len(found.made), again.standing) == (1, 1, 1)

    lake, settings = Lake(tmp_path), Settings()
    ingest(lake, [lake.archive(SYMBOL, day)], [(SYMBOL, day)], settings)
    make_bars(lake, SYMBOL, day, settings)
    bars = lake.read("bars", SYMBOL, day)
    second = (bars["t_ns"].to_numpy() - start) // 1_000_000_000
    rate = bars["funding_rate"].to_numpy(zero_copy_only=False)
    assert set(rate[second < 4 * 3600]) == {0.0003}
    assert set(rate[second > 4 * 3600 + 1]) == {-0.0001}
    assert bars["funding_in_s"][0].as_py() == 4 * 3600 - second[0]
    assert bars["mark"].null_count == len(bars)
    events = from_arrow(lake.read("events", SYMBOL, day))
    settled = {
        field: events["value"][events["field"] == field].tolist()
        for field in (Field.SETTLED_MS, Field.SETTLED_RATE, Field.SETTLED_MARK)
    }
    times = [start // 1_000_000 + n * 4 * HOUR_MS for n in (-1, 1)]
    assert settled == {
        Field.SETTLED_MS: times,
        Field.SETTLED_RATE: [30_000, -10_000],
        Field.SETTLED_MARK: [ms // HOUR_MS * 10**8 for ms in times],
    }
