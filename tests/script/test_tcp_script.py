"""Packet scripts for RFC 9293, 5961, 7323, 2018, 2883: one connection, hand-made segments."""

from __future__ import annotations

import errno
import struct
from itertools import pairwise

import pytest

from proxy.tcp.events import Event
from proxy.tcp.states import State
from tests.script.harness import REMOTE_ISN, Script


def read(script: Script) -> bytes:
    return b"".join(bytes(piece) for piece in script.conn.receive(1 << 20))


# -- opening ------------------------------------------------------------------------------------


def test_syn_carries_all_options() -> None:
    script = Script(timestamps=True)
    script.conn.connect(script.now)
    syn = script.next()
    assert (syn.mss, syn.wscale, syn.sack_permitted) == (1460, 8, True)
    assert syn.ts_val >= 0
    assert syn.window == 65535


def test_syn_ack_without_options_turns_them_off() -> None:
    script = Script.syn_sent(timestamps=True)
    script.inject("SA", seq=0, ack=1, window=1000)
    ack = script.expect("A", seq=1, ack=1)
    assert ack.ts_val == -1
    assert script.conn.mss == 536
    assert not script.conn.sack_permitted
    script.conn.send(b"x" * 3000)
    assert script.next().gso_size == 0


def test_syn_ack_with_bad_ack_is_reset_and_ignored() -> None:
    script = Script.syn_sent()
    script.inject("SA", seq=0, ack=5)
    script.expect("R", seq=5)
    assert script.conn.state is State.SYN_SENT


def test_rst_without_matching_ack_does_not_refuse() -> None:
    script = Script.syn_sent()
    script.inject("R", seq=0)
    script.inject("RA", seq=0, ack=7)
    assert script.conn.state is State.SYN_SENT
    script.inject("RA", seq=0, ack=1)
    assert script.conn.state is State.CLOSED
    assert script.conn.error is not None
    assert script.conn.error.errno == errno.ECONNREFUSED
    script.expect_event(Event.RESET)


def test_tiny_mss_is_refused() -> None:
    script = Script.syn_sent()
    script.inject("SA", seq=0, ack=1, options=script.syn_options(mss=48))
    script.expect("RA", seq=1)
    assert script.conn.state is State.CLOSED


def test_crossed_syns_open_one_connection() -> None:
    script = Script.syn_sent()
    script.inject("S", seq=0, options=script.syn_options())
    script.expect("SA", seq=0, ack=1)
    script.inject("SA", seq=0, ack=1, options=script.syn_options())
    script.expect("A", seq=1, ack=1)
    assert script.conn.state is State.ESTABLISHED
    script.expect_event(Event.ESTABLISHED)


def test_held_back_syn_absorbs_repetitions() -> None:
    script = Script.listen()
    script.inject("S", seq=0, options=script.syn_options())
    script.expect_nothing()
    script.conn.accept(script.now)
    script.expect("SA", seq=0, ack=1)
    script.inject("A", seq=1, ack=1)
    assert script.conn.state is State.ESTABLISHED


def test_client_that_gives_up_while_held_back_is_reported() -> None:
    script = Script.listen()
    script.inject("R", seq=1)
    assert script.conn.state is State.CLOSED
    script.expect_event(Event.RESET)


def test_refused_syn_is_answered_by_rst_that_acknowledges_it() -> None:
    script = Script.listen(payload=b"hello")
    script.conn.refuse(script.now)
    script.expect("RA", seq=-script.conn.iss, ack=6)
    assert script.host.forgotten == [script.conn]


def test_taken_syn_payload_is_acknowledged() -> None:
    script = Script.listen(payload=b"hello")
    assert script.conn.syn_payload == b"hello"
    script.conn.accept(script.now, take_syn_payload=True)
    script.expect("SA", seq=0, ack=6)


def test_syn_ack_is_repeated_until_given_up() -> None:
    script = Script.syn_received()
    script.sleep(4.5)
    for _ in range(4):
        script.expect("SA", seq=0, ack=1)
    script.expect_nothing()
    script.sleep(200)
    assert script.conn.state is State.CLOSED
    script.expect_event(Event.TIMED_OUT)


