"""The statement: our books of a day against the transaction log of the exchange on loopback, to the last unit."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from execution.account import Account, Day
from execution.orders import Filled, Liquidity, Submit, TimeInForce
from execution.tca import to_table
from live import log
from live.core import CoreState
from live.messages import (
    Append,
    Effect,
    FundingReport,
    QueryKind,
    QueryResult,
    Say,
    Send,
    TransactionReport,
)
from live.requests import Requests, Retries
from live.restoration import Restoration
from live.safety import Mode, Safety
from live.statement import (
    ROUNDS,
    DailyStatement,
    StatementRow,
    Statements,
    StatementState,
    statement,
)
from market.instruments import BUILT_IN
from market.lake import Lake
from market.settings import Risk
from market.units import DAY_NS, MINUTE_NS, MS_NS, SECOND_NS, day_start_ns, utc_date
from orchestration import cli
from proving.sandbox.server import Sandbox
from proving.sandbox.virtual import VirtualVenue
from proving.torture.world import World
from tests.live.bybit_venue import SYMBOL, Client, connected
from tests.live.fate import Desk, S, Venue
from tests.proving.sandbox_server import Served, served

KNOWN = {SYMBOL: BUILT_IN[SYMBOL]}


@pytest.fixture(scope="module")
def venue() -> Iterator[Served]:
    with served(Sandbox(35, clients=2, begins_ns=None, limited=False)) as running:
        yield running


class Books:
    """An account, its statements and its safety; what they emit."""

    def __init__(self, symbols: dict[str, Any] = KNOWN) -> None:
        self.account, self.made = Account(symbols), list[Effect]()
        self.safety = Safety(symbols, Risk(), self.made.append)
        self.retries = Retries(Requests(SECOND_NS), self.made.append)
        self.state = StatementState(since_ns=1, day=1 << 20)
        self.statements = Statements(
            self.account, self.retries, self.safety, "sandbox", self.made.append, self.state
        )

    @property
    def rows(self) -> list[StatementRow]:
        bodies = [x.body for x in self.made if isinstance(x, Append)]
        return [msgspec.json.decode(body, type=StatementRow) for body in bodies]

    def compare(self, client: Client, day: int) -> None:
        """Have the day of ``day`` compared by the exchange's answer over REST."""
        now_ns, self.state.day = (day + 1) * DAY_NS + 2 * MINUTE_NS, day - 1
        self.statements.look(now_ns, now_ns)
        for n in range(1, ROUNDS + 1):
            self.retries.step(now_ns + n * MINUTE_NS)
            sent = [x for x in self.made if isinstance(x, Send)]
            if len(sent) < n:
                return
            retry = self.retries.of(sent[-1].number)
            (result,) = client.ask(sent[-1].body, "")
            assert isinstance(result, QueryResult)
            assert result.complete
            assert retry is not None
            self.statements.result(now_ns + n * MINUTE_NS, retry, result)


def traded(client: Client, books: Books) -> int:
    """Trade at the exchange: opened, enlarged, paid for, partly closed, turned; the day of it."""
    for n, (side, lots) in enumerate([(1, 30), (1, 17), (-1, 11), (-1, 60), (1, 7)]):
        order = Submit(
            client_id=f"{books.account.opening_e8}-{n}",
            symbol=SYMBOL,
            side=side,
            qty_lots=lots,
            price_ticks=client.touch(-side) + side * 5000,
            time_in_force=TimeInForce.IOC,
        )
        client.send(order)

        def filled(n: int = n, lots: int = lots) -> bool:
            told = {x.exec_id: x for x in client.evidence if isinstance(x, Filled)}
            link = f"{books.account.opening_e8}-{n}"
            return sum(x.qty_lots for x in told.values() if x.client_id == link) == lots

        client.until(filled)
        if n == 1:
            client.venue.run(lambda exchange: exchange.settle_funding(SYMBOL))
            client.until(lambda: any(isinstance(x, FundingReport) for x in client.evidence))
    for told in client.evidence:
        if isinstance(told, Filled):
            books.account.apply(told)
        elif isinstance(told, FundingReport):
            books.account.fund(told.exec_id, told.symbol, told.paid_e8, told.venue_ns)
    return client.clock() // DAY_NS


