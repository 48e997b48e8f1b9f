"""Kernel sockets under an edge-triggered poll: nothing that happens on them is missed."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from proxy.engine.runtime_poll import SocketPoll
from proxy.engine.runtime_socket import Dial, KernelStream
from proxy.tcp.events import Event
from proxy.wire.address import Address


class Side:
    """A dialled stream, the server's end of it, and the events it told."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.poll = SocketPoll()
        self.told: list[Event] = []
        self.unflushed: list[KernelStream] = []
        self.read_on_event = True
        self.got = bytearray()
        self.stream: KernelStream | None = None
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            peer = Address(bytes((127, 0, 0, 1)), port)
            Dial(self.loop, self.poll, peer, self._dialled, self.unflushed.append)
            self.server, _ = listener.accept()
        self.until(lambda: self.stream is not None)

    def _dialled(self, stream: KernelStream | None, code: int) -> None:
        assert stream is not None, code
        self.stream = stream
        stream.start(self._on_event)

    def _on_event(self, stream: KernelStream, kind: Event) -> None:
        self.told.append(kind)
        if kind is Event.READABLE and self.read_on_event:
            self.read(1 << 20)

    def read(self, limit: int) -> None:
        """As a flow does: until nothing comes or the sink is full."""
        assert self.stream is not None
        while limit and (chunks := self.stream.receive(limit)):
            for chunk in chunks:
                self.got += chunk
                limit -= len(chunk)

    def dispatch(self) -> None:
        def failed() -> None:
            raise AssertionError("a handler raised")

        if select.select([self.poll], [], [], 0.01)[0]:
            self.poll.dispatch(failed)
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def until(self, reached: Callable[[], bool]) -> None:
        for _ in range(500):
            if reached():
                return
            self.dispatch()
        raise AssertionError(f"told {self.told}, got {len(self.got)} bytes")

    def close(self) -> None:
        self.server.close()
        self.poll.stop()
        self.loop.close()


@pytest.fixture
def side() -> Iterator[Side]:
    made = Side()
    yield made
    made.close()


def test_data_and_end_that_come_together_are_both_seen(side: Side) -> None:
    side.server.sendall(b"x" * 1000)
    side.server.close()
    assert side.stream is not None
    side.until(lambda: bool(side.stream and side.stream.eof))
    assert side.got == b"x" * 1000
    side.stream.shutdown_write()
    side.stream.flush()
    side.until(lambda: Event.CLOSED in side.told)


def test_end_that_comes_after_the_data_was_read_is_seen(side: Side) -> None:
    side.server.sendall(b"x")
    side.until(lambda: side.got == b"x")
    side.server.shutdown(socket.SHUT_WR)
    side.until(lambda: bool(side.stream and side.stream.eof))


def test_bytes_that_were_left_behind_are_there_for_who_comes_back(side: Side) -> None:
    side.read_on_event = False
    side.server.sendall(b"x" * 5000)
    side.until(lambda: Event.READABLE in side.told)
    side.read(2000)
    assert len(side.got) == 2000
    side.server.sendall(b"y" * 1000)
    side.server.shutdown(socket.SHUT_WR)
    for _ in range(3):
        side.dispatch()
    assert side.told == [Event.READABLE]  # it knows already
    side.read(1 << 20)
    assert side.got == b"x" * 5000 + b"y" * 1000
    assert side.stream is not None
    assert side.stream.eof


def test_a_full_socket_is_written_on_once_it_is_drained(side: Side) -> None:
    stream = side.stream
    assert stream is not None
    sent = 0
    while stream.send_room():
        stream.send(bytes(65536))
        stream.flush()
        sent += 65536
    received = 0
    side.server.settimeout(5)
    while received < sent:
        received += len(side.server.recv(1 << 20))
        side.dispatch()
    assert Event.WRITABLE in side.told


def test_a_reset_is_told_once(side: Side) -> None:
    side.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    side.server.close()
    side.until(lambda: Event.RESET in side.told)
    side.dispatch()
    assert side.told.count(Event.RESET) == 1


def test_a_refused_attempt_tells_why() -> None:
    loop = asyncio.new_event_loop()
    poll = SocketPoll()
    told: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    peer = Address(bytes((127, 0, 0, 1)), port)
    Dial(loop, poll, peer, lambda _, code: told.append(code), lambda _: None)
    loop.call_soon(loop.stop)
    loop.run_forever()
    while not told and select.select([poll], [], [], 1)[0]:
        poll.dispatch(lambda: None)
    assert told == [111]
    poll.stop()
    loop.close()


def test_what_is_still_to_be_told_of_a_closed_socket_reaches_no_other() -> None:
    poll = SocketPoll()
    pairs = [socket.socketpair() for _ in range(2)]
    told: list[str] = []
    opened: list[socket.socket] = []

    def on_ready(mine: int) -> Callable[[int], None]:
        def ready(events: int) -> None:
            told.append(f"old {mine}")
            poll.close(pairs[1 - mine][0])
            fresh = socket.socketpair()
            opened.extend(fresh)
            poll.watch(fresh[0], lambda events: told.append("new"))

        return ready

    for mine, (near, far) in enumerate(pairs):
        near.setblocking(False)
        poll.watch(near, on_ready(mine))
        far.send(b"x")
    poll.dispatch(lambda: told.append("failed"))
    assert len(told) == 1
    for sock in [*opened, *(sock for pair in pairs for sock in pair)]:
        sock.close()
    poll.stop()