def test_third_ack_outside_the_handshake_is_reset() -> None:
    script = Script.syn_received()
    script.inject("A", seq=1, ack=9)
    script.expect("R", seq=9)
    assert script.conn.state is State.SYN_RECEIVED


def test_rst_ends_syn_received_silently_for_the_wire() -> None:
    script = Script.syn_received()
    script.inject("R", seq=1)
    script.expect_nothing()
    assert script.conn.state is State.CLOSED


def test_repeated_syn_ack_is_answered_by_the_third_ack_again() -> None:
    script = Script.established()
    script.inject("SA", seq=0, ack=1, options=script.syn_options())
    script.expect("A", seq=1, ack=1)
    assert script.conn.state is State.ESTABLISHED


# -- data ---------------------------------------------------------------------------------------


def test_second_full_segment_is_acknowledged_at_once() -> None:
    script = Script.established()
    script.inject("A", seq=1, ack=1, payload=b"x" * 1460)
    script.expect_nothing()
    script.inject("A", seq=1461, ack=1, payload=b"y" * 1460)
    script.expect("A", ack=2921)


def test_lone_segment_is_acknowledged_after_the_delay() -> None:
    script = Script.established()
    script.inject("PA", seq=1, ack=1, payload=b"abc")
    script.sleep(0.039)
    script.expect_nothing()
    script.sleep(0.002)
    script.expect("A", ack=4)


def test_ack_rides_on_data() -> None:
    script = Script.established()
    script.inject("PA", seq=1, ack=1, payload=b"abc")
    script.conn.send(b"reply")
    script.expect("A", seq=1, ack=4, payload=b"reply")
    script.sleep(0.03)
    script.expect_nothing()


def test_out_of_order_data_is_sacked_newest_first_and_delivered_in_order() -> None:
    script = Script.established()
    script.inject("A", seq=11, ack=1, payload=b"b" * 10)
    script.expect("A", ack=1, sack=((11, 21),))
    script.inject("A", seq=31, ack=1, payload=b"d" * 10)
    script.expect("A", ack=1, sack=((31, 41), (11, 21)))
    script.inject("A", seq=21, ack=1, payload=b"c" * 10)
    script.expect("A", ack=1, sack=((11, 41),))
    script.inject("A", seq=1, ack=1, payload=b"a" * 10)
    script.expect("A", ack=41, sack=())
    assert read(script) == b"a" * 10 + b"b" * 10 + b"c" * 10 + b"d" * 10


def test_duplicate_is_reported_by_dsack() -> None:
    script = Script.established()
    script.inject("A", seq=1, ack=1, payload=b"x" * 100)
    script.sleep(0.1)
    script.expect("A", ack=101)
    script.inject("A", seq=1, ack=1, payload=b"x" * 100)
    script.expect("A", ack=101, sack=((1, 101),))
    script.inject("A", seq=51, ack=1, payload=b"x" * 100)
    script.expect("A", ack=151, sack=((51, 101),))


def test_first_copy_of_overlapping_data_wins() -> None:
    script = Script.established()
    script.inject("A", seq=5, ack=1, payload=b"BBBB")
    script.inject("A", seq=3, ack=1, payload=b"ccccccccc")
    script.inject("A", seq=1, ack=1, payload=b"aaaa")
    assert read(script) == b"aaaaBBBBccc"


def test_data_beyond_the_window_is_cut() -> None:
    script = Script.established(receive_buffer=2000, receive_buffer_max=2000)
    script.inject("A", seq=1, ack=1, payload=b"x" * 3000)
    script.expect("A", ack=2001)
    assert script.conn.receivable == 2000
    script.inject("A", seq=2001, ack=1, payload=b"y" * 10)
    window = script.expect("A", ack=2001).window
    assert window == 0
    assert len(read(script)) == 2000
    assert script.expect("A", ack=2001).window == 2000


