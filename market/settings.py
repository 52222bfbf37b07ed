"""The one configuration: typed, validated, and layered file < environment < command line.

The file is TOML (``l2.toml`` in the working directory, or the one named by ``L2_CONFIG``); an environment
variable ``L2_MODEL__FEE_ROW`` or a command line ``--set model.fee_row=zero`` names one setting. Secrets come
from the environment only (`Secrets`). A key or value that is not known is an error that names it.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from market.errors import UsageError
from market.instruments import refusal
from market.pages import Pages
from market.place import home_of, unusable


class SettingsError(UsageError):
    """A setting is unknown or has a value that cannot be used; the message says which and where."""


class Struct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section: immutable, keyword-only, no unknown keys."""


class Market(Struct, frozen=True, kw_only=True):
    symbols: tuple[str, ...] = ("BTCUSDT", "ETHUSDT")
    #: Recorded, made into bars and followed live, and never traded: leaders of the traded symbols.
    watch: tuple[str, ...] = ()
    #: Depth of the one book topic that bars and features are made of.
    book_depth: int = 200
    #: A book that has been silent for longer is stale (seconds).
    stale_after_s: float = 5.0
    #: Added to an archive's publish time to get a receive time (milliseconds).
    archive_latency_ms: float = 20.0

    @property
    def recorded(self) -> tuple[str, ...]:
        """The traded symbols, then the watched ones."""
        return tuple(dict.fromkeys((*self.symbols, *self.watch)))


class Model(Struct, frozen=True, kw_only=True):
    """Training and promotion. Horizons and times in seconds, rates in fractions."""

    horizons_s: tuple[int, ...] = (10, 60, 300, 900)
    #: The horizon whose expected return is traded and judged.
    primary_s: int = 60
    #: Which fee row the gate judges by: vip0, vip3 or zero.
    fee_row: Literal["vip0", "vip3", "zero"] = "vip0"
    #: Every n-th second is a training row; neighbours share nearly all of their label.
    train_stride_s: int = 15
    #: Days of training before the first test block; the window then expands.
    min_train_days: int = 3
    #: The share of the training span, at its end, that calibrates.
    calibration_share: float = 0.2
    min_test_blocks: int = 5
    #: A test block is one date, or as many as keep the number of blocks below this.
    max_test_blocks: int = 20
    #: Fewer trades than this support no statement about net expectancy.
    min_trades: int = 30
    #: Hyper-parameters tried per horizon, at the first fold and whenever its training span has doubled.
    trials: int = 8
    #: Features that a model takes, of all that are defined; 0 takes all.
    select: int = 25
    #: When to act. certified: where the rate of false signals is at most ``false_rate``, at 95 %
    #: confidence; expected_edge: where the expectation less its standard error exceeds the cost.
    act: Literal["certified", "expected_edge"] = "certified"
    false_rate: float = 0.2
    #: Whether that rate is of returns before costs, or net of the spread and both taker fees.
    certify: Literal["net", "gross"] = "net"
    #: Threads of training; results do not depend on it.
    threads: int = 2
    seed: int = 20260101
    bootstrap_samples: int = 2000
    #: Mean length of the stationary bootstrap's blocks; several times the longest horizon.
    bootstrap_block_s: int = 3600
    #: Mean time between false alarms of the decay monitor.
    decay_arl0_days: float = 30.0


class Registry(Struct, frozen=True, kw_only=True):
    """Where models are kept, and who promotes them."""

    #: MLflow's servers or databases; empty for MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI, and without
    #: these for the lake's own.
    tracking_uri: str = ""
    registry_uri: str = ""
    #: auto: what passes the gate becomes champion; manual: a person promotes (`l2 promote`).
    promotion: Literal["auto", "manual"] = "auto"


class Pipeline(Struct, frozen=True, kw_only=True):
    #: When `l2 ui` makes the past day of a recorded lake and retrains, in UTC; ``off`` for never. Twenty
    #: minutes let the last capture be closed.
    daily: Annotated[str, Meta(pattern="^(([01][0-9]|2[0-3]):[0-5][0-9]|off)$")] = "00:20"


