"""The close matrix, FASTCLOSE, windows, checksums, sequence wraps."""

from __future__ import annotations

import errno
import hashlib
import random
from typing import Any

import pytest

from proxy.mptcp.config import MptcpConfig
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import Fallback
from proxy.seg import parse
from proxy.tcp.config import TcpConfig
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.mptcp_options import MpFastclose, RemoveAddr, pad
from tests.pair.mptcp_harness import App, MptcpPair, Path, goodput, path, payload
from tests.pair.mptcp_middlebox import (
    SYN,
    drop,
    flags_of,
    flip_payload,
    has_mptcp,
    payload_start,
    when,
)

KB = 1000
MB = 1_000_000
FASTCLOSE = 7
FIN = 1
MASK = 0xFFFFFFFF


def paths(rng: random.Random) -> list[Path]:
    return [path(rng, 50, 20), path(rng, 20, 60)]


def one_path(rng: random.Random) -> list[Path]:
    return [path(rng, 50, 20)]


def is_data(packet: bytes) -> bool:
    return len(packet) > payload_start(packet) and not flags_of(packet) & SYN


# -- the close matrix ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [paths, one_path], ids=["two", "one"])
@pytest.mark.parametrize("first", ["client", "server", "both"])
@pytest.mark.parametrize("sizes", [(0, 0), (1, 0), (0, 1), (400 * KB, 400 * KB)], ids=str)
def test_both_ends_close_cleanly_in_any_order(make: Any, first: str, sizes: Any) -> None:
    client = App(payload(sizes[0], 1), close=first != "server")
    server = App(payload(sizes[1], 2), close=first != "client")
    pair = MptcpPair(make, client, server)
    pair.run_for(1.0)
    for app in (client, server):
        app.close = True
    pair._settle()
    pair.run_for(2.0)
    assert pair.finished
    assert pair.closed()
    pair.check_streams()
    for app in (client, server):
        assert app.events.count(Event.CLOSED) == 1
        assert Event.RESET not in app.events
    for counters in (pair.counters, pair.server_counters):
        assert counters["TcpOutRsts"] == 0
    pair.check_gone()


def test_a_fin_that_has_the_data_ack_needs_no_ack_behind_it() -> None:
    pair = MptcpPair(one_path, App(payload(10)), App(payload(KB), close=False), log=True)
    pair.run_for(0.5)
    pair.server_app.close = True
    pair._settle()
    pair.run_for(0.5)
    assert pair.closed()
    assert pair.wire_log is not None
    sent = [(at, up, parse(packet)) for at, _, up, packet in pair.wire_log]
    fins = [(at, up, seg) for at, up, seg in sent if seg.flags & FIN]
    assert len(fins) == 2
    for at, up, fin in fins:
        behind = [s for t, u, s in sent if (t, u) == (at, up) and s.seq == (fin.seq + 1) & MASK]
        assert behind == []


@pytest.mark.parametrize("client_first", [True, False])
def test_half_close_lets_the_other_direction_go_on(client_first: bool) -> None:
    early, late = App(payload(10 * KB)), App(payload(0), close=False)
    apps = (early, late) if client_first else (late, early)
    pair = MptcpPair(paths, *apps)
    pair.run_for(1.0)
    assert late.finished_at is not None
    half = pair.client if client_first else pair.server
    other = pair.server if client_first else pair.client
    assert half is not None
    assert other is not None
    assert half.state is State.FIN_WAIT_2
    assert other.state is State.CLOSE_WAIT
    late.data = payload(3 * MB, 9)
    late.close = True
    pair._settle()
    pair.run(30.0)
    pair.check_streams()
    pair.check_gone()


@pytest.mark.parametrize("which", range(8))
@pytest.mark.parametrize("up", [True, False])
def test_any_single_lost_packet_of_the_end_is_harmless(which: int, up: bool) -> None:
    # The last packets are found by a run without losses.
    probe = MptcpPair(paths, App(payload(200 * KB, 1)), App(payload(200 * KB, 2)))
    probe.wire_log = []
    probe.run_for(10.0)
    total = sum(1 for _, _, is_up, _ in probe.wire_log if is_up == up)
    seen = [0]

    def wanted(index: int, is_up: bool, packet: bytes) -> bool:
        seen[0] += is_up == up
        return is_up == up and seen[0] == total - which

    pair = MptcpPair(
        paths, App(payload(200 * KB, 1)), App(payload(200 * KB, 2)), filter=when(wanted, drop)
    )
    pair.run_for(12.0)
    assert pair.finished
    assert pair.closed()
    pair.check_streams()
    pair.check_gone()