def test_one_byte_segments_with_holes_stay_bounded() -> None:
    script = Script.established(max_out_of_order=64)
    for seq in range(3, 2001, 2):
        script.inject("A", seq=seq, ack=1, payload=b"x")
    reassembly = script.conn._reassembly
    assert reassembly is not None
    assert len(reassembly.ranges) <= 64


def test_urgent_data_stays_in_the_stream() -> None:
    script = Script.established()
    script.inject("UA", seq=1, ack=1, payload=b"abc")
    assert read(script) == b"abc"


def test_send_splits_at_the_mss_by_gso() -> None:
    script = Script.established()
    script.conn.send(b"x" * 5000)
    seg = script.expect("A", seq=1, length=5000)
    assert seg.gso_size == 1460


def test_window_limits_what_is_sent() -> None:
    script = Script.established(window=3000)
    script.conn.send(b"x" * 10_000)
    script.expect("A", seq=1, length=2920)
    script.expect_nothing()
    script.inject("A", seq=1, ack=2921, window=3000)
    script.expect("A", seq=2921, length=2920)


def test_shrunken_window_is_tolerated() -> None:
    script = Script.established(window=20_000)
    script.conn.send(b"x" * 30_000)
    script.expect("A", seq=1)
    script.inject("A", seq=1, ack=1461, window=0)
    script.expect_nothing()
    script.sleep(0.5)
    script.sent.clear()
    script.inject("A", seq=1, ack=14_601, window=30_000)
    script.expect("A", seq=14_601)


def test_zero_window_is_probed_with_back_off_and_reopens() -> None:
    script = Script.established(window=0)
    script.conn.send(b"hello")
    script.expect_nothing()
    script.sleep(0.25)
    script.expect("A", seq=0, length=0)
    script.inject("A", seq=1, ack=1, window=0)
    script.sleep(0.3)
    script.expect_nothing()
    script.sleep(0.2)
    script.expect("A", seq=0, length=0)
    script.inject("A", seq=1, ack=1, window=1000)
    script.expect("A", seq=1, payload=b"hello")


# -- acknowledgements ---------------------------------------------------------------------------


def test_ack_of_unsent_data_is_challenged_and_gives_no_credit() -> None:
    script = Script.established()
    window = script.conn.cwnd
    script.inject("A", seq=1, ack=5000, payload=b"evil")
    script.expect("A", seq=1, ack=1)
    assert script.conn.cwnd == window
    assert script.conn.receivable == 0


def test_very_old_ack_is_challenged() -> None:
    script = Script.established(window=1000)
    script.inject("A", seq=1, ack=1 - 70_000, payload=b"evil")
    script.expect("A", seq=1, ack=1)
    assert script.conn.receivable == 0


def test_divided_acks_do_not_grow_the_window_faster() -> None:
    script = Script.established()
    script.conn.send(b"x" * 14_600)
    script.expect("A", seq=1, length=14_600)
    before = script.conn.cwnd
    for ack in range(2, 1462):
        script.inject("A", seq=1, ack=ack)
    assert script.conn.cwnd <= before + 1460


def test_sack_marks_a_hole_and_only_that_is_sent_again() -> None:
    script = Script.established()
    script.conn.send(b"x" * 14_600)
    script.expect("A", seq=1, length=14_600)
    script.sleep(0.005)
    script.inject("A", seq=1, ack=1, sack=((1461, 14_601),))
    script.expect("A", seq=1, length=1460)
    script.expect_nothing()
    script.inject("A", seq=1, ack=14_601)
    assert script.conn.bytes_in_flight == 0


@pytest.mark.parametrize(
    "block", [(5000, 3000), (20_000, 30_000), (0, 14_601), (-50_000, -40_000), (14_601, 14_602)]
)
def test_absurd_sack_blocks_are_ignored(block: tuple[int, int]) -> None:
    script = Script.established()
    script.conn.send(b"x" * 14_600)
    script.expect("A", seq=1, length=14_600)
    script.inject("A", seq=1, ack=1, sack=(block,))
    assert script.conn._sacked_bytes == 0
    assert script.conn.bytes_in_flight == 14_600