class Execution(Struct, frozen=True, kw_only=True):
    capital_usdt: float = 200_000.0
    #: Share of capital in one order, before risk limits.
    size_share: float = 0.05
    algorithm: Literal[
        "market",
        "passive",
        "iceberg",
        "cont_kukanov",
        "adaptive",
        "twap",
        "vwap",
        "pov",
        "almgren_chriss",
        "router",
    ] = "router"
    #: Two of them, each with parameters if wanted ("passive behind_bps=1 patience=0.5"), between which parents are dealt at
    #: random, and are compared in `l2 tca`; with none every parent is worked by ``algorithm``.
    arms: tuple[str, ...] = ()
    arms_seed: int = 1
    #: After this long, or sooner when it is urgent, an algorithm crosses what is left (seconds).
    deadline_s: float = 30.0
    #: Order entry and response latency of simulator and paper venue (milliseconds).
    entry_latency_ms: float = 10.0
    response_latency_ms: float = 10.0
    #: Added to both per thousand rows of book and trades in the last second (milliseconds).
    busy_latency_ms: float = 0.0
    #: How queues move: a published model, or one of the two bounds of them all.
    queue: Literal[
        "risk_averse",
        "power1",
        "power2",
        "power3",
        "log1",
        "log2",
        "pessimistic",
        "optimistic",
    ] = "risk_averse"
    #: How much of a date's events the execution study replays, from its first one (seconds).
    study_span_s: float = 86_400.0


Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(gt=0, le=1)]


class Desk(Struct, frozen=True, kw_only=True):
    """What the desk decides with. Each part can be switched off alone; ``legacy`` switches all of them off."""

    #: legacy: what was there before: its model, 5 % of constant capital, market orders. It stands for the
    #: values of `PROFILES`, wherever they are not set one by one.
    profile: Literal["whole", "legacy"] = "whole"
    #: champion: the promoted version; legacy: the frozen static model of the lake.
    model: Literal["champion", "legacy"] = "champion"
    #: risk: by edge, volatility, liquidity and equity; fixed: ``execution.size_share`` of capital.
    size: Literal["risk", "fixed"] = "risk"
    #: Urgency by half-life, spread and what is left; without it an entry has to earn two taker fees.
    urgency: bool = True
    #: A guard by correlated symbols, traded or watched, and exposure counted by group.
    leaders: bool = True
    #: The next funding settlement in entry, exit and urgency.
    funding: bool = True
    #: Size and exits by the distance to liquidation.
    margin: bool = True
    #: A newly promoted model, and the first day on a venue, begin at a capped size.
    ramp: bool = True
    #: Volatility of a position, a year, as a share of equity.
    volatility: Positive = 0.10
    #: Share of Kelly's fraction. A quarter is for edges that are known well; of one-minute bets this much
    #: already has a volatility of some per cent a year (docs/desk.md).
    kelly: Annotated[float, Meta(gt=0, le=0.25)] = 0.002
    #: Share of the depth within the price bound that one order may take.
    depth_share: Share = 0.1
    #: Largest position of a symbol, and of a group of correlated ones, as shares of equity.
    symbol_share: Positive = 0.25
    group_share: Positive = 0.4
    #: The share of its size that a model without evidence gets, and how many parents end the ramp.
    ramp_start: Share = 0.25
    ramp_parents: Annotated[int, Meta(gt=0)] = 100


#: What a profile means for settings that are not set one by one.
PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "whole": {},
    "legacy": {
        "desk": {"model": "legacy", "size": "fixed"}
        | dict.fromkeys(("urgency", "leaders", "funding", "margin", "ramp"), False),
        "execution": {"algorithm": "market", "size_share": 0.05},
    },
}


