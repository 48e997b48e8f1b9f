"""Control of running daemons: endpoints, events, sysctls; side by side with the kernel's tools."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.control.aio import AsyncControlClient
from tests.lab.conftest import needs_boxes, running
from tests.lab.daemons import Boxes, Daemon
from tests.lab.servers import echo, serving
from tests.lab.sockets import echo_through
from tests.lab.topology import SERVER4, Topology, topology
from tests.lab.waiting import wait_for

pytestmark = needs_boxes


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    """Two unshaped uplinks."""
    with topology(None, None) as network:
        yield network


@pytest.fixture
def home(lab: Topology) -> Iterator[Boxes]:
    """Boxes of its own for each test, for they are changed."""
    with running(lab) as both:
        yield both


def run(box: Daemon, *words: str) -> str:
    return box.command(*words, "--socket", str(box.socket)).stdout


def refused(box: Daemon, *words: str) -> str:
    done = box.command(*words, "--socket", str(box.socket), check=False)
    assert done.returncode in (1, 2), done
    return done.stderr


def subflows(box: Daemon) -> list[dict[str, Any]]:
    (connection,) = json.loads(run(box, "ss", "--json"))
    return list(connection["subflows"])


def test_endpoints_change_a_live_connection(lab: Topology, home: Boxes) -> None:
    proxy = home.proxy
    with serving(lab.server, echo) as server, lab.client.connect(SERVER4, server.port) as sock:
        assert echo_through(sock, 10_000)
        wait_for(lambda: len(subflows(proxy)) == 2, "both uplinks joined")
        shown = run(proxy, "endpoint", "show").splitlines()
        second = next(line for line in shown if line.endswith("dev lte"))
        address, number = second.split()[0], second.split()[2]

        run(proxy, "endpoint", "change", "id", number, "backup")
        wait_for(
            lambda: any("B" in s["flags"] for s in subflows(home.gateway)), "the gateway was told"
        )
        run(proxy, "endpoint", "delete", "id", number)
        wait_for(lambda: len(subflows(proxy)) == 1, "its subflow ended")
        assert echo_through(sock, 10_000)
        run(proxy, "endpoint", "add", "dev", "lte", "subflow")
        assert second in run(proxy, "endpoint", "show").splitlines()
        wait_for(lambda: len(subflows(proxy)) == 2, "it is used again")
        assert {s["local"].rpartition(":")[0] for s in subflows(proxy)} >= {address}
        assert echo_through(sock, 10_000)

        run(proxy, "conn", "1", "scheduler", "redundant")
        run(proxy, "conn", "1", "cc", "reno")
        assert {s["cc"] for s in subflows(proxy)} == {"reno"}
        assert echo_through(sock, 10_000)
        assert "SynTx" in run(proxy, "nstat", "-a", "-s", "MPTcpExtMPJoinSynTx")


def test_a_program_decides_on_the_paths_of_new_connections(lab: Topology, home: Boxes) -> None:
    """The userspace path manager at the proxy, driven by the asyncio client."""
    proxy = home.proxy
    run(proxy, "sysctl", "net.mptcp.pm_type=1")
    addresses = [line.split()[0] for line in run(proxy, "endpoint", "show").splitlines()]

    async def manage() -> list[str]:
        # By token: an attempt that the gateway challenged is created and closed as well.
        seen: dict[str, list[str]] = {}
        mine = ""
        async with AsyncControlClient(proxy.socket) as client:
            await client.subscribe()
            connecting = asyncio.create_task(asyncio.to_thread(talk))
            async for event in client.events():
                seen.setdefault(event["token"], []).append(event["event"])
                if event["event"] == "established":
                    mine = event["token"]
                    (other,) = set(addresses) - {event["saddr4"]}
                    await client.request(
                        "subflow-create",
                        token=event["token"],
                        addr={"addr4": other, "id": 9},
                        addr_remote={"addr4": event["daddr4"], "port": event["dport"]},
                    )
                elif event["event"] == "sub-established":
                    ends = {
                        "addr": {"addr4": event["saddr4"], "port": event["sport"]},
                        "addr_remote": {"addr4": event["daddr4"], "port": event["dport"]},
                    }
                    await client.request("subflow-destroy", token=event["token"], **ends)
                elif event["event"] == "closed" and event["token"] == mine:
                    break
            await connecting
        return seen[mine]

    with serving(lab.server, echo) as server:

        def talk() -> None:
            with lab.client.connect(SERVER4, server.port) as sock:
                assert echo_through(sock, 1000)
                wait_for(lambda: proxy.query("counters").get("MPTcpExtRmSubflow", 0) > 0, "managed")
                assert echo_through(sock, 1000)

        seen = asyncio.run(asyncio.wait_for(manage(), 30))
    assert seen == ["created", "established", "sub-established", "sub-closed", "closed"]


def test_the_same_words_have_the_same_effect_as_with_the_kernel(lab: Topology, home: Boxes) -> None:
    """``ip mptcp`` and ``mptcp-proxy``, given the same words in the same order."""
    gateway = home.gateway
    assert run(gateway, "endpoint", "show") == ""
    kernel = lab.client
    kernel.run("ip", "mptcp", "endpoint", "flush")

    def both(*words: str) -> None:
        ours = gateway.command(*words, "--socket", str(gateway.socket), check=False)
        theirs = kernel.run("ip", "mptcp", *words, check=False)
        assert (ours.returncode == 0) == (theirs.returncode == 0), (words, ours, theirs)
        assert ours.stdout.split() == theirs.stdout.split(), words

    for words in (
        "limits set subflows 3 add_addr_accepted 1",
        "limits set subflows 9",
        "limits show",
        "endpoint add 192.0.2.1 signal",
        "endpoint add 192.0.2.2 signal backup",
        "endpoint add 192.0.2.2 signal",
        "endpoint add 192.0.2.3 id 1 signal",
        "endpoint add 192.0.2.3 id 40 signal",
        "endpoint add 192.0.2.4 signal fullmesh",
        "endpoint add 192.0.2.4 subflow port 7",
        "endpoint add 2001:db8::5 signal",
        "endpoint show id 40",
        "endpoint show id 99",
        "endpoint change id 99 backup",
        "endpoint change id 1 backup",
        "endpoint change 192.0.2.2 nobackup",
        "endpoint change id 1 fullmesh",
        "endpoint delete id 40",
        "endpoint delete id 40",
        "endpoint delete id 0",
        "endpoint show",
        "endpoint flush",
        "endpoint show",
    ):
        both(*words.split())


def test_refusals_are_told_in_one_line(home: Boxes) -> None:
    proxy = home.proxy
    text = refused(proxy, "endpoint", "add", "192.0.2.77", "subflow")
    assert text.count("\n") == 1
    assert "192.0.2.77 is no address of this engine" in text
    assert "read-only" in refused(proxy, "sysctl", "available_schedulers=x")
