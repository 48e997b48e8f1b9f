"""Mappings of a subflow, and the send buffer they point into."""

from __future__ import annotations

import random

import pytest

from proxy.mptcp.mapping import MASK, RxMapping, TxMapping, TxMappings, insert_pending
from proxy.mptcp.notes import Again
from proxy.mptcp.send import DataSender
from proxy.mptcp.send_buffer import SendBuffer

START = 0xFFFFF000


def filled(count: int, length: int = 100) -> TxMappings:
    mappings = TxMappings()
    for number in range(count):
        seq = (START + number * length) & MASK
        mappings.add(TxMapping(seq, number * length, length, -1, 0.0))
    return mappings


@pytest.mark.parametrize("count", [1, 2, 3, 64, 500])
def test_the_mapping_of_any_byte_is_found_across_the_wrap(count: int) -> None:
    mappings = filled(count)
    for offset in range(0, count * 100, 33):
        found = mappings.find((START + offset) & MASK)
        assert found is not None
        assert found.offset <= offset < found.offset + found.length
    assert mappings.find((START + count * 100) & MASK) is None
    assert mappings.find((START - 1) & MASK) is None


def test_a_mapping_stays_until_both_levels_acknowledged_it() -> None:
    mappings = filled(300)
    mappings.prune((START + 20_000) & MASK, 5_000)
    assert len(mappings) == 250
    first = mappings.first(5_000)
    assert first is not None
    assert first.offset == 5_000
    mappings.prune((START + 20_000) & MASK, 29_000)
    assert len(mappings) == 100
    assert [m.offset for m in mappings.unacked(29_850)] == [29_800, 29_900]
    mappings.prune((START + 30_000) & MASK, 30_000)
    assert len(mappings) == 0
    assert mappings.find(START) is None


def test_pending_mappings_are_kept_in_order_and_contradictions_refused() -> None:
    pending: list[RxMapping] = []
    for seq in (300, 100, 0xFFFFFF00, 200):
        assert insert_pending(pending, RxMapping(seq, seq, 100, -1))
    assert [m.seq for m in pending] == [0xFFFFFF00, 100, 200, 300]
    assert insert_pending(pending, RxMapping(200, 200, 100, -1)), "the same once more"
    assert len(pending) == 4
    assert not insert_pending(pending, RxMapping(250, 250, 100, -1))
    assert not insert_pending(pending, RxMapping(200, 999, 100, -1))
    assert not insert_pending(pending, RxMapping(50, 50, 100, -1))


@pytest.mark.parametrize("seed", range(20))
def test_the_send_buffer_gives_back_any_slice_of_what_was_written(seed: int) -> None:
    rng = random.Random(seed)
    buffer = SendBuffer()
    stream = bytearray()
    for _ in range(400):
        chunk = rng.randbytes(rng.choice((0, 1, 7, 1000, 5000)))
        stream += chunk
        buffer.append(chunk)
        if buffer.end > buffer.una:
            begin = rng.randrange(buffer.una, buffer.end)
            size = rng.randrange(1, buffer.end - begin + 1)
            views = buffer.slice(begin, size)
            assert b"".join(views) == stream[begin : begin + size]
        if rng.random() < 0.4:
            buffer.release(rng.randint(buffer.una, buffer.end))
    buffer.release(buffer.end)
    assert buffer.una == buffer.nxt == buffer.end == len(stream)


def test_bytes_can_be_put_in_front_before_the_stream_begins() -> None:
    buffer = SendBuffer()
    buffer.append(b"world")
    buffer.prepend(b"hello ")
    assert b"".join(buffer.slice(0, 11)) == b"hello world"
    buffer.nxt = 3
    with pytest.raises(ValueError, match="begun"):
        buffer.prepend(b"x")


@pytest.mark.parametrize("idsn", [0, 2**32 - 10, 2**64 - 1, 2**63])
def test_data_acks_are_expanded_around_what_is_outstanding(idsn: int) -> None:
    tx = DataSender()
    tx.start(idsn)
    tx.append(bytes(1000))
    for offset in (0, 1, 500, 1000):
        raw = tx.dsn(offset)
        assert tx.ack_offset(raw, True) == offset
        assert tx.ack_offset(raw & 0xFFFFFFFF, False) == offset
    assert tx.ack_offset((tx.dsn(0) - 5) & 0xFFFFFFFF, False) == -5


def test_reinjections_are_in_the_order_of_the_stream_and_skip_what_was_acknowledged() -> None:
    tx = DataSender()
    tx.append(bytes(1000))
    tx.nxt = 1000
    for start in (600, 200, 400):
        tx.queue_again(start, start + 100, None, Again.TIMEOUT)
    tx.release(250)
    first = tx.next_again()
    assert first is not None
    assert (first.start, first.end) == (250, 300)
    tx.sent_again(280)
    following = tx.next_again()
    assert following is not None
    assert (following.start, following.end) == (280, 300)
    tx.release(650)
    following = tx.next_again()
    assert following is not None
    assert (following.start, following.end) == (650, 700)
