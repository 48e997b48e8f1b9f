"""``mptcp-proxy exec``: a program on the proxy's own host, with its TCP through the proxy."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.conftest import needs_boxes, running
from tests.lab.daemons import COMMAND, Boxes, Daemon, differences, snapshot
from tests.lab.servers import Nginx, echo, serving
from tests.lab.sockets import echo_through
from tests.lab.topology import SERVER4, SERVER6, Topology, topology, uplink_address
from tests.lab.waiting import wait_for

pytestmark = needs_boxes

PATIENCE = 60.0


def words(box: Daemon, *argv: str, dns: str = "none") -> list[str]:
    return ["exec", "--socket", str(box.socket), "--dns", dns, "--", *argv]


@contextmanager
def program(box: Daemon, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """It runs, and reads what the test writes."""
    pipe = subprocess.PIPE
    with box.start_command(*words(box, *argv), stdin=pipe, stdout=pipe) as process:
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[bytes], line: str) -> str:
    """Its next line, after ``line``."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line.encode() + b"\n")
    process.stdin.flush()
    return process.stdout.readline().decode().strip()


def annexes(box: Daemon) -> list[str]:
    """The host's ends of veth pairs that are there."""
    with box.namespace.entered():
        return [name for _, name in socket.if_nameindex() if name.startswith("mptcpx")]


def lan(box: Daemon) -> list[str]:
    """The interfaces whose TCP the proxy takes."""
    return [interface["name"] for interface in box.query("lan")["interfaces"]]


def nothing_left(box: Daemon) -> None:
    wait_for(lambda: not annexes(box), "the veth pair is gone", within=PATIENCE)
    wait_for(lambda: lan(box) == ["lan0"], "it is forgotten", within=PATIENCE)
    wait_for(lambda: not sources(box), "its conversations ended", within=PATIENCE)


def sources(box: Daemon) -> set[str]:
    """Who has conversations, as the proxy sees it."""
    connections = box.query("status")["connections"]
    return {c["source"].rpartition(":")[0].strip("[]") for c in connections}


def carried(box: Daemon) -> int:
    """How many MPTCP connections it has opened."""
    return int(box.query("counters").get("MPTcpExtMPCapableSYNTX", 0))


@pytest.mark.parametrize("server", [SERVER4, SERVER6])
def test_curl_fetches_through_the_proxy(
    lab: Topology, home: Boxes, nginx: Nginx, server: str
) -> None:
    nginx.add("exec", 300_000)
    before = carried(home.proxy)
    curl = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{size_download}")
    done = home.proxy.command(*words(home.proxy, *curl, nginx.url("exec", server)))
    assert done.stdout == "200 300000"
    assert carried(home.proxy) > before
    nothing_left(home.proxy)


@pytest.mark.parametrize(
    ("server", "source"), [(SERVER4, "198.18.94.2"), (SERVER6, "fd6d:7074:6372::2")]
)
def test_an_interactive_program_has_its_terminal_side_and_its_address(
    lab: Topology, home: Boxes, server: str, source: str
) -> None:
    proxy = home.proxy
    with serving(lab.server, echo, address=server) as target:
        host = f"[{server}]" if ":" in server else server
        with program(proxy, "socat", "-", f"TCP:{host}:{target.port}") as process:
            assert tell(process, "first") == "first"
            assert tell(process, "second") == "second"
            assert sources(proxy) == {source}
    nothing_left(proxy)


def test_two_at_once_have_addresses_of_their_own(lab: Topology, home: Boxes) -> None:
    proxy = home.proxy
    with serving(lab.server, echo) as target:
        socat = ("socat", "-", f"TCP:{SERVER4}:{target.port}")
        with program(proxy, *socat) as one, program(proxy, *socat) as other:
            assert [tell(one, "one"), tell(other, "other")] == ["one", "other"]
            assert sources(proxy) == {"198.18.94.2", "198.18.94.6"}
            other.kill()
            assert tell(one, "still") == "still"
    nothing_left(proxy)


def test_the_rest_of_the_host_is_left_alone(lab: Topology, home: Boxes) -> None:
    proxy = home.proxy
    before = snapshot(proxy.namespace)
    with serving(lab.server, echo) as target, program(proxy, "sh") as shell:
        assert tell(shell, "echo ready") == "ready"
        changes = differences(before, snapshot(proxy.namespace))
        own = [line for line in changes if line.startswith(("rules", "routes", "addresses"))]
        assert own
        assert [line for line in own if "mptcpx0" not in line and "198.18.94." not in line] == []
        carried_before = carried(proxy)
        with proxy.namespace.connect(SERVER4, target.port) as sock:
            assert echo_through(sock, 10_000)
        assert target.peers == [uplink_address(1)]
        assert carried(proxy) == carried_before
    nothing_left(proxy)
    assert differences(before, snapshot(proxy.namespace)) == []


