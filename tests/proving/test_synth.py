"""`l2 synth`: what it writes as frames, events and bars, and what it measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from market.bars import bars_from_chunks, make_bars
from market.instruments import BUILT_IN
from market.lake import Lake
from market.settings import Settings
from orchestration.cli import main
from proving.synthetic import command as synth
from proving.synthetic import generate, profile

DAY = "2026-03-04"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    base = Settings(root=str(tmp_path), source="synthetic")
    market = type(base.market)(symbols=("BTCUSDT",))
    return Settings(root=str(tmp_path), source="synthetic", market=market)


def silent(_: str) -> None:
    pass


def test_events_written_directly_give_the_generators_bars(settings: Settings) -> None:
    written = synth.write(settings, "events", [DAY], (0, 120), (), silent)
    lake = Lake(settings.root, "synthetic")
    assert written["written"] == {f"{DAY} BTCUSDT": lake.rows("events", "BTCUSDT", DAY)}
    assert make_bars(lake, "BTCUSDT", DAY, settings) == 120
    demo = profile("demo")
    straight = bars_from_chunks(
        generate(demo, 7, "BTCUSDT", DAY, 0, 120), BUILT_IN["BTCUSDT"], settings
    )
    assert lake.read("bars", "BTCUSDT", DAY).equals(straight.to_arrow())
    for name in ("truth", "planted", "decoys"):
        assert lake.is_current(name, "BTCUSDT", DAY)


def test_files_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    files = []
    for workers in (1, 2):
        root = tmp_path / str(workers)
        settings = Settings(root=str(root), source="synthetic")
        written = synth.write(settings, "events", [DAY], (0, 20), (), silent, workers)
        assert list(written["written"]) == [f"{DAY} BTCUSDT", f"{DAY} ETHUSDT"]
        files.append(
            {
                str(path.relative_to(root)): path.read_bytes()
                for path in sorted(root.rglob("*"))
                if path.is_file()
            }
        )
    assert len(files[0]) >= 8
    assert files[0] == files[1]


def test_a_part_of_a_day_of_bars_is_rejected(settings: Settings) -> None:
    with pytest.raises(ValueError, match="leave out --start and --stop"):
        synth.write(settings, "bars", [DAY], (0, 120), (), silent)
    written = synth.write(settings, "bars", [DAY], (0, 86_400), (), silent)
    assert written["written"] == {f"{DAY} BTCUSDT": 86_400}


def test_the_verb_writes_a_capture_and_prints_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2_SOURCE", "synthetic")
    monkeypatch.setenv("L2_ROOT", str(tmp_path))
    monkeypatch.setenv("L2_MARKET__SYMBOLS", "BTCUSDT")
    assert main(["synth", "--day", DAY, "--stop", "20", "--profile", "null", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert Path(said["capture"]).exists()
    assert "-null-" in said["capture"]


def test_the_verb_requires_a_day(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synth"]) == 2
    assert "say which day to make" in capsys.readouterr().err


def test_the_ic_study_fails_when_the_error_is_large(settings: Settings) -> None:
    """Two days leave too large an error for a verdict."""
    rows = synth.recovered(settings, "bars", 2, silent)
    assert [row.horizon_s for row in rows] == [10, 60, 300, 900]
    assert not any(row.agrees for row in rows)
    assert synth.lines(rows)[0][0] == "10 s"
    assert all(abs(row.z) < 8 for row in rows)


def test_an_ic_study_resumes_and_does_not_depend_on_workers(
    settings: Settings, tmp_path: Path
) -> None:
    """Days that the file holds are not made again; a torn line is; figures are the same bytes."""
    kept, said = tmp_path / "days.jsonl", list[str]()
    first = synth.recovered(settings, "bars", 2, said.append, workers=1, kept=kept)
    assert len(kept.read_bytes().splitlines()) == 2
    assert synth.recovered(settings, "bars", 2, said.append, workers=1, kept=kept) == first
    assert said[-1] == f"{kept}: holds 2 of 2 seeds"
    whole, torn = kept.read_bytes().splitlines()
    kept.write_bytes(whole + b"\n" + torn[: len(torn) // 2])
    assert synth.recovered(settings, "bars", 2, said.append, workers=2, kept=kept) == first
    assert any("line 2" in line and "made again" in line for line in said)
    assert kept.read_bytes().splitlines()[2] == torn
    assert synth.recovered(settings, "bars", 2, said.append, workers=2) == first
