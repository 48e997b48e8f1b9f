"""Batches of packets from and to a descriptor, on a socket pair that keeps packets apart."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Iterator
from types import ModuleType

import pytest


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    yield ends
    for end in ends:
        end.close()


def test_packets_of_all_sizes_are_read_in_order(
    seg: ModuleType, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, two = pair
    rng = random.Random(1)
    packets = [rng.randbytes(size) for size in (54, 8191, 8192, 60000, 10, 65546, 1500)]
    read = []
    for packet in packets:
        one.send(packet)
        read += seg.read_packets(two.fileno(), 64)
    assert read == packets


def test_a_batch_has_a_limit_and_ends_when_nothing_waits(
    seg: ModuleType, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, two = pair
    packets = [bytes([index]) * 100 for index in range(5)]
    for packet in packets:
        one.send(packet)
    assert seg.read_packets(two.fileno(), 3) == packets[:3]
    assert seg.read_packets(two.fileno(), 3) == packets[3:]
    assert seg.read_packets(two.fileno(), 3) == []


def test_packets_read_before_stay_as_they_are(
    seg: ModuleType, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, two = pair
    one.send(b"a" * 9000)
    (first,) = seg.read_packets(two.fileno(), 64)
    one.send(b"b" * 60000)
    (second,) = seg.read_packets(two.fileno(), 64)
    one.send(b"c" * 100)
    (third,) = seg.read_packets(two.fileno(), 64)
    assert (first, second, third) == (b"a" * 9000, b"b" * 60000, b"c" * 100)


def test_a_failure_to_read_is_an_error(seg: ModuleType) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        seg.read_packets(-1, 64)


def test_packets_are_written_one_by_one(
    seg: ModuleType, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, two = pair
    packets = [[b"head", memoryview(b"-body-")[1:5]], [b"alone"], [b"a", bytearray(b"b"), b"c"]]
    assert seg.write_packets(one.fileno(), packets, 1) == (2, 8, 0)
    assert seg.write_packets(one.fileno(), packets[:1], 0) == (1, 8, 0)
    assert seg.read_packets(two.fileno(), 64) == [b"alone", b"abc", b"headbody"]


def test_a_packet_of_too_many_parts_is_joined(
    seg: ModuleType, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, two = pair
    assert seg.write_packets(one.fileno(), [[b"x"] * 3000], 0) == (1, 3000, 0)
    assert seg.read_packets(two.fileno(), 64) == [b"x" * 3000]


def test_a_refused_packet_ends_the_batch_with_its_error(seg: ModuleType) -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        one.setblocking(False)
        packets: list[list[bytes]] = [[b"first"], [b"x" * (1 << 22)], [b"third"]]
        assert seg.write_packets(one.fileno(), packets, 0) == (1, 5, errno.EMSGSIZE)
        assert seg.write_packets(one.fileno(), packets, 2) == (1, 5, 0)
        assert os.read(two.fileno(), 100) == b"first"
        assert os.read(two.fileno(), 100) == b"third"


def test_what_is_no_buffer_is_refused(
    seg: ModuleType, pair: tuple[socket.socket, socket.socket]
) -> None:
    with pytest.raises(TypeError):
        seg.write_packets(pair[0].fileno(), [[b"good", 7]], 0)
