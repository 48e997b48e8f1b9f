"""A gateway of several workers: what one of them learnt holds for all."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.config import ClientConfig, ControlConfig, EgressConfig, GatewayConfig, ListenConfig
from proxy.convert.auth import NONCE_LENGTH, Client
from proxy.engine.handover import Handover
from proxy.engine.stack import ACK, SYN, Stack
from proxy.mptcp.keys import TokenShare
from proxy.relay import admission
from proxy.relay.flow import ByteStream, FlowNumbers, worker_of
from proxy.relay.gateway import Cancellable, GatewayRelay
from proxy.relay.shared import share_blackhole
from proxy.wire.address import Address
from tests.memory_channel import MemoryChannel
from tests.unit.test_relay_hostile import (
    GATEWAY,
    PROXY,
    SECRET,
    SERVER,
    WALL,
    _Call,
    _tun,
    answers,
    packet,
    syn_options,
)


class Gateways:
    """The workers of a gateway; ``dialled`` has the servers that any of them was asked to reach."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.dialled: list[Address] = []
        self.wall = WALL
        self.queues: list[list[bytes]] = [[] for _ in range(count)]
        self.stacks: list[Stack] = []
        self.relays: list[GatewayRelay] = []
        for index in range(count):
            self.start(index)

    def start(self, index: int, run: int = 0, forgot_until: float = 0.0) -> None:
        share = TokenShare(index, self.count, run)
        stack = Stack(random.Random(index), share=share)
        channel = MemoryChannel(index, self.queues)
        Handover(stack, share, bytes(32), channel, forgot_until).begin()
        config = GatewayConfig(
            ListenConfig((GATEWAY.ip,), GATEWAY.port),
            (ClientConfig("home", SECRET),),
            EgressConfig(),
            _tun("198.18.93.0/24"),
            ControlConfig(Path("unused")),
        )
        relay = GatewayRelay(config, stack, self._dial, lambda: 1.0, lambda: self.wall)
        self.stacks[index : index + 1] = [stack]
        self.relays[index : index + 1] = [relay]

    def _dial(self, server: Address, done: Callable[[ByteStream | None, int], None]) -> Cancellable:
        self.dialled.append(server)
        return _Call()

    def receive(self, worker: int, data: bytes) -> None:
        self.stacks[worker].receive(data, 1.0)
        self.settle()

    def settle(self) -> None:
        for _ in range(4):
            for stack in self.stacks:
                assert stack.handover is not None
                stack.handover.read()
                stack.handover.receive(1.0)

    def counter(self, name: str) -> int:
        return sum(stack.counters[name] for stack in self.stacks)


def request(number: int) -> bytes:
    nonce = number.to_bytes(NONCE_LENGTH, "big")
    return Client("home", SECRET).request(SERVER, WALL + 1, nonce)


def syn(port: int, data: bytes) -> bytes:
    return packet(Address(PROXY.ip, port), GATEWAY, 1000, 0, SYN, syn_options(), data)


@pytest.mark.parametrize("count", [2, 5])
def test_a_request_is_good_once_whichever_worker_gets_it(count: int) -> None:
    box = Gateways(count)
    for number in range(20):
        for port in range(40000, 40008):  # as many flows, which fall to different workers
            box.receive(port % count, syn(port + 8 * number, request(number)))
    assert len(box.dialled) == 20
    assert box.counter("ConvertDrop-replay") == 7 * 20


def test_a_late_request_is_good_once_as_well() -> None:
    box = Gateways(2)
    client = Client("home", SECRET)
    for port in range(40000, 40010):
        source = Address(PROXY.ip, port)
        bare = syn_options(ts_val=client.knock(1000))
        box.receive(0, packet(source, GATEWAY, 1000, 0, SYN, bare))
        sent = [answer for stack in box.stacks for answer in answers(stack)]
        (syn_ack,) = [answer for answer in sent if answer.flags & SYN]
        box.receive(1, packet(source, GATEWAY, 1001, syn_ack.seq + 1, ACK, b"", request(7)))
    assert len(box.dialled) == 1
    assert box.counter("ConvertDrop-replay") == 9
    assert box.counter("TCPOutRsts") == 0


def test_a_worker_that_was_started_again_wants_proof_that_a_request_is_new() -> None:
    """Its predecessor may have seen it: nobody knows any more."""
    box = Gateways(2)
    for number in range(20):
        box.receive(0, syn(40000 + number, request(number)))
    assert len(box.dialled) == 20
    box.start(1, run=1, forgot_until=WALL + 2)
    box.wall = WALL + 3
    for number in range(20):
        box.receive(0, syn(50000 + number, request(number)))
    assert len(box.dialled) == 20
    box.start(1, run=1, forgot_until=WALL + 2)
    fresh = Client("home", SECRET)
    for number in range(100, 120):
        nonce = number.to_bytes(NONCE_LENGTH, "big")
        box.receive(0, syn(51000 + number, fresh.request(SERVER, WALL + 4, nonce)))
    assert len(box.dialled) == 40


def test_a_clients_limit_is_parted_among_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_OPENING", 8)
    box = Gateways(2)
    for number in range(200):
        box.receive(0, syn(40000 + number, request(number)))
    assert len(box.dialled) == 8


def test_ids_of_flows_are_unique_and_name_their_worker() -> None:
    shares = [TokenShare(index, 3, run) for index in range(3) for run in range(2)]
    makers = {share: FlowNumbers(share) for share in shares}
    numbers = {share: [maker.take() for _ in range(100)] for share, maker in makers.items()}
    everything = [number for row in numbers.values() for number in row]
    assert len(set(everything)) == len(everything)
    assert min(everything) == 1
    assert all(worker_of(n, 3) == share.index for share, row in numbers.items() for n in row)


def test_a_path_that_swallows_is_avoided_by_all_and_counted_once() -> None:
    box = Gateways(2)
    for stack in box.stacks:
        assert stack.handover is not None
        share_blackhole(stack, stack.handover)
    path = (PROXY.ip, GATEWAY.ip)
    box.stacks[0].blackhole.fell_in(*path, 1.0, 2.0)
    box.settle()
    box.stacks[1].blackhole.fell_in(*path, 3.0, 4.0)
    box.settle()
    assert [stack.blackhole.active(*path, 5.0) for stack in box.stacks] == [True, True]
    assert box.counter("MPTcpExtBlackhole") == 1
    box.stacks[0].blackhole.works(*path)
    box.settle()
    assert [stack.blackhole.active(*path, 5.0) for stack in box.stacks] == [False, False]
