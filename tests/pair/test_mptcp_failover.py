"""Uplinks that die, return, are reset or never answer."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from proxy.mptcp.config import MptcpConfig
from proxy.seg import build_header, finish_checksum
from proxy.tcp.events import Event
from tests.pair.mptcp_harness import (
    App,
    MptcpPair,
    Path,
    client_ip,
    goodput,
    longest_pause,
    path,
    payload,
)

MB = 1_000_000


def paths(rng: random.Random) -> list[Path]:
    return [path(rng, 50, 20), path(rng, 20, 60)]


def cut(pair: MptcpPair, index: int, at: float, back: float | None = None) -> None:
    pair.at(at, lambda: setattr(pair.paths[index], "alive", False))
    if back is not None:
        pair.at(back, lambda: setattr(pair.paths[index], "alive", True))


@pytest.mark.parametrize("up", [False, True], ids=["download", "upload"])
@pytest.mark.parametrize("index", [0, 1], ids=["busier", "other"])
@pytest.mark.parametrize("phase", [0.0, 0.013, 0.037])
def test_a_black_hole_pauses_delivery_at_most_300_ms(index: int, up: bool, phase: float) -> None:
    data = App(payload(40 * MB))
    reader = App()
    pair = MptcpPair(paths, data if up else reader, reader if up else data)
    cut(pair, index, 1002.0 + phase, 1006.0)
    pair.run(60.0)
    pair.check_streams()
    assert longest_pause(reader, 1001.9, 1003.5) <= 0.3
    alone = 20e6 if index == 0 else 50e6
    assert goodput(reader, 1004.0, 1006.0) >= 0.8 * alone


@pytest.mark.parametrize("back", [1003.1, 1005.0, 1009.4, 1013.7, 1017.2])
def test_a_lost_subflow_is_there_again_within_two_seconds_after_its_uplink(back: float) -> None:
    # Its subflow was reset, and the joins since then went into a black hole.
    slow = [(8, 20), (4, 60)]
    pair = MptcpPair(lambda rng: [path(rng, *one) for one in slow], App(), App(payload(22 * MB)))
    cut(pair, 1, 1002.0, back)
    pair.at(1002.0, lambda: pair.client.reset_subflow(pair.client.subflows[1], 0, pair.now))

    def is_there() -> bool:
        return any(s.fully_established and s.uplink == "u1" for s in pair.client.subflows)

    seen: list[bool] = []
    pair.at(back, lambda: seen.append(is_there()))
    pair.at(back + 2.0, lambda: seen.append(is_there()))
    pair.run(60.0)
    pair.check_streams()
    assert seen == [False, True]


def test_full_use_again_within_a_second_after_the_path_returns() -> None:
    pair = MptcpPair(paths, App(), App(payload(60 * MB)))
    cut(pair, 0, 1002.0, 1006.0)
    pair.run(60.0)
    pair.check_streams()
    assert goodput(pair.client_app, 1007.0, 1008.0) >= 0.85 * 65e6
    assert pair.server_counters["MPTcpExtSubflowStale"] == 1
    assert pair.server_counters["MPTcpExtSubflowRecover"] == 1


def test_a_long_outage_of_the_only_uplink_is_survived() -> None:
    pair = MptcpPair(lambda rng: [path(rng, 20, 20)], App(), App(payload(5 * MB)))
    cut(pair, 0, 1000.8, 1015.0)
    pair.run(120.0)
    pair.check_streams()


@pytest.mark.parametrize("seed", range(8))
def test_uplinks_that_flap_one_after_the_other_lose_nothing(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    pair = MptcpPair(paths, App(payload(4 * MB, 7)), App(payload(12 * MB, 8)), seed=seed)
    at = 1000.2
    while at < 1012.0:
        length = rng.uniform(0.05, 1.5)
        cut(pair, rng.randrange(2), at, at + length)
        at += length + rng.uniform(0.0, 0.5)
    pair.after(12.0, lambda: [setattr(p, "alive", True) for p in pair.paths] and None)
    pair.run(180.0)
    assert pair.finished
    pair.check_streams()
    pair.check_gone()


@pytest.mark.parametrize("at", [0.001, 0.011, 0.021, 0.031, 0.05, 0.08, 0.1, 0.12])
def test_a_cut_during_the_join_leaves_the_connection_unharmed(at: float) -> None:
    pair = MptcpPair(paths, App(), App(payload(6 * MB)))
    cut(pair, 1, 1000.0 + at, 1004.0)
    pair.run(60.0)
    pair.check_streams()
    pair.check_gone()


@pytest.mark.parametrize("at", [0.001, 0.011, 0.021, 0.031, 0.05])
def test_a_cut_during_the_handshake_only_delays_it(at: float) -> None:
    pair = MptcpPair(paths, App(payload(30_000)), App(payload(50_000)))
    cut(pair, 0, 1000.0 + at, 1001.5)
    pair.run(60.0)
    assert pair.finished
    pair.check_streams()
    pair.check_gone()


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("ms", [0, 5, 20, 40, 60, 90])
def test_a_cut_during_the_close_does_not_hold_it_up(index: int, ms: int) -> None:
    probe = MptcpPair(paths, App(), App(payload(2 * MB)))
    probe.run(60.0)
    assert probe.client_app.finished_at is not None
    end = probe.client_app.finished_at
    pair = MptcpPair(paths, App(), App(payload(2 * MB)))
    cut(pair, index, end - 0.06 + ms / 1e3)
    pair.run(30.0)
    pair.run_for(3.0)
    pair.check_streams()
    assert pair.closed()
    pair.check_gone()


def rst_for(pair: MptcpPair, index: int, up: bool) -> None:
    """Forge a RST with the exact sequence number for the subflow on path ``index``."""
    receiver = pair.server if up else pair.client
    assert receiver is not None
    for subflow in receiver.subflows:
        ip = subflow.remote.ip if up else subflow.local.ip
        if ip == client_ip(index):
            packet = build_header(
                subflow.remote.ip, subflow.local.ip, subflow.remote.port, subflow.local.port,
                subflow.rcv_nxt, subflow.snd_nxt, 20, 0, b"", 0, 0,
            )  # fmt: skip
            pair.inject(up, finish_checksum(packet))


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("up", [False, True], ids=["at-client", "at-server"])
def test_a_reset_subflow_is_replaced_and_its_data_reinjected(index: int, up: bool) -> None:
    pair = MptcpPair(paths, App(payload(2 * MB, 3)), App(payload(10 * MB)))
    pair.at(1000.7, lambda: rst_for(pair, index, up))
    pair.run(60.0)
    pair.check_streams()
    assert Event.SUBFLOW_CLOSED in pair.client_app.events
    assert Event.RESET not in pair.client_app.events
    assert pair.counters["MPTcpExtMPJoinSynTx"] == 2
    pair.check_gone()


def test_all_subflows_reset_is_break_before_make() -> None:
    pair = MptcpPair(paths, App(), App(payload(6 * MB)))
    pair.at(1000.7, lambda: [rst_for(pair, i, up) for i in (0, 1) for up in (0, 1)] and None)
    pair.run(60.0)
    pair.check_streams()
    assert Event.RESET not in pair.client_app.events
    pair.check_gone()


def test_no_subflow_for_close_timeout_ends_the_connection() -> None:
    config = MptcpConfig(close_timeout=10.0)
    pair = MptcpPair(
        paths, App(payload(10), close=False), App(close=False), client=config, server=config
    )
    pair.run_for(1.0)

    def vanish() -> None:
        for one in pair.paths:
            one.alive = False
        for conn in (pair.client, pair.server):
            assert conn is not None
            for subflow in list(conn.subflows):
                subflow.abort(pair.now)
                conn.drop_subflow(subflow, pair.now)

    pair.after(0.0, vanish)
    pair.run_for(30.0)
    assert Event.TIMED_OUT in pair.server_app.events
    pair.run_for(100.0)
    assert Event.TIMED_OUT in pair.client_app.events or Event.RESET in pair.client_app.events
    pair.check_gone()


def test_a_restarted_peer_resets_the_connection_when_it_is_joined() -> None:
    pair = MptcpPair(paths, App(payload(10), close=False), App(close=False))
    pair.run_for(1.0)

    def restart() -> None:
        pair.server_host.connections.clear()
        pair.server_host.tokens.clear()
        pair.server_host.deadlines.clear()
        for subflow in pair.client.subflows:
            subflow.request_ack()

    pair.after(0.0, restart)
    pair.run_for(5.0)
    assert Event.RESET in pair.client_app.events
    assert pair.client_host.leftovers() == []


def test_a_dead_second_uplink_costs_the_transfer_nothing() -> None:
    alive: Callable[[random.Random], list[Path]] = lambda rng: [path(rng, 50, 20)]  # noqa: E731
    alone = MptcpPair(alive, App(), App(payload(5 * MB)))
    alone.run(60.0)
    pair = MptcpPair(paths, App(), App(payload(5 * MB)))
    pair.paths[1].alive = False
    pair.run(60.0)
    pair.check_streams()
    assert pair.client_app.finished_at == pytest.approx(alone.client_app.finished_at, abs=0.05)


def test_a_lost_uplink_is_joined_again_while_the_connection_lives() -> None:
    pair = MptcpPair(paths, App(close=False), App(payload(100), close=False))
    pair.run_for(1.0)
    assert len(pair.client.subflows) == 2
    pair.after(0.0, lambda: rst_for(pair, 1, False))
    pair.run_for(2.0)
    assert len([s for s in pair.client.subflows if s.fully_established]) == 2
