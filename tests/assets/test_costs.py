"""Records of what was traded through dbt: what the tables hold, and how bad input is named."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pytest
import yaml

from assets.costs import TABLES, build_costs, cost_rows, markdown
from assets.dbt import PROJECT, WarehouseError
from assets.dbt_assets import costs
from assets.platform import Platform, partition_key
from execution.tca import TABLES as RECORDS
from execution.tca import FillRow, MarkoutRow, OrderRow, ParentRow, Row, Shortfall, to_table
from execution.tca.figures import figures
from market.lake import Lake
from market.settings import Settings
from market.units import day_start_ns

S = 1_000_000_000
FRIDAY, SATURDAY = "2026-01-30", "2026-01-31"
#: Half a minute before midnight.
LATE = day_start_ns(SATURDAY) - 30 * S
SETTINGS = Settings()


def parent(name: str, decision_ns: int = LATE, **more: Any) -> ParentRow:
    given = {
        "parent_id": name, "symbol": "BTCUSDT", "side": 1, "algorithm": "passive", "venue": "paper",
        "qty_lots": 10, "size_usdt": 10_000.0, "decision_ns": decision_ns,
        "deadline_ns": decision_ns + 60 * S, "decision_mid_ticks": 1_000.0, "sigma_bps": 1.0,
        "depth_lots": 40.0, "spread_regime": "one_tick", "estimate_spread_bps": -0.5,
        "estimate_impact_bps": 0.0, "estimate_timing_bps": 1.0, "estimate_fees_bps": 2.0,
        "estimate_risk_bps": 3.0,
    }  # fmt: skip
    return ParentRow(**(given | more))


def order(name: str, of: str, sent_ns: int = LATE + S, **more: Any) -> OrderRow:
    given = {
        "client_id": name, "parent_id": of, "symbol": "BTCUSDT", "side": 1, "venue": "paper",
        "order_type": "Limit", "time_in_force": "PostOnly", "qty_lots": 10, "price_ticks": 999,
        "filled_lots": 10, "state": "FILLED", "reason": "", "sent_ns": sent_ns,
        "changed_ns": sent_ns + 40 * S, "amends": 2,
    }  # fmt: skip
    return OrderRow(**(given | more))


def fill(name: str, of: str, client_id: str, time_ns: int, lots: int = 10, **more: Any) -> FillRow:
    given = {
        "exec_id": name, "client_id": client_id, "parent_id": of, "symbol": "BTCUSDT", "side": 1,
        "venue": "paper", "venue_ns": time_ns - 5, "time_ns": time_ns, "qty_lots": lots,
        "price_ticks": 999, "liquidity": "maker", "fee_e8": 200_000, "queue_ahead_lots": 7,
    }  # fmt: skip
    return FillRow(**(given | more))


def cost(of: ParentRow, filled: int, **more: Any) -> Shortfall:
    given = {
        "parent_id": of.parent_id, "symbol": of.symbol, "side": 1, "algorithm": of.algorithm,
        "venue": of.venue, "size_usdt": of.size_usdt, "decision_ns": of.decision_ns,
        "arrival_ns": of.decision_ns + S, "end_ns": of.decision_ns + 50 * S,
        "qty_lots": of.qty_lots, "filled_lots": filled, "decision_mid_ticks": 1_000.0,
        "fill_ticks": 999.0, "delay_bps": 0.25, "spread_bps": -1.0, "impact_bps": 0.5,
        "timing_bps": 2.0, "opportunity_bps": 0.0, "fees_bps": 2.0, "total_bps": 3.75,
        "impact_by": "propagator", "maker_share": 1.0, "time_to_fill_s": 40.0,
        "markout_1s_bps": -1.0, "markout_5s_bps": -2.0, "markout_30s_bps": -2.0,
        "markout_60s_bps": float("nan"),
    }  # fmt: skip
    return Shortfall(**(given | more))


def markout(of: FillRow, **more: Any) -> MarkoutRow:
    given = {
        "client_id": of.client_id, "parent_id": of.parent_id, "exec_id": of.exec_id,
        "symbol": of.symbol, "side": 1, "venue": of.venue, "outcome": "filled",
        "liquidity": "maker", "qty_lots": of.qty_lots, "price_ticks": of.price_ticks,
        "time_ns": of.venue_ns, "rested_s": 39.0, "mid_ticks": 1_000.0, "queue_ahead_lots": 7.0,
        "markout_1s_bps": -1.0, "markout_5s_bps": -2.0, "markout_30s_bps": -2.0,
        "markout_60s_bps": float("nan"),
    }  # fmt: skip
    return MarkoutRow(**(given | more))


def keep(lake: Lake, table: str, day: str, rows: list[Row]) -> None:
    lake.write(table, "BTCUSDT", day, to_table(rows, RECORDS[table]).drop(["symbol"]))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A good parent that fills behind midnight, and everything that can be wrong, once each."""
    lake = Lake(tmp_path_factory.mktemp("costs") / "lake")
    good, silent, empty = parent("good"), parent("silent"), parent("empty", LATE + 7)
    late, blind, over = (
        parent("late", LATE + 1),
        parent("blind", LATE + 2),
        parent("over", LATE + 3),
    )
    keep(lake, "parents", FRIDAY, [good, silent, empty, late, blind, over])
    keep(
        lake,
        "orders",
        FRIDAY,
        [
            order("good-1", "good"),
            order("empty-1", "empty", filled_lots=0, state="CANCELLED", reason="asked for"),
            order("late-1", "late", filled_lots=4, state="CANCELLED"),
            order("over-1", "over", filled_lots=12),
            order("orphan-1", "nobody", state="UNKNOWN", filled_lots=0),
            order("closing-1", "", state="CANCELLED", filled_lots=0),
        ],
    )
    after = LATE + 40 * S  # ten seconds behind midnight
    first = fill("x1", "good", "good-1", after)
    keep(
        lake,
        "fills",
        SATURDAY,
        [
            first,
            first,
            fill("x2", "late", "late-1", after, 1),
            fill("x3", "late", "late-1", after + 90 * S, 3),
            fill("x4", "over", "over-1", after, 12),
            fill("x9", "", "stray", after, 2),
        ],
    )
    keep(
        lake,
        "tca",
        FRIDAY,
        [
            cost(good, 10, picked="twap"),
            cost(empty, 0, fill_ticks=float("nan"), maker_share=float("nan")),
            cost(late, 1),
            cost(blind, 0, arrival_sound=False),
            cost(over, 12),
        ],
    )
    given_up = markout(
        fill("", "empty", "empty-1", LATE + 41 * S), outcome="cancelled", liquidity="none"
    )
    keep(lake, "markouts", SATURDAY, [markout(first), given_up])
    old = parent("old", LATE + 60 * S)
    younger = ("spread_regime", "estimate_spread_bps", "sigma_bps")
    rows = to_table([old], ParentRow).drop(["symbol", *younger])
    lake.write("parents", "ETHUSDT", SATURDAY, rows)
    measured = cost(old, 10, impact_bps=0.0, total_bps=3.25)
    younger = ("impact_bps", "impact_by", "arrival_sound")
    rows = to_table([measured], Shortfall).drop(["symbol", *younger])
    lake.write("tca", "ETHUSDT", SATURDAY, rows)
    return lake


