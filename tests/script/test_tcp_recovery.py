"""Packet scripts for fast recovery: what may be sent while a loss is repaired."""

from __future__ import annotations

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
