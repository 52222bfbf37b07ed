"""Parameters and named profiles of synthetic markets.

The named profiles are data (`profiles.toml`); this module defines each parameter: its meaning, unit,
source and admissible range. Closed forms are in `proving.synthetic.planted`, the latent day in
`proving.synthetic.latent`.
"""

from __future__ import annotations

import inspect
import math
import re
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from market.errors import UsageError
from market.units import SECOND_NS

#: Seconds between book frames (`orderbook.200` is pushed every 100 ms) and steps of every process.
STEP_S: Final = 0.1

Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[float, Meta(ge=0)]


class ProfileError(UsageError):
    """Impossible parameters of a synthetic market; the message gives the admissible range."""


class Regime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A state of the whole market, which stays for hours; each is as likely as the others."""

    #: What the regime is called in the log of what was planted.
    name: str
    #: Volatility relative to the other regimes (1). The mean square over regimes is made one.
    volatility: Positive = 1.0
    #: Multiplier of displayed quantities (1). Choice: thin when volatile.
    depth: Positive = 1.0
    #: Multiplier of order arrival rates (1). Choice: busy when volatile.
    intensity: Positive = 1.0
    #: Multiplier of the alpha (1): 1 as planted, 0 for none, -1 for the opposite of what flow says.
    alpha: Annotated[float, Meta(ge=-2, le=2)] = 1.0


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A scheduled change of the market; changes of the same kind multiply or add.

    Only ``alpha`` is decay. The others are confounders: the alpha's relation to returns stays as it
    is, so that an alarm of decay is a false one. In particular the alpha is planted by its information
    coefficient, hence when volatility doubles the drift doubles with it.
    """

    #: What changes: a multiplier of alpha, volatility or depth; the taker fee in bps (public data do
    #: not show it: it is in the log alone); or features, a shift of the score in its standard
    #: deviations, seen in flow and quotes and without any meaning.
    what: Literal["alpha", "volatility", "depth", "fee", "features"]
    #: step: at once; ramp: evenly over ``lasts_h``; exponential: with the half-life ``lasts_h``.
    shape: Literal["step", "ramp", "exponential"] = "step"
    #: When it begins (UTC, ISO).
    starts: str
    #: How long a ramp lasts, or the half-life of an exponential (h).
    lasts_h: Count = 0.0
    #: What it comes to (in the unit of what changes).
    to: float


