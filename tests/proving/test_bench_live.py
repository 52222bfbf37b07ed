"""The bench of the order path counts every stage of every request, and never less than their sum."""

from __future__ import annotations

from proving.bench import live


def test_stages_of_an_order_are_measured_and_no_more_than_the_whole() -> None:
    rows = {row.name: row for row in live.measure(quick=True, say=lambda _: None)}
    for pace in ("recorded pace", "10x burst"):
        whole = rows[f"order, {pace}: p50"].parts
        assert set(whole) == {*live.STAGES, "total"}
        assert whole["total"]["n"] > 0
        for stage in live.STAGES:
            assert whole[stage]["n"] == whole["total"]["n"]
            assert sum(count for _, count in whole[stage]["histogram"]) == whole[stage]["n"]
            assert whole[stage]["most"] <= whole["total"]["most"]
    assert rows["disk alone, fdatasync into allocated space: p99"].ours > 0
