"""Where the venue is, by the setting `live.venue`, and the keys to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec

from market.errors import UsageError
from market.settings import Settings

#: Venues of the world: they need a confirmation, recorded models and honest fees.
REAL: Final = ("testnet", "demo", "live")


class AddressError(UsageError):
    """A venue's address, confirmation or keys are missing or wrong; the message says what to set."""


class VenueAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Endpoints of a venue. Without ``trade`` orders are entered by REST; without ``states_fees`` the fee
    rates are those of the settings. ``silence_s`` is how long nothing is asked for after the venue
    closed itself to our address.
    """

    name: str
    rest: str
    public: str
    private: str
    trade: str = ""
    states_fees: bool = True
    silence_s: float = 600.0


_MAIN: Final = "wss://stream.bybit.com/v5"
_TEST: Final = "wss://stream-testnet.bybit.com/v5"
_WORLD: Final = (
    VenueAddress(
        name="testnet",
        rest="https://api-testnet.bybit.com",
        public=f"{_TEST}/public/linear",
        private=f"{_TEST}/private",
        trade=f"{_TEST}/trade",
    ),
    # Market data of the main venue, no order entry by socket and no fee query (PROTOCOL §13).
    VenueAddress(
        name="demo",
        rest="https://api-demo.bybit.com",
        public=f"{_MAIN}/public/linear",
        private="wss://stream-demo.bybit.com/v5/private",
        states_fees=False,
    ),
    VenueAddress(
        name="live",
        rest="https://api.bybit.com",
        public=f"{_MAIN}/public/linear",
        private=f"{_MAIN}/private",
        trade=f"{_MAIN}/trade",
    ),
)
VENUES: Final = {address.name: address for address in _WORLD}


def sandbox(rest: str, *, trade: bool = True, states_fees: bool = True) -> VenueAddress:
    """The exchange that serves at ``rest``, on loopback; AddressError for any other host."""
    parts = urlsplit(rest)
    host = parts.hostname or ""
    if parts.scheme != "http" or not (host in ("localhost", "::1") or host.startswith("127.")):
        raise AddressError(f"live.sandbox {rest!r}: expected http:// and a loopback address")
    streams = f"ws://{parts.netloc}/v5"
    return VenueAddress(
        name="sandbox",
        rest=f"http://{parts.netloc}",
        public=f"{streams}/public/linear",
        private=f"{streams}/private",
        trade=f"{streams}/trade" if trade else "",
        states_fees=states_fees,
        silence_s=1.0,
    )


def address_of(settings: Settings) -> VenueAddress:
    """The venue that the settings name. AddressError for one of the world without its confirmation."""
    name = settings.live.venue
    if name == "sandbox":
        return sandbox(settings.live.sandbox)
    if name not in VENUES:
        raise AddressError(f"live.venue {name}: no venue to connect to")
    if settings.live.confirm != name:
        raise AddressError(
            f"live.venue {name}: orders would be sent to {VENUES[name].rest}; "
            f'set live.confirm = "{name}" to say that this is meant'
        )
    return VENUES[name]


class Keys:
    """Key and secret of an account; neither is ever shown."""

    __slots__ = ("key", "secret")

    def __init__(self, key: str, secret: str) -> None:
        self.key, self.secret = key, secret

    def __repr__(self) -> str:
        return "Keys(…)"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("keys are not written anywhere")

    def hidden(self, text: bytes) -> bytes:
        """A text of the venue without the key, which some of its refusals repeat."""
        return text.replace(self.key.encode(), b"KEY") if self.key else text


def keys_of(environ: Mapping[str, str] | None = None) -> Keys:
    """The keys of the environment; AddressError when there are none."""
    environ = os.environ if environ is None else environ
    key, secret = environ.get("L2_API_KEY", ""), environ.get("L2_API_SECRET", "")
    if not key or not secret:
        raise AddressError(
            "no keys: set L2_API_KEY and L2_API_SECRET in the environment (never in a file of settings)"
        )
    return Keys(key, secret)
