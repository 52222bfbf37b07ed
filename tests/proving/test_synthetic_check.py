"""`l2 synth --check` from end to end, on a few minutes of market."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest

from market.console import table
from market.settings import Market, Settings
from orchestration.cli import main
from proving.realism import check as acceptance
from proving.realism import page as acceptance_page
from proving.realism.check import AcceptanceError, Checked
from proving.realism.criteria import STATISTICS

SETTINGS = Settings(source="synthetic", market=Market(symbols=("BTCUSDT",)))


@pytest.fixture(scope="module")
def checked(data_dir: Path) -> Checked:
    return acceptance.check(
        SETTINGS,
        name="default",
        seeds=[201],
        hours=0.25,
        folder=data_dir,
        metaorder_hours=0,
        workers=1,
        say=print,
    )


def test_every_statistic_is_compared_with_every_recording(checked: Checked) -> None:
    rows = checked.rows["BTCUSDT"]
    assert [row.name for row in rows[: len(STATISTICS)]] == [each.name for each in STATISTICS]
    assert [each.label for each in rows[0].recorded] == [
        "bybit-linear-20260809",
        "usdm-20240718",
        "usdm-20240808",
    ]


def test_recordings_have_their_known_statistics(checked: Checked) -> None:
    """One-tick spreads, the volatilities of a quiet and of a fast day, and no crossed book."""
    rows = {row.name: row for row in checked.rows["BTCUSDT"]}
    spread = [each.value for each in rows["spread of one tick"].recorded]
    assert all(0.99 < value <= 1 for value in spread)
    _, quiet, fast = (each.value for each in rows["volatility of 1 s"].recorded)
    assert (quiet, fast) == (pytest.approx(0.48, abs=0.03), pytest.approx(1.21, abs=0.03))
    assert {each.value for each in rows["crossed frames"].recorded} == {0.0}
    # The order that waits at the back is filled when it is wrong to be.
    for front, back in zip(
        rows["markout after 5 s, front of queue"].recorded[1:],
        rows["markout after 5 s, back of queue"].recorded[1:],
        strict=True,
    ):
        assert back.value < front.value < 0


def test_minutes_of_the_default_market_are_not_out_of_range(checked: Checked) -> None:
    """What a few minutes can tell: the shape of the book, and that it is sound."""
    verdicts = {row.name: row.verdict for row in checked.rows["BTCUSDT"]}
    for name in ("spread of one tick", "crossed frames", "depth within 1 bps, median"):
        assert verdicts[name] == "in", name


def test_the_html_report_is_self_contained(checked: Checked, tmp_path: Path) -> None:
    acceptance_page.write(checked, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "data:image/png;base64,iVBOR" in text
    assert "http" not in text
    for row in checked.rows["BTCUSDT"]:
        assert html.escape(row.name) in text


def test_the_markdown_report_names_its_pictures(checked: Checked, tmp_path: Path) -> None:
    acceptance_page.write(checked, tmp_path / "check.md")
    text = (tmp_path / "check.md").read_text(encoding="utf-8")
    assert "(check-btcusdt.png)" in text
    assert (tmp_path / "check-btcusdt.png").read_bytes().startswith(b"\x89PNG")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == len(checked.rows["BTCUSDT"]) + 2
    columns = {line.replace("\\|", "").count("|") for line in rows}
    assert columns == {len(acceptance.HEAD) + 1}


def test_the_table_is_text_and_data(checked: Checked) -> None:
    rows = checked.rows["BTCUSDT"]
    text = table(acceptance.lines(rows), acceptance.HEAD)
    assert len(text.splitlines()) == len(rows) + 2
    data: dict[str, Any] = json.loads(json.dumps(checked.data(), allow_nan=False))
    assert sum(data["verdicts"].values()) == len(rows)
    first = data["rows"]["BTCUSDT"][0]
    assert first["name"] == "spread of one tick"
    assert first["found"]["n"] >= 720


def test_rows_are_selected_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then there is no page, and a null market's flow is judged by what it says of the next bar."""
    monkeypatch.chdir(tmp_path)
    arguments = ["--profile", "null", "--seeds", "202", "--hours", "0.2", "--symbols", "BTCUSDT"]
    main(["synth", "--check", *arguments, "--only", "OFI of", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in said["rows"]["BTCUSDT"]] == [
        "OFI of 10 s and the next 10 s",
        "OFI of 10 s and the next 60 s",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("hours", [0.0, 25.0])
def test_impossible_spans_are_rejected(hours: float) -> None:
    with pytest.raises(AcceptanceError, match="0 < hours <= 24"):
        acceptance.check(SETTINGS, name="default", hours=hours, say=print)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recordings", "nowhere"], "nowhere: holds no *.frames.zst"),
        (["--seeds", "1,two"], "--seeds 1,two: expected seeds and ranges"),
        (["--profile", "nobody"], "nobody"),
        (["--only", "nothing"], "--only nothing: no statistic's name holds this"),
    ],
)
def test_bad_requests_give_one_error_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["synth", "--check", *arguments]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