def test_retransmission_timer_doubles() -> None:
    script = Script.established()
    script.conn.send(b"x")
    script.expect("A", seq=1, length=1)
    times = []
    for _ in range(5):
        while not script.sent:
            script.sleep(0.005)
        script.expect("A", seq=1, length=1)
        times.append(script.now)
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps[2] == pytest.approx(2 * gaps[1], rel=0.15)
    assert gaps[3] == pytest.approx(2 * gaps[2], rel=0.15)


def test_capped_back_off_probes_steadily() -> None:
    script = Script.established()
    script.conn.rto_backoff_cap = 0.5
    script.conn.send(b"x")
    script.sleep(5)
    assert 9 <= len(script.sent) <= 13


def test_renege_is_survived() -> None:
    script = Script.established()
    script.conn.send(b"x" * 14_600)
    script.expect("A", seq=1, length=14_600)
    script.inject("A", seq=1, ack=1, sack=((1461, 14_601),))
    script.expect("A", seq=1, length=1460)
    script.inject("A", seq=1, ack=1461)
    script.sleep(3)
    assert any((s.seq - script.conn.iss) % 2**32 == 1461 for s in script.sent)


# -- RFC 5961 and other abuse -------------------------------------------------------------------


def test_only_the_exact_rst_ends_the_connection() -> None:
    script = Script.established()
    for offset in (-70_000, -1, 1, 100, 65_000, 70_000, 1 << 30):
        script.inject("R", seq=1 + offset)
        assert script.conn.state is State.ESTABLISHED
    script.inject("R", seq=1)
    assert script.conn.state is State.CLOSED
    script.expect_event(Event.RESET)


def test_rst_in_the_window_is_challenged() -> None:
    script = Script.established()
    script.inject("R", seq=100)
    script.expect("A", seq=1, ack=1)


def test_syn_in_the_window_is_challenged() -> None:
    script = Script.established()
    script.inject("S", seq=100, options=script.syn_options())
    script.expect("A", seq=1, ack=1)
    assert script.conn.state is State.ESTABLISHED


def test_challenges_are_limited_per_connection() -> None:
    script = Script.established()
    for _ in range(1000):
        script.inject("R", seq=100)
    script._flush()
    assert 5 <= len(script.sent) <= 12


def test_empty_segments_outside_the_window_are_answered_rarely() -> None:
    script = Script.established()
    for _ in range(100):
        script.inject("A", seq=0, ack=1)
        script._flush()
    assert len(script.sent) == 1


def test_old_timestamp_is_dropped_and_acknowledged() -> None:
    script = Script.established(timestamps=True)

    def option(value: int) -> bytes:
        return struct.pack(">BBBBII", 1, 1, 8, 10, value, 0)

    script.inject("A", seq=1, ack=1, payload=b"new", options=option(2000))
    script.sleep(0.1)
    assert script.next().ts_ecr == 2000
    script.inject("A", seq=4, ack=1, payload=b"old", options=option(1500))
    script.expect("A", ack=4)
    assert read(script) == b"new"


def test_future_timestamp_outside_the_window_does_not_poison() -> None:
    script = Script.established(timestamps=True)

    def option(value: int) -> bytes:
        return struct.pack(">BBBBII", 1, 1, 8, 10, value, 0)

    script.inject("A", seq=1 << 20, ack=1, payload=b"evil", options=option(1 << 30))
    script.inject("A", seq=1, ack=1, payload=b"good", options=option(1001))
    assert read(script) == b"good"


# -- closing ------------------------------------------------------------------------------------


def test_fin_follows_the_last_byte() -> None:
    script = Script.established()
    script.conn.send(b"bye")
    script.conn.shutdown_write()
    script.expect("FA", seq=1, payload=b"bye")
    script.inject("A", seq=1, ack=5)
    assert script.conn.state is State.FIN_WAIT_2
    script.inject("A", seq=1, ack=5, payload=b"still talking")
    assert read(script) == b"still talking"


def test_eof_is_seen_after_the_data_before_it() -> None:
    script = Script.established()
    script.inject("FA", seq=1, ack=1, payload=b"last words")
    assert not script.conn.eof
    assert read(script) == b"last words"
    assert script.conn.eof
    assert script.conn.state is State.CLOSE_WAIT


