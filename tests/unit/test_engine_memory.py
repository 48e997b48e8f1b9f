"""What is over is freed at once, without the garbage collector, which seldom gets so far: it
would have to look at every connection that lives."""

from __future__ import annotations

import gc
import random
import weakref

import pytest

from proxy.engine.stack import Application, Stack
from proxy.mptcp.connection import MptcpConnection
from proxy.seg import Segment
from proxy.tcp.events import Event
from proxy.wire.address import Address

CLIENT = bytes((10, 1, 0, 2))
SERVER = Address(bytes((203, 0, 113, 10)), 8803)


class _Server:
    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.accepted: list[Application] = []

    def on_syn(self, syn: Segment, now: float) -> None:
        """Takes whoever comes."""
        connection = self.stack.open_passive(syn, now, mptcp=True)
        self.accepted.append(connection)
        connection.accept(now)

    def on_stray(self, segment: Segment, now: float) -> bool:
        """Silence."""
        return False


class Two:
    """Two stacks without any distance between them."""

    def __init__(self) -> None:
        self.now = 1.0
        self.near = Stack(random.Random(1))
        self.far = Stack(random.Random(2))
        self.server = _Server(self.far)
        self.far.listener = self.server

    def settle(self) -> None:
        """Carry packets until nobody has any."""
        while True:
            moved = 0
            for one, other in ((self.near, self.far), (self.far, self.near)):
                for packet in one.poll_transmit(self.now):
                    moved += 1
                    other.receive(b"".join(packet), self.now)
            if not moved:
                return

    def run(self, seconds: float) -> None:
        """Let that much time pass."""
        end = self.now + seconds
        self.settle()
        while True:
            deadlines = [stack.next_timeout() for stack in (self.near, self.far)]
            due = min(
                (deadline for deadline in deadlines if deadline is not None), default=float("inf")
            )
            if due > end:
                break
            self.now = max(due, self.now)
            for stack in (self.near, self.far):
                stack.handle_timeout(self.now)
            self.settle()
        self.now = end


def _conversation(how: str) -> list[weakref.ref[MptcpConnection]]:
    two = Two()
    near = two.near.connect_mptcp(CLIENT, SERVER, two.now, b"hello", "uplink")
    two.run(0.1)
    [far] = two.server.accepted
    assert isinstance(far, MptcpConnection)
    near.send(b"question")
    far.send(b"answer")
    two.run(0.1)
    assert near.receivable == 6
    near.receive(100)
    far.receive(100)
    if how == "abort":
        near.abort(two.now)
    else:
        near.shutdown_write()
        two.run(0.1)
        far.shutdown_write()
    two.run(100.0)
    for stack in (two.near, two.far):
        assert len(stack.demux) == 0
        assert stack.tokens == {}
        told = []
        while (event := stack.next_event()) is not None:
            told.append(event[1])
        assert Event.ESTABLISHED in told
    two.server.accepted.clear()
    return [weakref.ref(near), weakref.ref(far)]


@pytest.mark.parametrize("how", ["close", "abort"])
def test_connection_that_is_over_does_not_wait_for_the_collector(how: str) -> None:
    gc.collect()
    gc.disable()
    try:
        held = [reference() for reference in _conversation(how)]
        assert held == [None, None]
    finally:
        gc.enable()
