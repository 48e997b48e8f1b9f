"""Aggregation and scheduling over two subflows, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from proxy.mptcp.config import MptcpConfig
from tests.pair.mptcp_harness import (
    App,
    MptcpPair,
    Path,
    goodput,
    longest_pause,
    path,
    payload,
)

MB = 1_000_000
# TCP payload per byte on the wire: timestamps and a full DSS cost 40 bytes of options.
EFFICIENCY = 1420 / 1514


def two_paths(first: tuple[float, float], second: tuple[float, float]) -> Callable[..., list[Path]]:
    def make(rng: random.Random) -> list[Path]:
        return [path(rng, *first), path(rng, *second)]

    return make


def transfer(size: int, up: bool, **settings: object) -> MptcpPair:
    sender, reader = App(payload(size)), App()
    apps = {"client_app": sender if up else reader, "server_app": reader if up else sender}
    pair = MptcpPair(**apps, **settings)  # type: ignore[arg-type]
    pair.run(120.0)
    pair.check_streams()
    return pair


def time_of(pair: MptcpPair, up: bool) -> float:
    app = pair.server_app if up else pair.client_app
    assert app.finished_at is not None
    return app.finished_at - 1000.0


def rate_of(pair: MptcpPair, size: int, up: bool) -> float:
    return size * 8 / time_of(pair, up) / 1e6


@pytest.mark.parametrize("up", [False, True], ids=["download", "upload"])
@pytest.mark.parametrize(
    ("first", "second"),
    [((50, 20), (20, 60)), ((20, 60), (50, 20)), ((300, 8), (30, 40)), ((10, 30), (10, 30))],
    ids=str,
)
def test_two_links_carry_nine_tenths_of_their_sum(
    first: tuple[float, float], second: tuple[float, float], up: bool
) -> None:
    total = first[0] + second[0]
    size = int(total * 1e6 / 8 * 4)
    pair = transfer(size, up, paths=two_paths(first, second))
    assert rate_of(pair, size, up) >= 0.9 * total * EFFICIENCY


@pytest.mark.parametrize("up", [False, True], ids=["download", "upload"])
@pytest.mark.parametrize("slow_first", [False, True], ids=["fast-first", "slow-first"])
def test_a_slow_uplink_does_not_hold_back_a_fast_one(slow_first: bool, up: bool) -> None:
    size = 40 * MB
    fast, slow = (100.0, 10.0), (10.0, 200.0)
    alone = time_of(transfer(size, up, paths=lambda rng: [path(rng, *fast)]), up)
    paths = two_paths(slow, fast) if slow_first else two_paths(fast, slow)
    both = time_of(transfer(size, up, paths=paths), up)
    # Over the slow one the handshake, and the proof that allows the join, take two round trips.
    assert both <= alone + (0.4 if slow_first else 0.0)


@pytest.mark.parametrize("size", [30_000, 300_000, 1 * MB, 3 * MB])
def test_a_short_transfer_is_not_slower_for_a_second_uplink(size: int) -> None:
    alone = transfer(size, False, paths=lambda rng: [path(rng, 100, 10)])
    both = transfer(size, False, paths=two_paths((100, 10), (10, 200)))
    assert rate_of(both, size, False) >= 0.99 * rate_of(alone, size, False)


@pytest.mark.parametrize("name", ["roundrobin", "redundant", "backup"])
def test_other_schedulers_deliver_the_stream(name: str) -> None:
    size = 3 * MB
    config = MptcpConfig(scheduler=name)
    pair = transfer(size, False, paths=two_paths((20, 20), (20, 60)), client=config, server=config)
    server = pair.server
    assert server is not None
    sent = sorted(s.bytes_sent for s in [*server.subflows, *server.subflows][:2])
    if name == "backup":
        assert sent[0] == 0
    else:
        assert sent[0] > size / 5


def test_a_backup_uplink_carries_nothing_while_the_other_works() -> None:
    pair = transfer(5 * MB, False, paths=two_paths((20, 20), (50, 20)), backups=(1,))
    server = pair.server
    assert server is not None
    by_backup = {s.peer_backup: s.bytes_sent for s in server.subflows}
    assert by_backup[True] == 0
    assert pair.server_counters["MPTcpExtMPJoinSynBackupRx"] == 1


def test_a_backup_uplink_takes_over_when_the_other_dies() -> None:
    app = App(payload(8 * MB))
    pair = MptcpPair(two_paths((20, 20), (20, 20)), App(), app, backups=(1,))
    pair.at(1001.0, lambda: setattr(pair.paths[0], "alive", False))
    pair.run(60.0)
    pair.check_streams()
    assert longest_pause(pair.client_app, 1000.9, 1002.0) < 0.4


def test_the_scheduler_can_be_changed_on_a_live_connection() -> None:
    pair = MptcpPair(two_paths((20, 20), (20, 20)), App(), App(payload(8 * MB)))
    pair.run_for(1.0)
    assert goodput(pair.client_app, 1000.5, 1001.0) > 30e6
    assert pair.server is not None
    pair.server.set_scheduler("backup")
    pair.run_for(1.0)
    assert goodput(pair.client_app, 1001.5, 1002.0) < 20e6
    pair.run(60.0)
    pair.check_streams()


@pytest.mark.parametrize("seed", range(6))
def test_loss_reordering_and_duplication_do_not_harm_the_stream(seed: int) -> None:
    print(f"seed {seed}")

    def make(rng: random.Random) -> list[Path]:
        return [
            path(rng, 30, 20, loss=0.01, reorder=0.02, reorder_delay=0.01, duplicate=0.01),
            path(rng, 10, 50, loss=0.03, reorder=0.02, reorder_delay=0.03, duplicate=0.01),
        ]

    pair = MptcpPair(make, App(payload(1 * MB, 5)), App(payload(3 * MB, 6)), seed=seed)
    pair.run(120.0)
    assert pair.finished
    pair.check_streams()
    pair.check_gone()


def test_no_gro_at_the_receiver_changes_nothing_for_the_stream() -> None:
    pair = transfer(4 * MB, False, paths=two_paths((50, 20), (20, 60)), gro=False)
    pair.check_gone()
