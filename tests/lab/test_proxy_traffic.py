"""Ordinary programs work through the two boxes as they do without, over both uplinks."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.conftest import needs_boxes
from tests.lab.probe import round_trips
from tests.lab.servers import (
    Nginx,
    Postgres,
    Sshd,
    digest_reply,
    echo,
    random_file,
    serving,
    start_iperf3,
)
from tests.lab.sockets import echo_through, exchange
from tests.lab.topology import LAN4, LAN6, SERVER4, SERVER6, Topology
from tests.lab.transfer import Download, UploadServer, upload
from tests.lab.waiting import wait_for

if TYPE_CHECKING:
    from tests.lab.daemons import Boxes

BOTH_FAMILIES = pytest.mark.parametrize("address", [SERVER4, SERVER6], ids=["v4", "v6"])
SIZE = 12_000_000


def uplink_bytes(lab: Topology) -> list[tuple[int, int]]:
    """(received, sent) of each uplink of the proxy."""
    return [lab.proxy.interface_bytes(f"u{index}") for index in lab.indices]


@pytest.mark.lab("nginx", "curl")
@BOTH_FAMILIES
def test_download_arrives_whole(lab: Topology, home: Boxes, nginx: Nginx, address: str) -> None:
    digest = nginx.add("download", SIZE)
    arrivals = Download(lab.client, nginx.url("download", address)).finish()
    assert arrivals.total == SIZE
    assert arrivals.sha256 == digest


@needs_boxes
@pytest.mark.lab("nginx", "curl")
@BOTH_FAMILIES
def test_download_uses_both_uplinks(lab: Topology, home: Boxes, nginx: Nginx, address: str) -> None:
    nginx.add("both", SIZE)
    before = uplink_bytes(lab)
    Download(lab.client, nginx.url("both", address)).finish()
    shares = [
        (after[0] - then[0]) / SIZE for after, then in zip(uplink_bytes(lab), before, strict=True)
    ]
    print(f"received by uplink: {shares}")
    assert min(shares) > 0.1
    assert sum(shares) < 1.3


@pytest.mark.lab("curl")
@BOTH_FAMILIES
def test_upload_arrives_whole(lab: Topology, home: Boxes, tmp_path: Path, address: str) -> None:
    digest = random_file(tmp_path / "file", SIZE)
    server = UploadServer(lab.server, address=address)
    before = uplink_bytes(lab)
    try:
        assert upload(lab.client, server.url, tmp_path / "file") == digest
    finally:
        server.close()
    shares = [
        (after[1] - then[1]) / SIZE for after, then in zip(uplink_bytes(lab), before, strict=True)
    ]
    print(f"sent by uplink: {shares}")


@pytest.mark.lab("iperf3")
@pytest.mark.parametrize("options", [[], ["-R"], ["--bidir"], ["-6"], ["-6", "-R"]], ids=str)
def test_iperf3_runs(lab: Topology, home: Boxes, options: list[str]) -> None:
    server = start_iperf3(lab.server)
    address = SERVER6 if "-6" in options else SERVER4
    try:
        done = lab.client.run("iperf3", "-c", address, "-t", "2", "-J", *options)
    finally:
        server.kill()
        server.wait()
    report = json.loads(done.stdout)
    assert "error" not in report
    assert report["end"]["sum_received"]["bytes"] > 1_000_000


@pytest.mark.lab("sshd", "ssh")
def test_ssh_runs_a_command_with_input_and_output(lab: Topology, home: Boxes) -> None:
    sshd = Sshd(lab.server, lab.namespaces.directory)
    for address in (SERVER4, SERVER6):
        command = sshd.client("tr a-z A-Z; echo; exit 3", address=address)
        done = lab.client.run(*command, stdin="hello through the boxes", check=False)
        assert done.stdout.strip() == "HELLO THROUGH THE BOXES"
        assert done.returncode == 3


@pytest.mark.lab("psql", "setpriv")
def test_database_answers_queries(lab: Topology, home: Boxes) -> None:
    server = Postgres(lab.server, lab.namespaces.directory)
    for address in (SERVER4, SERVER6):
        query = server.client("select sum(x) from generate_series(1, 100000) x", address)
        assert lab.client.run(*query).stdout.strip() == "5000050000"
        wide = server.client(
            "select repeat(md5(x::text), 100) from generate_series(1,500) x", address
        )
        assert len(lab.client.run(*wide).stdout) == 500 * 3201


@BOTH_FAMILIES
def test_conversation_goes_back_and_forth(lab: Topology, home: Boxes, address: str) -> None:
    with (
        serving(lab.server, echo, address=address) as server,
        lab.client.connect(address, server.port) as sock,
    ):
        for size in (1, 2, 1460, 1461, 70000):
            assert echo_through(sock, size)


def test_fifty_connections_at_once(lab: Topology, home: Boxes) -> None:
    results: list[bool] = []

    def one(port: int, seed: int) -> None:
        address = SERVER6 if seed % 2 else SERVER4
        with lab.client.connect(address, port, timeout=30) as sock:
            results.append(echo_through(sock, 100_000, seed))

    with (
        serving(lab.server, echo, address=SERVER4, port=7001) as server,
        serving(lab.server, echo, address=SERVER6, port=7001),
    ):
        threads = [threading.Thread(target=one, args=(server.port, seed)) for seed in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert results == [True] * 50


def test_two_hundred_short_connections_in_a_row(lab: Topology, home: Boxes) -> None:
    with serving(lab.server, digest_reply) as server:
        answers = {exchange(lab.client, SERVER4, server.port, b"x") for _ in range(200)}
    assert len(answers) == 1
    assert not server.errors


def test_client_that_offers_mptcp_is_served_as_plain_tcp(lab: Topology, home: Boxes) -> None:
    before = lab.client.nstat()["MPTcpExtMPCapableFallbackSYNACK"]
    with (
        serving(lab.server, echo) as server,
        lab.client.connect(SERVER4, server.port, protocol=262) as sock,
    ):
        assert echo_through(sock, 100_000)
    assert lab.client.nstat()["MPTcpExtMPCapableFallbackSYNACK"] == before + 1


def test_other_protocols_stay_native(lab: Topology, home: Boxes) -> None:
    for address in (SERVER4, SERVER6):
        assert round_trips(lab.client, address, count=2)
    family = socket.AF_INET
    with (
        lab.server.socket(family, socket.SOCK_DGRAM) as server,
        lab.client.socket(family, socket.SOCK_DGRAM) as client,
    ):
        server.bind((SERVER4, 5300))
        server.settimeout(5)
        client.sendto(b"query", (SERVER4, 5300))
        assert server.recv(100) == b"query"


@pytest.mark.parametrize("address", [LAN4, LAN6], ids=["v4", "v6"])
def test_the_proxy_itself_stays_reachable(lab: Topology, home: Boxes, address: str) -> None:
    """TCP to the box's own address is not taken: its owner can still log in."""
    with serving(lab.proxy, echo, address=address) as server:
        with lab.client.connect(address, server.port) as sock:
            assert echo_through(sock, 10_000)
        own = lab.client.run("ip", "-br", "addr", "show", "eth0").stdout
        assert server.peers[0] in own


