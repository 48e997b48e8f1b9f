"""ADD_ADDR, REMOVE_ADDR, MP_PRIO and the path manager on live connections; hostile segments."""

from __future__ import annotations

import random
from typing import Any

import pytest

from proxy.mptcp import keys
from proxy.mptcp.config import MptcpConfig
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import MAX_NOTES
from proxy.mptcp.signals import MAX_REMOTE_ADDRESSES
from proxy.pm.base import Endpoint, Limits
from proxy.seg import build_header, finish_checksum, timestamps_option
from proxy.tcp.events import Event
from proxy.wire.address import Address
from proxy.wire.mptcp_options import AddAddr, MpPrio, RemoveAddr, pad
from tests.pair.mptcp_harness import (
    SERVER,
    SERVER_2,
    App,
    MptcpPair,
    Path,
    client_ip,
    path,
    payload,
)
from tests.pair.mptcp_middlebox import drop, flip_option, has_mptcp, when

ADD_ADDR, REMOVE_ADDR = 3, 4
KB = 1000


def paths(rng: random.Random) -> list[Path]:
    return [path(rng, 50, 20), path(rng, 20, 60)]


def one_path(rng: random.Random) -> list[Path]:
    return [path(rng, 50, 20)]


def idle(**settings: Any) -> MptcpPair:
    pair = MptcpPair(
        paths, App(payload(10), close=False), App(payload(10), close=False), **settings
    )
    pair.run_for(1.0)
    assert isinstance(pair.server, MptcpConnection)
    return pair


SIGNAL = Endpoint(SERVER_2, 5, signal=True)


def announcing(**settings: Any) -> MptcpPair:
    return idle(server_endpoints=(SIGNAL,), server_manager="kernel", **settings)


def finish(pair: MptcpPair) -> None:
    for app in (pair.client_app, pair.server_app):
        app.close = True
    pair._settle()
    pair.run_for(5.0)
    assert pair.closed()
    pair.check_streams()
    pair.check_gone()


# -- ADD_ADDR ------------------------------------------------------------------------------------


def test_a_signal_endpoint_is_announced_and_echoed() -> None:
    pair = announcing()
    assert pair.server_counters["MPTcpExtAddAddrTx"] == pair.counters["MPTcpExtAddAddr"] == 1
    assert pair.counters["MPTcpExtEchoAddTx"] == pair.server_counters["MPTcpExtEchoAdd"] == 1
    assert pair.client.remote_addresses == {5: Address(SERVER_2, 8803)}
    assert Event.ADDR_ANNOUNCED in pair.client_app.events
    finish(pair)


def test_an_announced_address_is_joined_within_the_limits() -> None:
    config = MptcpConfig(subflows=3, add_addr_accepted=1)
    pair = announcing(client=config, server=config)
    remotes = sorted(s.remote.ip for s in pair.client.subflows if s.fully_established)
    assert remotes == sorted([pair.client.remote.ip, pair.client.remote.ip, SERVER_2])
    finish(pair)


def test_with_flag_c_announced_addresses_are_joined_instead() -> None:
    server = MptcpConfig(allow_join_initial_addr_port=False)
    pair = announcing(server=server)
    joined = [s for s in pair.client.subflows if not s.initial]
    assert {s.remote.ip for s in joined} == {SERVER_2}
    assert all(s.fully_established for s in joined)


def test_with_flag_c_the_initial_address_is_joined_where_it_is_announced() -> None:
    # Behind a balancer that translates: its address is denied, what it translates to is ours.
    pair = idle(
        server=MptcpConfig(allow_join_initial_addr_port=False),
        server_endpoints=(Endpoint(SERVER.ip, 5, signal=True),),
        server_manager="kernel",
    )
    joined = [s for s in pair.client.subflows if not s.initial]
    assert [(s.remote.ip, s.remote_id, s.fully_established) for s in joined] == [
        (SERVER.ip, 5, True)
    ]
    finish(pair)


def test_an_announcement_with_a_wrong_hmac_is_ignored_in_silence() -> None:
    box = when(lambda i, up, p: has_mptcp(p, ADD_ADDR), lambda p: flip_option(p, ADD_ADDR, 15))
    pair = announcing(filter=box)
    assert pair.client.remote_addresses == {}
    assert pair.counters["MPTcpExtEchoAddTx"] == 0