def test_eof_comes_only_after_the_last_byte_was_read() -> None:
    reader = App()
    reader.read_limit = 5000
    pair = MptcpPair(one_path, reader, App(payload(20_000)))
    while not pair.client.rx.finished:
        reader.reading = False
        pair.step()
    assert pair.client.receivable > 0
    assert not pair.client.eof
    left = pair.client.receivable
    while left:
        assert not pair.client.eof
        for piece in pair.client.receive(5000):
            left -= len(piece)
            reader.received += piece
    assert pair.client.eof
    pair.check_streams()


# -- FASTCLOSE and RST -----------------------------------------------------------------------------


@pytest.mark.parametrize("client_aborts", [True, False])
@pytest.mark.parametrize("make", [paths, one_path], ids=["two", "one"])
def test_abort_resets_the_peer_by_fastclose(make: Any, client_aborts: bool) -> None:
    pair = MptcpPair(make, App(payload(MB, 1)), App(payload(20 * MB, 2)))
    pair.run_for(0.5)
    conn = pair.client if client_aborts else pair.server
    assert conn is not None
    conn.abort(pair.now)
    pair._settle()
    pair.client_app.reading = pair.server_app.reading = False
    pair.run_for(1.0)
    other, app = (pair.server, pair.server_app) if client_aborts else (pair.client, pair.client_app)
    assert other is not None
    assert app.events.count(Event.RESET) == 1
    assert other.error is not None
    assert other.error.errno == errno.ECONNRESET
    ours = pair.counters if client_aborts else pair.server_counters
    theirs = pair.server_counters if client_aborts else pair.counters
    assert ours["MPTcpExtMPFastcloseTx"] == len(pair.paths)
    assert theirs["MPTcpExtMPFastcloseRx"] >= 1
    assert pair.client_host.leftovers() == []
    assert pair.server_host.leftovers() == []


def test_data_queued_before_a_fastclose_stays_readable() -> None:
    pair = MptcpPair(one_path, App(close=False), App(payload(50 * KB), close=False))
    pair.client_app.reading = False
    pair.run_for(1.0)
    assert isinstance(pair.server, MptcpConnection)
    pair.server.abort(pair.now)
    pair._settle()
    pair.run_for(1.0)
    got = b"".join(bytes(piece) for piece in pair.client.receive(1 << 20))
    assert got == payload(50 * KB)


def test_a_lost_fastclose_is_made_up_for_by_the_reset_of_the_next_segment() -> None:
    pair = MptcpPair(paths, App(payload(MB, 1)), App(payload(20 * MB, 2)))
    pair.run_for(0.5)
    pair.filter = when(lambda i, up, p: has_mptcp(p, FASTCLOSE), drop)
    assert pair.server is not None
    pair.server.abort(pair.now)
    pair._settle()
    pair.run_for(90.0)
    assert Event.RESET in pair.client_app.events
    assert pair.client_host.leftovers() == []


def forged(pair: MptcpPair, options: bytes, seq_offset: int = 0, flags: int = 16) -> bytes:
    """A segment for the client's first subflow, with options."""
    from proxy.seg import build_header, finish_checksum, timestamps_option

    sf = pair.client.subflows[0]
    ts = timestamps_option(max(sf._ts_recent, 0), 0)
    header = build_header(
        sf.remote.ip, sf.local.ip, sf.remote.port, sf.local.port,
        (sf.rcv_nxt + seq_offset) & 0xFFFFFFFF, sf.snd_una, flags, 1000, ts + options, 0, 0,
    )  # fmt: skip
    return finish_checksum(header)


def idle_pair() -> MptcpPair:
    pair = MptcpPair(paths, App(payload(10), close=False), App(payload(10), close=False))
    pair.run_for(1.0)
    return pair


def test_fastclose_on_an_ack_ends_the_connection_too() -> None:
    pair = idle_pair()
    pair.inject(False, forged(pair, MpFastclose(pair.client.local_key.key).build()))
    pair.run_for(1.0)
    assert Event.RESET in pair.client_app.events
    assert pair.client_host.leftovers() == []


@pytest.mark.parametrize("key_ok", [True, False])
@pytest.mark.parametrize("in_window", [True, False])
def test_fastclose_needs_the_key_and_the_window(key_ok: bool, in_window: bool) -> None:
    pair = idle_pair()
    key = pair.client.local_key.key if key_ok else bytes(8)
    offset = 0 if in_window else 1 << 30
    pair.inject(False, forged(pair, MpFastclose(key).build(), offset))
    pair.run_for(1.0)
    assert (Event.RESET in pair.client_app.events) == (key_ok and in_window)


def test_off_window_remove_addr_does_nothing() -> None:
    pair = idle_pair()
    option = pad(RemoveAddr((0,)).build())
    pair.inject(False, forged(pair, option, 1 << 30))
    pair.run_for(1.0)
    assert len(pair.client.subflows) == 2
    assert pair.counters["MPTcpExtRmAddr"] == 0


