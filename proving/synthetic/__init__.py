"""A synthetic L2 market with a planted, known alpha: events, bars, frames and ground truth.

    profiles, planted       parameters, named profiles; closed forms of what they plant
    latent                  the latent day: alpha, score, efficient price, state of the market
    arrivals, background    order arrivals (Hawkes); parameters and state of everybody else's orders
    makers, flow            what market makers do; all other background requests
    matching, engine        the matching engine: kernels, and the same for Python code
    publication, transport  market data of it; faults on the way to us
    marketplace, encode     the running market with our orders in it; its frames as the venue's JSON
    touch, primitives, reduced, calibration
                            bars without events, and their fit
    tables, command         ground truth beside the data; `l2 synth`

Everything is a function of (profile, seed, symbol, day), bit for bit and in any order. The ground truth
has tables of its own and never enters the data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from market.events import Events
from market.instruments import BUILT_IN, Instrument
from market.kernel import compiled
from market.lake import Lake
from market.provenance import closure_hash
from market.units import SECOND_NS, day_start_ns
from market.wire.capture import CaptureWriter
from market.wire.encode import Encoder, Lines, Text
from proving.synthetic.latent import SECONDS
from proving.synthetic.marketplace import SyntheticMarket, built_in, first_update
from proving.synthetic.planted import closed_form_ic, filterable_ic
from proving.synthetic.profiles import PROFILES, Listing, Profile, ProfileError, altered, profile
from proving.synthetic.publication import TOPICS
from proving.synthetic.tables import require_synthetic, truth, write_truth
from proving.synthetic.transport import Transport, has_faults

if TYPE_CHECKING:
    from market.settings import Settings

__all__ = [
    "PROFILES",
    "Listing",
    "Profile",
    "ProfileError",
    "altered",
    "closed_form_ic",
    "filterable_ic",
    "fingerprint",
    "generate",
    "profile",
    "truth",
    "write_bars",
    "write_frames",
    "write_truth",
]


def generate(
    profile: Profile,
    seed: int,
    symbol: str,
    day: str,
    start_s: int = 0,
    stop_s: int = SECONDS,
    instrument: Instrument | None = None,
    begins_ns: int | None = None,
) -> Iterator[Events]:
    """Events of one symbol-day in receive order, in chunks of about 250,000 rows and whole frames.

    Only those received in [start_s, stop_s) after midnight UTC, opening with a book snapshot and a full
    ticker. A part is the same market as the whole day: ``generate(…, 0, 3600)`` is how ``generate(…)``
    begins, and a later start only adds its opening. The market runs from midnight to where the span starts;
    with ``begins_ns`` (epoch) its day begins there, and the span counts from there. ProfileError for a
    symbol without a listing or instrument, ValueError for an impossible span.
    """
    if not 0 <= start_s < stop_s <= SECONDS:
        raise ValueError(f"span [{start_s}, {stop_s}) s: expected 0 <= start < stop <= {SECONDS}")
    profile.listing(symbol)
    instrument = instrument or built_in(symbol)
    span = (start_s, stop_s)
    arriving = _arriving(profile, seed, symbol, day, span, instrument, begins_ns)
    return (rows for rows, _ in arriving)


def _published(
    profile: Profile,
    seed: int,
    symbol: str,
    day: str,
    span: tuple[int, int],
    instrument: Instrument,
    begins_ns: int | None = None,
    topic: tuple[int, int] = TOPICS[0],
) -> Iterator[Events]:
    """Market data published within a span: the first topic of the book and everything beside it, or
    another topic of the book alone."""
    start_s, stop_s = span
    topics = TOPICS[:1] if topic == TOPICS[0] else (TOPICS[0], topic)
    market = SyntheticMarket(
        profile,
        seed,
        symbol,
        day,
        instrument,
        start_s=start_s,
        begins_ns=begins_ns,
        topics=topics,
    )
    end_ns = market.midnight_ns + stop_s * SECOND_NS
    while market.now_ns < end_ns:
        rows = market.chunk(end_ns)
        if len(topics) > 1:
            rows = rows[rows["pad"] == 1]
            rows["pad"] = 0
        # Receive times rise, so rows after the span are a tail of whole frames.
        inside = int(np.searchsorted(rows["receive_ns"], end_ns))
        if inside:
            yield rows[:inside]


def _arriving(
    profile: Profile,
    seed: int,
    symbol: str,
    day: str,
    span: tuple[int, int],
    instrument: Instrument,
    begins_ns: int | None = None,
) -> Iterator[tuple[Events, npt.NDArray[np.int64]]]:
    """Market data as received, and which frames of each chunk come twice."""
    transport = None
    if has_faults(profile):
        transport = Transport(profile, seed, symbol, day, first_update(day), TOPICS[0][0])
    for rows in _published(profile, seed, symbol, day, span, instrument, begins_ns):
        yield transport.carried(rows) if transport else (rows, np.zeros(0, np.int64))


def fingerprint(
    profile: Profile, seed: int, symbol: str, day: str, start_s: int = 0, stop_s: int = SECONDS
) -> str:
    """Fingerprint of a partition of synthetic data: profile, seed, span and code."""
    digest = hashlib.sha256(msgspec.json.encode((profile, seed, symbol, day, start_s, stop_s)))
    digest.update(closure_hash(__name__).encode())
    return f"synthetic {profile.name} {seed} {digest.hexdigest()[:16]}"


def write_bars(
    lake: Lake,
    profile: Profile,
    seed: int,
    symbol: str,
    day: str,
    settings: Settings,
    start_s: int = 0,
    stop_s: int = SECONDS,
) -> int:
    """Write the `bars` partition from generated events; returns the number of bars.

    The bars that ingest would make of the frames, without storing frames or events.
    """
    from market.bars import bars_from_chunks

    require_synthetic(lake)
    chunks = generate(profile, seed, symbol, day, start_s, stop_s)
    rows = bars_from_chunks(chunks, built_in(symbol), settings).to_arrow()
    made_from = fingerprint(profile, seed, symbol, day, start_s, stop_s)
    extra = {"made": "straight as bars", "profile": profile.name, "seed": seed}
    lake.write("bars", symbol, day, rows, made_from, extra)
    return int(rows.num_rows)


def write_frames(
    target: Lake | str | Path,
    profile: Profile,
    seed: int,
    symbols: Sequence[str],
    day: str,
    start_s: int = 0,
    stop_s: int = SECONDS,
    instruments: Mapping[str, Instrument] = BUILT_IN,
    depths: Sequence[int] = (),
    begins_ns: int | None = None,
) -> str:
    """Write a capture of several symbols, merged in receive order; returns its path.

    ``depths``: levels of further topics of the book, 50 or 1, each at the venue's own rate; each runs
    the market once more. ValueError for others. ``begins_ns`` as in `generate`. ``target`` is a file, or
    a lake, where the capture goes to its date's frames. It opens with the instruments. Written to a temporary file and renamed.
    """
    if isinstance(target, Lake):
        require_synthetic(target)
        part = "" if (start_s, stop_s) == (0, SECONDS) else f"-{start_s}-{stop_s}"
        name = f"synthetic-{profile.name}-{seed}-{'-'.join(symbols)}{part}.frames.zst"
        place = f"{target.frames_dir(day)}/{name}"
        path = Path(place) if target.is_local else target.scratch() / name
    else:
        path = Path(target)
    further = {depth: (depth, period) for depth, period in TOPICS[1:]}
    if not set(depths) <= set(further):
        raise ValueError(
            f"depths {tuple(depths)}: the market has topics of {tuple(further)} levels"
        )
    span = (start_s, stop_s)
    used = {symbol: instruments.get(symbol) or built_in(symbol) for symbol in symbols}
    streams = []
    for symbol, instrument in used.items():
        arriving = _arriving(profile, seed, symbol, day, span, instrument, begins_ns)
        streams.append(_encoded(Encoder(instrument), arriving))
        for depth in depths:
            book = _published(
                profile, seed, symbol, day, span, instrument, begins_ns, further[depth]
            )
            skewed = _skewed(profile, book)
            streams.append(_encoded(Encoder(instrument, depth), skewed))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with CaptureWriter(temporary) as writer:
            opening_ns = (begins_ns or day_start_ns(day)) + start_s * SECOND_NS
            for instrument in used.values():
                fields = {"l2": "instrument", **msgspec.to_builtins(instrument)}
                writer.control(opening_ns, fields)
            for block in _merged(streams):
                writer.append_block(block)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if isinstance(target, Lake) and not target.is_local:
        target.store.replace(place, str(path))
        return place
    return str(path)


def _skewed(
    profile: Profile, chunks: Iterator[Events]
) -> Iterator[tuple[Events, npt.NDArray[np.int64]]]:
    """A further topic with the clock's skew; its frames are neither lost nor duplicated."""
    for rows in chunks:
        rows["receive_ns"] += round(profile.skew_ms * 1e6)
        yield rows, np.zeros(0, np.int64)