def test_an_announcement_without_echo_is_repeated_three_times() -> None:
    pair = announcing(filter=when(lambda i, up, p: up and has_mptcp(p, ADD_ADDR), drop))
    pair.run_for(20.0)
    assert pair.server_counters["MPTcpExtAddAddrTx"] == 4
    assert not pair.server.announcing  # type: ignore[union-attr]


def test_announcements_do_not_disturb_a_transfer() -> None:
    pair = MptcpPair(paths, App(payload(1_000_000, 1)), App(payload(14_000_000, 2)))
    assert pair.server is None
    pair.run_for(0.4)
    for number in range(6):
        at = 0.05 * number
        address = Address(bytes((10, 9, 0, 30 + number)), 8803)
        pair.after(at, lambda a=address, n=number: pair.server.announce(a, 20 + n, pair.now))
        pair.after(at + 0.4, lambda n=number: pair.server.withdraw(20 + n, pair.now))
    pair.run(60.0)
    pair.check_streams()
    assert pair.counters["MPTcpExtAddAddr"] >= 6
    assert pair.counters["MPTcpExtRmAddr"] == 6


def signed(pair: MptcpPair, address_id: int, ip: bytes, port: int | None = None) -> bytes:
    client = pair.client
    mac = keys.add_addr_hmac(client.remote_key, client.local_key.key, address_id, ip, port)
    return pad(AddAddr(address_id, ip, port, hmac=mac).build())


def to_client(pair: MptcpPair, options: bytes, flags: int = 16, data: bytes = b"") -> bytes:
    sf = pair.client.subflows[0]
    ts = timestamps_option(max(sf._ts_recent, 0), 0)
    header = build_header(
        sf.remote.ip,
        sf.local.ip,
        sf.remote.port,
        sf.local.port,
        sf.rcv_nxt,
        sf.snd_una,
        flags,
        1000,
        ts + options,
        len(data),
        0,
    )
    return finish_checksum(header + data)


def test_announced_addresses_are_bounded_and_a_flood_starts_no_flood_of_syns() -> None:
    config = MptcpConfig(subflows=8, add_addr_accepted=2)
    pair = idle(client=config)
    joined = set()
    for number in range(200):
        pair.inject(
            False, to_client(pair, signed(pair, number % 250 + 1, bytes((11, 0, 0, number))))
        )
        pair.run_for(0.001)
        joined |= {s.remote.ip for s in pair.client.subflows if s.remote.ip[0] == 11}
    assert len(pair.client.remote_addresses) <= MAX_REMOTE_ADDRESSES
    assert len(joined) == 2
    # A subflow that is lost meanwhile may be opened again; nothing else adds to the SYNs.
    assert pair.counters["MPTcpExtMPJoinSynTx"] <= 1 + 2 + 2
    assert len(pair.client.notes) <= MAX_NOTES


@pytest.mark.parametrize(
    "ip",
    [
        bytes((127, 0, 0, 1)),
        bytes((224, 0, 0, 1)),
        bytes((0, 0, 0, 0)),
        bytes((255, 255, 255, 255)),
        bytes(15) + b"\x01",
        b"\xff\x02" + bytes(14),
        b"\xfe\x80" + bytes(14),
        bytes(10) + b"\xff\xff\x7f\0\0\x01",
    ],
)
def test_silly_addresses_are_never_joined(ip: bytes) -> None:
    pair = idle(client=MptcpConfig(subflows=8, add_addr_accepted=2))
    before = pair.counters["MPTcpExtMPJoinSynTx"]
    pair.inject(False, to_client(pair, signed(pair, 9, ip)))
    pair.run_for(0.5)
    assert pair.counters["MPTcpExtMPJoinSynTx"] == before
    assert pair.client.remote_addresses == {}


# -- REMOVE_ADDR and MP_PRIO ---------------------------------------------------------------------