class Risk(Struct, frozen=True, kw_only=True):
    """Limits that no order may exceed, in quote currency unless they say otherwise."""

    order_usdt: Positive = 50_000.0
    #: Value of a symbol's position with all open orders of one side filled.
    position_usdt: Positive = 200_000.0
    #: The same over all symbols, and as a multiple of equity.
    gross_usdt: Positive = 400_000.0
    leverage: Positive = 3.0
    #: A limit price is no further than this from the mid, on the dear side (bps); crossing goes so far.
    price_band_bps: Positive = 100.0
    #: Loss since midnight UTC, and since the highest equity, after which positions only shrink.
    daily_loss_usdt: Positive = 5_000.0
    drawdown_usdt: Positive = 15_000.0
    #: Requests a second, shared equally by the traded symbols; cancels, and what reduces, never stop.
    actions_per_s: Annotated[int, Meta(gt=0)] = 20
    #: An order after which a position would be nearer to its liquidation price than this is denied, and
    #: one that is nearer is reduced in steps (bps from the mid).
    liquidation_bps: Positive = 500.0
    #: The venue's liquidation price and ours differ by no more than this (bps of it).
    liquidation_apart_bps: Positive = 10.0
    #: The stop that the venue holds with a position is this far from the entry price (bps).
    stop_bps: Positive = 300.0
    #: A closing order's price bound, from the last known mid (bps).
    close_bps: Positive = 100.0
    #: What live.safety's table does at each of these is in docs/live.md. Seconds without a frame, without a
    #: valid book, and of both after which a position is closed.
    stale_s: Positive = 5.0
    gap_s: Positive = 2.0
    gap_flatten_s: Positive = 60.0
    #: The venue's clock against ours; a decision's delay after its second (seconds).
    clock_skew_s: Positive = 1.0
    late_s: Positive = 1.0
    late_pause_s: Positive = 3.0
    #: Share of ``actions_per_s`` that is used, and requests that the venue refused in a minute.
    rate_share: Positive = 0.9
    rejects_per_min: Positive = 20.0
    #: Maintenance margin over margin balance, at which positions shrink, and are closed.
    margin_reduce: Positive = 0.5
    margin_flatten: Positive = 0.8
    #: A position nearer to its liquidation price than this is closed (bps).
    liquidation_flatten_bps: Positive = 200.0


class Live(Struct, frozen=True, kw_only=True):
    #: paper matches our orders here; the others are venues. testnet, demo and live are of the world.
    venue: Literal["paper", "sandbox", "testnet", "demo", "live"] = "paper"
    #: The venue's name once more, without which no order is sent to testnet, demo and live.
    confirm: str = ""
    #: Where the exchange on loopback serves, as its first line says (``rest``); empty to start one.
    sandbox: str = ""
    #: The log is synced before a request leaves, and at least this often (seconds).
    log_sync_s: Positive = 1.0
    #: How often the venue's clock is measured (seconds).
    sync_every_s: Positive = 60.0
    #: Leverage and margin mode that each symbol has to have at the venue.
    leverage: Positive = 10.0
    margin_mode: Literal["cross", "isolated"] = "cross"
    #: How often the promoted alias is looked up by the resolver (seconds).
    resolve_every_s: float = 5.0
    #: A request without an answer for so long is lost (seconds), and the venue takes one no later than this
    #: after its time stamp (milliseconds).
    answer_s: Positive = 2.0
    receive_window_ms: Annotated[int, Meta(gt=0)] = 5000
    #: What follows when the venue holds an order or position that the log does not explain: its position is
    #: taken either way; ``adopt`` goes on, ``cancel`` cancels and closes, ``halt`` waits for `l2 resume`.
    differences: Literal["adopt", "cancel", "halt"] = "halt"
    #: How often log and venue are compared while nothing is wrong, and the longest shut-down (seconds).
    audit_s: Positive = 60.0
    closing_s: Positive = 15.0
    #: Where the venue grants it, it cancels what rests once the worker has been away for so long (seconds, from 3;
    #: 0: not asked for). Longer than an upgrade takes, which leaves orders resting.
    disconnect_cancel_s: Annotated[int, Meta(ge=0, le=300)] = 120


