"""Prometheus at both boxes: what it reads is what was carried, and only grows."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.lab.conftest import FIBRE, LTE, needs_boxes, running
from tests.lab.daemons import Boxes, Daemon, edit
from tests.lab.servers import Nginx, echo, serving
from tests.lab.sockets import echo_through
from tests.lab.topology import CLIENT4, SERVER4, Topology, topology
from tests.lab.transfer import Download
from tests.lab.waiting import wait_for
from tests.unit.test_web_metrics import Samples, assert_grown, parse, value

pytestmark = [needs_boxes, pytest.mark.lab("nginx", "curl")]

LISTEN = '[metrics]\nlisten = "127.0.0.1:9180"\n'


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    with topology(FIBRE, LTE) as network:
        yield network


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "workers"])
def home(lab: Topology, request: pytest.FixtureRequest) -> Iterator[Boxes]:
    options = {"workers": request.param, "extra": LISTEN}
    with running(lab, proxy=options, gateway=options) as both:
        yield both


def scrape(box: Daemon, port: int = 9180) -> Samples:
    """What Prometheus would read now."""
    url = f"http://127.0.0.1:{port}/metrics"
    return parse(box.namespace.run("curl", "-sSf", "--max-time", "20", url).stdout.encode())


def carried(home: Boxes) -> list[float]:
    """Payload bytes to the client, as each box tells them."""
    return [
        sum(count for (name, _), count in scrape(box).items() if name == wanted)
        for box, wanted in (
            (home.proxy, "mptcp_proxy_host_received_bytes_total"),
            (home.gateway, "mptcp_proxy_client_received_bytes_total"),
        )
    ]


def test_a_transfer_is_told_by_both_boxes(lab: Topology, home: Boxes, nginx: Nginx) -> None:
    size = 20_000_000
    digest = nginx.add("large", size)
    before = carried(home)
    last = {box.role: scrape(box) for box in home}
    download = Download(lab.client, nginx.url("large"))

    def all_came() -> bool:
        for box in home:
            now = scrape(box)
            assert_grown(last[box.role], now)
            last[box.role] = now
        return download.arrivals.total >= size

    wait_for(all_came, "the download is over", within=120)
    assert download.finish().sha256 == digest
    # Its header comes on top.
    wait_for(
        lambda: all(
            size < now - then < size + 1000 for now, then in zip(carried(home), before, strict=True)
        ),
        "all is told",
    )
    proxy, gateway = scrape(home.proxy), scrape(home.gateway)
    assert value(proxy, "host_connections_total", host=CLIENT4) >= 1
    assert value(gateway, "client_connections_total", client="home-1") >= 1
    by_uplink = [
        value(proxy, "uplink_received_bytes_total", uplink=uplink) for uplink in ("fibre", "lte")
    ]
    assert min(by_uplink) > size / 100
    assert sum(by_uplink) >= size
    for name, count in home.proxy.query("counters").items():
        if name.startswith("MPTcpExtMPCapable"):
            assert value(proxy, f"nstat_{name}_total") == count


def test_connections_and_their_round_trip_times(lab: Topology, home: Boxes) -> None:
    client = {"client": "home-1"}
    with serving(lab.server, echo) as server, lab.client.connect(SERVER4, server.port) as sock:

        def timed() -> bool:
            assert echo_through(sock, 50_000)
            samples = scrape(home.proxy)
            names = [("mptcp_proxy_rtt_seconds_count", (("uplink", u),)) for u in ("fibre", "lte")]
            return all(samples.get(name, 0) for name in names)

        wait_for(timed, "each uplink has a round-trip time", within=60)
        wait_for(
            lambda: scrape(home.gateway).get(("mptcp_proxy_rtt_seconds_count", ())),
            "so has the gateway",
            within=60,
        )
        wait_for(
            lambda: value(scrape(home.gateway), "client_open_connections", **client) == 1,
            "it alone is open",
            within=30,
        )
    wait_for(
        lambda: value(scrape(home.gateway), "client_open_connections", **client) == 0,
        "it is closed",
        within=30,
    )
    assert value(scrape(home.proxy), "reinjected_bytes_count") >= 1


def test_nothing_shrinks_when_a_worker_dies(lab: Topology, home: Boxes) -> None:
    if "workers" not in home.proxy.query("status"):
        pytest.skip("one process")
    with serving(lab.server, echo) as server:
        with lab.client.connect(SERVER4, server.port) as sock:
            assert echo_through(sock, 100_000)
        before = scrape(home.proxy)
        pids = {entry["worker"]: entry["pid"] for entry in home.proxy.query("status")["workers"]}
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)

        def restarted() -> bool:
            now = scrape(home.proxy)
            assert_grown(before, now)
            return value(now, "nstat_WorkerRestarts_total") == 2

        wait_for(restarted, "both have ended", within=30)
        wait_for(
            lambda: len(home.proxy.query("status")["workers"]) == 2, "both are back", within=30
        )
        with lab.client.connect(SERVER4, server.port) as sock:
            assert echo_through(sock, 100_000)
        assert_grown(before, scrape(home.proxy))


def test_the_listener_follows_a_reload(home: Boxes) -> None:
    box = home.proxy

    def reload() -> str:
        return box.command("reload", "--socket", str(box.socket)).stdout.strip()

    def answers(port: int) -> bool:
        url = f"http://127.0.0.1:{port}/metrics"
        return box.namespace.run("curl", "-sSf", url, check=False).returncode == 0

    before = scrape(box)
    edit(box, ":9180", ":9181")
    assert reload() == "changed: metrics.listen"
    assert_grown(before, scrape(box, 9181))
    assert not answers(9180)
    edit(box, LISTEN.replace(":9180", ":9181"), "")
    assert reload() == "changed: metrics.listen"
    assert not answers(9181)
    edit(box, "[control]", f"{LISTEN}[control]")
    assert reload() == "changed: metrics.listen"
    assert_grown(before, scrape(box))
