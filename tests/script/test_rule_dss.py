"""Mappings, checksums, DATA_ACKs and windows: RFC 8684 §3.3."""

from __future__ import annotations

import pytest

from proxy.mptcp import keys
from proxy.mptcp.notes import Fallback
from proxy.seg import DSS_DSN64, dss_checksum
from proxy.tcp.config import TcpConfig
from proxy.tcp.events import Event
from tests.script.mptcp_harness import MptcpScript, config, reset_reason

MB = 1 << 20


@pytest.fixture
def script() -> MptcpScript:
    return MptcpScript.client(mptcp=config())


# -- mappings ----------------------------------------------------------------------------------


def test_dss_01_subflow_numbers_are_relative_to_the_isn(script: MptcpScript) -> None:
    script.send(b"abc")
    seg = script.first.last()
    assert (seg.ssn, (seg.seq - script.first.iss) & 0xFFFFFFFF) == (1, 1)
    script.first.inject(payload=b"xyz", options=script.dss(at=0, ssn=1, length=3, ack=3))
    assert script.read() == b"xyz"


def test_dss_02_a_mapping_may_cover_several_segments(script: MptcpScript) -> None:
    first = script.first
    first.inject(payload=b"abc", options=script.dss(at=0, ssn=1, length=9, ack=0))
    first.inject(payload=b"def", options=script.dss(ack=0))
    first.inject(payload=b"ghi")
    assert script.read() == b"abcdefghi"


def test_dss_02_a_mapping_may_be_repeated_but_not_changed(script: MptcpScript) -> None:
    first = script.first
    for data in (b"abc", b"def"):
        first.inject(payload=data, options=script.dss(at=0, ssn=1, length=9, ack=0))
    first.inject(payload=b"ghi", options=script.dss(at=50, ssn=1, length=9, ack=0))
    assert script.read() == b"abcdefghi", "the first mapping of a byte counts"
    assert script.count("DSSNotMatching") == 1


def test_dss_02_a_mapping_that_does_not_touch_its_segment_is_not_taken(
    script: MptcpScript,
) -> None:
    first = script.first
    option = script.dss(at=100, ssn=101, length=3, ack=0)
    first.inject(payload=b"abc", options=option)
    assert script.count("DSSNoMatchTCP") == 1
    assert script.read() == b"abc", "the only subflow goes on as plain TCP"
    assert script.conn.fallback is Fallback.INFINITE_MAPPING


def test_dss_02_ours_repeat_the_same_mapping_when_sent_again(script: MptcpScript) -> None:
    script.send(bytes(5000))
    before = [(s.dsn, s.ssn, s.data_length) for s in script.first.take()]
    script.sleep(3.0)
    after = {(s.dsn, s.ssn, s.data_length) for s in script.first.take() if s.length}
    assert after <= set(before)
    assert after


def test_dss_03_every_segment_of_ours_has_a_mapping(script: MptcpScript) -> None:
    for size in (1, 2000, 30_000):
        script.send(bytes(size))
    came = [seg for seg in script.first.take() if seg.length]
    assert came
    assert all(seg.dss_flags & 4 for seg in came)
    for seg in came:
        inside = (seg.seq - script.first.iss - seg.ssn) & 0xFFFFFFFF
        assert inside + seg.length <= seg.data_length, "it covers its segment"


@pytest.mark.parametrize("dsn64", [False, True])
@pytest.mark.parametrize("ack64", [False, True])
def test_dss_04_both_sizes_are_taken_and_64_bit_numbers_answered_with_64_bit_acks(
    script: MptcpScript, dsn64: bool, ack64: bool
) -> None:
    script.send(b"12345")
    script.first.take()
    script.first.inject(
        payload=b"abc", options=script.dss(at=0, ssn=1, length=3, ack=5, dsn64=dsn64, ack64=ack64)
    )
    script.sleep(0.1)
    assert script.read() == b"abc"
    assert script.conn.tx.una == 5
    answer = script.first.last()
    assert answer.data_ack64 == dsn64
    wanted = script.dsn(3)
    assert answer.data_ack == (wanted if dsn64 else wanted & 0xFFFFFFFF)


def test_dss_04_numbers_of_ours_always_have_64_bits(script: MptcpScript) -> None:
    script.send(b"abc")
    assert script.first.last().dss_flags & DSS_DSN64


