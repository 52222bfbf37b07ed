"""The venue without a network: the exchange with its streams, its gateway and the faults of both.

`server` serves one on loopback by the wall clock; `virtual` drives one in simulated time alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from market.units import SECOND_NS
from proving.sandbox.exchange import SandboxExchange
from proving.sandbox.faults import Faults, schedule
from proving.sandbox.gateway import Gateway, TradeRequest, TradeSocket
from proving.sandbox.past import Past
from proving.sandbox.streams import (
    Connection,
    Endpoint,
    Later,
    PrivateStream,
    PublicStream,
    in_event_loop,
)
from proving.synthetic.profiles import profile


class Venue:
    """An exchange and its endpoints.

    ``catch_up`` brings the exchange up to now before a request is executed. ``clock_ns`` is the wall clock,
    None for simulated time, and ``later`` runs actions by it. ``fault_rates`` schedules random faults
    (`proving.sandbox.faults.schedule`); every fault is written to ``fault_log`` as a JSON line that
    `proving.sandbox.faults.read_log` reads. ``limited`` turns rate limits on; ``demo`` is the venue of demo
    accounts, without order entry by socket, public stream, fee query and disconnect-cancel-all; ``market``
    are options of `SandboxExchange`. ``past_s`` seconds pass before clients come, and so much of the past
    is kept.
    """

    def __init__(
        self,
        seed: int,
        profile_name: str,
        symbols: Sequence[str],
        catch_up: Callable[[], None],
        *,
        limited: bool = True,
        demo: bool = False,
        past_s: int = 0,
        fault_rates: Mapping[str, float] | None = None,
        fault_log: Path | None = None,
        clock_ns: Callable[[], int] | None = time.time_ns,
        later: Later = in_event_loop,
        **market: Any,
    ) -> None:
        self.public_stream, self.private_stream = PublicStream(), PrivateStream(later)
        self.past = Past(past_s, symbols)
        self.exchange = SandboxExchange(
            profile(profile_name),
            seed,
            symbols,
            on_frame=self._publish,
            is_read=self._is_read,
            on_message=self.private_stream.send,
            **market,
        )
        self._run_past(past_s * SECOND_NS)
        keys = [client.key for client in self.exchange.clients]
        self.faults = Faults(keys, self._connections, self._restart, fault_log, clock_ns)
        self.faults.advance(self.exchange.now_ns)
        self.faults.follow(schedule(seed, fault_rates or {}, self.exchange.now_ns))
        self.public_stream.deliver = self.private_stream.deliver = self.faults.deliver
        self.public_stream.delisted = self.faults.delisted
        self.public_stream.attach(self.exchange)
        self.private_stream.attach(self.exchange, catch_up, self.faults.wall_ns)
        self.gateway = Gateway(self.exchange, catch_up, limited, self.faults.wall_ns, demo)
        self.trade_socket = TradeSocket(self.gateway, self.faults.wall_ns, later)
        self.trade_socket.on_request = self._on_trade_request
        self.endpoints: dict[str, Endpoint] = {
            "/v5/public/linear": self.public_stream,
            "/v5/private": self.private_stream,
            "/v5/trade": self.trade_socket,
        }
        if demo:
            self.endpoints = {"/v5/private": self.private_stream}

    def advance(self, until_ns: int) -> None:
        """Advance simulated time, stopping for faults that are due."""
        exchange = self.exchange
        while exchange.now_ns < until_ns:
            fault_ns = self.faults.next_ns
            exchange.advance(until_ns if fault_ns is None else min(until_ns, fault_ns))
            self.faults.advance(exchange.now_ns)
        self.public_stream.publish_candles()
        self.past.follow(exchange.tapes, exchange.now_ns)

    def _run_past(self, length_ns: int) -> None:
        """What was before clients come."""
        exchange = self.exchange
        cycle_ns, exchange.cycle_ns = exchange.cycle_ns, SECOND_NS  # as while it began
        until_ns = exchange.now_ns + length_ns
        while exchange.now_ns < until_ns:
            self.past.follow(exchange.tapes, exchange.now_ns)
            exchange.advance(min(until_ns, exchange.now_ns + SECOND_NS))
        exchange.cycle_ns, exchange.start_ns = cycle_ns, exchange.now_ns

    def _publish(self, topic: str, frame: bytes) -> None:
        self.past.put(topic, frame)
        self.public_stream.publish(topic, frame)

    def _is_read(self, topic: str) -> bool:
        return topic in self.public_stream.subscribers or topic in self.past.topics

    def _on_trade_request(self, connection: Connection, request: TradeRequest, now_ms: int) -> None:
        """Answer an order-entry request over WebSocket, with the fault that happens to it."""
        outcome = self.faults.carry_out(
            request.client.key,
            request.path,
            lambda: request.execute(now_ms),
            lambda code, message, _: request.refuse(code, message),
        )
        answer = outcome.answer
        if answer is not None and outcome.delay_ns:
            self.faults.call_later(outcome.delay_ns, lambda: connection.put_json(answer))
        elif answer is not None:
            self.trade_socket.put_delayed(connection, answer)
        elif outcome.is_cut:
            connection.end(orderly=False)

    def _connections(self) -> list[Connection]:
        return [c for endpoint in self.endpoints.values() for c in endpoint.connections]

    def _restart(self) -> None:
        for tape in self.exchange.tapes.values():
            tape.restart()
