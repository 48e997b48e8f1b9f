"""Out-of-order data against a plain array of bytes."""

from __future__ import annotations

import random

import pytest

from proxy.tcp.reassembly import Reassembly

BASE = 0xFFFFFF00  # the numbers wrap inside every test
MASK = 0xFFFFFFFF


@pytest.mark.parametrize("seed", range(60))
def test_any_order_of_overlapping_pieces_gives_the_first_copies(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    size = rng.choice([50, 1000, 30_000])
    expected: list[int | None] = [None] * size
    reassembly = Reassembly(10_000)
    rcv_nxt = 0
    delivered = bytearray()
    for _ in range(100):
        start = rng.randrange(rcv_nxt + 1, size) if rcv_nxt + 1 < size else size
        length = min(rng.randrange(1, max(size // 5, 2)), size - start)
        if length <= 0:
            break
        piece = rng.randbytes(length)
        new = [i for i in range(length) if expected[start + i] is None]
        for i in new:
            expected[start + i] = piece[i]
        told = reassembly.insert((BASE + start) & MASK, memoryview(piece), (BASE + rcv_nxt) & MASK)
        assert told == bool(new)
        assert reassembly.size == sum(b is not None for b in expected[rcv_nxt:])
        starts = [(r.start - BASE) & MASK for r in reassembly.ranges]
        assert starts == sorted(starts)
        if rng.random() < 0.1:  # the hole is filled
            if expected[rcv_nxt] is None:
                expected[rcv_nxt] = 7
                delivered.append(7)
                rcv_nxt += 1
            while (ready := reassembly.pop_ready((BASE + rcv_nxt) & MASK)) is not None:
                data = b"".join(bytes(c) for c in ready.chunks)
                known = (BASE + rcv_nxt - ready.start) & MASK
                delivered += data[known:]
                rcv_nxt += len(data) - known
    assert list(delivered) == expected[:rcv_nxt]


def test_farthest_range_is_dropped_over_the_limit() -> None:
    reassembly = Reassembly(3)
    for start in (10, 20, 30, 40):
        reassembly.insert(start, memoryview(b"x"), 0)
    assert [r.start for r in reassembly.ranges] == [10, 20, 30]
    assert reassembly.size == 3
    reassembly.insert(5, memoryview(b"x"), 0)
    assert [r.start for r in reassembly.ranges] == [5, 10, 20]
    assert (40, 41) not in reassembly.blocks()


def test_a_small_piece_does_not_pin_its_packet() -> None:
    reassembly = Reassembly(10)
    packet = memoryview(bytes(60_000))
    reassembly.insert(10, packet[:3000], 0)
    reassembly.insert(10_000, packet[:10], 0)
    for r in reassembly.ranges:
        for chunk in r.chunks:
            assert not isinstance(chunk, memoryview)