@pytest.fixture(scope="module")
def built(lake: Lake) -> dict[str, list[dict[str, Any]]]:
    report = build_costs(lake, SETTINGS, ("BTCUSDT", "ETHUSDT"), FRIDAY, SATURDAY)
    assert report.keys == (
        ("BTCUSDT", FRIDAY),
        ("BTCUSDT", SATURDAY),
        ("ETHUSDT", SATURDAY),
    )
    assert all(test.passed for test in report.tests)
    assert {"parts_sum_to_the_total_parent_costs_"} <= {test.name for test in report.tests}
    return cost_rows(lake, ("BTCUSDT",), FRIDAY, SATURDAY)


def test_a_parent_has_its_cost_its_estimate_and_its_fills(built: Any) -> None:
    """Its fill came behind midnight, in another partition."""
    rows = {row["parent_id"]: row for row in built["parent_costs"]}
    good = rows["good"]
    assert (good["date"], good["hour"], good["state"]) == (FRIDAY, 23, "complete")
    assert (good["algorithm"], good["picked"]) == ("passive", "twap")
    assert (good["booked_lots"], good["orders"], good["amends"]) == (10, 1, 2)
    assert (good["size_bucket"], good["depth_share"]) == ("5 to 20 k", 0.25)
    assert (good["total_bps"], good["estimate_bps"], good["error_bps"]) == (3.75, 2.5, 1.25)
    assert good["markout_60s_bps"] is None
    assert {name: row["state"] for name, row in rows.items()} == {
        "good": "complete",
        "silent": "unmeasured",
        "empty": "unfilled",
        "late": "partial",
        "blind": "unfilled",
        "over": "complete",
    }


