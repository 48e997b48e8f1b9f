"""Sequence arithmetic, addresses and the virtio header."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import CodecError
from proxy.wire.address import Address, format_ip, parse_ip
from proxy.wire.sequence import (
    dsn_diff,
    dsn_expand,
    dsn_lt,
    seq_diff,
    seq_ge,
    seq_gt,
    seq_le,
    seq_lt,
)
from proxy.wire.virtio import GSO_TCPV6, NEEDS_CSUM, VirtioHeader
from tests.unit.seg_packets import u16, u32, u64

near32 = st.integers(-(2**31) + 1, 2**31 - 1)
near64 = st.integers(-(2**63) + 1, 2**63 - 1)


@given(u32, near32)
def test_sequence_order_holds_across_the_wrap(start: int, ahead: int) -> None:
    other = (start + ahead) % 2**32
    assert seq_diff(other, start) == ahead
    assert seq_lt(start, other) == (ahead > 0)
    assert seq_le(start, other) == (ahead >= 0)
    assert seq_gt(start, other) == (ahead < 0)
    assert seq_ge(start, other) == (ahead <= 0)


@given(u64, near64)
def test_dsn_order_holds_across_the_wrap(start: int, ahead: int) -> None:
    other = (start + ahead) % 2**64
    assert dsn_diff(other, start) == ahead
    assert dsn_lt(start, other) == (ahead > 0)


@given(u64, near32)
def test_truncated_dsn_is_expanded_to_the_nearest(near: int, ahead: int) -> None:
    dsn = (near + ahead) % 2**64
    assert dsn_expand(dsn & 0xFFFFFFFF, near) == dsn


def test_truncated_dsn_is_expanded_across_both_wraps() -> None:
    assert dsn_expand(5, 2**32 - 5) == 2**32 + 5
    assert dsn_expand(0xFFFFFFFB, 2**32 + 5) == 0xFFFFFFFB
    assert dsn_expand(5, 2**64 - 5) == 5
    assert dsn_expand(0xFFFFFFFB, 5) == 2**64 - 5


@pytest.mark.parametrize("text", ["192.0.2.1:80", "[2001:db8::1]:65535", "0.0.0.0:0"])
def test_address_reads_what_it_writes(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "1.2.3.4", "::1:80", "[1.2.3.4]:80", "[::1]", "a:1", "1.2.3.4:65536", "1.2.3.4:-1"]
)
def test_address_refuses_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Address.parse(text)


def test_ip_text() -> None:
    assert format_ip(parse_ip("2001:DB8::0:1")) == "2001:db8::1"
    assert parse_ip("10.0.0.1") == bytes((10, 0, 0, 1))
    assert Address(parse_ip("::1"), 1).is_v6
    with pytest.raises(ValueError, match="address"):
        parse_ip("host.example")


@given(u16, u16, u16)
def test_virtio_header_reads_what_it_writes(length: int, size: int, start: int) -> None:
    header = VirtioHeader(NEEDS_CSUM, GSO_TCPV6, length, size, start, 16)
    assert VirtioHeader.parse(header.build() + b"more") == header
    assert header.build()[2] == length & 0xFF


def test_short_virtio_header_is_refused() -> None:
    with pytest.raises(CodecError):
        VirtioHeader.parse(bytes(9))
