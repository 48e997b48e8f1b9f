"""Paths that drop large packets and say nothing: found, used at their size, and tried again."""

from __future__ import annotations

import random

import pytest

from proxy.tcp.config import TcpConfig
from proxy.wire.address import Address
from tests.pair.harness import App, Pair
from tests.pair.link import Link

STREAM = random.Random(7).randbytes(3_000_000)
CLIENT6 = Address(bytes(15) + b"\x01", 40000)
SERVER6 = Address(bytes(15) + b"\x02", 80)


def link(seed: int, **settings: object) -> Link:
    return Link(random.Random(seed), **{"delay": 0.01, "rate": 50e6, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("mtu", [1499, 1400, 1281, 1100, 800])
def test_black_hole_is_passed_in_two_time_outs_and_then_measured(mtu: int) -> None:
    down = link(2, mtu=mtu)
    pair = Pair(up=link(1), down=down, server_app=App(STREAM))
    pair.run(1100)
    assert pair.client_app.received == STREAM
    assert pair.now - 1000 < (2.2 if mtu >= 1280 else 6)
    assert pair.server is not None
    assert mtu - 8 <= pair.server._mtu <= mtu
    assert pair.server_host.counters["TCPMTUBlackHole"] == 1 + (mtu < 1280) + (mtu < 1024)
    assert pair.server_host.path_mtus.get(pair.server.local.ip + pair.server.remote.ip)[0] > 0


def test_ipv6_stops_at_its_guaranteed_size() -> None:
    down = link(2, mtu=1300)
    pair = Pair(
        up=link(1), down=down, server_app=App(STREAM[:1_000_000]), client=CLIENT6, server=SERVER6
    )
    pair.run(1100)
    assert pair.client_app.received == STREAM[:1_000_000]
    assert pair.server is not None
    assert 1292 <= pair.server._mtu <= 1300


def test_small_segments_that_pass_make_the_first_time_out_enough() -> None:
    down = link(2, mtu=1400)
    server = App(close=False)
    pair = Pair(up=link(1), down=down, server_app=server)
    pair.run_for(0.1)
    assert pair.server is not None
    server.data = STREAM[:1448]
    pair._settle()
    for _ in range(5):
        pair.run_for(0.001)
        server.data += b"small"
        pair._settle()
    pair.run_for(0.6)
    assert pair.client_app.received == server.data
    assert pair.server_host.counters["TCPTimeouts"] == 1
    assert pair.server_host.counters["TCPMTUBlackHole"] == 1


def test_path_that_shrinks_while_in_use() -> None:
    down = link(2, rate=20e6)
    pair = Pair(up=link(1), down=down, server_app=App(STREAM))
    pair.at(1000.4, lambda: setattr(down, "mtu", 1400))
    pair.run(1100)
    assert pair.client_app.received == STREAM
    assert pair.now - 1000 < 4
    assert pair.server is not None
    assert 1380 <= pair.server._mtu <= 1400


def test_next_connection_begins_at_the_size_that_passes() -> None:
    first = Pair(up=link(1), down=link(2, mtu=1400), server_app=App(STREAM))
    first.run(1100)
    assert first.server is not None
    second = Pair(seed=5, up=link(3), down=link(4, mtu=1400), server_app=App(STREAM))
    second.server_host.path_mtus = first.server_host.path_mtus
    second.run(1100)
    assert second.client_app.received == STREAM
    assert second.server_host.counters["TCPTimeouts"] == 0
    assert second.server is not None
    assert second.server._mtu == first.server._mtu
    assert second.client.mss == second.server._mtu - 40  # the peer hears of it in the SYN-ACK


def test_larger_size_is_tried_again_after_ten_minutes() -> None:
    down = link(2, mtu=1400)
    server = App(STREAM, close=False)
    pair = Pair(up=link(1), down=down, server_app=server)
    pair.run_for(20)
    assert pair.server is not None
    assert pair.server._mtu <= 1400
    down.mtu = 1500
    server.data += STREAM[:1_000_000]
    pair._settle()
    pair.run_for(10)
    assert pair.server._mtu <= 1400
    pair.run_for(600)
    server.data += STREAM[:1_000_000]
    pair._settle()
    pair.run_for(10)
    assert pair.server._mtu == 1500
    path = pair.server.local.ip + pair.server.remote.ip
    assert pair.server_host.path_mtus.get(path) == (0, 0.0)
    assert pair.client_app.received == server.data


def test_dead_path_costs_no_packet_size() -> None:
    down = link(2)
    pair = Pair(up=link(1), down=down, server_app=App(STREAM * 8))
    pair.run_for(0.5)
    down.up = pair.up.up = False
    pair.run_for(3)
    assert pair.server is not None
    assert pair.server._mtu < 1500
    down.up = pair.up.up = True
    pair.run_for(5)
    assert pair.server._mtu == 1500
    assert pair.server_host.counters["TCPMTUPFail"] == 0


def test_lost_probe_is_no_sign_of_congestion() -> None:
    down = link(2, mtu=1400)
    pair = Pair(up=link(1), down=down, server_app=App(STREAM))
    pair.run(1100)
    counters = pair.server_host.counters
    assert counters["TCPMTUPFail"] >= 2
    assert counters["TCPSackRecovery"] == 0


def test_random_loss_shrinks_nothing_for_good() -> None:
    pair = Pair(up=link(1, loss=0.1), down=link(2, loss=0.1), server_app=App(STREAM[:1_000_000]))
    pair.run(1400)
    assert pair.client_app.received == STREAM[:1_000_000]


def test_probing_can_be_switched_off() -> None:
    config = TcpConfig(mtu_probing=False)
    down = link(2, mtu=1400)
    pair = Pair(up=link(1), down=down, server_app=App(STREAM), server_config=config)
    pair.run_for(30)
    assert pair.client_app.received == b""


def test_a_lone_segment_that_only_the_smallest_size_lets_through() -> None:
    down = link(2, mtu=700)
    pair = Pair(up=link(1), down=down, server_app=App(STREAM[:750]))
    pair.run(1100)
    assert pair.client_app.received == STREAM[:750]
    assert pair.now - 1000 < 8