def _encoded(
    encoder: Encoder, chunks: Iterator[tuple[Events, npt.NDArray[np.int64]]]
) -> Iterator[Lines]:
    for rows, twice in chunks:
        lines = encoder.encode(rows)
        yield _repeated(lines, twice) if len(twice) else lines


def _repeated(lines: Lines, twice: npt.NDArray[np.int64]) -> Lines:
    """The lines, some of them duplicated."""
    order = np.sort(np.concatenate([np.arange(len(lines.ends)), twice]))
    sizes = np.diff(lines.ends, prepend=0)
    starts = lines.ends - sizes
    text = _gathered(lines.text, starts, sizes, order)
    return Lines(text, np.cumsum(sizes[order]), lines.receive_ns[order])


def _merged(streams: Sequence[Iterator[Lines]]) -> Iterator[bytes]:
    """Lines of several streams in order of receive time; at ties the earlier stream comes first."""
    pending: dict[int, Lines] = {}
    open_streams = set(range(len(streams)))
    while True:
        for place in sorted(open_streams):
            while place not in pending or len(pending[place].ends) == 0:
                lines = next(streams[place], None)
                if lines is None:
                    open_streams.discard(place)
                    pending.pop(place, None)
                    break
                pending[place] = lines
        if not pending:
            return
        # The stream whose last line is earliest may have more just after it: merge up to there.
        horizon = min(int(lines.receive_ns[-1]) for lines in pending.values())
        taken, left = {}, {}
        for place, lines in pending.items():
            n = int(np.searchsorted(lines.receive_ns, horizon, "right"))
            taken[place], left[place] = _split(lines, n)
        pending = left
        yield _woven([taken[place] for place in sorted(taken)])


def _split(lines: Lines, n: int) -> tuple[Lines, Lines]:
    cut = int(lines.ends[n - 1]) if n else 0
    return (
        Lines(lines.text[:cut], lines.ends[:n], lines.receive_ns[:n]),
        Lines(lines.text[cut:], lines.ends[n:] - cut, lines.receive_ns[n:]),
    )


def _woven(parts: Sequence[Lines]) -> bytes:
    text = np.concatenate([part.text for part in parts])
    sizes = np.concatenate([np.diff(part.ends, prepend=0) for part in parts])
    starts = np.cumsum(sizes) - sizes
    order = np.argsort(np.concatenate([part.receive_ns for part in parts]), kind="stable")
    woven: bytes = _gathered(text, starts, sizes, order).tobytes()
    return woven


@compiled
def _gathered(
    text: Text,
    starts: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
) -> Text:
    out = np.empty(sizes[order].sum(), np.uint8)
    at = 0
    for line in order:
        out[at : at + sizes[line]] = text[starts[line] : starts[line] + sizes[line]]
        at += sizes[line]
    return out
