"""What a gateway serves itself: to whom, how much, and what the bytes are."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from proxy.convert.auth import NONCE_LENGTH, Client
from proxy.convert.tlv import ErrorCode
from proxy.engine.stack import ACK, RST, SYN, Stack
from proxy.relay.flow import Flow
from proxy.relay.trials import HOST, PATTERN, TrialPort, TrialStream
from proxy.tcp.events import Event
from proxy.wire.address import Address
from tests.unit.test_relay_flow import FakeStream
from tests.unit.test_relay_hostile import (
    GATEWAY,
    PROXY,
    SECRET,
    WALL,
    Gateway,
    answers,
    packet,
    syn_options,
)


def ask(
    box: Gateway, destination: Address, nonce: int = 0, port: int = PROXY.port
) -> ErrorCode | None:
    """What the gateway says in its SYN+ACK; None: served."""
    client = Client("home", SECRET)
    request = client.request(destination, WALL + 1, nonce.to_bytes(NONCE_LENGTH, "big"))
    source = Address(PROXY.ip, port)
    box.stack.receive(packet(source, GATEWAY, 1000, 0, SYN, syn_options(), request), 1.0)
    [syn_ack] = answers(box.stack)
    assert syn_ack.flags == SYN | ACK
    reply = client.check_reply(request, bytes(syn_ack.payload), WALL)
    return None if reply.error is None else reply.error.code


@pytest.mark.parametrize("port", list(TrialPort))
def test_a_proven_client_is_served_without_any_server(port: TrialPort) -> None:
    box = Gateway()
    assert ask(box, port.address) is None
    assert box.dialled == []


@pytest.mark.parametrize("port", [0, 8, 80])
def test_other_ports_of_the_host_are_a_special_address_as_ever(port: int) -> None:
    box = Gateway()
    assert ask(box, Address(HOST, port)) in (
        ErrorCode.NOT_AUTHORIZED,
        ErrorCode.MALFORMED_MESSAGE,
    )
    assert box.dialled == []


def test_none_are_served_where_that_is_switched_off() -> None:
    box = Gateway()
    listen = replace(box.relay.config.listen, trials=0)
    box.relay.reconfigure(replace(box.relay.config, listen=listen), 1.0)
    assert ask(box, TrialPort.ECHO.address) == ErrorCode.NOT_AUTHORIZED


def test_a_client_has_no_more_than_its_number_and_gets_it_back() -> None:
    box = Gateway()
    listen = replace(box.relay.config.listen, trials=2)
    box.relay.reconfigure(replace(box.relay.config, listen=listen), 1.0)
    assert ask(box, TrialPort.ECHO.address, 1, 40001) is None
    assert ask(box, TrialPort.SOURCE.address, 2, 40002) is None
    assert ask(box, TrialPort.ECHO.address, 3, 40003) == ErrorCode.RESOURCE_EXCEEDED
    first = Address(PROXY.ip, 40001)
    [connection] = [c for c in box.stack.demux if c.remote == first]
    box.stack.receive(packet(first, GATEWAY, connection.rcv_nxt, 0, RST), 1.0)
    while (event := box.stack.next_event()) is not None:
        box.relay.on_event(event[0], event[1], 1.0)
    assert ask(box, TrialPort.ECHO.address, 4, 40004) is None


class Trial:
    """A flow between a client and a trial, and the stack that carries its events."""

    def __init__(self, port: TrialPort, near: FakeStream, first: bytes = b"") -> None:
        self.stack = Stack(random.Random(1))
        self.near = near
        self.far = TrialStream(self.stack, port, first)
        self.ended: list[Flow] = []
        self.flow = Flow(1, near, self.far, self.ended.append, 0.0)
        self.flow.start()
        self.settle()

    def settle(self) -> None:
        while (event := self.stack.next_event()) is not None:
            self.flow.on_event(event[0], event[1], 0.0)  # type: ignore[arg-type]


def test_an_echo_returns_every_byte_and_the_end() -> None:
    data = PATTERN * 9
    trial = Trial(TrialPort.ECHO, FakeStream(data, finished=True, room=len(data)))
    assert trial.near.outbox == data
    assert trial.near.shut == 1
    trial.flow.on_event(trial.near, Event.CLOSED, 0.0)
    assert trial.ended == [trial.flow]


def test_an_echo_whose_client_does_not_read_stops_its_client() -> None:
    data = PATTERN * 9
    trial = Trial(TrialPort.ECHO, FakeStream(data, room=1000))
    waiting = len(trial.near.inbox)
    assert len(trial.near.outbox) == 1000
    assert waiting > len(data) - 300_000  # what it keeps is bounded
    trial.near.room = len(data)
    trial.flow.on_event(trial.near, Event.WRITABLE, 0.0)
    trial.settle()
    assert trial.near.outbox == data


def test_a_source_fills_what_room_there_is_with_the_pattern() -> None:
    trial = Trial(TrialPort.SOURCE, FakeStream(room=150_000))
    assert trial.near.outbox == (PATTERN * 3)[:150_000]
    trial.near.room = 10
    trial.flow.on_event(trial.near, Event.WRITABLE, 0.0)
    assert trial.near.outbox == (PATTERN * 3)[:150_010]


def test_a_source_ends_when_its_client_has_finished() -> None:
    trial = Trial(TrialPort.SOURCE, FakeStream(finished=True, room=70_000))
    assert trial.near.shut == 1
    trial.flow.on_event(trial.near, Event.CLOSED, 0.0)
    assert trial.ended == [trial.flow]


def test_a_discard_takes_everything_and_says_nothing() -> None:
    trial = Trial(TrialPort.DISCARD, FakeStream(PATTERN * 40))
    assert trial.near.inbox == trial.near.outbox == b""
    assert trial.flow.bytes_out == 40 * len(PATTERN)


def test_what_was_seen_is_one_line_and_the_end() -> None:
    line = json.dumps({"mptcp": True}).encode() + b"\n"
    trial = Trial(TrialPort.SEEN, FakeStream(), line)
    assert trial.near.outbox == line
    assert trial.near.shut == 1
