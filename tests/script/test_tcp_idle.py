"""Packet scripts for idle times: the congestion window and the manner of acknowledging after."""

from __future__ import annotations

from tests.script.harness import Script

SEGMENT = 1460


def grown(**changes: object) -> Script:
    """A window of 100 segments, of which nothing is in flight; the RTO is 201 ms."""
    script = Script.established(window=65_000, **changes)
    conn = script.conn
    conn.congestion.cwnd = 100 * SEGMENT
    conn.congestion.ssthresh = 80 * SEGMENT
    conn._take_congestion_window()
    conn.send(b"x" * SEGMENT)
    script.expect("A", seq=1, length=SEGMENT)
    script.inject("A", seq=1, ack=1 + SEGMENT, window=65_000)
    return script


def test_window_halves_per_time_out_of_silence_and_remembers_where_it_was() -> None:
    script = grown()
    conn = script.conn
    before = conn.cwnd
    script.sleep(2.5 * conn.rto)
    conn.send(b"y" * 60_000)
    script._flush()
    assert before // 4 <= conn.cwnd < before // 4 + SEGMENT
    assert conn.ssthresh >= before * 3 // 4
    assert sum(seg.length for seg in script.sent) <= conn.cwnd


def test_window_does_not_fall_below_the_initial_one() -> None:
    script = grown()
    script.sleep(3600)
    script.conn.send(b"y" * 60_000)
    script._flush()
    assert script.conn.cwnd == 10 * SEGMENT


def test_short_pause_costs_nothing() -> None:
    script = grown()
    before = script.conn.cwnd
    script.sleep(0.5 * script.conn.rto)
    script.conn.send(b"y" * 60_000)
    script._flush()
    assert script.conn.cwnd == before


def test_scheduler_sees_the_window_that_will_hold() -> None:
    script = grown()
    before = script.conn.cwnd
    assert script.conn.send_capacity(script.now) > 40_000
    script.sleep(3600)
    assert script.conn.send_capacity(script.now) == 10 * SEGMENT
    assert script.conn.cwnd < before


def test_data_after_an_idle_time_is_acknowledged_segment_by_segment() -> None:
    script = Script.established()
    script.inject("A", seq=1, ack=1, payload=b"x" * 100)
    script.expect_nothing()
    script.sleep(3)
    script.expect("A", ack=101)
    for count in range(16):
        script.inject("A", seq=101 + 100 * count, ack=1, payload=b"x" * 100)
        script.expect("A", ack=201 + 100 * count)
    script.inject("A", seq=1701, ack=1, payload=b"x" * 100)
    script.expect_nothing()


def test_in_a_dialogue_the_ack_rides_on_the_answer_after_an_idle_time_too() -> None:
    script = Script.established()
    for turn in range(3):
        script.inject("A", seq=1 + turn, ack=1 + turn, payload=b"?")
        script.conn.send(b"!")
        script.expect("A", seq=1 + turn, ack=2 + turn, payload=b"!")
        script.expect_nothing()
        script.inject("A", seq=2 + turn, ack=2 + turn)
        script.sleep(3)
        script.expect_nothing()