def near_wrap(bits: int) -> bytes:
    """A key whose first DSN is within 4 MiB below a multiple of 2**bits (found by search)."""
    number = 0
    while True:
        key = number.to_bytes(8, "big")
        if (-keys.derive(key).idsn) % (1 << bits) < 4 * MB:
            return key
        number += 1


def test_dss_04_32_bit_numbers_are_followed_across_their_wrap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = near_wrap(32)
    monkeypatch.setattr("tests.script.mptcp_harness.PEER_KEY", key)
    script = MptcpScript.client(mptcp=config())
    script.peer = keys.derive(key)
    script.first.subflow.conn.rx.start(script.peer.idsn)
    at, piece = 0, bytes(range(256)) * 160
    while (script.peer.idsn + at) >> 32 == script.peer.idsn >> 32 or at < 2 * len(piece):
        script.first.inject(
            payload=piece,
            options=script.dss(at=at, ssn=at + 1, length=len(piece), ack=0, dsn64=False),
        )
        at += len(piece)
        assert script.read() == piece
        script.sleep(0.05)
        assert script.first.last().data_ack == script.dsn(at) & 0xFFFFFFFF


def test_dss_05_flags_of_size_count_only_with_their_field(script: MptcpScript) -> None:
    option = bytearray(script.dss(ack=0, ack64=False))
    option[3] |= 0xE8  # the reserved bits, and m without M
    script.send(b"abc")
    script.first.take()
    script.first.inject(options=bytes(option))
    script.first.inject(options=script.dss(ack=3, ack64=False))
    assert script.conn.tx.una == 3
    assert script.conn.fallback is Fallback.NONE
    assert not script.first.dead()


def test_dss_09_the_first_copy_of_a_byte_wins(script: MptcpScript) -> None:
    leg = script.joined()
    script.first.inject(payload=b"first", options=script.dss(at=0, ssn=1, length=5, ack=0))
    leg.inject(payload=b"other!", options=script.dss(at=0, ssn=1, length=6, ack=0))
    assert script.read() == b"first!"
    script.sleep(0.1)
    last = leg.last()
    assert (last.ack - leg.isn) & 0xFFFFFFFF == 7, "and the subflow acknowledges it all the same"
    leg.inject(payload=b"FIRST", options=script.dss(at=0, ssn=7, length=5, ack=0))
    assert script.read() == b""
    assert script.count("DuplicateData") == 1


def test_dss_10_data_beyond_the_window_is_not_taken(script: MptcpScript) -> None:
    far = script.conn.rx.edge + 200_000
    script.first.inject(payload=b"far", options=script.dss(at=far, ssn=1, length=3, ack=0))
    assert script.count("NoDSSInWindow") == 1
    assert script.conn.rx.stream.waiting_bytes == 0
    script.sleep(0.1)
    assert script.first.last().data_ack == script.dsn(0)


def test_dss_12_urgent_data_stays_in_the_stream(script: MptcpScript) -> None:
    script.first.inject("AU", payload=b"abc", options=script.dss(at=0, ssn=1, length=3, ack=0))
    assert script.read() == b"abc"


def test_dss_13_a_mapping_on_an_empty_segment_means_nothing(script: MptcpScript) -> None:
    script.first.inject(options=script.dss(at=0, ssn=1, length=100, ack=0))
    script.first.inject(payload=b"abc", options=script.dss(at=0, ssn=1, length=3, ack=0))
    assert script.read() == b"abc"
    assert script.count("DSSNotMatching") == 0


def test_dss_07_segments_may_be_split_and_joined_on_the_way(script: MptcpScript) -> None:
    data = bytes(range(250))
    options = [script.dss(at=at, ssn=at + 1, length=50, ack=0) for at in range(0, 250, 50)]
    first = script.first
    first.inject(payload=data[0:20], options=options[0], seq=1)  # split, the option copied
    first.inject(payload=data[20:50], options=options[0], seq=21)
    first.inject(payload=data[50:80], options=options[1], seq=51)  # split, the option on one part
    first.inject(payload=data[80:100], seq=81)
    first.inject(payload=data[100:150], options=options[2], seq=101)
    first.inject(payload=data[150:250], options=options[3], seq=151)  # joined: one option lost
    got = script.read()
    assert data.startswith(got)
    assert len(got) >= 200
    assert script.conn.fallback is Fallback.INFINITE_MAPPING or len(got) == 250


