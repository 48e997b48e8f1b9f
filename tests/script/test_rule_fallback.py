"""Falling back to plain TCP and MP_FAIL: RFC 8684 §3.7."""

from __future__ import annotations

import pytest

from proxy.mptcp.notes import Fallback
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.mptcp_options import MpFail
from tests.script.mptcp_harness import (
    Leg,
    MptcpScript,
    config,
    has_option,
    option_of,
    reset_reason,
)


def agreed(checksum: bool = False) -> MptcpScript:
    """A connection on which data went both ways."""
    script = MptcpScript.client(mptcp=config(), checksum=checksum)
    payload = b"hello" if checksum else None
    option = script.dss(at=0, ssn=1, length=5, ack=0, payload=payload)
    script.first.inject(payload=b"hello", options=option)
    script.send(b"world")
    script.first.take()
    script.first.inject(options=script.dss(ack=5))
    script.first.take()
    assert script.read() == b"hello"
    return script


def goes_on(script: MptcpScript, leg: Leg) -> None:
    """The stream continues as plain TCP in both directions, and ends by FIN."""
    script.read()
    leg.take()
    script.send(b"plain out")
    leg.inject(payload=b"plain in")
    assert script.read() == b"plain in"
    came = leg.take()
    leg.inject()
    script.conn.shutdown_write()
    came += leg.take()
    assert b"plain out" in b"".join(bytes(seg.payload) for seg in came)
    assert came[-1].flags & 1
    assert not any(seg.has_mptcp for seg in came[1:]), "no option any more"
    leg.inject("FA")
    assert script.conn.eof


def infinite(script: MptcpScript, at: int, ssn: int, checksum: bool = False) -> bytes:
    return script.dss(at=at, ssn=ssn, length=0, checksum=0 if checksum else None)


def test_fb_03_and_04_no_option_on_the_first_segment_after_the_handshake() -> None:
    script = MptcpScript.client(proven=False)
    script.send(b"world")
    script.first.take()
    script.first.inject()
    assert script.conn.fallback is Fallback.AT_HANDSHAKE
    assert script.count("MPCapableDataFallback") == 1
    goes_on(script, script.first)


def test_fb_04_the_peer_stops_dss_when_its_peer_has_fallen_back() -> None:
    script = MptcpScript.server(mptcp=config())
    script.first.inject(payload=b"plain")
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    assert script.count("DssFallback") == 1
    assert script.read() == b"plain"
    goes_on(script, script.first)


@pytest.mark.parametrize("checksum", [False, True])
def test_fb_05_acks_without_data_ack_on_the_only_subflow_send_one_infinite_mapping(
    checksum: bool,
) -> None:
    script = agreed(checksum)
    script.send(b"no DATA_ACK for this")
    script.first.take()
    script.first.inject()
    for _ in range(20):
        script.sleep(0.5)
        script.first.inject()
        if script.conn.fallback is not Fallback.NONE:
            break
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    assert script.count("InfiniteMapTx") == 1
    script.first.take()
    script.send(b"one")
    seg = script.first.last()
    assert seg.dss_flags & 4
    assert (seg.data_length, seg.dsn) == (0, script.data_ack(25))
    assert seg.dss_checksum == (0 if checksum else -1)
    script.first.inject()
    script.send(b"two")
    assert not script.first.last().has_mptcp


def test_fb_06_the_same_on_a_joined_subflow_resets_it() -> None:
    script = agreed()
    leg = script.joined()
    script.first.subflow.backup = script.first.subflow.peer_backup = True
    script.send(b"no DATA_ACK for this")
    assert leg.last().length
    leg.inject()
    for _ in range(30):
        script.sleep(0.5)
        if leg.dead():
            break
        leg.inject()
    assert reset_reason(leg) == 6
    assert script.conn.fallback is Fallback.NONE
    data = b"".join(bytes(seg.payload) for seg in script.first.take())
    assert b"no DATA_ACK for this" in data


def bad_data(script: MptcpScript, leg: Leg, at: int, ssn: int) -> None:
    option = script.dss(at=at, ssn=ssn, length=3, ack=script.conn.tx.una, payload=b"bad")
    leg.inject(payload=b"BAD", options=option)


def test_fb_07_a_bad_checksum_with_several_subflows_resets_that_one_with_mp_fail() -> None:
    script = agreed(checksum=True)
    leg = script.joined()
    bad_data(script, leg, 5, 1)
    seg = leg.last()
    assert seg.flags & 4
    assert option_of(seg, MpFail).dsn == script.dsn(5)
    assert script.read() == b""
    assert script.count("DataCsumErr") == script.count("MPFailTx") == 1
    option = script.dss(at=5, ssn=6, length=3, ack=5, payload=b"bad")
    script.first.inject(payload=b"bad", options=option)
    assert script.read() == b"bad", "the same data comes whole over the other one"


def test_fb_08_a_bad_checksum_on_the_only_subflow_is_told_and_ends_mptcp() -> None:
    script = agreed(checksum=True)
    bad_data(script, script.first, 5, 6)
    seg = script.first.last()
    assert not seg.flags & 4
    assert option_of(seg, MpFail).dsn == script.dsn(5)
    assert script.read() == b"", "not before the peer has agreed"
    script.first.inject(options=MpFail(script.data_ack(5)).build())
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    assert script.read() == b"BAD", "nothing is lost, and the application was told"
    assert Event.FALLBACK in script.events
    goes_on(script, script.first)


