"""Packet scripts for ECN (RFC 3168, RFC 8511): both ends of the negotiation and of a mark."""

from __future__ import annotations

from typing import Any

import pytest

from tests.script.harness import Script

CE = 3
ECT_0 = 2
GSO_ECN = 0x80


def asked(**changes: Any) -> Script:
    """An active open that asked for ECN and got it."""
    script = Script(ecn="on", **changes)
    script.conn.connect(script.now)
    script.expect("SEW", seq=0)
    script.inject("SAE", seq=0, ack=1, options=script.syn_options())
    script.expect("A", seq=1, ack=1)
    script.host.events.clear()
    script.conn._quick_acks = 0
    return script


def offered(flags: str = "SEW", tos: int = 0, **changes: Any) -> Script:
    """A passive open of a SYN with these flags, before it is accepted."""
    script = Script(**changes)
    syn = script.segment(flags, 0, options=script.syn_options(), tos=tos)
    script.conn.open_passive(syn, script.now)
    script.conn.accept(script.now)
    return script


# -- negotiation --------------------------------------------------------------------------------


def test_syn_that_asks_is_agreed_to_by_default() -> None:
    script = offered()
    assert script.expect("SAE", seq=0, ack=1).ecn == 0
    script.inject("A", seq=1, ack=1)
    script.conn.send(b"x" * 100)
    assert script.expect("A", seq=1).ecn == ECT_0


@pytest.mark.parametrize(
    ("flags", "tos", "ecn"),
    [("S", 0, "passive"), ("SE", 0, "passive"), ("SEW", ECT_0, "passive"), ("SEW", 0, "off")],
)
def test_nothing_is_agreed_to_that_was_not_asked_for_properly(
    flags: str, tos: int, ecn: str
) -> None:
    script = offered(flags, tos, ecn=ecn)
    script.expect("SA", seq=0, ack=1)
    script.inject("A", seq=1, ack=1)
    script.conn.send(b"x")
    assert script.expect("A", seq=1).ecn == 0


def test_default_does_not_ask() -> None:
    Script.syn_sent()


@pytest.mark.parametrize("answer", ["SA", "SAEW", "SAW"])
def test_syn_ack_without_a_proper_echo_is_a_no(answer: str) -> None:
    script = Script(ecn="on")
    script.conn.connect(script.now)
    script.expect("SEW", seq=0)
    script.inject(answer, seq=0, ack=1, options=script.syn_options())
    script.expect("A", seq=1)
    script.conn.send(b"x")
    assert script.expect("A", seq=1).ecn == 0


def test_echo_in_a_syn_ack_that_nobody_asked_for_is_ignored() -> None:
    script = Script.syn_sent()
    script.inject("SAE", seq=0, ack=1, options=script.syn_options())
    assert not script.conn.ecn


def test_repeated_syn_does_not_ask_since_a_path_may_drop_those_that_do() -> None:
    script = Script(ecn="on")
    script.conn.connect(script.now)
    script.expect("SEW", seq=0)
    script.sleep(1.01)
    script.expect("S", seq=0)
    script.inject("SA", seq=0, ack=1, options=script.syn_options())
    assert not script.conn.ecn


# -- the side that gets marks -------------------------------------------------------------------


def test_mark_is_echoed_until_the_peer_says_that_it_reduced() -> None:
    script = asked()
    script.inject("A", seq=1, ack=1, payload=b"x" * 1000, tos=CE)
    script.expect("AE", ack=1001)  # at once
    script.inject("A", seq=1001, ack=1, payload=b"x" * 1460, tos=ECT_0)
    script.inject("A", seq=2461, ack=1, payload=b"x" * 1460, tos=ECT_0)
    script.expect("AE", ack=3921)
    script.conn.send(b"reply")
    script.expect("AE", payload=b"reply")
    script.inject("AW", seq=3921, ack=6, payload=b"x" * 1460, tos=ECT_0)
    script.inject("A", seq=5381, ack=6, payload=b"x" * 1460, tos=ECT_0)
    script.expect("A", ack=6841)


def test_mark_on_the_very_segment_that_tells_of_the_reduction_counts() -> None:
    script = asked()
    script.inject("A", seq=1, ack=1, payload=b"x", tos=CE)
    script.expect("AE", ack=2)
    script.inject("AW", seq=2, ack=1, payload=b"x", tos=CE)
    script.expect("AE", ack=3)


