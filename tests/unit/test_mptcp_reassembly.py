"""Connection-level reassembly against a model that keeps every byte."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.mptcp.reassembly import MAX_FRAGMENTS, Reassembly

STREAM = random.Random(7).randbytes(20_000)
EDGE = 1 << 40


def drain(stream: Reassembly, limit: int = 1 << 30) -> bytes:
    return b"".join(bytes(piece) for piece in stream.take(limit))


piece = st.tuples(st.integers(0, 19_000), st.integers(1, 3000))


@settings(max_examples=300, deadline=None)
@given(st.lists(piece, max_size=60), st.integers(1, 4000))
def test_any_order_and_overlap_gives_the_stream(pieces: list[tuple[int, int]], read: int) -> None:
    stream = Reassembly()
    have = bytearray(len(STREAM))
    out = bytearray()
    for start, size in pieces:
        chunk = memoryview(STREAM)[start : start + size]
        stream.insert(start, chunk, EDGE)
        have[start : start + len(chunk)] = b"\x01" * len(chunk)
        expected = have.find(0) if 0 in have else len(have)
        assert stream.rcv_nxt == expected
        out += drain(stream, read)
        assert stream.ready_bytes == expected - len(out)
        assert stream.waiting_bytes == sum(have[expected:])
    out += drain(stream)
    assert bytes(out) == STREAM[: stream.rcv_nxt]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 80)), min_size=1, max_size=40))
def test_the_first_copy_of_a_byte_wins(pieces: list[tuple[int, int]]) -> None:
    stream = Reassembly()
    model: dict[int, int] = {}
    out = bytearray()
    for number, (start, size) in enumerate(pieces):
        stream.insert(start, memoryview(bytes([number]) * size), EDGE)
        for offset in range(start, start + size):
            model.setdefault(offset, number)
        out += drain(stream)
    assert list(out) == [model[offset] for offset in range(stream.rcv_nxt)]


def test_bytes_beyond_the_edge_are_dropped() -> None:
    stream = Reassembly()
    assert stream.insert(0, memoryview(bytes(100)), 60) == 60
    assert stream.insert(60, memoryview(bytes(10)), 60) == 0
    assert stream.beyond == 2
    assert stream.rcv_nxt == 60


def test_single_bytes_cost_little_memory() -> None:
    stream = Reassembly()
    packet = bytes(65536)
    for offset in range(20_000):
        stream.insert(offset, memoryview(packet)[:1], EDGE)
    assert len(stream.ready) < 10
    for offset in range(30_000, 50_000):
        stream.insert(offset, memoryview(packet)[:1], EDGE)
    assert stream.fragments < 10


def test_the_number_of_fragments_is_bounded() -> None:
    stream = Reassembly()
    for number in range(MAX_FRAGMENTS + 1000):
        stream.insert(10 + 2 * number, memoryview(b"x"), EDGE)
    assert stream.fragments == MAX_FRAGMENTS
    assert stream.waiting_bytes == MAX_FRAGMENTS


def test_a_small_rest_does_not_pin_a_large_packet() -> None:
    stream = Reassembly()
    stream.insert(0, memoryview(bytes(60_000)), EDGE)
    drain(stream)
    stream.insert(0, memoryview(bytes(61_000)), EDGE)
    (rest,) = stream.take(1 << 20)
    assert not isinstance(rest, memoryview) or len(rest.obj) == 1000  # type: ignore[arg-type]
