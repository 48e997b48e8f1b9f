"""Congestion controls on modelled paths, and their change at run time."""

from __future__ import annotations

import random

import pytest

from proxy.cc.coupling import Coupled
from proxy.mptcp.connection import MptcpConnection
from proxy.tcp.config import TcpConfig
from tests.pair.grid import Uplink, download
from tests.pair.harness import Pair
from tests.pair.link import Link
from tests.pair.mptcp_harness import App, MptcpPair, goodput, longest_pause, path, payload

MB = 1_000_000
ALL = ["cubic", "reno", "bbr", "lia", "olia", "balia"]


def test_bbr_does_not_mind_random_loss() -> None:
    rates = [
        download((Uplink(50, 20, loss=0.01),), 10 * MB, "bbr", "default", seed)[0]
        for seed in range(2)
    ]
    print(rates)
    assert min(rates) > 0.75 * 47
    assert download((Uplink(50, 20, loss=0.01),), 3 * MB, "cubic", "default", 0)[0] < 12


def test_bbr_keeps_a_deep_queue_short() -> None:
    rate, queue = download((Uplink(50, 20, queue=1000),), 12 * MB, "bbr", "default", 0)
    assert rate > 0.9 * 47
    assert queue < 5


def test_bbr_finds_bandwidth_that_comes_and_goes() -> None:
    config = TcpConfig(congestion_control="bbr")
    pair = MptcpPair(
        lambda rng: [path(rng, 40, 20, 100)], App(), App(payload(60 * MB)), server_tcp=config
    )
    link = pair.paths[0].down
    pair.run_for(3.0)
    link.rate = 10e6
    pair.run_for(6.0)
    assert 8.5e6 < goodput(pair.client_app, 1006, 1009) < 9.5e6
    link.rate = 40e6
    pair.run_for(6.0)
    assert goodput(pair.client_app, 1012, 1015) > 34e6


def transfer(name: str, size: int = 4 * MB, **link: float) -> Pair:
    rng = random.Random(3)
    up, down = (Link(rng, rate=20e6, delay=0.02, queue=60, **link) for _ in range(2))  # type: ignore[arg-type]
    config = TcpConfig(congestion_control=name)
    app, data = App(), App(payload(size))
    pair = Pair(3, up=up, down=down, server_config=config, client_app=app, server_app=data)
    pair.run(1120.0)
    assert bytes(app.received) == data.data
    return pair


@pytest.mark.parametrize("name", ALL)
def test_plain_tcp_delivers_under_every_control(name: str) -> None:
    pair = transfer(name)
    assert pair.now - 1000.0 < 2.3


@pytest.mark.parametrize("name", ALL)
def test_loss_reordering_and_duplication_harm_no_control(name: str) -> None:
    transfer(name, 2 * MB, loss=0.02, reorder=0.02, reorder_delay=0.01, duplicate=0.01)


@pytest.mark.parametrize("name", ["lia", "olia", "balia"])
def test_a_coupled_control_is_reno_on_plain_tcp(name: str) -> None:
    # But for HyStart, which leaves the first slow start earlier.
    server = transfer(name).server
    assert server is not None
    assert isinstance(server.congestion, Coupled)
    assert server.congestion._coupling is None


@pytest.mark.parametrize("new", ALL)
@pytest.mark.parametrize("old", ["cubic", "bbr", "lia"])
def test_change_on_a_live_connection_keeps_the_rate(old: str, new: str) -> None:
    config = TcpConfig(congestion_control=old)
    pair = MptcpPair(
        lambda rng: [path(rng, 20, 20), path(rng, 20, 20)],
        App(),
        App(payload(16 * MB)),
        server_tcp=config,
    )
    pair.run_for(1.5)
    before = goodput(pair.client_app, 1000.5, 1001.5)
    assert isinstance(pair.server, MptcpConnection)
    pair.server.set_congestion_control(new)
    pair.run_for(1.5)
    assert [s.congestion.name for s in pair.server.subflows] == [new, new]
    assert goodput(pair.client_app, 1001.6, 1003.0) > 0.8 * before
    assert longest_pause(pair.client_app, 1001.4, 1002.0) < 0.1


def test_change_in_the_midst_of_recovery_harms_nothing() -> None:
    for when in range(6):
        app = App(payload(2 * MB))
        pair = MptcpPair(
            lambda rng: [path(rng, 20, 20, 40, loss=0.02), path(rng, 20, 60, 40)], App(), app
        )
        for turn, name in enumerate(["bbr", "lia", "bbr", "cubic"]):
            pair.run_for(0.2 + 0.03 * when + 0.003 * turn)
            assert isinstance(pair.server, MptcpConnection)
            pair.server.set_congestion_control(name)
        pair.run(60.0)
        pair.check_streams()


def test_later_subflows_have_the_changed_control_and_siblings_know_each_other() -> None:
    pair = MptcpPair(
        lambda rng: [path(rng, 20, 20), path(rng, 20, 20)], App(), App(payload(8 * MB))
    )
    client = pair.client
    client.set_congestion_control("olia")
    pair.run_for(1.0)
    assert [s.congestion.name for s in client.subflows] == ["olia", "olia"]
    assert client.coupling is not None
    assert len(client.coupling.members) == 2
    client.close_subflow(client.subflows[1], pair.now)
    pair.run(60.0)
    pair.check_gone()
    assert client.coupling.members == []


def test_an_unknown_control_changes_nothing() -> None:
    pair = MptcpPair(lambda rng: [path(rng, 20, 20)], App(), App(payload(MB)))
    with pytest.raises(KeyError):
        pair.client.set_congestion_control("no-such-control")
    assert pair.client.tcp_config.congestion_control == "cubic"
    pair.run(60.0)
    pair.check_streams()