class Listing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One symbol of a synthetic market. "Recorded" means busy and quiet days of mid-2024."""

    symbol: str
    #: Price around which midnight prices are drawn (quote currency). Mid-2024 levels.
    price: Positive
    #: Standard deviation of the efficient price's one-second noise (bps). Recorded 0.5 to 1.3.
    sigma_bps: Positive
    #: Symbol whose efficient price this one follows; "" for none.
    follows: str = ""
    #: Elasticity to it (1). Choice near what ETH shows to BTC.
    beta: Count = 0.0
    #: Time by which it follows (s). Below the second of latency that labels allow for.
    lag_s: Annotated[float, Meta(ge=0, lt=1)] = 0.3
    #: Mean quantity at the touch (base currency). Recorded medians: BTC 3 to 13, ETH 16 to 74.
    touch_qty: Positive
    #: Median quantity of an order behind the touch that is no dust (base currency). With the two
    #: below it gives levels of recorded quantities, and depth: recorded levels, which hold several
    #: orders or dust only, have medians from 0.005 to 0.06 (BTC) and from 0.6 to 0.9 (ETH).
    level_qty: Positive
    #: Log standard deviation of that quantity (1). Fitted with it: recorded levels span three
    #: decades from their lower quartile to their 99th percentile.
    level_log_sd: Count = 1.8
    #: Median quantity of dust (lots). Recorded 2 to 5 for BTC, 1 to 3 for ETH.
    dust_lots: Positive = 2.5
    #: Share of ticks behind the touch that hold a level. With 200 levels a side it sets how far the
    #: book reaches: recorded 4 to 6 bps for BTC, 7 to 9 bps for ETH.
    occupancy: Annotated[float, Meta(ge=0.1, le=1)] = 0.4
    #: Mean number of taker orders per second. Recorded trades: 22 to 62 per second.
    orders_per_s: Count
    #: Mean quantity of a taker order (base currency).
    order_qty: Positive
    #: Mean open interest (base currency). Mid-2024 levels.
    open_interest: Positive
    #: Mean turnover of 24 hours (quote currency). Mid-2024 levels.
    turnover_24h: Positive


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Parameters of a synthetic market; those without a recorded value are choices."""

    name: str
    #: What the profile is for, in a sentence.
    about: str = ""
    #: The symbols (see `Listing`).
    listings: tuple[Listing, ...]

    # -- what is planted
    #: Information coefficient of the alpha itself with the return over ``ic_horizon_s`` (1), where the
    #: regime's multiplier is 1; 0 is null. Choice: real markets show 0.02 to 0.05 at a minute.
    ic: Share = 0.0
    #: Horizon at which ``ic`` holds (s); the half-life then gives it at the others.
    ic_horizon_s: Positive = 60.0
    #: Half-life of the alpha (s). Choice.
    half_life_s: Positive = 60.0
    #: Correlation of the best filter with the alpha (1): the share of ``ic`` that can be had from all
    #: flow, quotes and prices. Choice within 0.5 to 0.8.
    filterable: Annotated[float, Meta(gt=0, lt=1)] = 0.65
    #: Half-life of the noise flow (s). Recorded queue imbalance loses half its memory in 0.5 to 2 s.
    noise_half_life_s: Positive = 2.0
    #: Standard deviation of the touch imbalance (q_bid - q_ask)/(q_bid + q_ask) due to the score.
    #: Recorded imbalances have 0.6 in all.
    imbalance_sd: Positive = 0.4
    #: Touch imbalance per unit of (efficient price - mid) / ``hold_bps``.
    touch_gap: Count = 0.4
    #: Standard deviation, due to the score, of the difference of buy and sell probabilities.
    flow_sd: Count = 0.3
    #: The same difference per (price that makers see - mid) / ``hold_bps``, up to one. Choice: trades
    #: and returns of the same ten seconds then correlate as recorded (0.56 to 0.66).
    flow_gap: Share = 0.8

    #: How the alpha comes and goes with the state of the market (see `Regime`).
    regimes: tuple[Regime, ...] = (
        Regime(name="calm", volatility=0.7, depth=1.2, intensity=0.8),
        Regime(name="usual", volatility=1.0),
        Regime(name="busy", volatility=1.6, depth=0.8, intensity=1.3),
    )
    #: Mean stay in a regime (s). Choice within two to twelve hours; shorter stays serve tests.
    regime_stay_s: Annotated[float, Meta(ge=60)] = 10_800.0
    #: What changes on a date (see `Change`).
    changes: tuple[Change, ...] = ()
    #: Until when the two decoys of `proving.synthetic.tables` that work in sample only do so (UTC).
    in_sample_until: str = "2026-03-06T00:00:00"

    # -- volatility; multipliers of sigma_bps, scaled so that their mean square is one
    #: Log standard deviation of fast volatility (1). With the slow one and the regimes it gives
    #: one-second returns a kurtosis of about 10; recorded 10 to 24.
    vol_log_sd: Annotated[float, Meta(ge=0, le=1)] = 0.45
    #: Half-life of fast volatility (s). Choice: bursts of a minute or so.
    vol_half_life_s: Positive = 30.0
    #: Log standard deviation of slow volatility (1). Choice: clustering that outlasts the hour.
    slow_vol_log_sd: Annotated[float, Meta(ge=0, le=1)] = 0.25
    #: Half-life of slow volatility (s). Choice, as above.
    slow_vol_half_life_s: Positive = 3_600.0
    #: Share of the efficient price's variance that comes in jumps (1). Recorded shares of 0 to 0.25
    #: are mostly quotes that move by several ticks at once; these are jumps of the value itself.
    jump_share: Annotated[float, Meta(ge=0, le=0.5)] = 0.03
    #: Mean number of those jumps in a day (1/day). Choice.
    jumps_per_day: Positive = 24.0
    #: Amplitude of the daily wave of volatility, with its crest at 14:30 UTC.
    season: Annotated[float, Meta(ge=0, le=0.9)] = 0.25

    # -- quotes
    #: Makers quote anew around the price they see with hazard (gap / hold_bps)² + ``restless`` per
    #: 100 ms (bps). Recorded mids stand still in 89 to 96 % of frames, then move by 0.3 to 0.5 bps.
    hold_bps: Positive = 1.5
    #: Hazard per 100 ms of a new quote without a gap (1). As above.
    restless: Share = 0.004
    #: More hazard just after a new quote, which is often corrected at once (1). Recorded: a quarter
    #: of best prices live for one frame of 100 ms.
    unsettled: Count = 0.35
    #: Half-life of that (s). As above.
    settle_s: Positive = 0.1
    #: How late makers see the efficient price (ms). Choice.
    delay_ms: Annotated[float, Meta(ge=0, le=2000)] = 100.0
    #: Standard deviation of the error in what they see, and of where a new quote lands (bps). Choice:
    #: corrections of it are the smallest moves, recorded at 0.03 to 0.13 bps.
    maker_noise_bps: Count = 0.1
    #: Half-life of that error (s). Choice.
    maker_noise_half_life_s: Positive = 0.5
    #: What makers see moves by this for a taker order of mean quantity that nothing foretold (bps),
    #: and by its square root for others; it fades as time to the power -0.3. Choice.
    impact_bps: Count = 0.04
    #: Probability that a new quote leaves a spread of several ticks (1). Recorded: one tick 99.2 to
    #: 100 % of the time.
    wide: Share = 0.02
    #: Probability per look of the makers, every 20 ms, that a spread of several ticks is closed (1).
    close: Annotated[float, Meta(gt=0, le=1)] = 0.4
    #: Share of the ticks passed over by an advancing touch that are filled at once (1).
    refill: Share = 0.8
    #: Mean number of orders at the touch (1). Choice; no public feed shows it.
    touch_orders: Annotated[float, Meta(ge=1, le=200)] = 20.0
    #: Log standard deviation of the quantity at a fresh touch (1). Recorded 1.3 in all.
    touch_log_sd: Annotated[float, Meta(ge=0, le=2)] = 0.4
    #: Limit orders at the touch (1/s). Choice: the touch changes in most frames, as recorded.
    joins_per_s: Count = 40.0
    #: Cancels at the touch (1/s). Choice, as above.
    leaves_per_s: Count = 36.0
    #: Limit orders into a spread of several ticks (1/s); nothing happens while it is one.
    improves_per_s: Count = 5.0
    #: Share of orders behind the touch that are dust (1). Recorded: a third of levels and more.
    dust: Annotated[float, Meta(ge=0, lt=1)] = 0.62
    #: Mean number of levels behind the touch that change per 100 ms (1). Recorded 24 to 34.
    churn: Count = 32.0

    # -- trades
    #: Mean number of requests that one request brings about (1): below one, or activity would
    #: explode. Published estimates are 0.6 to nearly 1.
    branching: Annotated[float, Meta(ge=0, lt=1)] = 0.75
    #: Share of taker orders that work off metaorders (1). Choice: with it order signs have the
    #: recorded memory.
    split: Share = 0.78
    #: Probability that a taker meets the touch that is about to retreat (1). Choice.
    sweep: Share = 0.5
    #: How far beyond the touch a taker order goes (bps). Recorded: 11 % of orders meet several prices.
    bound_bps: Count = 0.15
    #: Share of taker orders that match an RPI order, which the book does not show.
    rpi: Share = 0.02
    #: Liquidations per hour at mean volatility.
    liquidations_per_h: Count = 6.0

    # -- transport
    #: Gaps in the book's frames (1/h): up to 20 frames lost, and a snapshot two seconds later.
    gaps_per_h: Count = 0.0
    #: Restarts of the venue's book (1/h): a snapshot with update id 1.
    resets_per_h: Count = 0.0
    #: Book frames that come twice (1/h).
    duplicates_per_h: Count = 0.0
    #: How far the local clock is ahead of the venue's (ms). Recorded: -1,500 to 0.
    skew_ms: Annotated[float, Meta(ge=-60_000, le=60_000)] = 0.0
    #: Median one-way latency (ms). Choice for a machine near the venue.
    latency_ms: Positive = 8.0
    #: Log standard deviation of latency (1). Choice.
    latency_log_sd: Count = 0.3

    def __post_init__(self) -> None:
        limit = ic_limit(self.half_life_s, self.ic_horizon_s)
        if self.ic >= limit:
            raise ProfileError(
                f"profile {self.name}: ic {self.ic:g} at {self.ic_horizon_s:g} s is impossible with "
                f"a half-life of {self.half_life_s:g} s, whatever the volatility: admissible is "
                f"0 <= ic < {limit:.4f}"
            )
        if self.noise_half_life_s >= self.half_life_s:
            raise ProfileError(
                f"profile {self.name}: noise_half_life_s {self.noise_half_life_s:g} must be below "
                f"half_life_s {self.half_life_s:g}, or no filter could tell noise from alpha"
            )
        if not self.regimes:
            raise ProfileError(f"profile {self.name}: regimes is empty: one or more is needed")
        for change in self.changes:
            self._check_change(change)
        _instant(self.in_sample_until, f"profile {self.name}: in_sample_until")
        names = [listing.symbol for listing in self.listings]
        if not names:
            raise ProfileError(f"profile {self.name}: no symbol is listed: one or more is needed")
        if len(set(names)) != len(names):
            raise ProfileError(f"profile {self.name}: a symbol is listed twice: {', '.join(names)}")
        for listing in self.listings:
            self._check(listing)

    def _check_change(self, change: Change) -> None:
        where = f"profile {self.name}: change of {change.what}"
        _instant(change.starts, where)
        if change.shape != "step" and change.lasts_h <= 0:
            raise ProfileError(f"{where}: a {change.shape} needs lasts_h > 0")
        if change.what in ("volatility", "depth") and not 0.05 <= change.to <= 20:
            raise ProfileError(f"{where} to {change.to:g}: admissible is 0.05 <= to <= 20")
        if change.what in ("alpha", "features") and abs(change.to) > 3:
            raise ProfileError(f"{where} to {change.to:g}: admissible is -3 <= to <= 3")

    def _check(self, listing: Listing) -> None:
        if not listing.follows:
            if listing.beta:
                raise ProfileError(f"{listing.symbol}: beta {listing.beta:g} without follows")
            return
        others = {other.symbol: other for other in self.listings}
        leader = others.get(listing.follows)
        if leader is None or leader.follows:
            raise ProfileError(
                f"{listing.symbol}: follows {listing.follows}, which must be a listed symbol that "
                f"follows none itself; listed are {', '.join(others)}"
            )
        if listing.beta * leader.sigma_bps >= listing.sigma_bps:
            raise ProfileError(
                f"{listing.symbol}: beta {listing.beta:g} brings {listing.beta * leader.sigma_bps:g} "
                f"bps of {listing.follows}'s volatility into {listing.sigma_bps:g} bps: admissible "
                f"is 0 <= beta < {listing.sigma_bps / leader.sigma_bps:.4f}"
            )

    def listing(self, symbol: str) -> Listing:
        """The symbol's parameters; ProfileError when it is not listed."""
        for listing in self.listings:
            if listing.symbol == symbol:
                return listing
        known = ", ".join(listing.symbol for listing in self.listings)
        raise ProfileError(f"profile {self.name} has no {symbol}; it lists {known}")

    @property
    def leader(self) -> Listing:
        """The first listing that follows none: its regimes are the market's."""
        return next(listing for listing in self.listings if not listing.follows)


