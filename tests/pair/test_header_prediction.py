"""The same packets to two stacks, one with header prediction: the same state after each of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.engine.stack import Application, Stack
from proxy.seg import Segment, gso_split
from proxy.wire.address import Address
from tests.state import stack_state

CLIENT = b"\x0a\x00\x00\x01"
SERVER = Address(b"\x0a\x09\x00\x01", 8803)
SEED = random.Random(5).randbytes(300_000)


class Acceptor:
    """Takes every connection, as MPTCP or as plain TCP."""

    def __init__(self, stack: Stack, mptcp: bool) -> None:
        self.stack = stack
        self.mptcp = mptcp
        self.accepted: list[Application] = []

    def on_syn(self, syn: Segment, now: float) -> None:
        connection = self.stack.open_passive(syn, now, self.mptcp)
        connection.accept(now)
        self.accepted.append(connection)

    def on_stray(self, segment: Segment, now: float) -> bool:
        return True


class Twins:
    """One side twice: with header prediction and without, given the same and compared."""

    def __init__(self, seed: int) -> None:
        self.stacks = (Stack(random.Random(seed)), Stack(random.Random(seed)))
        self.stacks[1].header_prediction = False
        self.applications: list[Application] = []

    def each(self, call: Callable[[Stack, Application | None], Any]) -> Any:
        """Do the same to both; what came of it and the states are the same."""
        results = [
            call(stack, self.applications[index] if self.applications else None)
            for index, stack in enumerate(self.stacks)
        ]
        assert results[0] == results[1]
        states = [stack_state(stack) for stack in self.stacks]
        assert states[0] == states[1]
        return results[0]

    def hits(self, name: str) -> int:
        return self.stacks[0].counters[name]


class Conversation:
    """A client that sends and a server that answers now and then, packet by packet."""

    def __init__(self, mptcp: bool, split: bool) -> None:
        self.now = 1000.0
        self.split = split
        self.client, self.server = Twins(1), Twins(2)
        self.wire: dict[Twins, list[bytes]] = {self.client: [], self.server: []}
        acceptors = [Acceptor(stack, mptcp) for stack in self.server.stacks]
        for stack, acceptor in zip(self.server.stacks, acceptors, strict=True):
            stack.listener = acceptor
        self.client.applications = [
            stack.connect_mptcp(CLIENT, SERVER, self.now, b"", "uplink")
            for stack in self.client.stacks
        ]
        for _ in range(3):
            self.settle()
        self.server.applications = [acceptor.accepted[0] for acceptor in acceptors]

    def other(self, side: Twins) -> Twins:
        return self.server if side is self.client else self.client

    def send(self, side: Twins, size: int) -> None:
        side.each(lambda stack, app: app is not None and app.send(SEED[:size]))

    def read(self, side: Twins) -> None:
        side.each(lambda stack, app: [bytes(p) for p in app.receive(1 << 20)] if app else [])

    def emit(self, side: Twins) -> None:
        """What the side has to say goes to the wire."""

        def poll(stack: Stack, app: Application | None) -> list[bytes]:
            while stack.next_event() is not None:
                pass
            return [b"".join(packet) for packet in stack.poll_transmit(self.now)]

        for packet in side.each(poll):
            self.wire[side] += gso_split(packet) if self.split else [packet]

    def arrive(self, side: Twins, packet: bytes) -> None:
        self.other(side).each(lambda stack, app: stack.receive(packet, self.now))

    def pause(self, seconds: float) -> None:
        self.now += seconds
        for side in (self.client, self.server):
            side.each(lambda stack, app: stack.handle_timeout(self.now))

    def settle(self) -> None:
        """One round trip without trouble."""
        for side in (self.client, self.server):
            self.emit(side)
            self.pause(0.005)
            packets, self.wire[side] = self.wire[side], []
            for packet in packets:
                self.arrive(side, packet)


@pytest.mark.parametrize("split", [False, True], ids=["super-segments", "packets"])
@pytest.mark.parametrize("mptcp", [False, True], ids=["plain", "mptcp"])
def test_bulk_is_predicted_both_ways(mptcp: bool, split: bool) -> None:
    talk = Conversation(mptcp, split)
    for side in (talk.client, talk.server):
        for _ in range(6):
            talk.send(side, 200_000)
            talk.settle()
            talk.read(talk.other(side))
    for side in (talk.client, talk.server) if mptcp else (talk.server,):
        hits, misses = side.hits("TCPHPHits"), side.hits("TCPHPMisses")
        assert hits > (400 if split else 15)
        assert misses <= 1 + hits // 100
        assert side.hits("TCPHPAcks") >= 3


@pytest.mark.parametrize("mptcp", [False, True], ids=["plain", "mptcp"])
def test_a_hole_and_what_fills_it_are_left_to_the_slow_path(mptcp: bool) -> None:
    talk = Conversation(mptcp, True)
    talk.send(talk.client, 20_000)
    talk.emit(talk.client)
    hole, *rest = talk.wire[talk.client]
    talk.wire[talk.client].clear()
    for packet in [*rest, hole]:
        talk.arrive(talk.client, packet)
    assert talk.server.hits("TCPHPHits") == 0
    talk.read(talk.server)
    talk.settle()


def damaged(packet: bytes, position: int, value: int) -> bytes:
    """The packet with a byte of its TCP header changed; the device vouches for its checksum."""
    raw = bytearray(packet)
    raw[0] |= 2
    header = 10 + 20
    length = (raw[header + 12] >> 4) * 4
    raw[header + 4 + position % (length - 4)] ^= value
    return bytes(raw)


SIDES = st.booleans()
ACTIONS = st.one_of(
    st.tuples(st.just("send"), SIDES, st.integers(1, 60_000), st.just(0)),
    st.tuples(st.just("read"), SIDES, st.just(0), st.just(0)),
    st.tuples(st.just("emit"), SIDES, st.just(0), st.just(0)),
    st.tuples(st.just("arrive"), SIDES, st.integers(0, 3), st.just(0)),
    st.tuples(st.just("all"), SIDES, st.just(0), st.just(0)),
    st.tuples(st.just("lose"), SIDES, st.integers(0, 3), st.just(0)),
    st.tuples(st.just("repeat"), SIDES, st.integers(0, 3), st.just(0)),
    st.tuples(st.just("damage"), SIDES, st.integers(0, 80), st.integers(1, 255)),
    st.tuples(st.just("pause"), SIDES, st.sampled_from([0, 1, 5, 40, 300]), st.just(0)),
    st.tuples(st.just("shut"), SIDES, st.just(0), st.just(0)),
)


def act(talk: Conversation, what: str, first: bool, number: int, value: int) -> None:
    side = talk.client if first else talk.server
    wire = talk.wire[side]
    if what == "send":
        talk.send(side, number)
    elif what == "read":
        talk.read(side)
    elif what == "emit":
        talk.emit(side)
    elif what == "pause":
        talk.pause(number / 1000)
    elif what == "shut":
        side.each(lambda stack, app: app is not None and app.shutdown_write())
    elif what == "all":
        while wire:
            talk.arrive(side, wire.pop(0))
    elif wire:
        index = number % len(wire)
        if what == "repeat":
            talk.arrive(side, wire[index])
        elif what == "damage":
            talk.arrive(side, damaged(wire[0], number, value))
        else:
            packet = wire.pop(index)
            if what == "arrive":
                talk.arrive(side, packet)


@settings(deadline=None, max_examples=100)
@given(mptcp=st.booleans(), split=st.booleans(), actions=st.lists(ACTIONS, max_size=40))
def test_whatever_arrives_leaves_the_same_state(
    mptcp: bool, split: bool, actions: list[tuple[str, bool, int, int]]
) -> None:
    talk = Conversation(mptcp, split)
    talk.send(talk.client, 50_000)
    talk.settle()
    closed: set[bool] = set()
    for what, first, number, value in actions:
        if what == "send" and first in closed:
            continue
        if what == "shut":
            closed.add(first)
        act(talk, what, first, number, value)