def test_fb_08_when_both_found_a_bad_checksum_both_declare_the_infinite_mapping() -> None:
    script = agreed(checksum=True)
    bad_data(script, script.first, 5, 6)
    script.first.take()
    script.first.inject(options=MpFail(script.data_ack(5)).build())
    script.send(b"rest")
    assert script.first.last().data_length == 0, "the peer waits for it as we do"
    assert script.count("InfiniteMapTx") == 1
    assert script.count("MPFailTx") == 1, "ours was the answer already"


def test_fb_08_an_infinite_mapping_is_an_answer_too() -> None:
    script = agreed(checksum=True)
    bad_data(script, script.first, 5, 6)
    script.first.take()
    script.first.inject(payload=b"go on", options=infinite(script, 8, 9, checksum=True))
    assert script.read() == b"BADgo on"
    assert script.count("InfiniteMapRx") == 1


def test_fb_08_no_answer_for_two_minutes_resets() -> None:
    script = agreed(checksum=True)
    bad_data(script, script.first, 5, 6)
    script.sleep(119.0)
    assert not script.first.dead()
    script.sleep(2.0)
    assert script.first.dead()


@pytest.mark.parametrize("then", ["repeated", "filled", "silent"])
def test_fb_08_a_gap_that_stays_after_mp_fail_resets(then: str) -> None:
    script = agreed(checksum=True)
    bad_data(script, script.first, 5, 6)
    script.first.inject(options=MpFail(script.data_ack(5)).build())
    script.read()
    tail = infinite(script, 8, 9, checksum=True)
    script.first.inject(payload=b"tail", options=tail, seq=script.first.seq + 4)
    script.sleep(9.0)
    if then == "filled":
        script.first.inject(payload=b"head", options=tail)
    for _ in range(8):
        script.sleep(3.0)
        if then != "silent":  # an outage: the gap may still be filled
            script.first.inject(payload=b"tail", options=tail, seq=script.first.seq + 4)
    assert script.first.dead() is (then == "repeated")
    assert (Event.TIMED_OUT in script.events) is (then == "repeated")


def test_fb_08_mp_fail_of_the_peer_is_answered_by_mp_fail_and_an_infinite_mapping() -> None:
    script = agreed()
    script.first.inject(options=MpFail(script.data_ack(5)).build())
    assert script.count("MPFailRx") == script.count("MPFailTx") == 1
    assert has_option(script.first.last(), MpFail)
    script.send(b"rest")
    seg = script.first.last()
    assert seg.data_length == 0
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    assert script.count("InfiniteMapTx") == 1


def test_fb_09_a_bad_checksum_on_the_very_first_mapping_is_plain_tcp_at_once() -> None:
    script = MptcpScript.client(mptcp=config(), checksum=True)
    bad_data(script, script.first, 0, 1)
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    assert script.count("DssFallback") == 1
    assert script.read() == b"BAD"


def test_fb_10_a_bad_checksum_after_a_join_resets_the_only_subflow() -> None:
    script = agreed(checksum=True)
    leg = script.joined()
    leg.inject("R", seq=leg.seq)
    assert leg.dead()
    bad_data(script, script.first, 5, 6)
    seg = script.first.last()
    assert seg.flags & 4
    assert has_option(seg, MpFail)
    assert script.conn.state is State.ESTABLISHED, "a new subflow may go on"


@pytest.mark.parametrize("joined", [False, True])
def test_fb_11_and_12_data_without_a_mapping_in_mid_life(joined: bool) -> None:
    script = agreed()
    if joined:
        leg = script.joined()
        leg.inject("R", seq=leg.seq)
    script.first.inject(payload=b"no mapping")
    if joined:
        assert reset_reason(script.first) == 6
        assert script.count("FallbackFailed") == 1
        assert script.read() == b""
    else:
        assert script.conn.fallback is Fallback.INFINITE_MAPPING
        assert script.count("DssFallback") == 1
        assert script.read() == b"no mapping"
        goes_on(script, script.first)


@pytest.mark.parametrize("joined", [False, True], ids=["single", "joined"])
def test_fb_15_a_segment_that_is_longer_than_its_mapping(joined: bool) -> None:
    script = agreed()
    if joined:
        leg = script.joined()
        leg.inject("R", seq=leg.seq)
    at = script.first.seq - 1
    script.first.inject(
        payload=b"mapped, and not", options=script.dss(ack=0, at=at, ssn=at + 1, length=6)
    )
    if joined:
        assert reset_reason(script.first) == 6
        assert script.count("DSSCorruptionReset") == 1
        assert script.read() == b"mapped"
    else:
        assert script.conn.fallback is Fallback.INFINITE_MAPPING
        assert script.count("DSSCorruptionFallback") == 1
        assert script.read() == b"mapped, and not"
        goes_on(script, script.first)


def test_dss_11_an_infinite_mapping_of_the_peer_ends_mptcp() -> None:
    script = agreed()
    script.first.inject(payload=b"the rest", options=infinite(script, 5, 6))
    assert script.read() == b"the rest"
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    assert script.count("InfiniteMapRx") == 1
    goes_on(script, script.first)


def test_dss_11_an_infinite_mapping_is_refused_once_there_was_a_join() -> None:
    script = agreed()
    script.joined()
    script.first.inject(payload=b"the rest", options=infinite(script, 5, 6))
    assert reset_reason(script.first) == 6
    assert script.conn.fallback is Fallback.NONE


def test_fb_16_an_option_that_was_overwritten_counts_as_none() -> None:
    script = agreed()
    script.first.inject(payload=b"xyz", options=bytes(16))  # EOL and what is behind it
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    assert script.read() == b"xyz"
