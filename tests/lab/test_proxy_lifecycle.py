"""Start, stop, crash and misconfiguration of the boxes: what is answered, and what is left."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.capture import capturing
from tests.lab.conftest import needs_boxes, running
from tests.lab.daemons import COMMAND, PORT, Boxes, snapshot
from tests.lab.servers import digest_reply, echo, serving
from tests.lab.sockets import echo_through, exchange, is_reset
from tests.lab.topology import SERVER4, Topology, topology
from tests.lab.waiting import wait_for

pytestmark = needs_boxes


@pytest.fixture
def lab() -> Iterator[Topology]:
    """Two unshaped uplinks, new for each test."""
    with topology(None, None) as network:
        yield network


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_clean_stop_leaves_nothing(lab: Topology, number: signal.Signals) -> None:
    both = Boxes(lab)
    both.start()
    assert both.proxy.ready_line.startswith("ready")
    assert both.leftovers("proxy"), "running without any rule or route?"
    for box in (both.proxy, both.gateway):
        assert box.stop(number) == 0
        assert both.leftovers(box.role) == []


def test_stop_under_load_leaves_nothing(lab: Topology) -> None:
    with running(lab) as both, serving(lab.server, echo) as server:
        sock = lab.client.connect(SERVER4, server.port)
        assert echo_through(sock, 200_000)
        both.stop()
        with sock:
            assert is_reset(sock)


@pytest.mark.parametrize("role", ["proxy", "gateway"])
def test_restart_after_kill_leaves_nothing(lab: Topology, role: str) -> None:
    both = Boxes(lab)
    both.start()
    box = both.proxy if role == "proxy" else both.gateway
    box.kill()
    box.start()
    with serving(lab.server, digest_reply) as server:
        assert exchange(lab.client, SERVER4, server.port, b"after the crash")
    both.stop()
    assert both.leftovers(role) == []


def test_gateway_restart_ends_old_connections_and_takes_new_ones(lab: Topology) -> None:
    with running(lab) as both, serving(lab.server, echo) as server:
        old = lab.client.connect(SERVER4, server.port)
        assert echo_through(old, 1000)
        both.gateway.kill()
        both.gateway.start()
        with lab.client.connect(SERVER4, server.port) as new:
            assert echo_through(new, 1000)
        with old:
            assert is_reset(old)


@pytest.mark.lab("tcpdump", "tshark")
@pytest.mark.parametrize("late_convert", [True, False])
def test_stranger_gets_silence(lab: Topology, tmp_path: Path, late_convert: bool) -> None:
    """A wrong secret is not answered by a single packet, nor is the bare SYN that comes next."""
    both = Boxes(lab, proxy={"secret_file": "wrong.key"}, gateway={"late_convert": late_convert})
    file = both.proxy.config_file
    refuse = '[gateway]\nwhen_unreachable = "refuse"'
    file.write_text(file.read_text().replace("[gateway]", refuse))
    both.write_secret("wrong.key", 2)
    both.gateway.start()
    with (
        capturing(lab.gateway, "any", tmp_path / "pcap", f"tcp port {PORT}") as capture,
        serving(lab.server, echo) as server,
    ):
        both.proxy.start()
        with pytest.raises(OSError):  # noqa: PT011
            lab.client.connect(SERVER4, server.port, timeout=4)
        # Silence to the first question is followed by one that opens with a bare SYN.
        wait_for(lambda: not both.proxy.query("status")["gateway_reachable"], "a verdict")
        assert server.peers == []
    assert capture.count(f"tcp.dstport == {PORT} and tcp.flags.syn == 1 and tcp.len > 0") > 0
    assert capture.count(f"tcp.dstport == {PORT} and tcp.flags.syn == 1 and tcp.len == 0") > 0
    assert capture.count(f"tcp.srcport == {PORT}") == 0
    both.stop()


def test_closed_port_of_the_gateway_host_stays_closed(lab: Topology) -> None:
    """Only the convert port is taken from the gateway's host."""
    with running(lab), serving(lab.gateway, echo, address="0.0.0.0") as server:
        with lab.routers[0].connect("203.0.113.10", server.port) as sock:
            assert echo_through(sock, 1000)
        with pytest.raises(ConnectionRefusedError):
            lab.routers[0].connect("203.0.113.10", 9)


def test_second_daemon_of_a_role_is_refused(lab: Topology) -> None:
    with running(lab) as both, serving(lab.server, echo) as server:
        second = both.proxy.command("run", "-c", str(both.proxy.config_file), check=False)
        assert second.returncode != 0
        assert second.stderr.strip()
        with lab.client.connect(SERVER4, server.port) as sock:
            assert echo_through(sock, 1000)


def test_check_says_what_would_be_done_and_does_nothing(lab: Topology) -> None:
    both = Boxes(lab)
    before = snapshot(lab.proxy)
    done = both.proxy.command("check", "-c", str(both.proxy.config_file))
    assert "u1" in done.stdout
    assert "u2" in done.stdout
    assert snapshot(lab.proxy) == before


@pytest.mark.lab("nft")
def test_check_finds_a_firewall_that_drops_what_is_forwarded(lab: Topology) -> None:
    both = Boxes(lab)
    chain = "chain forward { type filter hook forward priority 0; policy drop; }"
    lab.proxy.run("nft", f"table inet mine {{ {chain}; }}")
    mend = "nft insert rule inet mine forward iifname mptcp-proxy accept"
    check = ("check", "-c", str(both.proxy.config_file))
    assert mend in both.proxy.command(*check).stdout
    both.start()
    with serving(lab.server, echo) as server:
        with pytest.raises(TimeoutError):
            lab.client.connect(SERVER4, server.port, timeout=1)
        for direction in ("iifname", "oifname"):
            lab.proxy.run("sh", "-c", mend.replace("iifname", direction))
        with lab.client.connect(SERVER4, server.port) as sock:
            assert echo_through(sock, 1000)
        assert "inet mine" not in both.proxy.command(*check).stdout
    lab.proxy.run("nft", "delete", "table", "inet", "mine")
    both.stop()


def test_check_names_a_missing_interface(lab: Topology) -> None:
    both = Boxes(lab)
    file = both.proxy.config_file
    file.write_text(file.read_text().replace('"u2"', '"u9"').replace('"lan0"', '"lan9"'))
    done = both.proxy.command("check", "-c", str(file))
    assert 'waits for uplink lte: there is no interface "u9"' in done.stdout
    assert 'waits for the LAN: there is no interface "lan9"' in done.stdout


def test_keygen_makes_a_secret_that_works(lab: Topology, tmp_path: Path) -> None:
    both = Boxes(lab)
    key = subprocess.run([COMMAND, "keygen"], capture_output=True, text=True, check=True).stdout
    (lab.namespaces.directory / "home-1.key").write_text(key)
    both.start()
    with serving(lab.server, echo) as server, lab.client.connect(SERVER4, server.port) as sock:
        assert echo_through(sock, 1000)
    wait_for(lambda: server.results, "the connection ended")
    both.stop()
