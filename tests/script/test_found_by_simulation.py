"""Scripts of what the seeded simulation (``tests/sim``) has found."""

from __future__ import annotations

from proxy.seg import timestamps_option
from tests.script.harness import Script


def test_ack_on_a_retransmission_brings_its_window_too() -> None:
    script = Script.established(window=3000)
    script.inject("A", seq=101, ack=1, payload=b"later", window=3000)
    script.expect("A", ack=1)
    script.conn.send(b"x" * 2920)
    script.expect("A", seq=1, length=2920)
    # The hole is filled by a segment with an older sequence number; the right edge stays at 3001.
    script.inject("A", seq=1, ack=1461, payload=b"y" * 100, window=1540)
    script.conn.send(b"x" * 2920)
    assert script.next().length == 0
    script.expect_nothing()


def test_answer_to_a_repeated_syn_echoes_its_timestamp() -> None:
    script = Script.listen(timestamps=True)
    script.ts_val += 1000
    script.inject("S", seq=0, options=script.syn_options())
    script.conn.accept(script.now)
    assert script.expect("SA", seq=0, ack=1).ts_ecr == script.ts_val
    script.ts_val += 1000
    script.inject("S", seq=0, options=script.syn_options())
    assert script.expect("SA", seq=0, ack=1).ts_ecr == script.ts_val


def test_delayed_ack_is_armed_after_the_host_passed_a_moved_deadline() -> None:
    script = Script.established()
    script.conn.send(b"x" * 100)
    script.expect("A", seq=1, length=100)
    script.inject("A", seq=1, ack=101)
    # The host comes to the time-out of what is acknowledged by now: it only asks for the next one.
    script.host.deadlines.clear()
    script.now += 5.0
    script.host.arm(script.conn)
    script.inject("A", seq=1, ack=101, payload=b"data")
    script.expect_nothing()
    script.sleep(0.3)
    script.expect("A", ack=5)


def test_ack_on_data_of_the_peer_is_no_round_trip_after_a_black_out() -> None:
    script = Script.established(timestamps=True)
    script.conn.send(b"x" * 100)
    first = script.expect("A", seq=1, length=100)
    rto = script.conn.rto
    script.sleep(20.0)  # time-outs without an answer
    script.sent.clear()
    stamps = timestamps_option(script.ts_val + 20_000, first.ts_val)
    script.inject("A", seq=1, ack=101, payload=b"repeated by the peer", options=stamps)
    assert script.conn.rto <= 2.0 * rto


def test_data_that_completes_the_handshake_tells_no_round_trip() -> None:
    script = Script.syn_received()
    script.now += 0.9  # the third ACK was lost, this is what came after it, sent again
    script.inject("A", seq=1, ack=1, payload=b"data")
    assert script.conn.srtt == 0.0
    assert script.conn.rto == script.conn.config.initial_rto


def test_third_ack_again_echoes_the_repeated_syn_ack() -> None:
    script = Script.established(timestamps=True)
    script.ts_val += 1000
    script.inject("SA", seq=0, ack=1, options=script.syn_options())
    assert script.expect("A", seq=1, ack=1).ts_ecr == script.ts_val


def test_timer_that_an_ack_moves_forward_is_armed_though_there_is_nothing_to_send() -> None:
    script = Script.established(delayed_ack=0.0)
    for at in (1, 101):
        script.conn.send(b"x" * 100)
        script.expect("A", seq=at)
        script.now += 0.02
        script.inject("A", seq=1, ack=at + 100)
    script.conn.send(b"x" * 3000)
    script.next()
    script.sleep(0.06)
    assert script.host.counters["TCPLossProbes"] == 1  # from now on the time-out is armed
    script.conn.send(b"x" * 3000)
    script._flush()
    script.inject("A", seq=1, ack=3201, sack=((1741, 3201),))
    due = script.conn.next_timeout()
    armed = script.host.next_timeout()
    assert due is not None
    assert armed is not None
    assert armed <= due < script.now + 0.1
