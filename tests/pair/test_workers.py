"""Several stacks behind one device, whose queues get packets at random: they act as one."""

from __future__ import annotations

import random

import pytest

from proxy.engine.handover import HANDOVER_RATE, Handover
from proxy.engine.stack import Stack
from proxy.mptcp.config import MptcpConfig
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.keys import TokenShare, derive
from proxy.pm.base import Endpoint, factory
from proxy.seg import Segment, build_header, parse
from proxy.tcp.events import Event
from proxy.wire import icmp
from proxy.wire.address import Address
from proxy.wire.mptcp_options import MpJoinSyn, pad
from tests.memory_channel import MemoryChannel

SERVER = Address(bytes((203, 0, 113, 10)), 8803)
CLIENTS = [bytes((10, n, 0, 2)) for n in range(3)]
SECRET = bytes(range(32))


class Listener:
    """Takes every connection and sends back what comes."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.opened = 0
        stack.listener = self

    def on_syn(self, syn: Segment, now: float) -> None:
        self.opened += 1
        self.stack.open_passive(syn, now, mptcp=True).accept(now)

    def on_stray(self, segment: Segment, now: float) -> bool:
        return True

    def work(self) -> None:
        while (event := self.stack.next_event()) is not None:
            stream, kind = event
            if kind is Event.READABLE:
                for chunk in stream.receive(1 << 20):
                    stream.send(chunk)
            elif kind is Event.EOF:
                stream.shutdown_write()


class Box:
    """A client with three addresses, and workers at the server."""

    def __init__(self, count: int, seed: int = 1, loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.now = 100.0
        self.count = count
        self.queues: list[list[bytes]] = [[] for _ in range(count)]
        self.channels: list[MemoryChannel] = []
        self.workers: list[Stack] = []
        self.listeners: list[Listener] = []
        for index in range(count):
            self._start(index)
        self.client = Stack(random.Random(seed + 1), None, MptcpConfig(subflows=2))
        self.client.path_manager = factory("kernel")
        self.client.local_addresses = [
            Endpoint(ip, n + 1, f"u{n}", subflow=True) for n, ip in enumerate(CLIENTS)
        ]
        self.answer = b""  # the last one
        self.received: dict[object, bytes] = {}

    def _start(self, index: int, run: int = 0) -> None:
        share = TokenShare(index, self.count, run)
        stack = Stack(random.Random(self.rng.random()), None, MptcpConfig(subflows=2), share)
        channel = MemoryChannel(index, self.queues)
        Handover(stack, share, SECRET, channel).begin()
        listener = Listener(stack)
        self.workers[index:index] = [stack]
        self.channels[index:index] = [channel]
        self.listeners[index:index] = [listener]

    def restart(self, index: int) -> None:
        """A worker dies, and another one takes its place."""
        for row in (self.workers, self.channels, self.listeners):
            del row[index]  # type: ignore[attr-defined]
        self._start(index, run=1)
        while not handover(self.workers[index]).synced:
            for worker in self.workers:
                handover(worker).read()

    def connect(self) -> MptcpConnection:
        return self.client.connect_mptcp(CLIENTS[0], SERVER, self.now, b"", "u0")

    def step(self) -> None:
        """What the client sends reaches a worker at random; the answers, the client."""
        for packet in self.client.poll_transmit(self.now):
            data = b"".join(packet)
            if self.rng.random() < self.loss:
                continue
            self.workers[self.rng.randrange(self.count)].receive(data, self.now)
        for worker in self.workers:
            handover(worker).read()
            handover(worker).receive(self.now)
            handover(worker).flush()
        for worker, listener in zip(self.workers, self.listeners, strict=True):
            worker.handle_timeout(self.now)
            listener.work()
            for packet in worker.poll_transmit(self.now):
                self.answer = b"".join(packet)
                if self.rng.random() >= self.loss:
                    self.client.receive(self.answer, self.now)
        while (event := self.client.next_event()) is not None:
            stream = event[0]
            chunks = b"".join(stream.receive(1 << 20))
            self.received[stream] = self.received.get(stream, b"") + chunks
        self.client.handle_timeout(self.now)
        self.now += 0.001

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds * 1000)):
            self.step()

    def counter(self, name: str) -> int:
        return sum(worker.counters[name] for worker in self.workers)


def handover(stack: Stack) -> Handover:
    assert stack.handover is not None
    return stack.handover


def join_syn(token: int, port: int) -> bytes:
    header = build_header(
        CLIENTS[1],
        SERVER.ip,
        port,
        SERVER.port,
        7,
        0,
        2,
        65535,
        pad(MpJoinSyn(False, 1, token, b"\1\2\3\4").build()),
        0,
        0,
    )
    return bytes(header)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_connections_whose_packets_land_anywhere_carry_their_bytes(count: int) -> None:
    box = Box(count, seed=count)
    streams = [box.connect() for _ in range(20)]
    box.run(0.2)
    sent = {stream: box.rng.randbytes(30_000) for stream in streams}
    for stream, data in sent.items():
        stream.send(data)
    box.run(2.0)
    assert {stream: box.received.get(stream) for stream in streams} == sent
    assert all(len(stream.subflows) == 3 for stream in streams)
    assert sum(listener.opened for listener in box.listeners) == len(streams)
    assert sum(bool(worker.tokens) for worker in box.workers) > 1
    for worker in box.workers:
        assert all(worker.token_share.holds(token) for token in worker.tokens)
    assert box.counter("MPTcpExtMPJoinNoTokenFound") == 0
    assert box.counter("TCPOutRsts") == 0


@pytest.mark.parametrize("seed", range(8))
def test_loss_and_full_channels_between_workers_cost_time_alone(seed: int) -> None:
    box = Box(3, seed, loss=0.03)
    for channel in box.channels:
        channel.room = 3
    streams = [box.connect() for _ in range(10)]
    box.run(4.0)
    sent = {stream: box.rng.randbytes(20_000) for stream in streams}
    for stream, data in sent.items():
        stream.send(data)
    box.run(30.0)
    assert {stream: box.received.get(stream) for stream in streams} == sent
    assert sum(len(worker.tokens) for worker in box.workers) == len(streams)
    assert box.counter("WorkerHandoverDropped") > 0
    assert box.counter("TCPOutRsts") == 0


def test_a_repeated_syn_in_another_queue_makes_no_second_connection() -> None:
    box = Box(2)
    box.connect()
    (syn,) = [b"".join(packet) for packet in box.client.poll_transmit(box.now)]
    for worker in box.workers * 2:
        worker.receive(syn, box.now)
        box.step()
    assert sum(listener.opened for listener in box.listeners) == 1
    assert sum(len(worker.tokens) for worker in box.workers) == 1


def test_closed_connections_leave_no_claims() -> None:
    box = Box(3)
    streams = [box.connect() for _ in range(20)]
    box.run(0.2)
    assert any(handover(worker)._claimed for worker in box.workers)
    for stream in streams:
        stream.close(box.now)
    box.run(0.5)
    box.now += 100.0  # beyond TIME-WAIT
    box.run(0.1)
    assert not any(handover(worker)._claimed for worker in box.workers)
    assert not any(handover(worker)._away for worker in box.workers)


def test_a_worker_that_dies_takes_its_own_connections_alone() -> None:
    box = Box(2)
    streams = [box.connect() for _ in range(20)]
    box.run(0.2)
    owners = {
        stream: index
        for index, worker in enumerate(box.workers)
        for stream in streams
        if derive(stream.remote_key).token in worker.tokens
    }
    assert len(owners) == 20
    assert {0, 1} == set(owners.values())
    box.restart(0)
    for stream in streams:
        stream.send(b"still there?")
    box.run(1.0)
    for stream, owner in owners.items():
        assert (box.received.get(stream) == b"still there?") == (owner == 1)
        assert (len(stream.subflows) == 3) == (owner == 1)  # all of the others had a RST
    late = box.connect()
    box.run(0.2)
    late.send(b"new")
    box.run(0.2)
    assert box.received[late] == b"new"


def test_joins_with_made_up_tokens_are_passed_on_once_and_within_a_rate() -> None:
    box = Box(2)
    flood = 3 * int(HANDOVER_RATE)
    for number in range(flood):
        box.workers[0].receive(join_syn(2 * number + 1, number % 60000 + 1), box.now)
    assert box.channels[0].sent.total() <= HANDOVER_RATE + 2
    assert box.counter("WorkerHandoverDropped") >= flood - HANDOVER_RATE - 1
    for _ in range(10):
        box.step()
    assert box.channels[1].sent.total() <= 2  # HELLO and SYNCED: nothing comes back
    assert box.counter("TCPOutRsts") <= 200


def test_a_join_waits_while_its_claim_cannot_be_told() -> None:
    """Else its third ACK could meet a home that knows of nothing."""
    box = Box(2)
    stream = box.connect()
    for _ in range(3):
        box.step()
    for channel in box.channels:
        channel.room = 0
    box.run(0.5)
    assert len(stream.subflows) <= 3
    assert box.counter("TCPOutRsts") == 0
    for channel in box.channels:
        channel.room = 1 << 30
    box.run(8.0)
    assert len([s for s in stream.subflows if s.fully_established]) == 3
    assert box.counter("TCPOutRsts") == 0


def test_an_icmp_error_finds_the_connection_that_it_quotes() -> None:
    box = Box(2)
    box.connect()
    box.run(0.1)
    error = icmp.build_unreachable(parse(box.answer), icmp.Unreachable.HOST)
    for worker in box.workers:
        worker.receive(error, box.now)
    box.run(0.01)
    assert box.counter("IcmpNoConnection") == 0
