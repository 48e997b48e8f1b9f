"""The extension and its twin agree on everything, also on what a stranger makes up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy import _seg, _seg_py
from proxy.errors import CodecError, LocalProtocolError
from tests.unit.seg_packets import (
    A4,
    A6,
    B4,
    B6,
    mutated_packets,
    packets,
    tcp_packet,
    u8,
    u16,
    u32,
)

FIELDS = _seg_py.Segment.__slots__
MANY = settings(max_examples=600, deadline=None)


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What comes back, or the error as a value."""
    try:
        return function(*arguments)
    except (CodecError, LocalProtocolError) as error:
        return type(error), str(error)


def parsed(function: Callable[[bytes], Any], packet: bytes) -> Any:
    result = outcome(function, packet)
    if isinstance(result, tuple):
        return result
    return {name: getattr(result, name) for name in FIELDS}


@given(packets())
@MANY
def test_packets_parse_alike(packet: bytes) -> None:
    result = parsed(_seg.parse, packet)
    assert result == parsed(_seg_py.parse, packet)


@given(mutated_packets())
@MANY
def test_mutated_packets_parse_alike(packet: bytes) -> None:
    assert parsed(_seg.parse, packet) == parsed(_seg_py.parse, packet)


@given(st.binary(max_size=120))
@settings(deadline=None)
def test_noise_parses_alike(packet: bytes) -> None:
    assert parsed(_seg.parse, packet) == parsed(_seg_py.parse, packet)


@given(
    st.integers(0, 10)
    .map(lambda words: words * 4)
    .flatmap(lambda n: st.binary(min_size=n, max_size=n)),
    u8,
)
@MANY
def test_noise_in_the_options_parses_alike_and_never_drops(options: bytes, flags: int) -> None:
    packet = tcp_packet(b"payload", options, flags=flags)
    result = parsed(_seg.parse, packet)
    assert result == parsed(_seg_py.parse, packet)
    assert bytes(result["payload"]) == b"payload"


@given(mutated_packets())
@settings(max_examples=500, deadline=None)
def test_split_and_finish_alike(packet: bytes) -> None:
    for name in ("gso_split", "finish_checksum"):
        assert outcome(getattr(_seg, name), packet) == outcome(getattr(_seg_py, name), packet), name


@st.composite
def batches(draw: st.DrawFn) -> list[bytes]:
    """Packets of a few flows, mostly in order, now and then with something odd."""
    batch = []
    seqs = [draw(u32) for _ in range(3)]
    for _ in range(draw(st.integers(0, 12))):
        flow = draw(st.integers(0, 2))
        data = bytes(draw(st.sampled_from((0, 8, 8, 8, 9, 7, 24))))
        device = bytes(10)
        if len(data) == 24:
            device = bytes((1, 4 if flow == 2 else 1, 0, 0, 8, 0, 0, 0, 0, 0))
        packet = tcp_packet(
            data,
            src=A6 if flow == 2 else A4,
            dst=B6 if flow == 2 else B4,
            sport=flow,
            seq=seqs[flow],
            flags=draw(st.sampled_from((16, 16, 16, 24, 17, 144, 80, 20, 0))),
            device=device,
        )
        if draw(st.integers(0, 9)) == 0:
            at = draw(st.integers(0, len(packet) - 1))
            packet = packet[:at] + bytes((draw(u8),)) + packet[at + 1 :]
        if draw(st.integers(0, 19)) == 0:
            packet = draw(mutated_packets())
        batch.append(packet)
        seqs[flow] = (seqs[flow] + len(data)) % 2**32
    return batch


@given(batches())
@MANY
def test_batches_merge_alike(batch: list[bytes]) -> None:
    assert _seg.gro_merge(batch) == _seg_py.gro_merge(batch)


@given(
    st.sampled_from((A4, A6, b"", A4[:3])),
    st.sampled_from((B4, B6)),
    u16,
    u32,
    u8,
    st.sampled_from((b"", bytes(4), bytes(12), bytes(40), bytes(44), bytes(3))),
    st.integers(-1, 66000),
    u16,
    u8,
)
@settings(max_examples=500, deadline=None)
def test_headers_are_built_alike(
    src: bytes,
    dst: bytes,
    port: int,
    seq: int,
    flags: int,
    options: bytes,
    length: int,
    size: int,
    tos: int,
) -> None:
    arguments = (src, dst, port, 80, seq, 7, flags, port, options, length, size, tos, 64, port)
    result = outcome(_seg.build_header, *arguments)
    assert result == outcome(_seg_py.build_header, *arguments)
