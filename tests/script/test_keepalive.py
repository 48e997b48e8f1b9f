"""Idle subflows: when they ask whether their peer is there, when they give up, what that costs."""

from __future__ import annotations

from proxy.mptcp.keepalive import RATE
from proxy.tcp.config import TcpConfig
from proxy.tcp.events import Event
from tests.script.mptcp_harness import PEER, MptcpScript, config


def asked(script: MptcpScript) -> int:
    return script.stack.counters["TCPKeepAlive"]


def test_a_silent_subflow_asks_and_an_answer_is_enough() -> None:
    script = MptcpScript.client(mptcp=config())
    script.sleep(29.0)
    assert script.first.quiet()
    script.sleep(2.0)
    (question,) = script.first.take()
    assert (question.seq - script.first.iss) & 0xFFFFFFFF == 0, "just left of the window"
    script.first.inject(options=script.dss(ack=0))
    script.sleep(29.0)
    assert script.first.quiet()
    script.sleep(2.0)
    assert len(script.first.take()) == 1


def test_who_did_not_open_a_subflow_waits_for_the_question_of_the_other() -> None:
    script = MptcpScript.server(mptcp=config())
    script.sleep(59.0)
    assert script.first.quiet()
    script.sleep(2.0)
    assert len(script.first.take()) == 1


def test_a_connection_that_only_receives_learns_that_its_peer_is_gone() -> None:
    script = MptcpScript.client(mptcp=config())
    script.sleep(149.0)
    assert script.conn.subflows, "an outage of two minutes ends no connection"
    script.sleep(62.0)
    assert Event.RESET in script.events or Event.TIMED_OUT in script.events


def test_a_peer_that_came_back_without_memory_is_known_at_once() -> None:
    script = MptcpScript.client(mptcp=config())
    script.sleep(31.0)
    script.first.inject("R", seq=script.first.seq)
    assert script.events[-1] is Event.SUBFLOW_CLOSED


def test_many_idle_connections_ask_no_more_often_than_a_few() -> None:
    script = MptcpScript.client(mptcp=config())
    for _ in range(300):
        conn = script.stack.connect_mptcp(script.conn.local.ip, PEER, script.now, b"", "u0")
        script.flush()
        leg = script.leg(conn.local, PEER)
        leg.inject("SA", options=script.capable())

    def answer(seconds: int) -> None:
        for _ in range(seconds):
            script.sleep(1.0)
            for leg in list(script.legs.values()):
                if leg.take():
                    leg.inject(options=b"\x1e\x08\x20\x01\0\0\0\0")

    answer(60)
    before = asked(script)
    answer(200)
    assert 0.5 * RATE * 200 <= asked(script) - before <= 1.1 * RATE * 200


def test_when_one_finds_nobody_all_ask() -> None:
    script = MptcpScript.client(mptcp=config())
    for _ in range(100):
        conn = script.stack.connect_mptcp(script.conn.local.ip, PEER, script.now, b"", "u0")
        script.flush()
        script.leg(conn.local, PEER).inject("SA", options=script.capable())
    script.sleep(300.0)
    assert script.stack.tokens == {}


def test_it_can_be_turned_off_and_never_outlasts_that_of_tcp() -> None:
    script = MptcpScript.client(mptcp=config(subflow_keepalive=0.0))
    script.sleep(1000.0)
    assert asked(script) == 0
    tcp = TcpConfig(timestamps=False, pacing=False, keepalive_idle=10.0, keepalive_interval=1.0)
    script = MptcpScript.client(mptcp=config(), tcp=tcp)
    script.sleep(11.5)
    assert asked(script) == 2