@needs_boxes
@pytest.mark.lab("nginx", "curl")
def test_status_shows_a_running_download(lab: Topology, home: Boxes, nginx: Nginx) -> None:
    nginx.add("status", 60_000_000)
    download = Download(lab.client, nginx.url("status"))
    try:
        for box in home:

            def two_subflows(box: object = box) -> dict[str, object] | None:
                status = box.status()  # type: ignore[attr-defined]
                found = [c for c in status["connections"] if len(c["subflows"]) == 2]
                return found[0] if found else None

            connection = wait_for(two_subflows, f"{box.role} shows two subflows")
            assert SERVER4 in str(connection["destination"])
            assert connection["token"]
            assert connection["fallback"] is None
        uplinks = home.proxy.status()["uplinks"]
        assert {uplink["name"] for uplink in uplinks} == {"fibre", "lte"}
        assert all(uplink["up"] for uplink in uplinks)
        text = home.proxy.command("status", "--socket", str(home.proxy.socket)).stdout
        assert "fibre" in text
    finally:
        download.stop()


@needs_boxes
@pytest.mark.lab("nginx", "curl")
def test_nothing_is_kept_of_connections_that_ended(
    lab: Topology, home: Boxes, nginx: Nginx
) -> None:
    for box in home:
        wait_for(
            lambda box=box: not box.status()["connections"],  # type: ignore[misc]
            f"{box.role} has no connection left",
            within=30,
        )