class Record(Struct, frozen=True, kw_only=True):
    """What the recorder takes from the venue, and where it finds it."""

    url: str = "wss://stream.bybit.com/v5/public/linear"
    #: Instruments are asked for here.
    rest_url: str = "https://api.bybit.com"
    #: Depths of the book topics; ``market.book_depth`` must be one of them.
    depths: tuple[int, ...] = (1, 50, 200, 1000)
    #: What is kept in memory while the disk refuses (megabytes of text); more is lost, and counted.
    hold_mb: int = 512


class Notify(Struct, frozen=True, kw_only=True):
    """What `l2 watch` says; where it says it is in the environment, L2_NOTIFY."""

    #: A worker or recorder that is silent for longer is late (seconds).
    silence_s: Positive = 30.0
    #: What lasts is said again after so long (seconds).
    again_s: Positive = 3600.0
    #: Whether executions are said.
    fills: bool = False


class History(Struct, frozen=True, kw_only=True):
    """The venue's public archives, and how they are asked for."""

    books_url: str = "https://quote-saver.bycsi.com/orderbook/linear"
    trades_url: str = "https://public.bybit.com/trading"
    rest_url: str = "https://api.bybit.com"
    connections: int = 4
    #: Requests that fail for a reason that may pass are made this often.
    attempts: int = 6
    #: The first wait between two of them; it doubles (seconds).
    wait_s: float = 1.0
    #: A server that says nothing for longer is asked again (seconds).
    timeout_s: float = 30.0


class Clock(Struct, frozen=True, kw_only=True):
    """The venue's time by the wall clock, simulated_ns + speed · (wall - wall_ns), as a sandbox's ``clock`` says."""

    wall_ns: int = 0
    simulated_ns: int = 0
    speed: Positive = 1.0


class Synthetic(Struct, frozen=True, kw_only=True):
    """Which synthetic market a synthetic lake holds."""

    profile: str = "demo"
    seed: int = 7


class Settings(Struct, frozen=True, kw_only=True):
    #: The lake's root: a folder, or ``s3://bucket/prefix`` (docs/storage.md).
    root: str = "lake"
    source: Literal["recorded", "synthetic"] = "recorded"
    #: Where heavy work runs: local, or dask://HOST:PORT of a Dask scheduler (docs/deploy.md).
    compute: Annotated[str, Meta(pattern=r"^(local|dask://[^/@\s]+:[0-9]+)$")] = "local"
    #: State of Dagster, MLflow and Optuna: sqlite, below the root, or postgresql://USER@HOST:PORT/DATABASE.
    state: Annotated[str, Meta(pattern=r"^(sqlite|postgresql://\S+@[^@/\s]+/[^@/?\s]+)$")] = (
        "sqlite"
    )
    market: Market = Market()
    model: Model = Model()
    registry: Registry = Registry()
    pipeline: Pipeline = Pipeline()
    execution: Execution = Execution()
    desk: Desk = Desk()
    risk: Risk = Risk()
    live: Live = Live()
    record: Record = Record()
    notify: Notify = Notify()
    pages: Pages = Pages()
    history: History = History()
    clock: Clock = Clock()
    synthetic: Synthetic = Synthetic()

    @property
    def home(self) -> Path:
        """`home_of` the root."""
        return home_of(self.root)

    @property
    def model_name(self) -> str:
        """The registered model: synthetic and recorded models never share a name."""
        return "synthetic-l2" if self.source == "synthetic" else "btc-l2"


#: Taker and maker fee per side, bps of notional.
FEE_ROWS_BPS: dict[str, tuple[float, float]] = {
    "vip0": (5.5, 2.0),
    "vip3": (3.5, 1.4),
    "zero": (0.0, 0.0),
}

#: Environment variables that are secrets or not settings; never read as a setting. ``L2_SET`` holds
#: the ``--set`` options of the command that started this process, one a line.
_RESERVED = frozenset(
    {
        "L2_CONFIG",
        "L2_HOME",
        "L2_SET",
        "L2_TEST_DATA",
        "L2_API_KEY",
        "L2_API_SECRET",
        "L2_DASHBOARD_TOKEN",
        "L2_NOTIFY",
    }
)


