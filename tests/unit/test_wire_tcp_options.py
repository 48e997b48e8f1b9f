"""TCP options of a SYN, and SACK blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import seg
from proxy.errors import LocalProtocolError
from proxy.wire.tcp_options import SynOptions, sack_option, split_options
from tests.unit.seg_packets import options, tcp_packet, u16, u32


def test_syn_options_are_laid_out_as_linux_does() -> None:
    built = SynOptions(1460, 10, True, 0x172091DD, 0).build(bytes.fromhex("1e040101"))
    assert built == bytes.fromhex("020405b4 0402 080a172091dd00000000 01 03030a 1e040101")


@pytest.mark.parametrize("absent", range(16))
def test_any_subset_of_syn_options_reads_back(absent: int) -> None:
    some = SynOptions(
        mss=-1 if absent & 1 else 1460,
        wscale=-1 if absent & 2 else 7,
        sack_permitted=not absent & 4,
        ts_val=-1 if absent & 8 else 1,
        ts_ecr=0 if absent & 8 else 2,
    )
    built = some.build()
    assert len(built) % 4 == 0
    assert SynOptions.parse(built) == some
    parsed = seg.parse(tcp_packet(options=built, flags=2))
    assert (parsed.mss, parsed.wscale, parsed.sack_permitted) == (
        some.mss,
        some.wscale,
        some.sack_permitted,
    )


@given(options)
def test_parsing_agrees_with_the_segment(raw: bytes) -> None:
    parsed, found = seg.parse(tcp_packet(options=raw, flags=2)), SynOptions.parse(raw)
    assert found == SynOptions(
        parsed.mss, parsed.wscale, parsed.sack_permitted, parsed.ts_val, parsed.ts_ecr
    )


def test_options_that_do_not_fit_are_our_own_fault() -> None:
    full = SynOptions(1460, 10, True, 1, 2)
    full.build(bytes(20))
    for mptcp in (bytes(24), bytes(3)):
        with pytest.raises(LocalProtocolError):
            full.build(mptcp)


def test_split_stops_at_what_cannot_be() -> None:
    assert split_options(bytes.fromhex("01 0402 01 1e040101 0801 0402")) == [
        (4, b"\x04\x02"),
        (30, b"\x1e\x04\x01\x01"),
    ]
    assert split_options(b"\x04") == []
    assert split_options(b"\x00\x04\x02") == []
    assert split_options(b"\x04\x03") == []


@given(st.lists(st.tuples(u32, u32), max_size=6), st.integers(0, 40))
def test_sack_blocks_fill_the_room(blocks: list[tuple[int, int]], room: int) -> None:
    option = sack_option(blocks, room)
    assert len(option) <= room
    expected = max(min((room - 4) // 8, 4, len(blocks)), 0)
    assert seg.parse(tcp_packet(options=option)).sack == tuple(blocks[:expected])


@given(u16)
def test_mss_takes_every_value(mss: int) -> None:
    assert SynOptions.parse(SynOptions(mss=mss).build()).mss == mss