# -- windows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [600, 3000, 20_000])
def test_small_receive_buffers_deliver_the_stream(size: int) -> None:
    small = TcpConfig(receive_buffer=size, receive_buffer_max=size)
    pair = MptcpPair(
        paths, App(payload(60 * KB, 1)), App(payload(90 * KB, 2)), client_tcp=small,
        server_tcp=small,
    )  # fmt: skip
    pair.run(600.0)
    assert pair.finished
    pair.check_streams()
    for counters in (pair.counters, pair.server_counters):
        assert counters["MPTcpExtNoDSSInWindow"] == 0
    pair.check_gone()


@pytest.mark.parametrize("make", [paths, one_path], ids=["two", "one"])
def test_a_reader_that_pauses_stops_the_sender_and_resumes(make: Any) -> None:
    reader = App()
    pair = MptcpPair(make, reader, App(payload(30 * MB)))
    pair.run_for(0.5)
    reader.reading = False
    pair.run_for(20.0)
    held = pair.client.receivable + pair.client.rx.stream.waiting_bytes
    assert held <= pair.client.rx.buffer + (1 << 8)  # the unit of the window scale
    before = len(reader.received)
    reader.reading = True
    pair._settle()
    resumed = pair.now
    pair.run_for(0.5)
    assert len(reader.received) > before + MB
    assert goodput(reader, resumed + 0.2, resumed + 0.5) > 20e6
    pair.run(60.0)
    pair.check_streams()
    assert pair.counters["MPTcpExtNoDSSInWindow"] == 0
    pair.check_gone()


@pytest.mark.parametrize("limit", [100, 7000])
def test_a_slow_reader_sets_the_pace(limit: int) -> None:
    reader = App()
    reader.reading = False
    size = 300 * KB
    pair = MptcpPair(paths, reader, App(payload(size)))

    def read_a_little() -> None:
        for piece in pair.client.receive(limit):
            reader.received += piece
        if len(reader.received) < size:
            pair.after(0.001 * limit / 100, read_a_little)

    pair.after(0.1, read_a_little)
    pair.run_for(60.0)
    pair.check_streams()
    assert pair.counters["MPTcpExtNoDSSInWindow"] == 0


def test_a_lost_window_update_is_found_by_probing() -> None:
    reader = App()
    reader.reading = False
    pair = MptcpPair(paths, reader, App(payload(5 * MB)))
    pair.run_for(5.0)
    pair.filter = when(lambda i, up, p: up, drop)
    reader.reading = True
    pair._settle()
    pair.run_for(0.2)
    pair.filter = None
    pair.run(60.0)
    pair.check_streams()
    assert pair.finished


