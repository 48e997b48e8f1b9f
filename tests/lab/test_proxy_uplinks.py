"""Uplinks that are not there yet, vanish, return and change their address under a live transfer."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.cli.monitor import text_form
from tests.lab.conftest import FIBRE, LTE, needs_boxes
from tests.lab.daemons import Boxes, Daemon
from tests.lab.namespaces import Namespace
from tests.lab.servers import Nginx, echo, serving
from tests.lab.sockets import echo_through
from tests.lab.topology import (
    SERVER4,
    Configurator,
    Topology,
    topology,
    uplink_address,
    uplink_address6,
)
from tests.lab.transfer import Download
from tests.lab.waiting import wait_for

pytestmark = [needs_boxes, pytest.mark.lab("nginx", "curl")]
SIZE = 40_000_000


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    with topology(FIBRE, LTE) as network:
        yield network


@pytest.fixture
def boxes(lab: Topology) -> Iterator[Boxes]:
    """Not started yet; afterwards the host must be as it was, uplinks included."""
    both = Boxes(lab)
    yield both
    both.stop()


def uplink(box: Daemon, name: str) -> dict[str, Any]:
    return next(u for u in box.query("status")["uplinks"] if u["name"] == name)


def unplug(lab: Topology, index: int) -> None:
    """The interface vanishes from the proxy (a USB modem that is pulled out)."""
    lab.proxy.run("ip", "link", "set", f"u{index}", "netns", lab.routers[index - 1].name)


def plug_in(lab: Topology, index: int) -> None:
    lab.routers[index - 1].run("ip", "link", "set", f"u{index}", "netns", lab.proxy.name)
    with Configurator(lab.proxy) as proxy:
        proxy.up(f"u{index}", f"{uplink_address(index)}/24", f"{uplink_address6(index)}/64")
    if index == 1:
        lab.direct_via(1)


def readdress(lab: Topology, index: int, old: str, new: str) -> None:
    """As a DHCP client does that was given another lease."""
    lab.proxy.run("ip", "addr", "del", f"{old}/24", "dev", f"u{index}")
    lab.proxy.run("ip", "addr", "add", f"{new}/24", "dev", f"u{index}")
    if index == 1:
        lab.direct_via(1)


def carries(namespace: Namespace, index: int, by: int, within: float) -> float:
    """Waits until the uplink has received ``by`` more bytes; the seconds that took."""
    began = time.monotonic()
    before = namespace.interface_bytes(f"u{index}")[0]
    wait_for(
        lambda: namespace.interface_bytes(f"u{index}")[0] > before + by,
        f"uplink {index} carries data",
        within=within,
    )
    return time.monotonic() - began


def test_a_missing_uplink_is_waited_for_and_joins_a_live_transfer(
    lab: Topology, boxes: Boxes, nginx: Nginx
) -> None:
    digest = nginx.add("large", SIZE)
    unplug(lab, 2)
    try:
        boxes.start()
        assert 'waits for lte (there is no interface "u2")' in boxes.proxy.ready_line
        assert uplink(boxes.proxy, "lte")["waits_for"] == 'there is no interface "u2"'
        assert (
            'uplink lte waits: there is no interface "u2"'
            in boxes.proxy.command("status", "--socket", str(boxes.proxy.socket)).stdout
        )
        download = Download(lab.client, nginx.url("large"))
        wait_for(lambda: download.arrivals.total > SIZE // 10, "the download runs", within=30)
    finally:
        plug_in(lab, 2)
    print(f"joined after {carries(lab.proxy, 2, 100_000, 10):.2f} s")
    assert "waits_for" not in uplink(boxes.proxy, "lte")
    assert download.finish().sha256 == digest


@pytest.mark.parametrize("index", [1, 2])
def test_an_uplink_that_is_pulled_out_and_put_back(
    lab: Topology, boxes: Boxes, nginx: Nginx, index: int
) -> None:
    digest = nginx.add("large", SIZE)
    boxes.start()
    download = Download(lab.client, nginx.url("large"))
    carries(lab.proxy, index, 100_000, 10)
    pulled_at = time.monotonic()
    unplug(lab, index)
    try:
        total = download.arrivals.total
        wait_for(lambda: download.arrivals.total > total + SIZE // 8, "it goes on", within=30)
        assert uplink(boxes.proxy, ["fibre", "lte"][index - 1])["subflows"] == 0
    finally:
        plug_in(lab, index)
    returned_at = time.monotonic()
    print(f"used again after {carries(lab.proxy, index, 100_000, 10):.2f} s")
    arrivals = download.finish()
    assert arrivals.sha256 == digest
    pause = arrivals.longest_pause(pulled_at, returned_at)
    print(f"longest pause {pause * 1e3:.0f} ms")
    assert pause < 8  # a busy machine must not fail this


@pytest.mark.parametrize("index", [1, 2])
def test_an_uplink_that_gets_another_address(
    lab: Topology, boxes: Boxes, nginx: Nginx, index: int
) -> None:
    digest = nginx.add("large", SIZE)
    boxes.start()
    download = Download(lab.client, nginx.url("large"))
    carries(lab.proxy, index, 100_000, 10)
    old, new = uplink_address(index), f"10.{index}.0.99"
    changed_at = time.monotonic()
    readdress(lab, index, old, new)
    try:
        print(f"moved after {carries(lab.proxy, index, 200_000, 10):.2f} s")
        moved_at = time.monotonic()
        arrivals = download.finish()
    finally:
        readdress(lab, index, new, old)
    assert arrivals.sha256 == digest
    pause = arrivals.longest_pause(changed_at, moved_at)
    print(f"longest pause {pause * 1e3:.0f} ms")
    assert pause < 8  # a busy machine must not fail this


def test_the_only_uplink_gets_another_address_while_nothing_is_sent(lab: Topology) -> None:
    """A PPP line that is dialled anew: an idle conversation lives on, and hears the server."""
    both = Boxes(lab, proxy={"uplinks": [1]})
    both.start()
    with (
        serving(lab.server, echo) as server,
        lab.client.connect(SERVER4, server.port) as sock,
    ):
        assert echo_through(sock, 100_000)
        lab.proxy.run("ip", "link", "set", "u1", "down")
        wait_for(lambda: uplink(both.proxy, "fibre").get("waits_for"), "it is noticed")
        lab.proxy.run("ip", "addr", "flush", "dev", "u1")
        with Configurator(lab.proxy) as proxy:
            proxy.up("u1", "10.1.0.98/24", f"{uplink_address6(1)}/64")
        try:
            lab.direct_via(1)
            began = time.monotonic()
            assert echo_through(sock, 100_000)
            print(f"answered after {time.monotonic() - began:.2f} s")
        finally:
            readdress(lab, 1, "10.1.0.98", uplink_address(1))
    both.stop()


def test_events_tell_of_uplinks(lab: Topology, boxes: Boxes) -> None:
    boxes.start()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(boxes.proxy.socket))
        sock.sendall(b'{"command": "subscribe", "events": ["uplink-up", "uplink-down"]}\n')
        lines = sock.makefile("rb")
        assert b"result" in lines.readline()
        lab.carrier(2, False)
        down = text_form(json.loads(lines.readline()))
        lab.carrier(2, True)
        up = text_form(json.loads(lines.readline()))
    assert down == "[   UPLINK_DOWN] uplink=lte interface=u2 waits_for=u2 has no carrier"
    assert up == "[     UPLINK_UP] uplink=lte interface=u2"