def test_a_day_agrees_with_the_exchange_to_the_last_unit(venue: Served) -> None:
    books = Books()
    with connected(venue, client=0) as client:
        books.compare(client, traded(client, books))
    (row,) = books.rows
    assert (row.compared, row.differs, row.closing_lots) == (True, "", -17)
    assert row.taker_fees_e8 > 0
    assert row.funding_e8 != 0
    lines = venue.run(lambda exchange: list(exchange.clients[0].transactions))
    assert row.change_e8 == sum(Decimal(line["change"]) for line in lines) * 10**8
    assert row.change_e8 == client.account.account.balance_e8 - client.account.account.opening_e8
    assert books.safety.mode(SYMBOL) is Mode.NORMAL


@pytest.mark.parametrize("field", ["fee", "cashFlow", "change", "qty"])
def test_one_unit_more_at_the_exchange_is_a_finding_that_halts(venue: Served, field: str) -> None:
    books = Books()
    books.account.opening_e8 = ["fee", "cashFlow", "change", "qty"].index(field) + 1  # names orders
    with connected(venue, client=1) as client:
        since = len(client.account.transactions)
        day = traded(client, books)
        for _ in range(since):
            client.account.transactions.popleft()
        row = client.account.transactions[1]
        more = Decimal("0.001") if field == "qty" else Decimal("1e-8")
        row[field] = f"{Decimal(row[field]) + more:f}"
        books.account.days[day][SYMBOL].opening_lots = 0
        books.compare(client, day)
    assert books.safety.held == ["statement differs"]
    assert books.safety.mode(SYMBOL) is Mode.HALT
    assert len([x for x in books.made if isinstance(x, Send)]) == ROUNDS
    (said,) = [x for x in books.made if isinstance(x, Say) and x.event == "statement differs"]
    assert "here" in str(said.fields["what"])
    books.account.opening_e8 = 0


# -- the books of days -----------------------------------------------------------------------------

FILLS = st.lists(
    st.tuples(
        st.integers(0, 3 * 24 - 1), st.sampled_from([1, -1]), st.integers(1, 50), st.integers(1, 99)
    ),
    max_size=30,
)


@given(FILLS, st.randoms(use_true_random=False))
def test_days_chain_and_sum_to_the_account_in_whatever_order_evidence_comes(
    drawn: list[tuple[int, int, int, int]], order: Any
) -> None:
    fills = [
        Filled(
            client_id="", time_ns=0, venue_ns=(100 * 24 + hour) * 3600 * SECOND_NS, exec_id=str(n), symbol=SYMBOL,
            side=side, qty_lots=lots, price_ticks=1_000_000 + ticks, liquidity=list(Liquidity)[n % 2], fee_e8=n,
            leaves_lots=0,
        )
        for n, (hour, side, lots, ticks) in enumerate(drawn)
    ]  # fmt: skip
    order.shuffle(fills)
    account = Account(KNOWN)
    for fill in fills:
        account.apply(fill)
    again = Account(KNOWN)
    again.restore(
        msgspec.msgpack.decode(
            msgspec.msgpack.encode(account.snapshot()), type=type(account.snapshot())
        )
    )
    assert again.days == account.days
    days: list[Day] = [of[SYMBOL] for _, of in sorted(account.days.items())]
    for before, after in pairwise(days):
        assert before.closing_lots == after.opening_lots
        assert before.closing_cost_e8 == after.opening_cost_e8
    holding = account.holdings[SYMBOL]
    assert sum(day.realised_e8 for day in days) == holding.realised_e8
    assert sum(day.fees_e8 for day in days) == holding.fees_e8
    if days:
        assert (days[-1].closing_lots, days[-1].closing_cost_e8) == (
            holding.position_lots,
            holding.cost_e8,
        )


BOUGHT = [(1, 100, 600_000), (-1, 50, 601_000), (1, 30, 602_000)]