def test_udp_leaves_natively(lab: Topology, home: Boxes) -> None:
    with lab.server.socket(kind=socket.SOCK_DGRAM) as server:
        server.bind((SERVER4, 0))
        server.settimeout(PATIENCE)
        socat = ("socat", "-", f"UDP:{SERVER4}:{server.getsockname()[1]}")
        with program(home.proxy, *socat) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"question\n")
            process.stdin.flush()
            question, peer = server.recvfrom(100)
            assert (question, peer[0]) == (b"question\n", uplink_address(1))
            server.sendto(b"answer\n", peer)
            assert process.stdout.readline() == b"answer\n"
    nothing_left(home.proxy)


def test_its_exit_status_and_end_by_signal_are_those_of_the_program(home: Boxes) -> None:
    proxy = home.proxy

    def status(*argv: str) -> int:
        return proxy.command(*words(proxy, *argv), check=False).returncode

    assert status("sh", "-c", "exit 42") == 42
    assert status("no-such-program") == 127
    assert status("/etc") == 126
    with program(proxy, "sh") as shell:
        assert tell(shell, "trap 'echo caught; exit 7' TERM; echo ready") == "ready"
        shell.send_signal(signal.SIGTERM)
        assert tell(shell, "") == "caught"
        assert shell.wait(PATIENCE) == 7
    nothing_left(proxy)


def test_sigkill_leaves_nothing(home: Boxes) -> None:
    with program(home.proxy, "sh") as shell:
        assert tell(shell, "echo ready") == "ready"
        assert annexes(home.proxy) == ["mptcpx0"]
        shell.kill()
        assert shell.wait(PATIENCE) == -signal.SIGKILL
    nothing_left(home.proxy)


def test_it_has_the_terminal_and_ctrl_c(home: Boxes) -> None:
    proxy = home.proxy
    master, slave = pty.openpty()
    argv = [str(COMMAND), *words(proxy, "sh", "-c", "test -t 0 && exec cat")]
    with subprocess.Popen(
        ["setsid", "--ctty", *proxy.namespace.command(argv)], stdin=slave, stdout=slave
    ) as process:
        os.close(slave)
        os.write(master, b"typed\n")
        seen = b""
        while seen.count(b"typed") < 2:  # the terminal's echo, and cat's
            seen += os.read(master, 100)
        os.write(master, b"\x03")
        assert process.wait(PATIENCE) == -signal.SIGINT
    os.close(master)
    nothing_left(proxy)


def test_dns_servers_are_those_that_are_named(home: Boxes) -> None:
    proxy = home.proxy
    before = Path("/etc/resolv.conf").read_text()
    done = proxy.command(*words(proxy, "cat", "/etc/resolv.conf", dns="192.0.2.53"))
    assert done.stdout == "nameserver 192.0.2.53\n"
    assert Path("/etc/resolv.conf").read_text() == before
    done = proxy.command(*words(proxy, "true", dns="127.0.0.53"), check=False)
    assert (done.returncode, "--dns: 127.0.0.53 is loopback" in done.stderr) == (2, True)


def test_the_program_runs_as_who_is_named(home: Boxes) -> None:
    proxy = home.proxy
    done = proxy.command("exec", "--user", "nobody", *words(proxy, "id", "-un")[1:])
    assert done.stdout == "nobody\n"


def test_without_a_proxy_it_says_so(home: Boxes) -> None:
    done = home.gateway.command(*words(home.gateway, "true"), check=False)
    assert done.returncode == 2
    assert "this daemon is a gateway" in done.stderr


def test_a_killed_proxy_takes_the_program_again_when_it_is_back() -> None:
    with topology(None, None) as lab, running(lab) as both:
        proxy = both.proxy
        with serving(lab.server, echo) as target, program(proxy, "sh") as shell:
            ask = f"echo again | socat -t 30 - TCP:{SERVER4}:{target.port}"
            assert tell(shell, ask) == "again"
            proxy.kill()
            proxy.start()
            assert lan(proxy) == ["lan0", "mptcpx0"]
            before = carried(proxy)
            assert tell(shell, ask) == "again"
            assert carried(proxy) > before
        nothing_left(proxy)