def test_the_right_edge_never_moves_left() -> None:
    reader = App()
    pair = MptcpPair(paths, reader, App(payload(12 * MB)))
    edge = 0
    steps = 0
    while not pair.finished:
        steps += 1
        reader.reading = not pair.step() or (steps // 300) % 2 == 0
        pair._settle()
        assert pair.client.rx.edge >= edge
        edge = pair.client.rx.edge
    pair.check_streams()


# -- sequence numbers ------------------------------------------------------------------------------


def key_with_idsn(bits: int, seed: int = 0) -> bytes:
    """A key whose IDSN has ones in its low 32 bits down to ``bits``, so that it wraps soon."""
    mask = 0xFFFFFFFF & ~((1 << bits) - 1)
    for number in range(1 << 22):
        key = (seed << 32 | number).to_bytes(8, "big")
        digest = hashlib.sha256(key).digest()
        if int.from_bytes(digest[-4:], "big") & mask == mask and any(digest[:4]):
            return key
    raise AssertionError("no such key")


@pytest.mark.parametrize("ack64", [True, False])
def test_data_sequence_numbers_wrap_at_32_bits(ack64: bool, monkeypatch: Any) -> None:
    from proxy.mptcp import keys

    drawn = iter([keys.derive(key_with_idsn(20, 1)), keys.derive(key_with_idsn(20, 2))])
    monkeypatch.setattr(keys, "generate", lambda rng, tokens, share: next(drawn))
    pair = MptcpPair(paths, App(payload(3 * MB, 1)), App(payload(3 * MB, 2)))
    if not ack64:

        def never_64() -> None:
            for conn in (pair.client, pair.server):
                for subflow in conn.subflows if conn is not None else ():
                    subflow.ack64 = False

        original = pair.step
        monkeypatch.setattr(pair, "step", lambda: (never_64(), original())[1])
    pair.run(60.0)
    pair.check_streams()
    assert pair.finished


@pytest.mark.parametrize("idsn", [2**64 - 2, 2**64 - 1, 0, 2**63 - 1, 2**64 - 500_000])
def test_data_sequence_numbers_wrap_at_64_bits(idsn: int, monkeypatch: Any) -> None:
    from proxy.mptcp import keys

    real = keys.derive
    monkeypatch.setattr(keys, "derive", lambda key: real(key)._replace(idsn=idsn))
    pair = MptcpPair(paths, App(payload(2 * MB, 1)), App(payload(2 * MB, 2)))
    pair.run(60.0)
    pair.check_streams()
    assert pair.finished
    pair.check_gone()


# -- checksums -------------------------------------------------------------------------------------

CHECKSUM = MptcpConfig(checksum_enabled=True)


@pytest.mark.parametrize("client", [CHECKSUM, MptcpConfig()])
@pytest.mark.parametrize("server", [CHECKSUM, MptcpConfig()])
def test_checksums_are_used_if_either_side_asks(client: MptcpConfig, server: MptcpConfig) -> None:
    wanted = client.checksum_enabled or server.checksum_enabled
    pair = MptcpPair(
        paths, App(payload(2 * MB, 1)), App(payload(2 * MB, 2)), client=client, server=server,
        syn_payload=b"x" * 71,
    )  # fmt: skip
    pair.run(60.0)
    pair.check_streams()
    assert isinstance(pair.server, MptcpConnection)
    assert pair.client.checksum == pair.server.checksum == wanted
    assert pair.client.checksum_seen == wanted
    for counters in (pair.counters, pair.server_counters):
        assert counters["MPTcpExtDataCsumErr"] == 0
    pair.check_gone()


@pytest.mark.parametrize("seed", range(4))
def test_checksums_survive_loss_and_reordering(seed: int) -> None:
    def lossy(rng: random.Random) -> list[Path]:
        return [
            path(rng, 30, 20, loss=0.02, reorder=0.02, reorder_delay=0.01),
            path(rng, 10, 50, loss=0.02, duplicate=0.02),
        ]

    pair = MptcpPair(lossy, App(payload(MB, 1)), App(payload(MB, 2)), client=CHECKSUM, seed=seed)
    pair.run(60.0)
    pair.check_streams()
    for counters in (pair.counters, pair.server_counters):
        assert counters["MPTcpExtDataCsumErr"] == 0


def test_a_bad_checksum_on_one_of_two_paths_resets_it_and_the_stream_is_whole() -> None:
    pair = MptcpPair(paths, App(), App(payload(6 * MB)), client=CHECKSUM)
    pair.filter = when(
        lambda i, up, p: i == 1 and not up and is_data(p) and pair.now > 1000.5, flip_payload
    )
    pair.run(60.0)
    pair.check_streams()
    assert pair.counters["MPTcpExtDataCsumErr"] >= 1
    assert pair.counters["MPTcpExtMPFailTx"] >= 1
    assert pair.server_counters["MPTcpExtMPFailRx"] >= 1
    assert pair.client.fallback is Fallback.NONE


def test_a_bad_checksum_on_the_only_path_ends_mptcp_but_not_the_stream() -> None:
    pair = MptcpPair(one_path, App(close=False), App(payload(6 * MB), close=False), client=CHECKSUM)
    hit: list[int] = []

    def once(index: int, up: bool, packet: bytes) -> bool:
        if not up and is_data(packet) and pair.now > 1000.5 and not hit:
            hit.append(1)
            return True
        return False

    pair.filter = when(once, flip_payload)
    pair.run_for(10.0)
    assert isinstance(pair.server, MptcpConnection)
    assert pair.client.fallback is Fallback.INFINITE_MAPPING
    assert pair.server.fallback is Fallback.INFINITE_MAPPING
    assert pair.counters["MPTcpExtMPFailTx"] == pair.server_counters["MPTcpExtMPFailRx"] == 1
    assert pair.server_counters["MPTcpExtMPFailTx"] == pair.counters["MPTcpExtMPFailRx"] == 1
    assert pair.server_counters["MPTcpExtInfiniteMapTx"] == 1
    # The middlebox' change is what the reader gets (RFC 8684 §3.7), and nothing else differs.
    wanted, got = payload(6 * MB), bytes(pair.client_app.received)
    assert len(got) == len(wanted)
    assert sum(1 for a, b in zip(got, wanted, strict=True) if a != b) == 1


def test_a_bad_checksum_on_the_very_first_mapping_falls_back_at_once() -> None:
    hit: list[int] = []

    def once(index: int, up: bool, packet: bytes) -> bool:
        if up and is_data(packet) and not hit:
            hit.append(1)
            return True
        return False

    pair = MptcpPair(
        one_path, App(payload(500 * KB)), App(), client=CHECKSUM, filter=when(once, flip_payload)
    )
    pair.run(30.0)
    assert pair.finished
    assert len(pair.server_app.received) == 500 * KB
    assert pair.server_counters["MPTcpExtDssFallback"] == 1
