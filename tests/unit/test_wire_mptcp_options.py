"""MPTCP options: kernel captures, exact lengths, and which may share a segment."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import seg
from proxy.errors import CodecError
from proxy.wire.mptcp_options import (
    ADD_ADDR,
    DSS,
    MP_CAPABLE,
    MP_FAIL,
    MP_FASTCLOSE,
    MP_JOIN,
    MP_PRIO,
    MP_TCPRST,
    REMOVE_ADDR,
    AddAddr,
    MpCapable,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpPrio,
    MptcpOption,
    MpTcprst,
    RemoveAddr,
    compatible,
    pad,
    parse_option,
    parse_options,
    subtype_of,
)
from tests.unit.seg_packets import tcp_packet

KEY_A, KEY_B = bytes.fromhex("1782f8ead15c56fb"), bytes.fromhex("38b0e02f1ae77431")
NONCE_A, NONCE_B = bytes.fromhex("1cf0e6fe"), bytes.fromhex("83e4732e")
HMAC_B8 = bytes.fromhex("9d0df19d5bb644af")
HMAC_A20 = bytes.fromhex("8042391ea0cae5f8629a93e0a68279dc3934367b")
ADD_HMAC = bytes.fromhex("c2e7484c07a69770")
IP4, IP6 = bytes((10, 99, 2, 2)), bytes(range(16))

SYN, SYN_ACK, OTHER = (True, False), (True, True), (False, True)

# (raw, (syn, ack), option): the first ten as captured from Linux 6.18
VECTORS: list[tuple[str, tuple[bool, bool], MptcpOption]] = [
    ("1e040101", SYN, MpCapable()),
    ("1e0c0101 38b0e02f1ae77431", SYN_ACK, MpCapable(KEY_B)),
    ("1e140101 1782f8ead15c56fb 38b0e02f1ae77431", OTHER, MpCapable(KEY_A, KEY_B)),
    ("1e0c1001 34702aa1 1cf0e6fe", SYN, MpJoinSyn(False, 1, 0x34702AA1, NONCE_A)),
    ("1e101001 9d0df19d5bb644af 83e4732e", SYN_ACK, MpJoinSynAck(False, 1, HMAC_B8, NONCE_B)),
    ("1e181000 8042391ea0cae5f8629a93e0a68279dc3934367b", OTHER, MpJoinAck(HMAC_A20)),
    ("1e103001 0a630202 c2e7484c07a69770", OTHER, AddAddr(1, IP4, None, False, ADD_HMAC)),
    ("1e083101 0a630202", OTHER, AddAddr(1, IP4, None, True)),
    ("1e12 30 01 0a630202 0050 c2e7484c07a69770", OTHER, AddAddr(1, IP4, 80, False, ADD_HMAC)),
    ("1e0a 31 01 0a630202 0050", OTHER, AddAddr(1, IP4, 80, True)),
    (
        "1e1c 30 02 000102030405060708090a0b0c0d0e0f c2e7484c07a69770",
        OTHER,
        AddAddr(2, IP6, None, False, ADD_HMAC),
    ),
    (
        "1e1e 30 02 000102030405060708090a0b0c0d0e0f 0000 c2e7484c07a69770",
        OTHER,
        AddAddr(2, IP6, 0, False, ADD_HMAC),
    ),
    ("1e14 31 02 000102030405060708090a0b0c0d0e0f", OTHER, AddAddr(2, IP6, None, True)),
    ("1e16 31 02 000102030405060708090a0b0c0d0e0f ffff", OTHER, AddAddr(2, IP6, 65535, True)),
    ("1e0401a1", SYN, MpCapable(checksum_required=True, no_subflows_here=True)),
    (
        "1e160101 1782f8ead15c56fb 38b0e02f1ae77431 0005",
        OTHER,
        MpCapable(KEY_A, KEY_B, data_length=5),
    ),
    (
        "1e180181 1782f8ead15c56fb 38b0e02f1ae77431 0005 a7f5",
        OTHER,
        MpCapable(KEY_A, KEY_B, checksum_required=True, data_length=5, checksum=0xA7F5),
    ),
    ("1e0c11ff ffffffff 1cf0e6fe", SYN, MpJoinSyn(True, 255, 0xFFFFFFFF, NONCE_A)),
    ("1e044003", OTHER, RemoveAddr((3,))),
    ("1e0b40 0102030405060708", OTHER, RemoveAddr(tuple(range(1, 9)))),
    ("1e0351", OTHER, MpPrio(True)),
    ("1e0350", OTHER, MpPrio(False)),
    ("1e0c6000 ffffffffffffffff", OTHER, MpFail(2**64 - 1)),
    ("1e0c7000 38b0e02f1ae77431", OTHER, MpFastclose(KEY_B)),
    ("1e048106", OTHER, MpTcprst(6, True)),
    ("1e048000", OTHER, MpTcprst(0)),
]


@pytest.mark.parametrize(("raw", "where", "option"), VECTORS)
def test_option_is_built_and_read_as_on_the_wire(
    raw: str, where: tuple[bool, bool], option: MptcpOption
) -> None:
    assert option.build() == bytes.fromhex(raw)
    assert parse_option(bytes.fromhex(raw), *where) == option


@pytest.mark.parametrize(("raw", "where", "option"), VECTORS)
def test_option_passes_through_a_segment(
    raw: str, where: tuple[bool, bool], option: MptcpOption
) -> None:
    built = option.build()
    assert seg.parse(tcp_packet(options=pad(built))).mptcp == (built,)


@pytest.mark.parametrize(("raw", "where", "option"), VECTORS)
def test_option_of_any_other_length_is_ignored(
    raw: str, where: tuple[bool, bool], option: MptcpOption
) -> None:
    good = bytes.fromhex(raw)
    for size in range(2, 41):
        body = (good + bytes(40))[2:size]
        other = parse_option(bytes((30, size)) + body, *where)
        if other is not None:  # a length that is right for the same subtype
            assert other.build()[1] == size
    assert parse_option(good[:-1], *where) is None  # its length lies
    assert parse_option(b"\x1f" + good[1:], *where) is None


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        ("1e0c0101 38b0e02f1ae77431", SYN),
        ("1e0c0001 38b0e02f1ae77431", SYN),  # version 0
        ("1e040001", SYN),
        ("1e0c0201 38b0e02f1ae77431", SYN_ACK),  # a version that nobody asked for
        ("1e140001 1782f8ead15c56fb 38b0e02f1ae77431", OTHER),
        ("1e040101", SYN_ACK),
        ("1e040101", OTHER),
        ("1e140101 1782f8ead15c56fb 38b0e02f1ae77431", (False, False)),
        ("1e040100", SYN),  # no algorithm
        ("1e040102", SYN),  # one we do not know
        ("1e040141", SYN),  # extensibility
        ("1e0c0103 38b0e02f1ae77431", SYN_ACK),  # two algorithms at once
        ("1e0c1001 34702aa1 1cf0e6fe", SYN_ACK),
        ("1e0c1001 34702aa1 1cf0e6fe", OTHER),
        ("1e101001 9d0df19d5bb644af 83e4732e", SYN),
        ("1e181000 8042391ea0cae5f8629a93e0a68279dc3934367b", (False, False)),
        ("1e0420000000", OTHER),  # DSS is the segment's matter
        ("1e0590000000", OTHER),
        ("1e05f0000000", OTHER),
        ("1e02", OTHER),
        ("", OTHER),
    ],
)
def test_option_is_ignored(raw: str, where: tuple[bool, bool]) -> None:
    assert parse_option(bytes.fromhex(raw), *where) is None


def test_syn_may_offer_a_later_version_and_other_algorithms() -> None:
    offer = parse_option(bytes.fromhex("1e040203"), *SYN)
    assert isinstance(offer, MpCapable)
    assert offer.version == 2


def test_reserved_bits_are_ignored() -> None:
    assert parse_option(bytes.fromhex("1e045e00"), *OTHER) is None  # version 0's MP_PRIO
    assert parse_option(bytes.fromhex("1e035f"), *OTHER) == MpPrio(True)
    assert parse_option(bytes.fromhex("1e0c1eff 34702aa1 1cf0e6fe"), *SYN) == MpJoinSyn(
        False, 255, 0x34702AA1, NONCE_A
    )
    assert parse_option(bytes.fromhex("1e048e03"), *OTHER) == MpTcprst(3)


@given(st.binary(max_size=40), st.booleans(), st.booleans())
def test_noise_never_raises(body: bytes, syn: bool, ack: bool) -> None:
    parse_option(body, syn, ack)
    parse_option(bytes((30, len(body) + 2)) + body, syn, ack)


# Which of two options a receiver must refuse together; all other pairs are allowed.
REFUSED = {
    frozenset(pair)
    for one, others in {
        MP_CAPABLE: (MP_JOIN, DSS, ADD_ADDR, MP_PRIO, MP_FAIL, MP_FASTCLOSE, MP_TCPRST),
        MP_JOIN: (DSS, ADD_ADDR, MP_FAIL, MP_FASTCLOSE, MP_TCPRST),
        ADD_ADDR: (MP_FAIL, MP_FASTCLOSE, MP_TCPRST),
        REMOVE_ADDR: (MP_FAIL, MP_FASTCLOSE, MP_TCPRST),
        MP_PRIO: (MP_FAIL, MP_FASTCLOSE, MP_TCPRST),
        DSS: (MP_TCPRST,),
        MP_FAIL: (MP_FASTCLOSE,),
    }.items()
    for pair in ((one, other) for other in others)
}
SAMPLES: dict[int, MptcpOption] = {
    MP_CAPABLE: MpCapable(KEY_A, KEY_B),
    MP_JOIN: MpJoinAck(HMAC_A20),
    ADD_ADDR: AddAddr(1, IP4, None, True),
    REMOVE_ADDR: RemoveAddr((1,)),
    MP_PRIO: MpPrio(True),
    MP_FAIL: MpFail(1),
    MP_FASTCLOSE: MpFastclose(KEY_A),
    MP_TCPRST: MpTcprst(1),
}


@pytest.mark.parametrize(("one", "other"), list(combinations(range(9), 2)))
def test_pair_of_options_is_taken_or_refused(one: int, other: int) -> None:
    allowed = frozenset((one, other)) not in REFUSED
    for pair in ((one, other), (other, one)):
        assert compatible(pair) is allowed
        options = [SAMPLES[subtype] for subtype in pair if subtype != DSS]
        raws = [option.build() for option in options]
        if allowed:
            found = parse_options(raws, syn=False, ack=True, rst=True, dss_count=DSS in pair)
            assert list(found) == options
        else:
            with pytest.raises(CodecError):
                parse_options(raws, syn=False, ack=True, rst=True, dss_count=DSS in pair)


@pytest.mark.parametrize("subtype", range(9))
def test_option_twice_is_refused(subtype: int) -> None:
    assert not compatible([subtype, subtype])
    assert compatible([subtype])
    raws = [SAMPLES[subtype].build()] * 2 if subtype != DSS else []
    with pytest.raises(CodecError):
        parse_options(raws, syn=False, ack=True, rst=True, dss_count=2 if subtype == DSS else 0)


def test_reset_reason_counts_on_a_reset_alone() -> None:
    raw = MpTcprst(6).build()
    assert parse_options([raw], syn=False, ack=True, rst=True) == (MpTcprst(6),)
    assert parse_options([raw], syn=False, ack=True, dss_count=1) == ()


def test_ignored_option_does_not_conflict() -> None:
    """A malformed first option leaves the second as if it were alone (CVE-2026-80586)."""
    raws = [bytes.fromhex("1e040101"), MpFastclose(KEY_A).build()]
    assert parse_options(raws, syn=False, ack=True) == (MpFastclose(KEY_A),)


def test_padding_is_to_words() -> None:
    assert pad(b"") == b""
    assert pad(MpPrio(True).build()) == b"\x1e\x03\x51\x01"
    assert subtype_of(b"\x1e\x02") == -1
