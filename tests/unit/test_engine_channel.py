"""Messages between workers over real sockets."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from proxy.engine.handover import Handover
from proxy.engine.runtime_channel import SocketChannel, make_pair
from proxy.engine.stack import Stack
from proxy.mptcp.keys import TokenShare

MESSAGE = bytes(60_000)


@pytest.fixture
def channels() -> Iterator[list[SocketChannel]]:
    pairs = [make_pair() for _ in range(3)]
    yield [
        SocketChannel(inlet, {i: pairs[i][1] for i in range(3) if i != index})
        for index, (inlet, _) in enumerate(pairs)
    ]
    for pair in pairs:
        for end in pair:
            end.close()


def fill(channel: SocketChannel, worker: int) -> int:
    sent = 0
    while channel.send(worker, MESSAGE[:2], MESSAGE[2:]):
        sent += 1
        assert sent < 10_000, "there is no bound"
    return sent


def test_messages_arrive_whole_and_in_order(channels: list[SocketChannel]) -> None:
    messages = [bytes((n, 0)) + random.Random(n).randbytes(n * 500) for n in range(130)]
    for message in messages:
        assert channels[0].send(2, message[:2], message[2:])
    assert channels[2].receive() == messages
    assert channels[2].receive() == []


def test_a_worker_that_does_not_read_costs_bounded_memory_and_no_time(
    channels: list[SocketChannel],
) -> None:
    assert fill(channels[0], 1) * len(MESSAGE) < 16 * 1024 * 1024
    assert not channels[2].send(1, MESSAGE)  # the bound is one for all who send
    assert channels[0].send(2, MESSAGE)
    channels[1].receive()
    assert channels[0].send(1, MESSAGE)


def test_what_waits_for_one_worker_does_not_hold_up_another(channels: list[SocketChannel]) -> None:
    share = TokenShare(0, 3)
    stack = Stack(random.Random(1), share=share)
    handover = Handover(stack, share, bytes(32), channels[0])
    fill(channels[0], 1)
    fill(channels[0], 2)
    handover.note("news")
    assert handover.waiting
    channels[2].receive()
    handover.flush()
    assert [message[2:] for message in channels[2].receive() if message[2:] != MESSAGE[2:]]
    assert handover.waiting
    while channels[1].receive():
        pass
    handover.flush()
    assert not handover.waiting