def load(
    file: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Iterable[str] = (),
) -> Settings:
    """The effective settings.

    ``overrides`` are ``section.key=value`` strings; they come last. Raises SettingsError, which names
    the file, variable or option that a bad value came from.
    """
    environ = os.environ if environ is None else environ
    tree: dict[str, Any] = {}
    path = Path(file or environ.get("L2_CONFIG", "l2.toml"))
    if path.exists():
        try:
            tree = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"{path}: not valid TOML: {error}") from error
    elif file or "L2_CONFIG" in environ:
        raise SettingsError(f"{path}: no such settings file")
    origin: dict[str, str] = {key: str(path) for key in _paths(tree)}
    for name, value in sorted(environ.items()):
        if name.startswith("L2_") and name not in _RESERVED:
            _put(tree, origin, name[3:].lower().replace("__", "."), value, f"environment {name}")
    for override in (*environ.get("L2_SET", "").splitlines(), *overrides):
        key, eq, value = override.partition("=")
        if not eq:
            raise SettingsError(f"--set {override}: expected section.key=value")
        _put(tree, origin, key.strip(), value, f"--set {override}")
    if isinstance(root := tree.get("root"), str):
        tree["root"] = os.path.expanduser(root)
        if wrong := unusable(tree["root"]):
            raise SettingsError(f"{origin['root']}: root: {wrong}")
    if re.match(r"postgresql://[^@/]*:[^@/]*@", str(tree.get("state"))):
        where = origin["state"].partition("=")[0]
        raise SettingsError(f"{where}: state: holds a password; use PGPASSWORD alone")
    desk = tree.get("desk")
    profile = desk.get("profile") if isinstance(desk, dict) else None
    for section, values in PROFILES.get(str(profile), {}).items():
        own = tree.get(section, {})
        tree[section] = values | own if isinstance(own, dict) else own
    try:
        settings = msgspec.convert(tree, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(_explain(str(error), origin)) from error
    for name in ("symbols", "watch"):
        _check_symbols(getattr(settings.market, name), origin.get(f"market.{name}", "settings"))
    return settings


def _check_symbols(symbols: Iterable[str], where: str) -> None:
    for symbol in symbols:
        if why := refusal(symbol):
            raise SettingsError(f"{where}: {why}")


def _put(tree: dict[str, Any], origin: dict[str, str], key: str, value: str, where: str) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"{where}: {section} is a setting, not a section")
    is_list = leaf in {"symbols", "watch", "horizons_s", "depths", "arms"}
    tree[leaf] = value.split(",") if is_list else value
    origin[key] = where


def _paths(tree: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        yield prefix + key
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


def _explain(message: str, origin: Mapping[str, str]) -> str:
    """msgspec names the place as `$.section.key`; say where that value came from."""
    text, _, place = message.partition(" - at `$.")
    place = place.rstrip("`")
    if "unknown field" in text:
        field = text.split("`")[1]
        place = f"{place}.{field}" if place else field
        text = "unknown setting"
    return f"{origin.get(place, 'settings')}: {place or '?'}: {text}"


def with_symbols(settings: Settings, symbols: Sequence[str]) -> Settings:
    """The settings with other symbols in place of ``market.symbols``; the same for none."""
    if not symbols:
        return settings
    _check_symbols(symbols, "--symbols")
    market = msgspec.structs.replace(settings.market, symbols=tuple(symbols))
    return msgspec.structs.replace(settings, market=market)


def changed(section: Struct, *names: str) -> str:
    """The named settings that differ from their defaults, as `` name=value``, for a partition's inputs."""
    defaults = type(section)()
    return "".join(
        f" {name}={getattr(section, name)}"
        for name in names
        if getattr(section, name) != getattr(defaults, name)
    )


def effective(settings: Settings) -> dict[str, Any]:
    """Plain data for printing; holds no secret because settings hold none."""
    return dict(msgspec.to_builtins(settings))
