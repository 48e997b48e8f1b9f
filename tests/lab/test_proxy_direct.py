"""Ways past the gateway: by rule, and when it does not answer."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator

import pytest

from tests.lab.conftest import FIBRE, LTE, needs_boxes
from tests.lab.daemons import Boxes, Daemon, differences, edit, snapshot
from tests.lab.servers import Nginx, echo, serving
from tests.lab.sockets import echo_through
from tests.lab.topology import CLIENT4, SERVER4, Topology, topology, uplink_address
from tests.lab.transfer import Download
from tests.lab.waiting import wait_for

pytestmark = [needs_boxes, pytest.mark.lab("nginx", "curl", "nft")]
BY_GATEWAY = "198.51.100.1"
DIRECT = {uplink_address(1), uplink_address(2)}


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    with topology(FIBRE, LTE) as network:
        yield network


@pytest.fixture
def boxes(lab: Topology, request: pytest.FixtureRequest) -> Iterator[Boxes]:
    """Running; a test's parameter says what is added to the proxy's file, and where."""
    both = Boxes(lab)
    for place, addition in getattr(request, "param", {}).items():
        edit(both.proxy, place, f"{addition}\n{place}")
    both.start()
    yield both
    both.stop()


def reachable(box: Daemon) -> bool:
    return bool(box.query("status")["gateway_reachable"])


def ask(box: Daemon, *argv: str) -> str:
    return box.command(*argv, "--socket", str(box.socket)).stdout


def opened(lab: Topology, port: int) -> float:
    """Seconds until a new conversation has echoed something."""
    began = time.monotonic()
    with lab.client.connect(SERVER4, port) as sock:
        assert echo_through(sock, 1000)
        return time.monotonic() - began


def test_without_the_gateway_new_conversations_go_directly(lab: Topology, boxes: Boxes) -> None:
    with serving(lab.server, echo) as server:
        opened(lab, server.port)
        assert server.peers[-1] == BY_GATEWAY
        boxes.gateway.kill()
        first = opened(lab, server.port)
        assert server.peers[-1] in DIRECT
        assert not reachable(boxes.proxy)
        assert "the gateway does not answer" in ask(boxes.proxy, "status")
        second = opened(lab, server.port)
        print(f"the first directly after {first:.2f} s, the second after {second:.2f} s")
        assert first < 8  # promised is one; a busy machine must not fail this
        with lab.client.connect(SERVER4, server.port) as sock:
            assert echo_through(sock, 1000)
            boxes.gateway.start()
            began = time.monotonic()
            wait_for(lambda: reachable(boxes.proxy), "it answers again", within=20)
            print(f"back after {time.monotonic() - began:.2f} s")
            opened(lab, server.port)
            assert server.peers[-1] == BY_GATEWAY
            assert echo_through(sock, 1000), "what went directly goes on directly"


def test_a_gateway_that_is_stopped_refuses_and_is_missed_as_well(
    lab: Topology, boxes: Boxes
) -> None:
    with serving(lab.server, echo) as server:
        boxes.gateway.stop()
        took = opened(lab, server.port)
        assert server.peers[-1] in DIRECT
        print(f"directly after {took:.2f} s")
        boxes.gateway.start()


@pytest.mark.parametrize("boxes", [{'client = "': 'when_unreachable = "refuse"'}], indirect=True)
def test_conversations_can_be_refused_instead(lab: Topology, boxes: Boxes) -> None:
    with serving(lab.server, echo) as server:
        boxes.gateway.kill()
        with pytest.raises(OSError, match=r"unreachable|No route"):
            lab.client.connect(SERVER4, server.port, timeout=5)
        assert not reachable(boxes.proxy)
        boxes.gateway.start()


def test_a_slow_server_says_nothing_of_the_gateway(lab: Topology, boxes: Boxes) -> None:
    rules = "table inet mute { chain in { type filter hook input priority 0; tcp dport 7 drop; }; }"
    lab.server.run("nft", rules)
    try:
        with pytest.raises(TimeoutError):
            lab.client.connect(SERVER4, 7, timeout=3)
    finally:
        lab.server.run("nft", "delete", "table", "inet", "mute")
    status = boxes.proxy.query("status")
    assert status["gateway_reachable"]
    assert {uplink["gateway"] for uplink in status["uplinks"]} == {"answers"}


RULES = """
[[rule]]
name = "past"
ports = [7001]
via = "bypass"
[[rule]]
name = "straight"
to = ["198.51.100.0/24"]
ports = [7002]
via = "direct"
uplinks = ["lte"]
[[rule]]
name = "named"
ports = [7003]
sni = ["*.example.org"]
via = "direct"
"""

BULK = {'name = "lte"': "metered = true", "[control]": "[[rule]]\nbulk_bytes = 1_000_000"}


def hello(name: str) -> bytes:
    context = ssl.create_default_context()
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name).do_handshake()
    return out.read()


def talk(lab: Topology, port: int, data: bytes) -> bytes:
    with lab.client.connect(SERVER4, port) as sock:
        sock.settimeout(10)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65536), b""))


@pytest.mark.parametrize("boxes", [{"[control]": RULES}], indirect=True)
def test_rules_say_which_way(lab: Topology, boxes: Boxes) -> None:
    past, straight, named = 7001, 7002, 7003
    seen: dict[int, str] = {}
    for port in (past, straight, named, 7004):
        with serving(lab.server, echo, port=port) as server:
            assert talk(lab, port, b"hello") == b"hello"
            seen[port] = server.peers[-1]
            if port == named:
                request = hello("www.example.org")
                assert talk(lab, port, request) == request
                seen[0] = server.peers[-1]
    assert seen == {
        past: CLIENT4,
        straight: uplink_address(2),
        named: BY_GATEWAY,
        0: seen[0],
        7004: BY_GATEWAY,
    }
    assert seen[0] in DIRECT
    hits = json.loads(ask(boxes.proxy, "rule", "show", "--json"))
    assert {rule["name"]: rule["hits"] for rule in hits["rules"]} == {
        "past": 1,
        "straight": 1,
        "named": 1,
    }
    assert hits["others"] == 2
    test = ask(boxes.proxy, "rule", "test", f"{SERVER4}:7003", "--sni", "a.example.org")
    assert test.startswith("named: port 7003 sni *.example.org, via direct")
    assert "no rule" in ask(boxes.proxy, "rule", "test", f"{SERVER4}:7004")


def test_other_rules_leave_open_conversations_alone(lab: Topology, boxes: Boxes) -> None:
    with serving(lab.server, echo, port=7001) as server:
        before = lab.client.connect(SERVER4, 7001)
        assert echo_through(before, 1000)
        edit(boxes.proxy, "[control]", f"{RULES}\n[control]")
        assert "rule[past]" in ask(boxes.proxy, "reload")
        bypassed = lab.client.connect(SERVER4, 7001)
        assert echo_through(before, 1000)
        assert echo_through(bypassed, 1000)
        edit(boxes.proxy, RULES, "")
        ask(boxes.proxy, "reload")
        assert echo_through(before, 1000)
        assert echo_through(bypassed, 1000)
        assert server.peers == [BY_GATEWAY, CLIENT4]
        before.close()
        bypassed.close()


@pytest.mark.parametrize("boxes", [BULK], indirect=True)
def test_bulk_keeps_off_a_metered_uplink(lab: Topology, boxes: Boxes, nginx: Nginx) -> None:
    digest = nginx.add("large", 30_000_000)
    before = lab.proxy.interface_bytes("u2")[0]
    assert Download(lab.client, nginx.url("large")).finish().sha256 == digest
    used = lab.proxy.interface_bytes("u2")[0] - before
    print(f"{used} bytes on the metered uplink")
    assert used < 6_000_000


@pytest.mark.parametrize("boxes", [{"[control]": RULES}], indirect=True)
def test_restart_after_a_kill_with_other_rules_leaves_nothing(lab: Topology, boxes: Boxes) -> None:
    boxes.proxy.kill()
    edit(boxes.proxy, RULES, "")
    boxes.proxy.start()
    during = snapshot(lab.proxy)
    assert not any("rule-past" in line for line in during["nft"])
    assert differences(during, snapshot(lab.proxy)) == []
