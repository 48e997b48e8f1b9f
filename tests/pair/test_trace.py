"""What a trace says of connections in virtual time, and that it changes nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from proxy.mptcp.config import MptcpConfig
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.trace import Trace
from proxy.tcp.config import TcpConfig
from tests.pair.mptcp_harness import App, MptcpPair, Path, path, payload
from tests.pair.mptcp_middlebox import strip_mptcp

Paths = Callable[[random.Random], list[Path]]


def two(rng: random.Random) -> list[Path]:
    return [path(rng, 20, 20), path(rng, 10, 40)]


def unequal(rng: random.Random) -> list[Path]:
    return [path(rng, 50, 10, 200), path(rng, 2, 300, 900)]


def traced(
    paths: Paths, size: int = 5_000_000, server: bool = False, close: bool = False, **settings: Any
) -> MptcpPair:
    """A transfer whose client (or server) is traced from its first moment on."""
    apps = App(payload(size), close=close), App(close=close)
    pair = MptcpPair(paths, *apps, **settings)
    host = pair.server_host if server else pair.client_host
    host.trace = Trace(1 << 26, 0.0)
    if not server:
        pair.client.scheduler = host.trace.wrap(pair.client, pair.client.scheduler)
    return pair


def events(pair: MptcpPair, *names: str, server: bool = False) -> list[dict[str, Any]]:
    trace = (pair.server_host if server else pair.client_host).trace
    assert trace is not None
    found = [json.loads(line) for line in trace.read(0, 1 << 30).lines]
    return [event for event in found if not names or event["event"] in names]


def test_each_burst_is_told_with_its_subflow_the_candidates_and_the_reason() -> None:
    pair = traced(two, 2_000_000, close=True)
    pair.run()
    sent = events(pair, "send")
    # In the order of the stream, without a gap, all of it.
    offset = 0
    for event in sent:
        assert event["offset"] == offset
        offset += event["bytes"]
    assert offset == 2_000_000
    assert {event["to"] for event in sent} == {"u0", "u1"}
    for event in sent:
        by_name = {c["subflow"]: c for c in event["candidates"]}
        chosen = by_name[event["to"]]
        assert chosen["room"] >= event["bytes"]
        able = [c for c in by_name.values() if c["room"] > 0]
        if len(able) == 1:
            assert event["reason"] == "the only one with room"
        else:
            assert event["reason"] == "the shortest round trip of those with room"
            assert chosen["srtt"] == min(c["srtt"] for c in able)
    assert {event["token"] for event in events(pair)} == {f"{pair.client.local_key.token:08x}"}
    pair.check_streams()


def test_a_scheduler_that_waits_says_so() -> None:
    pair = traced(two, 3_000_000, close=True)
    pair.run()
    waits = events(pair, "wait")
    assert waits
    for event in waits:
        assert "a faster one" in event["reason"]
        assert any(c["room"] for c in event["candidates"])


def test_copies_of_a_redundant_scheduler() -> None:
    pair = traced(two, 1000, client=MptcpConfig(scheduler="redundant"))
    pair.run_for(1)
    pair.client.send(payload(1000))
    pair._settle()
    (*_, last) = events(pair, "send")
    assert (last["to"], last["copies"]) == ("u0", ["u1"])
    assert last["reason"] == "the shortest round trip of those with room; the others get copies"


def test_a_trace_changes_nothing() -> None:
    def finished(trace: bool) -> tuple[float, int]:
        pair = traced(unequal, 3_000_000, close=True)
        if not trace:
            pair = MptcpPair(unequal, App(payload(3_000_000)), App())
        pair.run()
        return pair.now, pair.steps

    assert finished(True) == finished(False)


def cut(pair: MptcpPair, index: int, seconds: float = 20) -> None:
    pair.run_for(1)
    pair.paths[index].alive = False
    pair.run_for(seconds)


def reasons(pair: MptcpPair) -> set[str]:
    return {event["reason"] for event in events(pair, "reinject")}


def test_what_a_silent_path_carried_is_sent_again_for_that_reason() -> None:
    pair = traced(two)
    cut(pair, 1)
    assert events(pair, "tail-probe")[0]["subflow"] == "u1"
    again = events(pair, "reinject")
    assert again
    assert {(e["instead-of"], e["to"]) for e in again if e["time"] > 1001} == {("u1", "u0")}
    assert "tail-probe" in reasons(pair)
    assert reasons(pair) & {"silent", "timeout"}
    assert events(pair, "subflow-stale")[0]["reason"] == "timeout"
    pair.paths[1].alive = True
    pair.run_for(60)
    assert [e["subflow"] for e in events(pair, "subflow-recovered")] == ["u1"]
    assert sum(e["bytes"] for e in events(pair, "reinject")) == pair.client.tx.bytes_reinjected


def test_a_path_whose_link_is_gone() -> None:
    pair = traced(two)
    pair.run_for(1)
    before = reasons(pair)
    pair.client.lose_path(pair.client.subflows[1], pair.now)
    pair._settle()
    pair.run_for(0.1)
    assert reasons(pair) - before == {"path-lost"}
    (stale,) = events(pair, "subflow-stale")
    assert (stale["subflow"], stale["reason"]) == ("u1", "path-lost")


def test_a_subflow_that_is_closed_and_one_that_is_reset() -> None:
    pair = traced(two)
    pair.run_for(1)
    before = reasons(pair)
    pair.client.close_subflow(pair.client.subflows[1], pair.now)
    pair._settle()
    pair.run_for(1)
    assert reasons(pair) - before == {"subflow-closing"}
    gone = events(pair, "subflow-gone")[0]
    assert (gone["subflow"], gone["by-peer"]) == ("u1", False)

    pair = traced(two)
    pair.run_for(1)
    server = pair.server
    assert isinstance(server, MptcpConnection)
    before = reasons(pair)
    server.reset_subflow(server.subflows[1], 5, pair.now)
    pair._settle()
    pair.run_for(1)
    assert "subflow-gone" in reasons(pair) - before
    gone = events(pair, "subflow-gone")[0]
    assert (gone["subflow"], gone["error"], gone["reset-reason"]) == ("u1", "ECONNRESET", 5)


def test_the_window_waits_for_a_slow_subflow() -> None:
    small = TcpConfig(receive_buffer=65536, receive_buffer_max=65536)
    pair = traced(unequal, client=MptcpConfig(scheduler="roundrobin"), server_tcp=small)
    pair.run_for(20)
    assert "window-blocked" in reasons(pair)


def test_joins_and_priorities_are_told_at_both_ends() -> None:
    pair = traced(two, 5_000_000)
    pair.server_host.trace = Trace(1 << 20, 0.0)
    pair.run_for(1)
    assert [e["subflow"] for e in events(pair, "subflow-opening")] == ["u1"]
    assert [e["subflow"] for e in events(pair, "subflow-established")] == ["u1"]
    (joined,) = events(pair, "subflow-established", server=True)
    assert joined["subflow"] == joined["remote"] == events(pair, "subflow-opening")[0]["local"]
    pair.client.set_backup(pair.client.subflows[1], True, pair.now)
    pair._settle()
    pair.run_for(1)
    assert [(e["subflow"], e["backup"]) for e in events(pair, "priority")] == [("u1", True)]
    (told,) = events(pair, "peer-priority", server=True)
    assert (told["subflow"], told["backup"]) == (joined["remote"], True)


def test_a_fall_back_is_told_with_its_reason() -> None:
    pair = traced(
        lambda rng: [path(rng)],
        20_000,
        filter=lambda _path, up, packet: [strip_mptcp(packet)],
    )
    pair.run_for(2)
    (event,) = events(pair, "fallback")
    assert event["reason"] == pair.client.fallback_reason == "SYN-ACK without MP_CAPABLE"


def test_a_new_scheduler_and_a_new_connection_are_traced_too() -> None:
    pair = traced(two, server=True)
    pair.run_for(0.5)
    assert isinstance(pair.server, MptcpConnection)
    assert not events(pair, "send", server=True)
    pair.server.set_scheduler("roundrobin")
    pair.server.send(payload(100_000))
    pair._settle()
    pair.run_for(1)
    sent = events(pair, "send", server=True)
    assert sum(event["bytes"] for event in sent) == 100_000
    assert {event["scheduler"] for event in sent} == {"roundrobin"}


@pytest.mark.parametrize("name", ["default", "redundant"])
def test_untraced_connections_have_nothing_around_their_scheduler(name: str) -> None:
    pair = MptcpPair(two, App(payload(1000)), App(), client=MptcpConfig(scheduler=name))
    assert type(pair.client.scheduler).__module__ == f"proxy.sched.{name}"
