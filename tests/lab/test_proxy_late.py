"""A path that eats SYNs with payload costs a round trip more, and is remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.conftest import needs_boxes, running
from tests.lab.link import LinkSpec
from tests.lab.servers import Nginx, echo, serving
from tests.lab.sockets import echo_through
from tests.lab.topology import SERVER4, SERVER6, Topology, topology
from tests.lab.transfer import Download

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.daemons import Boxes

pytestmark = [pytest.mark.lab("nginx", "curl"), needs_boxes]


@pytest.fixture(scope="module")
def hungry() -> Iterator[Topology]:
    """Two links that swallow SYNs with payload."""
    links = [LinkSpec.symmetric(50, rtt, no_syn_data=True) for rtt in (20, 30)]
    with topology(*links) as network:
        yield network


@pytest.fixture(scope="module")
def home(hungry: Topology) -> Iterator[Boxes]:
    with running(hungry) as both:
        yield both


def test_download_arrives_whole_over_both(hungry: Topology, home: Boxes) -> None:
    nginx = Nginx(hungry.server, hungry.namespaces.directory)
    digest = nginx.add("late", 8_000_000)
    for address in (SERVER4, SERVER6):
        assert Download(hungry.client, nginx.url("late", address)).finish().sha256 == digest
    counters = home.proxy.status()["counters"]
    assert counters["MPTcpExtMPCapableSYNACKRX"] >= 1
    assert counters["MPTcpExtMPJoinSynAckRx"] >= 1


def test_path_is_remembered_so_that_no_syn_times_out(hungry: Topology, home: Boxes) -> None:

    with serving(hungry.server, echo) as server:
        for _ in range(3):  # the uplinks of both attempts have learnt it by then
            with hungry.client.connect(SERVER4, server.port, timeout=10) as sock:
                assert echo_through(sock, 1000)
        before = home.proxy.status()["counters"].get("TCPTimeouts", 0)
        for _ in range(10):
            with hungry.client.connect(SERVER4, server.port, timeout=10) as sock:
                assert echo_through(sock, 1000)
        assert home.proxy.status()["counters"].get("TCPTimeouts", 0) == before