def test_dss_08_data_without_a_mapping_resets_a_subflow_that_is_not_the_only_one(
    script: MptcpScript,
) -> None:
    leg = script.joined()
    leg.inject(payload=b"what is this?")
    assert reset_reason(leg) == 6
    assert script.read() == b""
    assert script.count("FallbackFailed") == 1
    script.first.inject(payload=b"abc", options=script.dss(at=0, ssn=1, length=3, ack=0))
    assert script.read() == b"abc"


# -- checksums -----------------------------------------------------------------------------------


def with_checksum(**more: object) -> MptcpScript:
    return MptcpScript.client(mptcp=config(), checksum=True, **more)


@pytest.mark.parametrize("data", [b"even", b"odd"])
def test_dss_06_a_right_checksum_lets_the_mapping_through(data: bytes) -> None:
    script = with_checksum()
    option = script.dss(at=0, ssn=1, length=len(data), ack=0, payload=data)
    script.first.inject(payload=data, options=option)
    assert script.read() == data


def test_dss_06_nothing_is_delivered_before_the_whole_mapping_is_there() -> None:
    script = with_checksum()
    option = script.dss(at=0, ssn=1, length=6, ack=0, payload=b"abcdef")
    script.first.inject(payload=b"abc", options=option)
    assert script.read() == b""
    script.first.inject(payload=b"def", options=option)
    assert script.read() == b"abcdef"


def test_dss_06_the_checksum_covers_a_data_fin_in_the_length() -> None:
    script = with_checksum()
    option = script.dss(at=0, ssn=1, length=4, ack=0, payload=b"end", fin=True)
    script.first.inject(payload=b"end", options=option)
    assert script.read() == b"end"
    assert script.conn.eof


def test_dss_06_ours_are_right() -> None:
    script = with_checksum()
    script.send(b"hello")
    seg = script.first.last()
    wanted = dss_checksum(seg.dsn, seg.ssn, seg.data_length, [seg.payload])
    assert seg.dss_checksum == wanted


@pytest.mark.parametrize("negotiated", [False, True])
def test_dss_06_a_checksum_that_is_there_or_not_against_the_agreement_resets(
    negotiated: bool,
) -> None:
    script = MptcpScript.client(mptcp=config(), checksum=negotiated)
    payload = None if negotiated else b"abc"
    option = script.dss(at=0, ssn=1, length=3, ack=0, payload=payload)
    script.first.inject(payload=b"abc", options=option)
    assert reset_reason(script.first) == 1
    assert script.read() == b""


# -- DATA_ACKs and windows -------------------------------------------------------------------------


def test_wnd_01_data_acks_are_cumulative_over_subflows(script: MptcpScript) -> None:
    leg = script.joined()
    leg.inject(payload=b"def", options=script.dss(at=3, ssn=1, length=3, ack=0))
    script.sleep(0.1)
    assert leg.last().data_ack == script.dsn(0)
    script.first.inject(payload=b"abc", options=script.dss(at=0, ssn=1, length=3, ack=0))
    script.sleep(0.1)
    assert script.first.last().data_ack == script.dsn(6)
    assert script.read() == b"abcdef"


def test_wnd_01_a_data_ack_of_what_was_never_sent_is_ignored(script: MptcpScript) -> None:
    script.send(b"abc")
    script.first.inject(options=script.dss(ack=4))
    assert script.conn.tx.una == 0
    script.first.inject(options=script.dss(ack=3))
    assert script.conn.tx.una == 3


def test_wnd_02_the_window_counts_from_the_data_ack() -> None:
    script = MptcpScript.client(mptcp=config(), window=1000)
    script.send(bytes(5000))
    assert sum(seg.length for seg in script.first.take()) == 1000
    script.first.inject(options=script.dss(ack=0), window=3000)
    assert sum(seg.length for seg in script.first.take()) == 2000, "3000 from the DATA_ACK"
    script.first.inject(options=script.dss(ack=3000), window=500)
    assert sum(seg.length for seg in script.first.take()) == 500


