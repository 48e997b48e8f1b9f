"""``mptcp-proxy doctor`` names what a path or the host does wrong, and nothing else."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.conftest import needs_boxes
from tests.lab.daemons import Boxes, differences, edit, snapshot
from tests.lab.link import LinkSpec
from tests.lab.middlebox import MPTCP, NAT_PATTERN, Middlebox
from tests.lab.topology import Topology, topology
from tests.lab.waiting import wait_for

pytestmark = [pytest.mark.lab, needs_boxes]
SPEC = LinkSpec.symmetric(100, 6, queue_ms=100)
CHANGED = "lte"  # the uplink whose path the tests change


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    with topology(SPEC, SPEC) as network:
        yield network


@pytest.fixture(scope="module")
def gateway(lab: Topology) -> Iterator[Boxes]:
    """The gateway runs, the proxy does not."""
    both = Boxes(lab)
    both.gateway.start()
    yield both
    both.stop()


@pytest.fixture
def boxes(gateway: Boxes) -> Iterator[Boxes]:
    """The same, the path as it was afterwards, and nothing of the doctor left."""
    yield gateway
    gateway.lab.link(2).shape(up=SPEC.up, down=SPEC.down)
    assert gateway.leftovers("proxy") == []


def doctor(boxes: Boxes, *options: str, nat: float = 0) -> tuple[int, dict[str, Any]]:
    """Exit status and what ``--json`` says."""
    argv = ["doctor", "-c", str(boxes.proxy.config_file), "--json", "--nat-timeout", str(nat)]
    done = boxes.proxy.command(*argv, *options, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def found(report: dict[str, Any], level: str = "finding") -> dict[tuple[str, str], dict[str, Any]]:
    return {(r["where"], r["check"]): r for r in report["results"] if r["level"] == level}


def test_a_clean_lab_has_no_finding(boxes: Boxes) -> None:
    status, report = doctor(boxes, nat=1)
    assert (found(report), status) == ({}, 0)
    assert report["pid"] is None
    checks = {check for where, check in found(report, "ok") if where == CHANGED}
    assert checks == {
        "gateway",
        "SYN data",
        "clock",
        "MTU",
        "MP_CAPABLE",
        "DSS",
        "payload",
        "MP_JOIN",
        "ADD_ADDR",
        "NAT",
    }


def test_beside_a_running_proxy_it_says_the_same_and_leaves_it_alone(boxes: Boxes) -> None:
    boxes.proxy.start()
    try:
        before = boxes.proxy.pid
        status, report = doctor(boxes)
        assert (found(report), status) == ({}, 0)
        assert report["pid"] == before
        assert {("host", "routes"), ("host", "forwarding"), ("host", "nft table")} <= set(
            found(report, "ok")
        )
        assert boxes.proxy.status()["pid"] == before
    finally:
        assert boxes.proxy.stop() == 0


def test_a_host_that_forwards_nothing_is_left_so(boxes: Boxes) -> None:
    host = boxes.lab.proxy
    host.sysctl("net.ipv4.ip_forward", 0)
    host.sysctl("net.ipv6.conf.all.forwarding", 0)
    try:
        before = snapshot(host)
        status, report = doctor(boxes, "--uplink", CHANGED)
        assert differences(before, snapshot(host)) == []
    finally:
        host.sysctl("net.ipv4.ip_forward", 1)
        host.sysctl("net.ipv6.conf.all.forwarding", 1)
    assert (found(report), status) == ({}, 0)


MODES = {
    "strip-syn": ({"box": Middlebox(strip=MPTCP, strip_on="syn")}, "MP_CAPABLE", "SYN:"),
    "strip-synack": ({"box": Middlebox(strip=MPTCP, strip_on="synack")}, "MP_CAPABLE", "SYN+ACK:"),
    "drop-capable": ({"box": Middlebox(drop_capable=True)}, "MP_CAPABLE", "dropped"),
    "strip-rest": ({"box": Middlebox(strip=MPTCP, strip_on="rest")}, "DSS", ""),
    "strip-later": ({"box": Middlebox(strip=MPTCP, strip_after=40)}, "DSS", ""),
    "strip-join": ({"box": Middlebox(strip=("join",))}, "MP_JOIN", ""),
    "strip-add-addr": ({"box": Middlebox(strip=("add_addr",))}, "ADD_ADDR", ""),
    "corrupt": ({"box": Middlebox(corrupt=100)}, "payload", "changed"),
    "no-syn-data": ({"no_syn_data": True}, "SYN data", "dropped"),
    "mtu-silent": ({"max_packet": 1400}, "MTU", "vanish"),
}


@pytest.mark.parametrize("mode", MODES)
def test_what_a_box_does_is_the_only_finding(boxes: Boxes, mode: str) -> None:
    shape, check, word = MODES[mode]
    boxes.lab.link(2).set(**shape)
    status, report = doctor(boxes)
    assert status == 1
    assert set(found(report)) == {(CHANGED, check)}
    result = found(report)[CHANGED, check]
    assert word in result["text"]
    assert result["mend"]


HARMLESS: dict[str, dict[str, Any]] = {
    "shift": {"box": Middlebox(shift=0x9ABCDEF0)},
    "split": {"box": Middlebox(split=500)},
    "strip-timestamps": {"box": Middlebox(strip=("timestamps",))},
    "strip-sack": {"box": Middlebox(strip=("sack_permitted",))},
    "mtu-icmp": {"max_packet": 1400, "icmp": True},
}


@pytest.mark.parametrize("mode", HARMLESS)
def test_what_mptcp_bears_is_no_finding(boxes: Boxes, mode: str) -> None:
    boxes.lab.link(2).set(**HARMLESS[mode])
    status, report = doctor(boxes, "--uplink", CHANGED)
    assert (found(report), status) == ({}, 0)


def test_a_nat_of_ports_is_no_finding(boxes: Boxes) -> None:
    link = boxes.lab.link(2)
    link.shape(up=LinkSpec.symmetric(100, 6, box=Middlebox(nat=NAT_PATTERN)).up)
    assert doctor(boxes, "--uplink", CHANGED)[0] == 0


def test_a_silent_gateway_is_found_on_the_uplink_that_does_not_reach_it(boxes: Boxes) -> None:
    boxes.lab.link(2).cut()
    try:
        status, report = doctor(boxes)
    finally:
        boxes.lab.link(2).restore()
    assert (set(found(report)), status) == ({(CHANGED, "gateway")}, 1)


def test_a_nat_that_forgets_is_found_with_the_key_to_set(boxes: Boxes) -> None:
    router = boxes.lab.routers[1]
    router.run("nft", "-f", "-", stdin=NAT)
    router.sysctl("net.netfilter.nf_conntrack_tcp_loose", 0)
    router.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", 1)
    router.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", 5)
    try:
        status, report = doctor(boxes, "--uplink", CHANGED, nat=12)
    finally:
        router.run("nft", "delete", "table", "ip", "home")
    assert (set(found(report)), status) == ({(CHANGED, "NAT")}, 1)
    [mend] = found(report)[CHANGED, "NAT"]["mend"]
    assert mend.startswith("mptcp.subflow_keepalive = ")


NAT = """table ip home {
    chain source {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "wan0" masquerade
    }
    chain forward {
        type filter hook forward priority 0; policy accept;
        ct state invalid drop
    }
}
"""


def test_a_gateway_without_trials_is_told_of(boxes: Boxes) -> None:
    edit(boxes.gateway, "late_convert = true", "trials = 0\nlate_convert = true")
    boxes.gateway.command("reload", "--socket", str(boxes.gateway.socket))
    try:
        _, report = doctor(boxes, "--uplink", CHANGED)
    finally:
        edit(boxes.gateway, "trials = 0\n", "")
        boxes.gateway.command("reload", "--socket", str(boxes.gateway.socket))
    assert set(found(report)) == {(CHANGED, "trials")}
    assert "listen.trials" in found(report)[CHANGED, "trials"]["mend"][0]


def test_what_is_broken_on_the_host_is_found(boxes: Boxes) -> None:
    # A proxy that is stopped in its tracks mends nothing.
    boxes.proxy.start()
    os.kill(boxes.proxy.pid, signal.SIGSTOP)
    host = boxes.lab.proxy
    try:
        [line] = host.run("ip", "rule", "show", "pref", "8811").stdout.splitlines()
        host.run("ip", "rule", "del", "pref", "8811")
        host.sysctl("net.ipv4.conf.u2.forwarding", 0)
        status, report = doctor(boxes, "--uplink", "fibre")
    finally:
        host.sysctl("net.ipv4.conf.u2.forwarding", 1)
        os.kill(boxes.proxy.pid, signal.SIGCONT)
        assert boxes.proxy.stop() == 0
    assert (set(found(report)), status) == ({("host", "routes"), ("host", "forwarding")}, 1)
    assert found(report)["host", "forwarding"]["mend"] == [
        "sysctl -w net/ipv4/conf/u2/forwarding=1"
    ]
    remedy, command = found(report)["host", "routes"]["mend"]
    assert remedy == "mptcp-proxy reload"
    assert line.split("from ")[1].split()[0] in command


def test_a_firewall_that_drops_is_found_and_no_path_blamed(boxes: Boxes) -> None:
    host = boxes.lab.proxy
    host.run("nft", "-f", "-", stdin=FIREWALL)
    try:
        status, report = doctor(boxes)
    finally:
        host.run("nft", "delete", "table", "inet", "strict")
    assert (set(found(report)), status) == ({("host", "firewall")}, 1)
    assert "mptcp-proxy accept" in found(report)["host", "firewall"]["mend"][0]


FIREWALL = """table inet strict {
    chain forward { type filter hook forward priority 0; policy drop; }
}
"""


def test_an_interrupted_doctor_leaves_nothing(boxes: Boxes) -> None:
    argv = ["doctor", "-c", str(boxes.proxy.config_file), "--nat-timeout", "600"]
    process = boxes.proxy.start_command(*argv)
    try:
        wait_for(
            lambda: "mptcp-proxy" in boxes.lab.proxy.run("ip", "link").stdout,
            "its TUN",
            within=60.0,
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()


def test_of_a_gateway_the_host_is_looked_at(boxes: Boxes) -> None:
    box = boxes.gateway
    done = box.command("doctor", "-c", str(box.config_file), "--json", check=False)
    report = json.loads(done.stdout)
    assert (report["role"], report["pid"]) == ("gateway", box.pid)
    assert {where for where, _ in found(report, "ok")} == {"host"}