def test_every_finding_is_reported_once(built: Any) -> None:
    found = sorted(
        (row["kind"], row["client_id"] or row["parent_id"]) for row in built["cost_findings"]
    )
    assert found == [
        ("fill of an unknown order", "stray"),
        ("fill told twice", "good-1"),
        ("fills and cost differ", "late"),
        ("no sound book at arrival", "blind"),
        ("order of an unknown parent", "orphan-1"),
        ("order without an end", "orphan-1"),
        ("parent filled beyond its quantity", "over"),
        ("parent never measured", "silent"),
        ("parent without a fill", "blind"),
        ("parent without a fill", "empty"),
        ("position closed by reconciliation", "closing-1"),
    ]


def test_no_finding_is_missing_or_counted_twice(built: Any) -> None:
    """Executions add up by order and by parent, those of nobody among them."""
    fills = [row for row in built["fill_markouts"] if row["exec_id"]]
    assert sum(row["qty_lots"] for row in fills) == 10 + 1 + 3 + 12 + 2
    assert {row["parent_id"]: row["booked_lots"] for row in built["parent_costs"]} == {
        "good": 10, "silent": 0, "empty": 0, "late": 4, "blind": 0, "over": 12,
    }  # fmt: skip
    assert {row["client_id"]: row["booked_lots"] for row in built["order_outcomes"]} == {
        "good-1": 10, "empty-1": 0, "late-1": 4, "over-1": 12, "orphan-1": 0, "closing-1": 0,
    }  # fmt: skip
    unknown = next(row for row in fills if row["client_id"] == "stray")
    assert (unknown["algorithm"], unknown["markout_1s_bps"]) == ("unknown", None)


def test_an_order_has_its_queue_its_times_and_its_opportunity_cost(built: Any) -> None:
    rows = {row["client_id"]: row for row in built["order_outcomes"]}
    good, empty = rows["good-1"], rows["empty-1"]
    assert (good["queue_ahead_lots"], good["maker_lots"], good["fill_rate"]) == (7.0, 10, 1.0)
    assert good["first_fill_s"] == pytest.approx(39.0)
    assert good["rest_markout_5s_bps"] is None
    assert (empty["rest_markout_5s_bps"], empty["first_fill_s"]) == (-2.0, None)
    assert empty["algorithm"] == "passive"


