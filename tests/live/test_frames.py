"""Frames taken together: every effect is that of one frame after the other, however they are grouped."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from execution.orders import (
    Accepted,
    Amend,
    Amended,
    Cancel,
    Cancelled,
    Filled,
    Liquidity,
    Submit,
    TimeInForce,
)
from live.core import Core
from live.gateway import PlainCodec
from live.log import Checkpoint, Header, LogWriter
from live.messages import Answer, Command, Effect, Input, PublicFrame, Renew, Send, Tick
from live.replay import replay
from live.restoration import checkpoint_of
from live.symbol_state import SHOWN_TRADES
from market.instruments import Instrument
from market.settings import Execution, Market, Settings
from market.wire.capture import read_lines
from market.wire.survey import instruments_of
from proving.torture.decider import RandomModel, SecondAsFeature

SYMBOLS = ("BTCUSDT", "ETHUSDT")
MS = 1_000_000
HEADER = Header(
    venue="test", account="", source="recorded", instruments={}, settings=b"", code="", run="r"
)


class Alone(Core):
    """A core as a log is repeated with: one step a frame."""

    def checkpoint(self) -> Checkpoint:
        return checkpoint_of(self.snapshot())


def core(instruments: dict[str, Instrument], algorithm: Any, at_venue: bool) -> Alone:
    return Alone(
        Settings(
            market=Market(symbols=SYMBOLS),
            execution=Execution(algorithm=algorithm, deadline_s=4.0),
        ),
        instruments,
        model=RandomModel(5, "1"),
        codec=PlainCodec(),
        name="test",
        at_venue=at_venue,
        evaluator=SecondAsFeature(),
    )


def frames(path: Path) -> Iterator[tuple[int, bytes]]:
    """A recording with all that a stream may do: lost, repeated, spaced and unreadable frames, bursts."""
    chance, burst_ns = random.Random(1), 0
    lines = list(read_lines(path))[:6_000]
    for number, (now_ns, frame) in enumerate(lines):
        burst_ns = burst_ns if burst_ns and number % 20 else now_ns  # 20 frames at one time
        kind = chance.random()
        if number < len(lines) * 0.8 or kind > 0.01:  # behind that no book is known
            yield burst_ns, frame
        if kind < 0.03:
            yield burst_ns, frame
        if kind < 0.05:
            yield burst_ns, frame.replace(b":", b": ", 1)
        if number > len(lines) * 0.8 and kind > 0.99:
            yield burst_ns, b"{" + frame


def answers(effects: Sequence[Effect]) -> Iterator[Answer]:
    """A venue that takes every order, and fills what crosses."""
    for send in effects:
        if isinstance(send, Send) and isinstance(send.body, Submit | Amend | Cancel):
            body, at = send.body, send.deadline_ns - 2_000 * MS
            about: dict[str, Any] = {"client_id": body.client_id, "time_ns": at, "venue_ns": at}
            told: list[Any] = []
            match body:
                case Submit():
                    told.append(Accepted(**about))
                    if body.time_in_force is TimeInForce.IOC:
                        told.append(
                            Filled(
                                exec_id=body.client_id, symbol=body.symbol, side=body.side,
                                qty_lots=body.qty_lots, price_ticks=body.price_ticks,
                                liquidity=Liquidity.TAKER, fee_e8=0, leaves_lots=0, **about,
                            )
                        )  # fmt: skip
                case Amend():
                    lots, ticks = body.qty_lots or 1, body.price_ticks or 1
                    told.append(Amended(price_ticks=ticks, qty_lots=lots, **about))
                case Cancel():
                    told.append(Cancelled(reason="asked for", **about))
            yield Answer(request=send.number, body=PlainCodec().encode(told))


@pytest.mark.parametrize(
    ("algorithm", "at_venue"), [("passive", False), ("adaptive", False), ("passive", True)]
)
def test_a_log_of_grouped_frames_is_repeated_by_single_steps(
    data_dir: Path, tmp_path: Path, algorithm: str, at_venue: bool
) -> None:
    path = next(data_dir.glob("usdm-20240808.frames.zst"))
    lines, chance = list(frames(path)), random.Random(2)
    instruments = instruments_of([str(path)], SYMBOLS)
    together, alone = (core(instruments, algorithm, at_venue) for _ in range(2))
    out = LogWriter(tmp_path, HEADER, lines[0][0], reserve_bytes=0)
    made = together.begin(lines[0][0])
    out.append_effects(lines[0][0], made)
    n = groups = 0
    while n < len(lines):
        group = lines[n : n + chance.choice((1, 2, 5, 40, 300))]
        n, groups, now_ns = n + len(group), groups + 1, group[-1][0]
        given = [(now_ns, PublicFrame(frame=frame)) for now_ns, frame in group]
        out.append(given)
        effects = together.step_frames(given)
        out.append_effects(now_ns, effects)
        made += effects
        others: list[Input] = [*answers(effects), Tick()]
        if (command := {40: "flatten", 45: "resume"}.get(groups)) is not None:
            others.append(Command(command=command, who="", reason=""))
        for body in others:
            out.append_input(now_ns, body)
            effects = together.step(now_ns, body)
            out.append_effects(now_ns, effects)
            made += effects
    out.turn(now_ns, together.checkpoint())
    out.close()
    told = replay(tmp_path, 0, lambda _: alone)
    assert (told.difference, told.effects) == ("", len(made))
    for name in ("frames", "events", "gaps", "rejects", "now_ns"):
        assert getattr(together, name) == getattr(alone, name)
    for symbol, state in alone.trader.symbols.items():
        other = together.trader.symbols[symbol]
        assert state.view(now_ns).bids == other.view(now_ns).bids
        assert state.ticker.fields == other.ticker.fields
        assert state.last_trades() == other.last_trades()
        assert len(state.last_trades()) == SHOWN_TRADES
        mids = [vars(each.desk.mids[symbol]) for each in (alone, together)]
        assert str(mids[0]) == str(mids[1])
    assert sum(isinstance(effect, Renew) for effect in made) > 3
    assert sum(isinstance(effect, Send) for effect in made) > 10
