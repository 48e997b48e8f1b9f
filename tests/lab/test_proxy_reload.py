"""A changed configuration file is taken over while transfers run; a wrong one changes nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.lab.conftest import FIBRE, LTE, needs_boxes
from tests.lab.daemons import Boxes, Daemon, differences, edit, snapshot
from tests.lab.servers import Nginx, digest_reply, echo, serving
from tests.lab.sockets import echo_through, exchange, is_reset
from tests.lab.topology import SERVER4, Topology, topology
from tests.lab.transfer import Download
from tests.lab.waiting import wait_for

pytestmark = [needs_boxes, pytest.mark.lab("nginx", "curl")]


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    with topology(FIBRE, LTE) as network:
        yield network


@pytest.fixture(params=[1, 2], ids=["one process", "workers"])
def boxes(lab: Topology, request: pytest.FixtureRequest) -> Iterator[Boxes]:
    workers = {"workers": request.param}
    both = Boxes(lab, proxy=workers, gateway=workers)
    both.start()
    yield both
    both.stop()


def reload(box: Daemon) -> str:
    return box.command("reload", "--socket", str(box.socket)).stdout.strip()


def uplink_table(box: Daemon, index: int) -> str:
    start = f'[[uplink]]\nname = "{["fibre", "lte"][index - 1]}"'
    text = box.config_file.read_text()
    begin = text.index(start)
    end = min(text.find("[[", begin + 2) % (1 << 30), text.find("[gateway]", begin))
    return text[begin:end]


def test_an_uplink_goes_and_comes_while_a_download_runs(
    lab: Topology, boxes: Boxes, nginx: Nginx
) -> None:
    digest = nginx.add("large", 40_000_000)
    table = uplink_table(boxes.proxy, 1)
    download = Download(lab.client, nginx.url("large"))
    wait_for(lambda: download.arrivals.total > 4_000_000, "the download runs", within=30)
    edit(boxes.proxy, table, "")
    assert reload(boxes.proxy) == "changed: uplink[fibre]"
    assert [u["name"] for u in boxes.proxy.query("status")["uplinks"]] == ["lte"]
    before = lab.proxy.interface_bytes("u1")[0]
    total = download.arrivals.total
    wait_for(lambda: download.arrivals.total > total + 2_000_000, "it goes on", within=30)
    assert lab.proxy.interface_bytes("u1")[0] < before + 100_000
    edit(boxes.proxy, "[gateway]", f"{table}[gateway]")
    assert reload(boxes.proxy) == "changed: uplink[fibre]"
    before = lab.proxy.interface_bytes("u1")[0]
    wait_for(lambda: lab.proxy.interface_bytes("u1")[0] > before + 1_000_000, "used", within=10)
    assert download.finish().sha256 == digest


def test_hangup_reloads_and_backup_takes_effect_on_live_connections(
    lab: Topology, boxes: Boxes
) -> None:
    with serving(lab.server, echo) as server, lab.client.connect(SERVER4, server.port) as sock:
        assert echo_through(sock, 100_000)

        def states() -> list[str]:
            (conn,) = boxes.gateway.query("status")["connections"]
            return [s["state"] for s in conn["subflows"]]

        wait_for(lambda: states() == ["ESTAB", "ESTAB"], "the gateway may use both uplinks")
        edit(boxes.proxy, "backup = false", "backup = true")
        boxes.proxy.hang_up()
        wait_for(lambda: "reloaded: uplink[fibre].backup" in boxes.proxy.log, "it is logged")

        def backups() -> dict[str, bool]:
            (conn,) = boxes.proxy.query("status")["connections"]
            return {s["uplink"]: s["backup"] for s in conn["subflows"]}

        wait_for(lambda: backups() == {"fibre": True, "lte": False}, "fibre is backup")
        before = lab.proxy.interface_bytes("u1")[0]
        assert echo_through(sock, 500_000)
        assert lab.proxy.interface_bytes("u1")[0] < before + 200_000


def test_a_wrong_file_changes_nothing_and_names_the_key(lab: Topology, boxes: Boxes) -> None:
    before = snapshot(lab.proxy)
    good = boxes.proxy.config_file.read_text()
    edit(boxes.proxy, "backup = false", "backup = true\nweight = 99")
    done = boxes.proxy.command("reload", "--socket", str(boxes.proxy.socket), check=False)
    assert done.returncode == 1
    assert "uplink[0].weight: must be an integer from 1 to 31, not 99" in done.stderr
    assert "nothing was changed" in done.stderr
    assert not boxes.proxy.query("status")["uplinks"][0]["backup"]
    assert differences(before, snapshot(lab.proxy)) == []
    boxes.proxy.config_file.write_text(good)
    assert reload(boxes.proxy) == "nothing has changed"


def test_what_needs_a_restart_is_named(lab: Topology, boxes: Boxes) -> None:
    edit(boxes.proxy, "[control]", '[mptcp]\nscheduler = "blest"\n[tun]\nmtu = 1400\n[control]')
    assert reload(boxes.proxy) == "changed: mptcp.scheduler\nneeds a restart: tun.mtu"
    answer = boxes.proxy.command(
        "sysctl", "net.mptcp.scheduler", "--socket", str(boxes.proxy.socket)
    )
    assert "blest" in answer.stdout


def test_a_gateways_clients_change_without_a_connection_lost(lab: Topology, boxes: Boxes) -> None:
    """A new secret for the client: what is open goes on, what is new needs the new one."""
    boxes.write_secret("new.key", 3)
    # Else new connections would go directly while the gateway does not know us.
    edit(boxes.proxy, "[gateway]", '[gateway]\nwhen_unreachable = "refuse"')
    assert reload(boxes.proxy) == "changed: gateway.when_unreachable"
    with serving(lab.server, echo) as server, lab.client.connect(SERVER4, server.port) as sock:
        assert echo_through(sock, 10_000)
        edit(boxes.gateway, "home-1.key", "new.key")
        assert reload(boxes.gateway) == "changed: client[home-1].secret_file"
        assert echo_through(sock, 10_000)
        with pytest.raises(OSError):  # noqa: PT011
            lab.client.connect(SERVER4, server.port, timeout=2)
        edit(boxes.proxy, "home-1.key", "new.key")
        assert reload(boxes.proxy) == "changed: gateway.secret_file"
        with lab.client.connect(SERVER4, server.port) as new:
            assert echo_through(new, 10_000)
        assert echo_through(sock, 10_000)
        # A client that is none any more is cut off.
        edit(boxes.gateway, 'name = "home-1"', 'name = "home-2"')
        assert reload(boxes.gateway) == "changed: client[home-2], client[home-1]"
        assert is_reset(sock)


def test_restart_with_a_changed_file_after_a_kill_leaves_nothing(lab: Topology) -> None:
    both = Boxes(lab)
    both.start()
    edit(both.proxy, uplink_table(both.proxy, 1), "")
    reload(both.proxy)
    both.proxy.kill()
    edit(both.proxy, '"lan0"', '"lan0", "lan1"')
    both.proxy.start()
    with serving(lab.server, digest_reply) as server:
        assert exchange(lab.client, SERVER4, server.port, b"after the crash")
    assert both.proxy.stop(signal.SIGTERM) == 0
    both.stop()
    assert both.leftovers("proxy") == []