def test_figures_and_the_main_table_leave_out_only_what_was_never_measured(built: Any) -> None:
    told = figures(*built.values())
    assert told["states"] == {"unfilled": 2, "complete": 2, "unmeasured": 1, "partial": 1}
    (line,) = told["costs"]
    assert line["parents"] == 5
    assert line["total_bps"][0] == pytest.approx(3.75)
    assert line["fill_rate"] == pytest.approx(23 / 50)
    (estimated,) = told["estimates"]
    assert estimated["bias_bps"][0] == pytest.approx(1.25)
    assert estimated["rmse_bps"] == pytest.approx(1.25)
    assert estimated["within_risk"] == 1.0
    assert {row["what"] for row in told["markouts"]} == {"maker fill", "not filled: cancelled"}
    assert {line["value"]: line["parents"] for line in told["attribution"]["algorithm"]} == {
        "passive": 4,
        "passive: twap": 1,
    }
    assert "BTCUSDT|paper|passive|5|3.75|" in markdown(told)
    assert markdown(figures([], [], [], [])) == "No parent was measured on these dates."


def hashes(lake: Lake) -> dict[str, str]:
    return {
        f"{table} {day}": hashlib.sha256(
            Path(lake.path(table, "BTCUSDT", day)).read_bytes()
        ).hexdigest()
        for table in TABLES
        for day in (FRIDAY, SATURDAY)
    }


def test_cost_tables_are_rebuilt_only_when_records_have_grown(lake: Lake, built: Any) -> None:
    before = hashes(lake)
    assert build_costs(lake, SETTINGS, ("BTCUSDT",), FRIDAY, SATURDAY).current
    Path(lake.path("cost_findings", "BTCUSDT", SATURDAY)).unlink()
    assert not build_costs(lake, SETTINGS, ("BTCUSDT",), FRIDAY, SATURDAY).current
    assert hashes(lake) == before, "the same records give the same bytes"


def test_parts_that_do_not_sum_to_the_total_publish_nothing(tmp_path: Path) -> None:
    lake, good = Lake(tmp_path / "lake"), parent("good")
    keep(lake, "parents", FRIDAY, [good])
    keep(lake, "tca", FRIDAY, [msgspec.structs.replace(cost(good, 10), delay_bps=0.26)])
    with pytest.raises(WarehouseError, match="parts_sum_to_the_total"):
        build_costs(lake, SETTINGS, ("BTCUSDT",), FRIDAY, FRIDAY)
    assert not lake.partitions("parent_costs")


def test_records_of_an_older_schema_without_some_columns_are_read(lake: Lake, built: Any) -> None:
    (row,) = cost_rows(lake, ("ETHUSDT",), SATURDAY, SATURDAY)["parent_costs"]
    assert (row["impact_bps"], row["impact_by"], row["arrival_sound"]) == (0.0, "none", True)
    assert (row["spread_regime"], row["estimate_bps"]) == ("unknown", None)


def test_the_asset_of_a_day_shows_the_main_table(lake: Lake, built: Any) -> None:
    done = dg.materialize(
        [costs],
        partition_key=partition_key("BTCUSDT", FRIDAY),
        resources={"platform": Platform(overrides=[f"root={lake.base}"])},
    )
    metadata = {
        event.asset_key.to_user_string(): event.step_materialization_data.materialization.metadata
        for event in done.all_events
        if event.is_step_materialization
    }
    assert set(metadata) == set(TABLES)
    assert "BTCUSDT|paper|passive|5" in metadata["parent_costs"]["cost"].value
    assert metadata["cost_findings"]["found"].value["parent never measured"] == 1
    checks = done.get_asset_check_evaluations()
    assert all(check.passed for check in checks)


def test_the_description_of_the_records_is_that_of_their_rows() -> None:
    kinds = {"string": "varchar", "int64": "bigint", "double": "double", "bool": "boolean"}
    text = (PROJECT / "models/costs/records.yml").read_text()
    (source,) = yaml.safe_load(text)["sources"]
    described = {
        table["name"]: [(column["name"], column["data_type"]) for column in table["columns"]]
        for table in source["tables"]
    }
    assert described == {
        table: [(field.name, kinds[str(field.type)]) for field in kind.schema()]
        for table, kind in RECORDS.items()
    }