def test_fin_ahead_of_a_hole_waits() -> None:
    script = Script.established()
    script.inject("FA", seq=4, ack=1, payload=b"def")
    assert script.conn.state is State.ESTABLISHED
    script.inject("A", seq=1, ack=1, payload=b"abc")
    assert script.conn.state is State.CLOSE_WAIT
    assert read(script) == b"abcdef"


def test_data_after_fin_is_not_delivered() -> None:
    script = Script.close_wait()
    script.inject("A", seq=2, ack=1, payload=b"ghost")
    assert script.conn.receivable == 0
    script.expect("A", ack=2)


def test_lost_fin_is_repeated() -> None:
    script = Script.fin_wait_1()
    script.sleep(0.5)
    script.expect("FA", seq=1)


def test_last_ack_ends_the_connection() -> None:
    script = Script.last_ack()
    script.inject("A", seq=2, ack=2)
    assert script.conn.state is State.CLOSED
    script.expect_event(Event.CLOSED)
    assert script.host.forgotten == [script.conn]
    assert script.conn.next_timeout() is None


def test_closing_goes_to_time_wait() -> None:
    script = Script.closing()
    assert script.conn.state is State.CLOSING
    script.inject("A", seq=2, ack=2)
    assert script.conn.state is State.TIME_WAIT


def test_time_wait_answers_a_repeated_fin_and_ignores_rst() -> None:
    script = Script.time_wait()
    script.inject("R", seq=2)
    assert script.conn.state is State.TIME_WAIT
    script.inject("FA", seq=1, ack=2)
    script.expect("A", seq=2, ack=2)
    script.sleep(59)
    assert script.conn.state is State.TIME_WAIT
    script.sleep(2)
    assert script.conn.state is State.CLOSED
    assert script.host.forgotten == [script.conn]


def test_time_wait_gives_way_to_a_newer_incarnation() -> None:
    script = Script.time_wait()
    assert script.conn.accepts_reuse(script.segment("S", 100_000))
    assert not script.conn.accepts_reuse(script.segment("S", -100_000))


def test_abort_sends_a_rst_the_peer_accepts() -> None:
    script = Script.established()
    script.inject("A", seq=1, ack=1, payload=b"abc")
    script.conn.abort(script.now)
    script.expect("RA", seq=1, ack=4)
    assert script.host.forgotten == [script.conn]
    script.sleep(100)
    script.expect_nothing()


def test_closed_application_resets_a_peer_that_goes_on_talking() -> None:
    script = Script.established()
    script.conn.close(script.now)
    script.expect("FA", seq=1)
    script.inject("A", seq=1, ack=2, payload=b"more")
    script.expect("RA", seq=2)
    assert script.conn.state is State.CLOSED


def test_fin_wait_2_ends_after_close_by_time_out() -> None:
    script = Script.established()
    script.conn.close(script.now)
    script.inject("A", seq=1, ack=1)
    script.expect("FA", seq=1)
    script.inject("A", seq=1, ack=2)
    assert script.conn.state is State.FIN_WAIT_2
    script.sleep(61)
    assert script.conn.state is State.CLOSED


def test_keepalive_probe_is_left_of_the_window() -> None:
    script = Script.established(keepalive_idle=10.0)
    script.sleep(10.5)
    script.expect("A", seq=0, length=0)


def test_keepalive_of_the_peer_is_answered() -> None:
    script = Script.established()
    script.inject("A", seq=0, ack=1)
    script.expect("A", seq=1, ack=1)


def test_initial_numbers_differ_per_host_secret_and_tuple() -> None:
    first, second = Script.syn_sent(), Script.syn_sent()
    second.host.secret = bytes(16)
    again = type(second.conn)(second.host, second.conn.local, second.conn.remote)
    again.connect(second.now)
    assert first.conn.iss == second.conn.iss  # the same secret, tuple and time
    assert again.iss != first.conn.iss
    assert first.conn.iss != REMOTE_ISN