def test_wnd_02_a_segment_without_a_data_ack_does_not_open_the_window() -> None:
    script = MptcpScript.client(mptcp=config(), window=1000)
    script.send(bytes(5000))
    script.first.take()
    script.first.inject(payload=b"abc", options=script.dss(at=0, ssn=1, length=3), window=5000)
    assert not any(seg.length for seg in script.first.take())


def test_wnd_02_the_right_edge_never_moves_left() -> None:
    script = MptcpScript.client(mptcp=config(), window=4000)
    script.send(bytes(1000))
    script.first.take()
    script.first.inject(options=script.dss(ack=0), window=100)
    script.send(bytes(3000))
    assert sum(seg.length for seg in script.first.take()) == 3000


def test_wnd_04_one_window_for_all_subflows(script: MptcpScript) -> None:
    leg = script.joined()
    data = bytes(20_000)
    script.first.inject(payload=data, options=script.dss(at=0, ssn=1, length=20_000, ack=0))
    script.sleep(0.1)
    one = script.first.last()
    leg.inject(options=script.dss(ack=0))
    leg.inject(payload=b"x", options=script.dss(at=20_000, ssn=1, length=1, ack=0))
    script.sleep(0.1)
    two = leg.last()
    scale = leg.subflow.rcv_wscale
    edges = [
        script.conn.rx.offset(s.data_ack, s.data_ack64) + (s.window << scale) for s in (one, two)
    ]
    assert edges[1] >= edges[0]
    assert edges[1] - edges[0] <= 1 << scale


def test_wnd_07_a_shut_window_is_probed_and_the_opening_told() -> None:
    script = MptcpScript.client(mptcp=config(), window=1000)
    script.send(bytes(3000))
    script.first.take()
    script.first.inject(options=script.dss(ack=1000), window=0)
    script.sleep(3.0)
    assert script.first.take(), "a probe"
    assert script.count("WinProbe") >= 1
    script.first.inject(options=script.dss(ack=1000), window=5000)
    assert sum(seg.length for seg in script.first.take()) == 2000


def test_wnd_07_a_window_that_reading_opens_is_told_without_data() -> None:
    tcp = TcpConfig(timestamps=False, pacing=False, receive_buffer=8000, receive_buffer_max=8000)
    script = MptcpScript.client(mptcp=config(), tcp=tcp)
    at = 0
    while script.conn.rx.edge - at > 0 and at < 8000:
        size = min(1000, 8000 - at)
        script.first.inject(
            payload=bytes(size), options=script.dss(at=at, ssn=at + 1, length=size, ack=0)
        )
        at += size
    script.sleep(0.5)
    assert script.first.last().window << script.first.subflow.rcv_wscale < 1000
    script.read()
    script.flush()
    assert script.first.last().window << script.first.subflow.rcv_wscale >= 4000


def test_wnd_06_data_is_kept_until_the_connection_acknowledges_it(script: MptcpScript) -> None:
    script.send(b"precious")
    script.first.take()
    script.first.inject(ack=9)  # TCP has it, the connection does not say so
    leg = script.joined()
    script.first.inject("R", seq=script.first.seq)
    script.sleep(1.0)
    data = [bytes(seg.payload) for seg in leg.take() if seg.length]
    assert b"precious" in data
    assert Event.RESET not in script.events


def test_pieces_that_wait_are_counted(script: MptcpScript) -> None:
    leg = script.joined()
    for at, ssn in ((10, 1), (20, 2), (15, 3)):
        leg.inject(payload=b"x", options=script.dss(at=at, ssn=ssn, length=1, ack=0))
    assert script.count("OFOQueue") == 3
    assert script.count("OFOQueueTail") == 1
    leg.inject(payload=b"y", options=script.dss(at=21, ssn=4, length=1, ack=0))
    assert script.count("OFOQueueTail") == 2
    assert script.count("OFOMerge") == 1


def test_wnd_04_the_window_of_the_connection_lifts_that_of_a_subflow() -> None:
    script = MptcpScript.client(mptcp=config(), window=1000)
    leg = script.joined()
    script.first.inject(options=script.dss(ack=0), window=1000)
    leg.inject(options=script.dss(ack=0), window=60_000)
    script.first.inject(options=script.dss(ack=0), window=1000)
    leg.subflow.backup = True
    script.send(bytes(5000))
    assert sum(seg.length for seg in script.first.take()) == 5000
    assert script.count("SndWndShared") >= 1