def ic_limit(half_life_s: float, horizon_s: float) -> float:
    """The highest possible information coefficient: that of an alpha without noise.

    B/√V with B = (1 - e^(-κh))/κ the expected integral of an OU process of unit variance per unit of
    its value now, and V = (2/κ²)(κh - 1 + e^(-κh)) the integral's variance; κ is its rate of return.
    """
    z = math.log(2) / half_life_s * horizon_s
    return -math.expm1(-z) / math.sqrt(2 * (z + math.expm1(-z)))


def altered(profile: Profile, **changes: Any) -> Profile:
    """The profile with other parameters, each checked against its range.

    ProfileError names the parameter, the admissible range and what the parameter is.
    """
    return _converted({**msgspec.to_builtins(profile), **changes})


def _converted(tree: dict[str, Any]) -> Profile:
    try:
        return msgspec.convert(tree, Profile)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ProfileError):
            raise error.__cause__ from None
        raise ProfileError(f"profile {tree.get('name')}: {_explained(str(error))}") from error


def _explained(message: str) -> str:
    """A decoder's message with the meaning of the parameter."""
    place = re.search(r"`\$\.([^`]+)`", message)
    if place is None:
        return message
    *holders, field = re.sub(r"\[[^]]*\]", "", place[1]).split(".")
    meaning = dict(parameters(HOLDERS[holders[-1]] if holders else Profile)).get(field, "")
    said = message.replace(f" - at `$.{place[1]}`", "").replace("`", "")
    return f"{place[1]}: {said[0].lower()}{said[1:]}. {field}: {meaning}".strip()


