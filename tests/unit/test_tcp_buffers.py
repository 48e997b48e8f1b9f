"""Byte queues: order, exact counts, and the cost of small chunks."""

from __future__ import annotations

import random
import sys

import pytest

from proxy.tcp.buffers import (
    MERGED,
    SMALL,
    Buffer,
    ReceiveQueue,
    SendQueue,
    drop_front,
    split_chunks,
)


def joined(chunks: list[Buffer]) -> bytes:
    return b"".join(bytes(chunk) for chunk in chunks)


@pytest.mark.parametrize("seed", range(20))
def test_queues_are_streams_whatever_the_chunk_sizes(seed: int) -> None:
    rng = random.Random(seed)
    print(f"seed {seed}")
    send, receive = SendQueue(), ReceiveQueue()
    put = bytearray()
    got_send, got_receive = bytearray(), bytearray()
    held = 0
    for _ in range(300):
        chunk = rng.randbytes(rng.choice([1, 3, 100, SMALL - 1, SMALL, 5000, MERGED]))
        put += chunk
        held += len(chunk)
        send.append(chunk)
        receive.append(memoryview(chunk))
        if rng.random() < 0.5:
            count = rng.randrange(1, send.size + 1)
            got_send += joined(send.take(count))
        if rng.random() < 0.5:
            taken = joined(receive.take(rng.randrange(held + 10)))
            held -= len(taken)
            got_receive += taken
    assert send.size == len(put) - len(got_send)
    got_send += joined(send.take(send.size)) if send.size else b""
    got_receive += joined(receive.take(1 << 30))
    assert got_send == put
    assert got_receive == put


def test_bytes_taken_earlier_do_not_change() -> None:
    queue = SendQueue()
    queue.append(b"ab")
    queue.append(b"cd")
    first = queue.take(3)
    queue.append(b"ef")
    assert joined(first) == b"abc"
    assert joined(queue.take(3)) == b"def"


def test_single_bytes_cost_about_a_byte() -> None:
    queue = ReceiveQueue()
    packet = bytes(1500)
    for _ in range(10_000):
        queue.append(memoryview(packet)[:1])
    size = sum(sys.getsizeof(chunk) for chunk in queue._chunks)
    assert size < 20_000


def test_prepended_bytes_come_first() -> None:
    queue = SendQueue()
    queue.append(b"world")
    queue.prepend(b"hello ")
    assert joined(queue.take(queue.size)) == b"hello world"


def test_drop_and_split_at_every_position() -> None:
    data = bytes(range(30))
    for cut in range(31):
        chunks: list[Buffer] = [data[:7], memoryview(data)[7:20], data[20:]]
        head, rest = split_chunks(list(chunks), cut)
        assert (joined(head), joined(rest)) == (data[:cut], data[cut:])
        drop_front(chunks, cut)
        assert joined(chunks) == data[cut:]
