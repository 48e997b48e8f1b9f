"""Bursts, queues and the limit of an uplink, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from proxy.tcp.config import TcpConfig
from proxy.tcp.limit import RateLimit
from tests.pair.harness import App, Pair
from tests.pair.link import Link
from tests.pair.mptcp_harness import MptcpPair, Path, goodput, path, payload

MB = 1_000_000


def download(control: str, rate: float, rtt: float, queue: int, size: int) -> Pair:
    """One TCP connection over a link with a drop-tail queue of so many packets."""
    rng = random.Random(3)
    config = TcpConfig(congestion_control=control)
    return Pair(
        up=Link(rng, rate=rate, delay=rtt / 2),
        down=Link(rng, rate=rate, delay=rtt / 2, queue=queue),
        server_app=App(bytes(size)),
        client_config=config,
        server_config=config,
    )


def test_bbr_loses_nothing_in_a_queue_of_32_packets_once_it_knows_the_path() -> None:
    pair = download("bbr", 50e6, 0.02, 32, 40 * MB)
    pair.run_for(1.5)
    startup = pair.down.dropped
    pair.run_for(4.0)
    assert pair.down.dropped == startup
    assert goodput(pair.client_app, 1001.5, 1005.5) > 0.9 * 50e6 * 1448 / 1514


@pytest.mark.parametrize("control", ["cubic", "reno"])
def test_only_the_search_for_more_loses_packets_in_a_queue_of_32(control: str) -> None:
    # What a loss-based control loses is the end of each search: a packet or two in a second.
    pair = download(control, 50e6, 0.02, 32, 40 * MB)
    pair.run_for(1.5)
    startup = pair.down.dropped
    pair.run_for(4.0)
    assert pair.down.dropped - startup <= 4 * 3


@pytest.mark.parametrize("control", ["cubic", "bbr"])
def test_a_limit_below_the_link_loses_nothing_at_all(control: str) -> None:
    pair = download(control, 50e6, 0.02, 32, 40 * MB)
    assert pair.server is None
    pair.on_syn = lambda conn, now: (
        setattr(conn, "limit", RateLimit(45e6 / 8)),
        conn.accept(now),
    )[0]
    pair.run_for(5.0)
    assert pair.down.dropped == 0
    assert goodput(pair.client_app, 1001.0, 1005.0) > 0.93 * 45e6 * 1448 / 1500


def test_bbr_keeps_the_round_trip_within_twice_the_base_in_a_deep_buffer() -> None:
    second = int(10e6 / 8 / 1514)
    pair = download("bbr", 10e6, 0.04, second, 20 * MB)
    pair.run_for(2.0)
    longest = 0.0
    for _ in range(100):
        pair.run_for(0.1)
        assert pair.server is not None
        longest = max(longest, pair.server.srtt)
    assert longest < 0.08
    assert goodput(pair.client_app, 1002.0, 1012.0) > 0.9 * 10e6 * 1448 / 1514


def test_a_sender_among_many_sends_as_fast_in_bursts_of_an_eighth_of_a_round_trip() -> None:
    def burst(others: int) -> float:
        pair = download("bbr", 100e6, 0.03, 1000, 40 * MB)
        pair.run_for(1.0)
        assert pair.server is not None
        before, packets = pair.server.bytes_sent, 0
        transmit = pair.server_host.transmit

        def count(packet: list[Any]) -> None:
            nonlocal packets
            packets += 1
            transmit(packet)

        pair.server_host.transmit = count  # type: ignore[method-assign]
        for _ in range(40):
            for _ in range(others):
                pair.server_host.paced_senders.add(pair.now)
            pair.run_for(0.05)
        assert goodput(pair.client_app, 1001.0, 1003.0) > 0.9 * 100e6 * 1448 / 1514
        return (pair.server.bytes_sent - before) / packets

    assert 0.0008 < burst(0) / (100e6 / 8) < 0.0012
    assert 0.8 < burst(1000) / (100e6 / 8) / (0.03 / 8) < 1.1


def two_paths(rng: random.Random) -> list[Path]:
    return [path(rng, 50, 20), path(rng, 50, 20)]


def upload(limit: float, prepare: Callable[[MptcpPair], None] = lambda pair: None) -> MptcpPair:
    pair = MptcpPair(two_paths, App(payload(20 * MB)), App())
    pair.client_host.limits["u0"].rate = limit
    prepare(pair)
    return pair


def sent_by(pair: MptcpPair, index: int) -> int:
    return pair.paths[index].up.carried


def test_an_uplink_with_a_limit_carries_that_and_the_other_one_the_rest() -> None:
    pair = upload(10e6 / 8)
    pair.run_for(1.0)
    before = sent_by(pair, 0)
    pair.run_for(1.0)
    assert 0.9 * 10e6 < (sent_by(pair, 0) - before) * 1500 * 8 < 1.02 * 10e6
    assert goodput(pair.server_app, 1001.0, 1002.0) > 0.9 * 60e6 * 1420 / 1514
    pair.run(60.0)
    pair.check_streams()


def test_a_limit_is_changed_and_taken_away_under_way() -> None:
    pair = upload(5e6 / 8)
    pair.run_for(0.5)
    pair.client_host.limits["u0"].rate = 0.0
    pair.run_for(0.5)
    before = sent_by(pair, 0)
    pair.run_for(0.5)
    assert (sent_by(pair, 0) - before) * 1500 * 8 / 0.5 > 40e6
    pair.run(60.0)
    pair.check_streams()


def test_book_gives_each_its_turn_behind_the_others() -> None:
    limit = RateLimit(1000.0)
    assert [limit.book(100, 10.0) for _ in range(3)] == pytest.approx([9.996, 10.096, 10.196])
    # Unused time does not pile up.
    assert limit.book(100, 20.0) == pytest.approx(19.996)