#: Parameter of a profile that holds structs -> their type.
HOLDERS: Final[dict[str, Any]] = {"listings": Listing, "regimes": Regime, "changes": Change}


def parameters(kind: Any) -> Iterator[tuple[str, str]]:
    """(name, meaning) of each parameter, from the comments in the source of a struct."""
    said: list[str] = []
    for line in inspect.getsource(kind).splitlines():
        text = line.strip()
        if text.startswith("#:"):
            said.append(text[2:].strip())
        elif field := re.match(r"(\w+): ", text):
            if said:
                yield field[1], " ".join(said)
            said = []
        else:
            said = []


def _instant(text: str, where: str) -> datetime:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)
    except ValueError:
        raise ProfileError(f"{where}: {text} is no date and time, as 2026-03-08T00:00:00") from None


def instant_ns(text: str) -> int:
    """ISO date and time of UTC as epoch ns."""
    return int(_instant(text, "instant").timestamp()) * SECOND_NS


def read_profiles(path: Path) -> dict[str, Profile]:
    """The profiles of a TOML file; each inherits from its ``base`` the parameters it does not set."""
    trees: dict[str, dict[str, Any]] = tomllib.loads(path.read_text())
    profiles: dict[str, dict[str, Any]] = {}
    for name, own in trees.items():
        base = own.pop("base", None)
        if base is not None and base not in profiles:
            raise ProfileError(f"{path.name}: profile {name}: its base {base} must come before it")
        profiles[name] = {**profiles.get(base, {}), **own, "name": name}
    return {name: _converted(tree) for name, tree in profiles.items()}


@cache
def _named() -> dict[str, Profile]:
    return read_profiles(Path(__file__).with_suffix(".toml"))


PROFILES: Final = _named()


def profile(name: str) -> Profile:
    """A named profile; ProfileError names the known ones."""
    if name not in PROFILES:
        raise ProfileError(f"{name}: no such synthetic market; known are {', '.join(PROFILES)}")
    return PROFILES[name]