def test_mark_is_nothing_without_agreement() -> None:
    script = Script.established()
    script.inject("A", seq=1, ack=1, payload=b"x", tos=CE)
    script.sleep(0.05)
    script.expect("A", ack=2)


# -- the side whose segments were marked ----------------------------------------------------------


def test_only_new_data_is_ecn_capable() -> None:
    script = asked(retries=15)
    script.inject("A", seq=1, ack=1, payload=b"x" * 3000)
    assert script.expect("A", ack=3001).ecn == 0
    script.conn.send(b"x" * 100)
    assert script.expect("A", seq=1, length=100).ecn == ECT_0
    script.sleep(2.0)
    assert all(seg.ecn == 0 for seg in script.sent)
    assert script.sent


def test_echo_reduces_the_window_once_and_is_answered_in_new_data() -> None:
    script = asked()
    conn = script.conn
    conn.congestion.ssthresh = conn.congestion.cwnd  # in congestion avoidance
    before = conn.cwnd
    conn.send(b"x" * 14_600)
    script.expect("A", seq=1, length=14_600)
    script.inject("AE", seq=1, ack=1461)
    assert conn.cwnd == pytest.approx(0.85 * before, abs=200)  # RFC 8511
    reduced = conn.cwnd
    for ack in range(2921, 14_602, 1460):
        script.inject("AE", seq=1, ack=ack)
    assert conn.cwnd >= reduced  # once per window of data
    conn.send(b"y" * 5000)
    seg = script.next()
    assert seg.flags & 128
    conn.send(b"z" * 500)
    assert not script.next().flags & 128
    script.inject("AE", seq=1, ack=14_601 + 5000)
    assert conn.cwnd < reduced
    assert script.host.counters["TCPECNReductions"] == 2


def test_reduction_is_told_in_the_first_slice_of_a_super_segment() -> None:
    script = asked()
    script.conn.send(b"x" * 2920)
    script.expect("A", seq=1, length=2920)
    script.inject("AE", seq=1, ack=2921)
    script.conn.send(b"y" * 5000)
    (packet,) = script.host.flush(script.now)
    assert packet[1] & GSO_ECN  # the kernel then sets CWR on the first wire segment alone


def test_slow_start_ends_at_a_mark_as_at_a_loss() -> None:
    script = asked(congestion_control="reno")
    before = script.conn.cwnd
    script.conn.send(b"x" * 14_600)
    script.expect("A", seq=1, length=14_600)
    script.inject("AE", seq=1, ack=1461)
    assert script.conn.cwnd == pytest.approx(before / 2, abs=1460)


def test_loss_in_a_window_that_was_reduced_for_a_mark_does_not_reduce_it_again() -> None:
    script = asked()
    conn = script.conn
    conn.send(b"x" * 14_600)
    script.expect("A", seq=1, length=14_600)
    script.inject("AE", seq=1, ack=1461)
    target = conn.ssthresh
    script.sleep(0.005)
    script.inject("AE", seq=1, ack=1461, sack=((2921, 14_601),))
    script.expect("A", seq=1461, length=1460)
    assert conn.ssthresh == target


def test_reduction_after_a_loss_is_told_too() -> None:
    script = asked()
    script.conn.send(b"x" * 14_600)
    script.expect("A", seq=1, length=14_600)
    script.sleep(0.005)
    script.inject("A", seq=1, ack=1, sack=((1461, 14_601),))
    assert not script.expect("A", seq=1, length=1460).flags & 128
    script.inject("A", seq=1, ack=14_601)
    script.conn.send(b"y")
    script.expect("AW", seq=14_601)


def test_echo_without_data_in_flight_costs_nothing() -> None:
    script = asked()
    before = script.conn.cwnd
    script.inject("AE", seq=1, ack=1, payload=b"x")
    assert script.conn.cwnd == before


def test_echo_is_nothing_without_agreement() -> None:
    script = Script.established()
    script.conn.send(b"x" * 14_600)
    before = script.conn.cwnd
    script.expect("A", seq=1)
    script.inject("AE", seq=1, ack=1461)
    assert script.conn.cwnd >= before