@pytest.mark.parametrize("traded", [False, True])
def test_a_position_held_over_midnight_after_late_evidence_agrees_the_next_day(
    traded: bool,
) -> None:
    """The sale is found after the second purchase: our cost, by arrival, is not the venue's. The day agrees, and
    from then on books, the next day and a restart have the venue's cost; also if it was traded on before."""
    day, books = 20_000, Books()

    def filled(n: int, side: int, lots: int, ticks: int, on: int) -> Filled:
        at_ns = on * DAY_NS + n + 1
        return Filled(
            client_id="", time_ns=at_ns, venue_ns=at_ns, exec_id=str(n), symbol=SYMBOL, side=side, qty_lots=lots,
            price_ticks=ticks, liquidity=Liquidity.TAKER, fee_e8=0, leaves_lots=0,
        )  # fmt: skip

    first = [filled(n, *of, day) for n, of in enumerate(BOUGHT)]
    then = [filled(3, -1, 40, 603_000, day + 1), filled(4, -1, 40, 604_000, day + 2)]
    venues, lines = Account(KNOWN), dict[int, list[TransactionReport]]()
    for fill in [*first, *then]:
        before = venues.holdings[SYMBOL].realised_e8
        venues.apply(fill)
        made = venues.holdings[SYMBOL].realised_e8 - before
        lines.setdefault(fill.venue_ns // DAY_NS, []).append(
            TransactionReport(
                exec_id=fill.exec_id, symbol=SYMBOL, kind="TRADE", lots=fill.side * fill.qty_lots, price_ticks=fill.price_ticks,
                fee_e8=0, funding_e8=0, cash_e8=made, change_e8=made, venue_ns=fill.venue_ns,
            )
        )  # fmt: skip
    for fill in (first[0], first[2], first[1], *then[:traded]):
        books.account.apply(fill)
    state = msgspec.msgpack.encode(CoreState(account=books.account.snapshot()))
    again = Restoration(msgspec.msgpack.decode(state, type=CoreState), KNOWN, 0)
    for number, fill in ((day, None if traded else then[0]), (day + 1, then[1]), (day + 2, None)):
        (row,) = books.statements._compared(number, lines[number])
        assert (row.compared, row.differs) == (True, "")
        assert row.realised_e8 == sum(line.cash_e8 for line in lines[number])
        for account in (books.account, again.account):
            if account is again.account:
                for effect in books.made:
                    again.take(effect)  # type: ignore[arg-type]
                books.made.clear()
            if fill is not None:
                account.apply(fill)
    for account in (books.account, again.account):
        holding, theirs = account.holdings[SYMBOL], venues.holdings[SYMBOL]
        assert (holding.cost_e8, holding.realised_e8) == (theirs.cost_e8, theirs.realised_e8)
    assert holding.closed_e8 == theirs.closed_e8