def test_removing_an_endpoint_closes_its_subflow_and_tells_the_peer() -> None:
    pair = idle()
    endpoint = pair.client_host.local_addresses.pop(1)
    pair.client.path_manager.on_endpoint_removed(pair.client, endpoint, pair.now)
    pair.run_for(1.0)
    assert [s.local_id for s in pair.client.subflows] == [0]
    assert len(pair.server.subflows) == 1  # type: ignore[union-attr]
    assert pair.counters["MPTcpExtRmAddrTx"] == pair.server_counters["MPTcpExtRmAddr"] == 1
    pair.run_for(5.0)
    assert len(pair.client.subflows) == 1
    pair.client_host.local_addresses.append(endpoint)
    pair.client.path_manager.on_endpoint_added(pair.client, endpoint, pair.now)
    pair._settle()
    pair.run_for(1.0)
    assert len([s for s in pair.client.subflows if s.fully_established]) == 2
    finish(pair)


def test_remove_addr_does_not_travel_over_the_address_that_goes() -> None:
    pair = idle()
    pair.wire_log = []
    endpoint = pair.client_host.local_addresses.pop(1)
    pair.client.path_manager.on_endpoint_removed(pair.client, endpoint, pair.now)
    pair.run_for(0.5)
    assert {i for _, i, up, p in pair.wire_log if up and has_mptcp(p, REMOVE_ADDR)} == {0}


def test_the_initial_address_can_go_in_mid_transfer() -> None:
    pair = MptcpPair(paths, App(payload(500 * KB, 1)), App(payload(8_000_000, 2)))

    def go() -> None:
        endpoint = pair.client_host.local_addresses.pop(0)
        pair.client.path_manager.on_endpoint_removed(pair.client, endpoint, pair.now)

    pair.after(0.5, go)
    pair.run(60.0)
    pair.check_streams()
    assert pair.finished
    pair.check_gone()


def test_remove_addr_of_the_only_path_with_data_outstanding_is_not_obeyed() -> None:
    pair = MptcpPair(one_path, App(payload(10), close=False), App(payload(9_000_000)))
    pair.run_for(0.5)
    assert isinstance(pair.server, MptcpConnection)
    pair.client.withdraw(0, pair.now)
    pair._settle()
    pair.client_app.close = True
    pair.run(60.0)
    pair.check_streams()


def test_mp_prio_moves_the_data_to_the_other_subflow_and_back() -> None:
    pair = MptcpPair(paths, App(close=False), App(payload(30_000_000)))
    pair.run_for(1.0)
    first = pair.client.subflows[0]
    pair.client.set_backup(first, True, pair.now)
    pair._settle()
    pair.run_for(0.3)
    assert isinstance(pair.server, MptcpConnection)
    theirs = pair.server.subflows[0]
    assert theirs.peer_backup
    before = theirs.bytes_sent
    pair.run_for(0.5)
    assert theirs.bytes_sent == before
    pair.client.set_backup(first, False, pair.now)
    pair._settle()
    pair.run_for(0.5)
    assert theirs.bytes_sent > before
    assert pair.counters["MPTcpExtMPPrioTx"] == pair.server_counters["MPTcpExtMPPrioRx"] == 2


def test_the_backup_flag_of_the_first_uplink_is_told_by_mp_prio() -> None:
    pair = idle(backups=(0,))
    assert pair.server.subflows[0].peer_backup  # type: ignore[union-attr]


# -- limits --------------------------------------------------------------------------------------


def test_limits_bound_the_additional_subflows() -> None:
    def many(rng: random.Random) -> list[Path]:
        return [path(rng, 10, 20) for _ in range(5)]

    config = MptcpConfig(subflows=2)
    pair = MptcpPair(many, App(payload(10), close=False), App(close=False), client=config)
    pair.run_for(1.0)
    assert len(pair.client.subflows) == 3
    pair.client.limits = Limits(subflows=4)
    pair.client.path_manager.on_endpoint_added(
        pair.client, pair.client_host.local_addresses[0], pair.now
    )
    pair.run_for(1.0)
    assert len(pair.client.subflows) <= 5


