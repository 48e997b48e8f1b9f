"""Boxes of two workers: they act as one, and one that dies takes its own connections alone."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.control.client import ControlClient
from proxy.seg import build_header
from proxy.tun.base import HEADER_LENGTH, complete
from proxy.wire.mptcp_options import MpJoinSyn, pad
from tests.lab.conftest import needs_boxes, running
from tests.lab.daemons import PORT, Boxes, Daemon
from tests.lab.namespaces import Namespace
from tests.lab.servers import digest_reply, echo, serving
from tests.lab.sockets import echo_through, exchange, is_reset
from tests.lab.topology import GATEWAY4, SERVER4, Topology, topology
from tests.lab.waiting import wait_for

pytestmark = needs_boxes

TWO = {"proxy": {"workers": 2}, "gateway": {"workers": 2}}


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    """Two unshaped uplinks."""
    with topology(None, None) as network:
        yield network


@pytest.fixture
def home(lab: Topology) -> Iterator[Boxes]:
    """Boxes of two workers, new for each test."""
    with running(lab, **TWO) as both:
        yield both


def workers(box: Daemon) -> dict[int, int]:
    """Process ids by worker."""
    return {entry["worker"]: entry["pid"] for entry in box.query("status")["workers"]}


def kill_worker(box: Daemon, index: int) -> None:
    """kill -9 of one, and wait until there is another one in its place."""
    old = workers(box)
    os.kill(old[index], signal.SIGKILL)
    wait_for(lambda: len(now := workers(box)) == 2 and now != old, "started again", within=20)
    assert {**workers(box), index: 0} == {**old, index: 0}, "others stay"


def worker_of(connection: dict[str, Any]) -> int:
    return int((connection["id"] - 1) % 2)


def by_port(box: Daemon) -> dict[int, dict[str, Any]]:
    """The connections, by the port of the LAN client."""
    return {int(c["source"].rsplit(":")[-1]): c for c in box.query("status")["connections"]}


def joined(box: Daemon, count: int) -> bool:
    connections = box.query("status")["connections"]
    return len(connections) == count and all(len(c["subflows"]) == 2 for c in connections)


def test_two_workers_are_shown_as_one(lab: Topology, home: Boxes) -> None:
    with serving(lab.server, echo) as server, ExitStack() as stack:
        socks = [stack.enter_context(lab.client.connect(SERVER4, server.port)) for _ in range(16)]
        assert all(echo_through(sock, 10_000) for sock in socks)
        for box in home:
            wait_for(lambda box=box: joined(box, 16), "all joined")  # type: ignore[misc]
            status = box.query("status")
            assert status["pid"] == box.pid
            ids = [connection["id"] for connection in status["connections"]]
            assert len(set(ids)) == 16
            assert {worker_of(c) for c in status["connections"]} == {0, 1}
            assert [entry["worker"] for entry in status["workers"]] == [0, 1]
            assert sum(entry["connections"] for entry in status["workers"]) == 16
            options = ("--socket", str(box.socket))
            shown = json.loads(box.command("ss", "--json", *options).stdout)
            assert sorted(entry["id"] for entry in shown) == sorted(ids)
            for number in ids[:4]:
                one = json.loads(
                    box.command("conn", str(number), "show", "--json", *options).stdout
                )
                assert one["id"] == number
        counters = home.gateway.query("counters")
        assert counters["MPTcpExtMPCapableSYNRX"] >= 16  # some are asked for twice after a start
        assert counters["MPTcpExtMPJoinAckRx"] == 16
        assert counters.get("MPTcpExtMPJoinNoTokenFound", 0) == 0
        victims = by_port(home.proxy)
        for sock in socks[:4]:
            number = victims[sock.getsockname()[1]]["id"]
            home.proxy.command("conn", str(number), "close", "--socket", str(home.proxy.socket))
            assert is_reset(sock)
        assert all(echo_through(sock, 1000) for sock in socks[4:])


def lost_ports(home: Boxes, role: str, index: int) -> set[int]:
    """The ports of those LAN clients whose connections the worker carries."""
    if role == "proxy":
        return {port for port, c in by_port(home.proxy).items() if worker_of(c) == index}
    # The two boxes meet at the ports of the initial subflow, which nothing here translates.
    there = {
        c["subflows"][0]["remote"].rsplit(":")[-1]
        for c in home.gateway.query("status")["connections"]
        if worker_of(c) == index
    }
    return {
        port
        for port, c in by_port(home.proxy).items()
        if c["subflows"][0]["local"].rsplit(":")[-1] in there
    }


def test_packets_find_their_worker_by_themselves(lab: Topology, home: Boxes) -> None:
    """Only the first packets of a subflow are handed over, for the kernel learns from answers."""
    with serving(lab.server, echo) as server, ExitStack() as stack:
        socks = [stack.enter_context(lab.client.connect(SERVER4, server.port)) for _ in range(8)]
        assert all(echo_through(sock, 1000) for sock in socks)
        wait_for(lambda: joined(home.gateway, 8), "all joined")
        before = {box.role: handed_over(box) for box in home}
        for sock in socks:
            assert echo_through(sock, 4_000_000)
        # 8 times 8 MB are 1,000 super-segments at least, of three flows for each connection.
        for box in home:
            assert handed_over(box) - before[box.role] < 50


def handed_over(box: Daemon) -> int:
    return int(box.query("counters").get("WorkerHandover", 0))


def test_a_flood_of_joins_is_handed_over_once_and_harms_nobody(lab: Topology, home: Boxes) -> None:
    rng = random.Random(7)
    count = 20_000
    with serving(lab.server, echo) as server, lab.client.connect(SERVER4, server.port) as sock:
        assert echo_through(sock, 10_000)
        flood(lab.routers[0], rng, count)
        assert echo_through(sock, 100_000)
        with lab.client.connect(SERVER4, server.port) as other:
            assert echo_through(other, 10_000)
        counters = home.gateway.query("counters")
    assert counters["MPTcpExtMPJoinNoTokenFound"] > 100
    assert counters["WorkerHandover"] <= count
    assert counters["WorkerHandover"] + counters["MPTcpExtMPJoinNoTokenFound"] <= 2 * count
    # What could not be answered within the rate was counted, not sent.
    assert counters["TCPOutRsts"] + counters["ResetsSuppressed"] >= 100


def flood(sender: Namespace, rng: random.Random, count: int) -> None:
    """SYNs with MP_JOIN and made-up tokens, from a router in the way."""
    source, target = socket.inet_aton("172.31.1.1"), socket.inet_aton(GATEWAY4)
    with sender.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for number in range(count):
            join = MpJoinSyn(False, 1, rng.getrandbits(32), rng.randbytes(4))
            port = 1024 + number % 60_000
            options = pad(join.build())
            head = build_header(source, target, port, PORT, 7, 0, 2, 65535, options, 0, 0)
            (packet,) = complete(bytes(head))
            raw.sendto(packet[HEADER_LENGTH:], (GATEWAY4, 0))


@pytest.mark.parametrize(("role", "index"), [("gateway", 1), ("proxy", 0)])
def test_a_killed_worker_takes_its_own_connections_alone(
    lab: Topology, home: Boxes, role: str, index: int
) -> None:
    box = home.proxy if role == "proxy" else home.gateway
    with serving(lab.server, echo) as server, ExitStack() as stack:
        socks = [stack.enter_context(lab.client.connect(SERVER4, server.port)) for _ in range(16)]
        assert all(echo_through(sock, 10_000) for sock in socks)
        wait_for(lambda: joined(home.proxy, 16) and joined(home.gateway, 16), "all joined")
        mine = lost_ports(home, role, index)
        assert 0 < len(mine) < 16
        kill_worker(box, index)
        for sock in socks:
            if sock.getsockname()[1] in mine:
                assert is_reset(sock)
            else:
                assert echo_through(sock, 50_000)
        assert "ended, killed by SIGKILL" in box.log
        with lab.client.connect(SERVER4, server.port) as sock:
            assert echo_through(sock, 10_000)
    wait_for(lambda: not home.proxy.query("status")["connections"], "all ended")
    if role == "gateway":
        # Of a proxy's loss the gateway learns when it has something to send.
        wait_for(lambda: not home.gateway.query("status")["connections"], "all ended there")
    assert box.query("counters")["WorkerRestarts"] == 1


def test_events_of_all_workers_come_once(lab: Topology, home: Boxes) -> None:
    with ControlClient(home.proxy.socket) as client, serving(lab.server, echo) as server:
        events = client.events("established", "listener-created")
        # The request was sent with the generator's making: what follows is told.
        kill_worker(home.proxy, 1)
        with ExitStack() as stack:
            for _ in range(8):
                sock = stack.enter_context(lab.client.connect(SERVER4, server.port))
                assert echo_through(sock, 1000)
            options = ("--socket", str(home.proxy.socket))
            address = home.proxy.query("status")["uplinks"][0]["address"]
            home.proxy.command("endpoint", "flush", *options)
            home.proxy.command("endpoint", "add", address, "signal", "port", "9000", *options)
            seen = [next(events) for _ in range(9)]
    assert sorted(event["event"] for event in seen) == ["established"] * 8 + ["listener-created"]
    assert len({event["token"] for event in seen[:8]}) == 8
    assert {int(event["token"], 16) % 2 for event in seen[:8]} == {0, 1}


def test_what_was_changed_stays_changed_after_a_restart(home: Boxes) -> None:
    proxy = home.proxy
    options = ("--socket", str(proxy.socket))
    proxy.command("sysctl", "net.mptcp.scheduler=roundrobin", *options)
    proxy.command("limits", "set", "subflows", "3", *options)
    proxy.command("endpoint", "delete", "id", "2", *options)
    for index in (0, 1):
        kill_worker(proxy, index)
        assert "roundrobin" in proxy.command("sysctl", "net.mptcp.scheduler", *options).stdout
        assert "subflows 3" in proxy.command("limits", "show", *options).stdout
        assert len(proxy.command("endpoint", "show", *options).stdout.splitlines()) == 1


@pytest.mark.parametrize("role", ["proxy", "gateway"])
def test_killed_parent_takes_its_workers_along(lab: Topology, role: str) -> None:
    both = Boxes(lab, **TWO)
    both.start()
    box = both.proxy if role == "proxy" else both.gateway
    pids = workers(box).values()
    box.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "workers ended")
    box.start()
    with serving(lab.server, digest_reply) as server:
        assert exchange(lab.client, SERVER4, server.port, b"after the crash")
    both.stop()
    assert both.leftovers(role) == []
