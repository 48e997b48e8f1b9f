"""The settings of ``net.mptcp`` that a connection obeys, under the kernel's names."""

from __future__ import annotations

import pytest

from proxy.mptcp.blackhole import MAX_PATHS, Blackhole
from proxy.mptcp.notes import Fallback
from proxy.tcp.events import Event
from proxy.wire.mptcp_options import MpCapable
from tests.pair.harness import CounterTable
from tests.script.mptcp_harness import OURS, PEER, Leg, MptcpScript, config, has_option

A, B, R = b"\x0a\x01\x00\x01", b"\x0a\x02\x00\x01", b"\x0a\x09\x00\x01"


def swallowed(script: MptcpScript, leg: Leg) -> None:
    """The path answers the first SYN without MP_CAPABLE."""
    script.sleep(3.5)
    leg.take()
    leg.inject("SA")
    leg.take()


def again(script: MptcpScript) -> Leg:
    conn = script.stack.connect_mptcp(OURS.ip, PEER, script.now, b"", "u0")
    script.conn = conn
    script.flush()
    return script.leg(conn.local, PEER)


def test_enabled_off_means_plain_tcp_in_both_roles() -> None:
    script = MptcpScript.syn_sent(mptcp=config(enabled=False))
    assert not script.first.next().has_mptcp
    assert script.conn.fallback is Fallback.AT_HANDSHAKE
    assert script.count("MPCapableSYNTX") == 0
    server = MptcpScript(mptcp=config(enabled=False))
    leg = server.leg(PEER, OURS)
    leg.inject("S", options=server.capable(b""))
    assert not leg.next().has_mptcp


def test_blackhole_timeout_keeps_new_connections_from_asking() -> None:
    script = MptcpScript.syn_sent(mptcp=config(blackhole_timeout=100.0))
    swallowed(script, script.first)
    assert script.count("MPCapableSYNTXDrop") == 1
    assert script.count("MPCapableFallbackSYNACK") == script.count("Blackhole") == 0
    swallowed(script, again(script))
    assert script.count("Blackhole") == 1
    leg = again(script)
    assert not leg.next().has_mptcp
    assert script.count("MPCapableSYNTXDisabled") == 1
    assert script.count("MPCapableSYNTX") == 2
    script.sleep(101.0)
    assert has_option(again(script).next(), MpCapable)


def test_connections_of_one_outage_are_no_black_hole() -> None:
    script = MptcpScript.syn_sent()
    legs = [script.first]
    for _ in range(5):
        script.sleep(0.1)
        legs.append(again(script))
    script.sleep(3.4)
    for leg in legs:
        assert not leg.last().has_mptcp
        leg.inject("SA")
    assert script.count("Blackhole") == 0
    assert has_option(again(script).next(), MpCapable)


def test_blackhole_timeout_of_0_is_off() -> None:
    script = MptcpScript.syn_sent(mptcp=config(blackhole_timeout=0))
    swallowed(script, script.first)
    swallowed(script, again(script))
    assert script.count("Blackhole") == 0
    assert has_option(again(script).next(), MpCapable)


def test_black_holes_of_a_path_last_longer_each_time_and_end_when_it_works() -> None:
    counters = CounterTable()
    holes = Blackhole(10.0, counters)
    holes.fell_in(A, R, 0.0, 3.0)
    assert not holes.active(A, R, 3.0)
    now = 5.0
    for period in (10, 20, 40, 80, 160, 320, 640, 640):
        holes.fell_in(A, R, now - 1, now)
        holes.fell_in(A, R, now - 1, now)  # at the same time
        assert holes.active(A, R, now + period - 1)
        assert not holes.active(A, R, now + period + 1)
        assert not holes.active(B, R, now), "other paths are not affected"
        now += period + 2
    assert counters["MPTcpExtBlackhole"] == 8
    holes.works(A, R)
    assert not holes.active(A, R, now - 1)
    holes.fell_in(A, R, now, now + 1)
    assert not holes.active(A, R, now + 1), "all is as in the beginning"


def test_the_memory_of_black_holes_is_bounded() -> None:
    holes = Blackhole(10.0, CounterTable())
    for number in range(2 * MAX_PATHS):
        holes.fell_in(A, number.to_bytes(4, "big"), 0.0, 1.0)
    assert len(holes._records) <= MAX_PATHS


def test_close_timeout_ends_a_connection_without_subflows() -> None:
    script = MptcpScript.client(mptcp=config(close_timeout=7.0))
    script.first.inject("R", seq=script.first.seq)
    assert script.first.dead()
    script.sleep(6.5)
    assert Event.TIMED_OUT not in script.events
    script.sleep(1.0)
    assert Event.TIMED_OUT in script.events
    assert script.stack.tokens == {}


@pytest.mark.parametrize(("limit", "stale_after"), [(0, 99), (1, 1), (3, 3)])
def test_stale_loss_cnt_time_outs_make_a_subflow_stale(limit: int, stale_after: int) -> None:
    script = MptcpScript.client(mptcp=config(stale_loss_cnt=limit))
    leg = script.joined()
    leg.subflow.backup = False
    script.first.subflow.backup = script.first.subflow.peer_backup = True
    script.send(bytes(1000))  # over the new one, which answers no more
    data = leg.last()
    assert data.length == 1000
    for count in range(1, 6):
        while leg.subflow.rto_count < count:
            script.sleep(0.05)
            for seg in script.first.take():  # the peer is silent about the data on both levels
                if seg.length:
                    script.first.inject(options=script.dss(ack=0))
        assert leg.subflow.stale == (count >= stale_after)
    assert script.count("SubflowStale") == (1 if stale_after < 99 else 0)


def test_any_ack_of_a_stale_subflow_makes_it_usable_again() -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joined()
    script.first.subflow.backup = script.first.subflow.peer_backup = True
    script.send(bytes(1000))
    leg.take()
    script.sleep(2.0)
    assert leg.subflow.stale
    leg.inject(options=script.dss(ack=1000))
    assert not leg.subflow.stale
    assert script.count("SubflowRecover") == 1