# -- hostile peers -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_no_segment_makes_the_engine_raise(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    pair = MptcpPair(paths, App(payload(200 * KB, 1)), App(payload(600 * KB, 2)), seed=seed)
    pair.run_for(rng.uniform(0.0, 0.3))
    for _ in range(150):
        if not pair.client.subflows:
            break
        options = bytearray()
        for _ in range(rng.randrange(3)):
            length = rng.choice((3, 4, 8, 10, 12, 16, 18, 20, 22, 24, 26, 28))
            body = bytes((30, length, rng.randrange(16) << 4 | rng.randrange(4)))
            options += (body + rng.randbytes(28))[:length]
        if rng.random() < 0.3:
            data_fin = rng.random() < 0.1
            dsn = pair.client.rx.dsn(pair.client.rx.stream.rcv_nxt + rng.randrange(-9000, 90000))
            options = bytearray(
                bytes((30, 22, 0x20, 0x0D | data_fin << 4))
                + rng.randbytes(4)
                + dsn.to_bytes(8, "big")
                + rng.choice((1, 2, 60000)).to_bytes(4, "big")
                + rng.randrange(5000).to_bytes(2, "big")
            )
        packet = to_client(
            pair,
            pad(bytes(options))[:28],
            rng.choice((16, 16, 16, 24, 17, 18, 20)),
            rng.randbytes(rng.choice((0, 0, 1, 500, 1400))),
        )
        pair.inject(False, packet, rng.uniform(0, 0.005))
        pair.run_for(rng.uniform(0.0, 0.02))
    pair.run_for(1.0)


@pytest.mark.parametrize("seed", range(10))
def test_bent_packets_of_the_true_peer_never_make_the_engine_raise(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)

    def bend(index: int, up: bool, packet: bytes) -> list[bytes]:
        if rng.random() < 0.9:
            return [packet]
        out = bytearray(packet)
        start = 10 + 20 + 20
        for _ in range(rng.randrange(1, 4)):
            if len(out) > start + 40:
                out[rng.randrange(start, start + 40)] = rng.randrange(256)
        return [bytes(out)]

    pair = MptcpPair(
        paths,
        App(payload(300 * KB, 1)),
        App(payload(300 * KB, 2)),
        seed=seed,
        filter=bend,
        server=MptcpConfig(checksum_enabled=bool(seed & 1)),
    )
    pair.run(40.0)


def test_a_unit_option_that_repeats_is_acted_on_once_at_most() -> None:
    pair = idle()
    twice = pad(MpPrio(True).build()) * 2
    pair.inject(False, to_client(pair, twice))
    pair.run_for(0.5)
    assert pair.counters["MPTcpExtMPPrioRx"] == 0
    several = pad(RemoveAddr(tuple(range(100, 120))).build())
    pair.inject(False, to_client(pair, several))
    pair.run_for(0.5)
    assert pair.counters["MPTcpExtRmAddr"] == 8
    assert client_ip(0) == pair.client.local.ip


# -- joins that wait -------------------------------------------------------------------------------


def joins(pair: MptcpPair) -> int:
    return int(pair.counters["MPTcpExtMPJoinSynTx"])


def test_a_short_connection_costs_no_join_and_a_long_one_joins_after_the_delay() -> None:
    delayed = MptcpConfig(join_delay=0.1)
    short = MptcpPair(paths, App(payload(10)), App(payload(KB)), client=delayed)
    short.run_for(2.0)
    short.check_streams()
    assert short.closed()
    assert joins(short) == 0

    long = MptcpPair(paths, App(payload(10), close=False), App(close=False), client=delayed)
    long.run_for(0.1)
    assert joins(long) == 0
    long.run_for(0.1)
    assert joins(long) == 1
    long.run_for(0.1)
    assert len([s for s in long.client.subflows if s.fully_established]) == 2


def test_a_path_that_dies_before_the_join_costs_the_delay_alone() -> None:
    pair = MptcpPair(
        paths, App(payload(10), close=False), App(close=False), client=MptcpConfig(join_delay=0.1)
    )
    pair.run_for(0.05)
    pair.paths[0].alive = False
    pair.client_app.data += payload(KB, 2)
    pair._settle()
    pair.run_for(1.0)
    assert bytes(pair.server_app.received) == pair.client_app.data