def test_the_worker_asks_a_minute_after_midnight_and_at_a_start_for_the_day_before() -> None:
    desk = Desk(Venue())
    desk.start()
    desk.run(3)

    def asked() -> list[int]:
        kinds = [(q.since_ns, q.kind) for _, q in desk.venue.asked]
        return [since_ns for since_ns, kind in kinds if kind is QueryKind.TRANSACTIONS]

    assert asked() == [], "nothing is on record of days before the first start"
    desk.now_ns = (desk.now_ns // DAY_NS + 1) * DAY_NS - 10 * SECOND_NS
    desk.run(60, step_ms=1000)
    assert asked() == []
    desk.run(80, step_ms=1000)
    assert len(asked()) == 1
    desk.now_ns += DAY_NS
    desk.run(130, step_ms=1000)
    assert len(asked()) == 2
    assert desk.safety.mode(S) is Mode.NORMAL


def test_days_of_a_worker_agree_with_the_exchange_on_both_sides_of_midnight(tmp_path: Path) -> None:
    """A running worker, with fills and funding on both: the day that is over by itself, the new one so far."""
    midnight_ns = day_start_ns("2026-03-02")
    venue = VirtualVenue(
        seed=2, clients=3, cycle_ns=100 * MS_NS, start_ns=MINUTE_NS, begins_ns=midnight_ns - 2 * MINUTE_NS
    )  # fmt: skip
    world = World(2, venue, tmp_path)
    world._begin()
    for settles_ns in (midnight_ns - 20 * SECOND_NS, midnight_ns + 20 * SECOND_NS):
        world._until(settles_ns)
        world._until(settles_ns + 15 * SECOND_NS, lambda: world.client.position_lots(SYMBOL) != 0)
        venue.exchange.settle_funding(SYMBOL)
    world._until(midnight_ns + 100 * SECOND_NS)
    world._command("stop", limits={"flatten": 1.0})
    core = world.life.core
    assert core is not None
    world._until(venue.now_ns + 20 * SECOND_NS, lambda: core.ended)
    world.life.end()
    bodies = [
        body.body
        for block in log.read(tmp_path)
        for _, body in block.records
        if isinstance(body, Append) and body.kind == "statement"
    ]
    (over,) = (msgspec.json.decode(body, type=StatementRow) for body in bodies)
    (so_far,) = statement(core.account, "sandbox", midnight_ns // DAY_NS, "")
    assert (over.date, over.compared, over.differs) == ("2026-03-01", True, "")
    for row in (over, so_far):
        lines = [
            line
            for line in world.client.transactions
            if utc_date(int(line["transactionTime"]) * MS_NS) == row.date and line["symbol"]
        ]
        assert row.executions == sum(line["type"] == "TRADE" for line in lines) > 1
        assert row.funding_e8 == -sum(Decimal(line["funding"] or 0) for line in lines) * 10**8 != 0
        assert row.change_e8 == sum(Decimal(line["change"]) for line in lines) * 10**8
    assert over.closing_lots == so_far.opening_lots


def test_a_simulated_venue_states_its_days_and_says_that_nothing_was_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Append] = []
    account = Account(KNOWN)
    daily = DailyStatement(account, "paper", True, made.append)  # type: ignore[arg-type]
    begin_ns = 20_000 * DAY_NS + 12 * 3600 * SECOND_NS
    fill = Filled(
        client_id="", time_ns=0, venue_ns=begin_ns, exec_id="1", symbol=SYMBOL, side=1, qty_lots=100,
        price_ticks=1_000_000, liquidity=Liquidity.MAKER, fee_e8=123, leaves_lots=0,
    )  # fmt: skip
    account.apply(fill)
    account.mark(begin_ns, {SYMBOL: 1_000_010.0})
    account.mark(begin_ns + DAY_NS // 2, {SYMBOL: 1_000_020.0})
    daily.second(begin_ns + DAY_NS // 2)
    assert made == [], "evidence may come late"
    daily.second(begin_ns + DAY_NS // 2 + MINUTE_NS)
    (row,) = [msgspec.json.decode(x.body, type=StatementRow) for x in made]
    assert row.open_e8 == 100 * 10 * 10_000, (
        "100 lots of 0.001, 1 USDT above, at the day's last mid"
    )
    day = utc_date(begin_ns)
    lake = Lake(str(tmp_path), "recorded")
    lake.write("statements", SYMBOL, day, to_table([row], StatementRow).drop(["symbol"]))
    files = [str(tmp_path / "out" / name) for name in ("day.csv", "day.parquet")]
    options = ["--root", str(tmp_path), "--csv", files[0], "--parquet", files[1]]
    assert cli.main(["statement", day, *options]) == 0
    assert "a simulated venue has no transaction log" in capsys.readouterr().out
    (written,) = csv.DictReader(Path(files[0]).read_text().splitlines())
    assert (written["bought"], written["maker_fees"], written["change"]) == (
        *("0.10000000", "0.00000123", "-0.00000123"),
    )
    assert pq.read_table(files[1]).column("open").to_pylist() == [Decimal("0.1")]
    assert cli.main(["statement", "2026-01-02", "--root", str(tmp_path)]) == 1
    assert "no statement of 2026-01-02" in capsys.readouterr().err
