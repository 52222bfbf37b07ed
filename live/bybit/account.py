"""What has to agree between account, settings and model before anything is traded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation

from execution.account import rate_of_bps
from live.bybit.venues import REAL
from live.messages import (
    AccountReport,
    FeeReport,
    InstrumentReport,
    PositionReport,
    Report,
    WalletReport,
)
from market.console import utc_time
from market.instruments import Instrument
from market.settings import FEE_ROWS_BPS, Settings
from market.units import DAY_NS, E8

_MARGIN_MODES = {"REGULAR_MARGIN": "cross", "ISOLATED_MARGIN": "isolated"}


def problems(
    reports: Sequence[Report],
    settings: Settings,
    instruments: Mapping[str, Instrument],
    *,
    source: str = "recorded",
) -> list[str]:
    """Lines that say what, where and what to do; none when everything agrees.

    ``reports`` are the venue's newest, of the account, its wallet, and each symbol of ``instruments``;
    ``source`` is that of the data which the model in force was trained on. Fees are compared where the
    venue states them.
    """
    found = [
        *_of_model(settings, source),
        *_of_account(reports, settings),
        *_of_wallet(reports, settings),
    ]
    for instrument in instruments.values():
        own = [one for one in reports if getattr(one, "symbol", "") == instrument.symbol]
        found += _of_instrument(own, instrument)
        found += _of_position(own, settings, instrument.symbol)
        found += _of_fees(own, settings)
    return found


def _of_model(settings: Settings, source: str) -> Iterator[str]:
    venue = settings.live.venue
    if venue in REAL and source != "recorded":
        yield (
            f"model: trained on {source} data, which is not traded on {venue}; train on recorded "
            "data, or use live.venue = paper or sandbox"
        )


def _of_account(reports: Iterable[Report], settings: Settings) -> Iterator[str]:
    account = next((one for one in reports if isinstance(one, AccountReport)), None)
    venue, wanted = settings.live.venue, settings.live.margin_mode
    if account is None:
        yield f"account: {venue} does not state it; check that the key may read the account"
        return
    if account.can_withdraw:
        yield "key: it may withdraw; make one without that right, and delete this one"
    if not account.can_trade:
        yield "key: it may only read; make one that may place orders and change positions of contracts"
    if account.expires_ns and account.expires_ns < account.venue_ns + DAY_NS:
        yield f"key: it expires at {utc_time(account.expires_ns)}, within a day; make a new one"
    if not account.unified:
        yield f"account {account.account}: not a unified trading account; upgrade it on the venue's site"
    mode = _MARGIN_MODES.get(account.margin_mode, account.margin_mode)
    if mode != wanted:
        yield (
            f"account {account.account}: margin mode {mode}, live.margin_mode is {wanted}; "
            "change one of them"
        )


def _of_wallet(reports: Iterable[Report], settings: Settings) -> Iterator[str]:
    wallet = next((one for one in reports if isinstance(one, WalletReport)), None)
    equity, capital = (
        0.0 if wallet is None else wallet.equity_e8 / E8,
        settings.execution.capital_usdt,
    )
    if equity <= 0:
        yield f"wallet: no equity ({equity:g} USDT); fund the account"
    elif settings.live.venue in REAL and equity < capital:
        yield (
            f"wallet: {equity:.2f} USDT of equity, orders are sized for execution.capital_usdt "
            f"{capital:.2f}; lower it"
        )


def _of_instrument(reports: Iterable[Report], ours: Instrument) -> Iterator[str]:
    listed = next((one for one in reports if isinstance(one, InstrumentReport)), None)
    if listed is None:
        yield f"{ours.symbol}: the venue does not list it; take it out of market.symbols"
        return
    if listed.status != "Trading":
        yield f"{ours.symbol}: its status is {listed.status}; take it out of market.symbols until it trades"
    for name, here, there in (
        ("tick", ours.tick, listed.tick),
        ("lot", ours.lot, listed.lot),
        ("smallest quantity", ours.min_qty, listed.min_qty),
        ("smallest notional", ours.min_notional, listed.min_notional),
    ):
        if _number(here) != _number(there):
            yield (
                f"{ours.symbol}: {name} {there or '?'} at the venue, {here} here; record its "
                "instrument anew, or correct it in market/instruments.py"
            )


def _of_position(reports: Iterable[Report], settings: Settings, symbol: str) -> Iterator[str]:
    position = next((one for one in reports if isinstance(one, PositionReport)), None)
    wanted = Decimal(repr(settings.live.leverage))
    if position is None:
        yield f"{symbol}: the venue does not state its position; start again"
    elif position.hedged:
        yield f"{symbol}: the account is in hedge mode; switch it to one-way mode"
    elif _number(position.leverage) != wanted:
        yield (
            f"{symbol}: leverage {position.leverage or '?'} at the venue, live.leverage is {wanted:f}; "
            "change one of them"
        )


def _of_fees(reports: Iterable[Report], settings: Settings) -> Iterator[str]:
    """Assumed fees that are lower than the ones paid: the model would trade at a loss."""
    paid = next((one for one in reports if isinstance(one, FeeReport)), None)
    row = settings.model.fee_row
    if paid is None or settings.live.venue not in REAL:
        return
    for name, bps, rate in zip(
        ("taker", "maker"), FEE_ROWS_BPS[row], (paid.taker, paid.maker), strict=True
    ):
        if _number(rate) > _number(rate_of_bps(bps)):
            yield (
                f"{paid.symbol}: {name} fee {rate} paid, {rate_of_bps(bps)} assumed (model.fee_row "
                f"{row}); set a row that is not lower, and train again"
            )


def _number(text: str) -> Decimal:
    """A decimal string of the venue; infinite where it is none, which equals and is under no limit."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("Infinity")
    return number if number.is_finite() else Decimal("Infinity")
