"""Packet scripts for fast recovery: what may be sent while a loss is repaired."""

from __future__ import annotations

from typing import Any

import pytest

from tests.script.harness import Script

SEGMENT = 1460


@pytest.mark.parametrize(("control", "share"), [("reno", 0.5), ("cubic", 0.7)])
def test_recovery_sends_in_proportion_to_what_is_delivered(control: str, share: float) -> None:
    script = Script.established(window=65_000, congestion_control=control)
    conn = script.conn
    conn.snd_wnd = conn.snd_max_wnd = 1 << 20
    conn.congestion.cwnd = conn.cwnd = 40 * SEGMENT
    conn.snd_wscale = 5
    conn.send(b"x" * 40 * SEGMENT)
    script.expect("A", seq=1, length=40 * SEGMENT)
    conn.send(b"y" * 100 * SEGMENT)
    script.expect_nothing()
    script.sleep(0.01)
    sent = 0
    for received in range(2, 40):
        script.inject("A", seq=1, ack=1, sack=((1 + SEGMENT, 1 + received * SEGMENT),))
        script._flush()
        sent += sum(seg.length for seg in script.sent)
        script.sent.clear()
        delivered = (received - 1) * SEGMENT
        # PRR (RFC 6937 §3): never more than in proportion, but for the repair itself.
        assert sent <= delivered * share + 2 * SEGMENT, received
    assert sent >= 39 * SEGMENT * share - 6 * SEGMENT  # and no silence either
    assert conn.bytes_in_flight <= conn.ssthresh + 2 * SEGMENT


def timed_out(**changes: Any) -> Script:
    """Ten segments are out, and the first was sent again after silence."""
    script = Script.syn_sent(congestion_control="reno", **changes)
    script.sleep(0.05)  # the shortest round trip: what is answered sooner was sent before
    script.inject("SA", seq=0, ack=1, options=script.syn_options())
    script.expect("A", seq=1, ack=1)
    script.conn.send(b"x" * 10 * SEGMENT)
    script.expect("A", seq=1, length=10 * SEGMENT)
    while not script.host.counters["TCPTimeouts"]:
        script.sleep(0.01)
    first = [seg for seg in script.sent if seg.seq == script.absolute(1)]
    assert first, "the time-out came"
    script.sent.clear()
    assert script.conn.cwnd <= 2 * SEGMENT
    return script


def test_f_rto_takes_a_time_out_back_that_came_too_soon() -> None:
    # RFC 5682: the first ACK after it acknowledges more than what was sent again.
    script = timed_out()
    script.inject("A", seq=1, ack=1 + 4 * SEGMENT)
    assert script.host.counters["TCPSpuriousRTOs"] == 1
    assert script.conn.cwnd >= 10 * SEGMENT
    script.expect_nothing()


def test_a_time_out_that_was_due_is_not_taken_back() -> None:
    script = timed_out()
    script.inject("A", seq=1, ack=1 + SEGMENT)
    script._flush()
    assert script.host.counters["TCPSpuriousRTOs"] == 0
    assert script.conn.cwnd < 10 * SEGMENT


def test_dsack_takes_a_fast_retransmission_back_that_was_not_needed() -> None:
    # RFC 3708: all that was sent again arrived twice.
    script = Script.established(congestion_control="reno")
    script.conn.send(b"x" * 10 * SEGMENT)
    script.expect("A", seq=1, length=10 * SEGMENT)
    before = script.conn.cwnd
    script.sleep(0.005)
    script.inject("A", seq=1, ack=1, sack=((1 + SEGMENT, 1 + 10 * SEGMENT),))
    script.expect("A", seq=1, length=SEGMENT)
    assert script.conn.cwnd < before
    script.inject("A", seq=1, ack=1 + 10 * SEGMENT, sack=((1, 1 + SEGMENT),))
    assert script.host.counters["TCPDSACKUndo"] == 1
    assert script.conn.cwnd >= before


def test_a_reader_of_single_bytes_opens_no_silly_window() -> None:
    # RFC 9293 §3.8.6.2.2: by a full segment or half the buffer, or not at all.
    script = Script.established(receive_buffer=8192, receive_buffer_max=8192)
    conn = script.conn
    at = 1
    while (room := (conn.rcv_right - conn.rcv_nxt) & 0xFFFFFFFF) > 0:
        size = min(room, SEGMENT)
        script.inject("A", seq=at, ack=1, payload=bytes(size))
        at += size
    script._flush()
    assert script.sent[-1].window == 0
    script.sent.clear()
    edges = set()
    for _ in range(3000):
        conn.receive(1)
        script._flush()
        edges |= {seg.window for seg in script.sent}
        script.sent.clear()
    assert edges, "the window was told when it opened"
    assert min(edges) << conn.rcv_wscale >= min(SEGMENT, 4096)
