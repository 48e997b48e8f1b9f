"""MP_CAPABLE and MP_JOIN handshakes, with losses and middleboxes; falling back to TCP."""

from __future__ import annotations

import random
from typing import Any

import pytest

from proxy.mptcp.config import MptcpConfig
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import Fallback
from proxy.tcp.events import Event
from proxy.tcp.states import State
from tests.pair.mptcp_harness import App, MptcpPair, Path, path, payload
from tests.pair.mptcp_middlebox import (
    SYN,
    drop,
    flags_of,
    flip_option,
    has_mptcp,
    payload_start,
    strip_mptcp,
    strip_payload,
    when,
)

KB = 1000
JOIN = 1


def paths(rng: random.Random) -> list[Path]:
    return [path(rng, 50, 20), path(rng, 20, 60)]


def talk(size: int = 300 * KB, **settings: Any) -> MptcpPair:
    pair = MptcpPair(paths, App(payload(size, 1)), App(payload(size, 2)), **settings)
    pair.run(60.0)
    assert pair.finished
    pair.check_streams()
    return pair


def is_syn(packet: bytes) -> bool:
    return flags_of(packet) & SYN != 0


def nth(count: int, wanted: Any, change: Any = drop) -> Any:
    """A filter for the first ``count`` packets that are ``wanted(path, up, packet)``."""
    left = [count]

    def matches(index: int, up: bool, packet: bytes) -> bool:
        if left[0] and wanted(index, up, packet):
            left[0] -= 1
            return True
        return False

    return when(matches, change)


def test_clean_run_counts_what_the_kernel_counts() -> None:
    pair = talk()
    client, server = pair.counters, pair.server_counters
    assert client["MPTcpExtMPCapableSYNTX"] == server["MPTcpExtMPCapableSYNRX"] == 1
    assert client["MPTcpExtMPCapableSYNACKRX"] == server["MPTcpExtMPCapableACKRX"] == 1
    assert client["MPTcpExtMPJoinSynTx"] == server["MPTcpExtMPJoinSynRx"] == 1
    assert client["MPTcpExtMPJoinSynAckRx"] == server["MPTcpExtMPJoinAckRx"] == 1
    for counters in (client, server):
        for name in ("DSSNotMatching", "DSSNoMatchTCP", "DataCsumErr", "NoDSSInWindow"):
            assert counters[f"MPTcpExt{name}"] == 0, name
        for name in ("MPRstTx", "MPRstRx", "MPFastcloseTx", "FallbackFailed", "DssFallback"):
            assert counters[f"MPTcpExt{name}"] == 0, name
    pair.check_gone()
    assert client["MPTcpExtMPCurrEstab"] == server["MPTcpExtMPCurrEstab"] == 0


def test_the_second_subflow_joins_before_any_data() -> None:
    pair = MptcpPair(paths, App(close=False), App(close=False))
    pair.run_for(0.2)
    assert isinstance(pair.server, MptcpConnection)
    for conn in (pair.client, pair.server):
        assert [s.fully_established for s in conn.subflows] == [True, True]
    assert [s.uplink for s in pair.client.subflows] == ["u0", "u1"]
    assert [(s.local_id, s.remote_id) for s in pair.client.subflows] == [(0, 0), (2, 0)]
    assert [(s.local_id, s.remote_id) for s in pair.server.subflows] == [(0, 0), (0, 2)]


# -- SYN payload -----------------------------------------------------------------------------


def test_syn_payload_is_outside_the_data_sequence_space() -> None:
    pair = talk(syn_payload=b"connect me" * 7)
    assert pair.client.syn_payload_acked == 70


def test_syn_payload_that_is_not_taken_becomes_the_first_mapped_bytes() -> None:
    pair = talk(syn_payload=b"connect me" * 7, take_syn_payload=False)
    assert pair.client.syn_payload_acked == 0
    assert pair.client.fallback is Fallback.NONE


def test_syn_payload_eaten_by_the_path_becomes_the_first_mapped_bytes() -> None:
    box = when(lambda i, up, p: is_syn(p) and len(p) > payload_start(p), strip_payload)
    pair = talk(syn_payload=b"connect me" * 7, filter=box)
    assert pair.client.syn_payload_acked == 0


def test_a_lost_third_ack_after_syn_payload_does_not_lose_the_keys() -> None:
    box = nth(1, lambda i, up, p: i == 0 and up and not is_syn(p))
    pair = talk(syn_payload=b"connect me" * 7, filter=box)
    assert pair.client.fallback is Fallback.NONE


def test_payload_of_the_syn_ack_is_outside_the_data_sequence_space() -> None:
    pair = MptcpPair(paths, App(payload(99 * KB)), App(payload(99 * KB, 2)), manual_accept=True)
    pair.run_for(0.05)
    pair.accept(b"reply" * 5)
    pair._settle()
    pair.run(60.0)
    assert pair.client.syn_ack_payload == b"reply" * 5
    pair.check_streams()
    assert pair.client.fallback is Fallback.NONE


def test_payload_of_a_lost_syn_ack_comes_first_in_the_stream() -> None:
    box = nth(1, lambda i, up, p: i == 0 and not up)
    pair = MptcpPair(
        paths,
        App(payload(99 * KB)),
        App(payload(99 * KB, 2)),
        manual_accept=True,
        filter=box,
    )
    pair.run_for(0.05)
    pair.accept(b"reply" * 5)
    pair._settle()
    pair.run(60.0)
    assert pair.client.syn_ack_payload == b""
    assert bytes(pair.client_app.received) == b"reply" * 5 + payload(99 * KB, 2)


# -- losses in the handshake -------------------------------------------------------------------


@pytest.mark.parametrize("which", range(12))
@pytest.mark.parametrize("up", [True, False])
def test_any_single_lost_packet_of_the_start_is_harmless(which: int, up: bool) -> None:
    seen = [0]

    def wanted(index: int, is_up: bool, packet: bytes) -> bool:
        if is_up != up:
            return False
        seen[0] += 1
        return seen[0] == which + 1

    pair = talk(filter=when(wanted, drop))
    assert pair.client.fallback is Fallback.NONE
    pair.check_gone()


@pytest.mark.parametrize("which", range(10))
@pytest.mark.parametrize("up", [True, False])
def test_any_duplicated_and_late_packet_of_the_start_is_harmless(which: int, up: bool) -> None:
    pair = MptcpPair(paths, App(payload(300 * KB, 1)), App(payload(300 * KB, 2)))
    pair.wire_log = []
    pair.run_for(0.15)
    late = [p for _, _, is_up, p in pair.wire_log if is_up == up][: which + 1][-1:]
    for packet in late:
        pair.inject(up, packet, 0.001)
        pair.inject(up, packet, 0.3)
    pair.run(60.0)
    pair.check_streams()
    assert pair.client.fallback is Fallback.NONE


def test_lost_third_ack_of_a_join_is_repeated() -> None:
    box = nth(3, lambda i, up, p: i == 1 and up and not is_syn(p))
    pair = talk(size=4000 * KB, filter=box)
    assert pair.server_counters["MPTcpExtMPJoinAckRx"] == 1


def test_no_data_leaves_on_a_join_before_its_fourth_ack() -> None:
    held: list[float] = []

    def wanted(index: int, up: bool, packet: bytes) -> bool:
        if index == 1 and not up and not is_syn(packet) and not held:
            held.append(pair.now)
            return True
        return False

    pair = MptcpPair(paths, App(payload(1000 * KB)), App(), filter=when(wanted, lambda p: None))
    pair.wire_log = []
    pair.run(60.0)
    pair.check_streams()
    first_ack = min(t for t, i, up, p in pair.wire_log if i == 1 and not up and not is_syn(p))
    for at, index, up, packet in pair.wire_log:
        if index == 1 and up and at < first_ack:
            assert len(packet) == payload_start(packet)


# -- falling back --------------------------------------------------------------------------------


def test_options_stripped_from_syns_give_plain_tcp() -> None:
    pair = talk(filter=when(lambda i, up, p: is_syn(p) and up, strip_mptcp))
    assert pair.client.fallback is Fallback.AT_HANDSHAKE
    assert pair.counters["MPTcpExtMPCapableFallbackSYNACK"] == 1
    assert not isinstance(pair.server, MptcpConnection)
    pair.check_gone()


def test_option_stripped_from_the_syn_ack_gives_plain_tcp_on_both_sides() -> None:
    pair = talk(filter=when(lambda i, up, p: is_syn(p) and not up, strip_mptcp))
    assert pair.client.fallback is Fallback.AT_HANDSHAKE
    assert isinstance(pair.server, MptcpConnection)
    assert pair.server.fallback is Fallback.AT_HANDSHAKE
    assert pair.server_counters["MPTcpExtMPCapableFallbackACK"] == 1
    assert Event.FALLBACK in pair.client_app.events
    pair.check_gone()


@pytest.mark.parametrize("syn_payload", [b"", b"request" * 9])
@pytest.mark.parametrize("client_up", [True, False], ids=["client-to-server", "server-to-client"])
@pytest.mark.parametrize("sizes", [(300, 300), (300, 0), (0, 300), (0, 0)], ids=str)
def test_options_stripped_after_the_syns_give_plain_tcp(
    client_up: bool, sizes: tuple[int, int], syn_payload: bytes
) -> None:
    box = when(lambda i, up, p: not is_syn(p) and up == client_up, strip_mptcp)
    pair = MptcpPair(
        paths,
        App(payload(sizes[0] * KB, 1)),
        App(payload(sizes[1] * KB, 2)),
        filter=box,
        syn_payload=syn_payload,
    )
    pair.run(60.0)
    assert pair.finished
    pair.check_streams()
    assert isinstance(pair.server, MptcpConnection)
    if sizes != (0, 0):
        fallbacks = (pair.client.fallback, pair.server.fallback)
        assert Fallback.NONE not in fallbacks
    pair.check_gone()


def test_options_stripped_in_mid_life_of_a_single_path_give_plain_tcp() -> None:
    box = when(lambda i, up, p: not is_syn(p) and pair.now > 1000.5, strip_mptcp)
    pair = MptcpPair(
        lambda rng: [path(rng, 50, 20)], App(payload(1, 1)), App(payload(8_000_000, 2)), filter=None
    )
    pair.filter = box
    pair.run(60.0)
    pair.check_streams()
    assert pair.client.fallback is Fallback.INFINITE_MAPPING
    assert pair.counters["MPTcpExtDssFallback"] == 1
    pair.check_gone()


def test_options_stripped_on_one_of_two_paths_reset_that_subflow_alone() -> None:
    pair = MptcpPair(paths, App(payload(100 * KB, 1)), App(payload(8_000_000, 2)))
    pair.filter = when(lambda i, up, p: i == 1 and not is_syn(p) and pair.now > 1000.5, strip_mptcp)
    pair.run(60.0)
    pair.check_streams()
    assert pair.client.fallback is Fallback.NONE
    pair.check_gone()


def test_a_client_without_mptcp_talks_plain_tcp() -> None:
    pair = talk(client=MptcpConfig(enabled=False))
    assert pair.counters["MPTcpExtMPCapableSYNTX"] == 0


def test_a_server_without_mptcp_talks_plain_tcp() -> None:
    pair = talk(server=MptcpConfig(enabled=False))
    assert pair.client.fallback is Fallback.AT_HANDSHAKE


def test_syns_with_mp_capable_that_vanish_are_followed_by_plain_ones() -> None:
    pair = talk(filter=when(lambda i, up, p: is_syn(p) and has_mptcp(p), drop))
    assert pair.client.fallback is Fallback.AT_HANDSHAKE
    assert pair.counters["MPTcpExtMPCapableSYNTXDrop"] == 1
    assert pair.now - 1000.0 < 4.0


def test_after_fallback_no_option_is_sent_and_half_close_works() -> None:
    pair = MptcpPair(
        paths,
        App(payload(10 * KB, 1)),
        App(payload(900 * KB, 2)),
        filter=when(lambda i, up, p: is_syn(p) and not up, strip_mptcp),
    )
    pair.wire_log = []
    pair.run(60.0)
    pair.check_streams()
    assert not any(has_mptcp(p) for _, _, up, p in pair.wire_log if not is_syn(p))


# -- joins that must fail ------------------------------------------------------------------------


@pytest.mark.parametrize("at", [4, 11, 12, 15], ids=["hmac-first", "hmac-last", "nonce", "nonce2"])
def test_a_join_whose_syn_ack_hmac_is_wrong_is_reset(at: int) -> None:
    box = when(lambda i, up, p: is_syn(p) and not up and i == 1, lambda p: flip_option(p, JOIN, at))
    pair = talk(filter=box)
    assert pair.counters["MPTcpExtMPJoinSynAckHMacFailure"] >= 1
    assert pair.counters["MPTcpExtMPRstTx"] >= 1
    assert pair.server_counters["MPTcpExtMPJoinAckRx"] == 0
    pair.check_gone()


@pytest.mark.parametrize("at", [4, 23])
def test_a_join_whose_third_ack_hmac_is_wrong_is_reset(at: int) -> None:
    box = when(lambda i, up, p: up and i == 1 and not is_syn(p), lambda p: flip_option(p, JOIN, at))
    pair = talk(size=900 * KB, filter=box)
    assert pair.server_counters["MPTcpExtMPJoinAckHMacFailure"] >= 1
    assert pair.server_counters["MPTcpExtMPJoinAckRx"] == 0
    assert pair.counters["MPTcpExtMPRstRx"] >= 1
    pair.check_gone()


def test_a_join_with_an_unknown_token_is_reset_with_reason_1() -> None:
    box = when(lambda i, up, p: is_syn(p) and up and i == 1, lambda p: flip_option(p, JOIN, 4))
    pair = talk(filter=box)
    assert pair.server_counters["MPTcpExtMPJoinNoTokenFound"] >= 1
    assert Event.RESET not in pair.client_app.events
    notes = [n for n in pair.client.notes if n.kind is Event.SUBFLOW_CLOSED]
    assert notes[0].reason == 1


def test_a_join_stripped_of_its_option_does_not_harm_the_connection() -> None:
    box = when(lambda i, up, p: i == 1, strip_mptcp)
    pair = talk(filter=box)
    assert pair.client.fallback is Fallback.NONE
    pair.check_gone()


def test_a_join_stripped_after_its_syns_does_not_harm_the_connection() -> None:
    pair = talk(filter=when(lambda i, up, p: i == 1 and not is_syn(p), strip_mptcp))
    assert pair.client.fallback is Fallback.NONE
    pair.check_gone()


def test_a_join_beyond_the_limit_is_refused_with_reason_3() -> None:
    pair = talk(server=MptcpConfig(subflows=0))
    assert pair.server_counters["MPTcpExtMPJoinRejected"] == 1
    notes = [n for n in pair.client.notes if n.kind is Event.SUBFLOW_CLOSED]
    assert [n.reason for n in notes] == [3]
    assert pair.counters["MPTcpExtMPJoinSynTx"] == 1, "not tried again (JOIN-08)"


def test_half_open_joins_are_limited_to_three() -> None:
    pair = MptcpPair(paths, App(close=False), App(close=False))
    pair.run_for(0.2)
    assert isinstance(pair.server, MptcpConnection)
    pair.server.config = MptcpConfig(subflows=100)
    pair.server.limits = type(pair.server.limits)(subflows=100)
    syns: list[bytes] = []
    pair.filter = when(lambda i, up, p: up and is_syn(p) and not syns.append(p), drop)
    for port in range(50):
        pair.client.open_subflow(
            type(pair.client.local)(pair.paths and bytes((10, 2, 0, 1)), 50000 + port),
            pair.client.remote,
            pair.now,
            local_id=9,
        )
    pair._settle()
    pair.filter = when(lambda i, up, p: True, drop)
    for packet in syns:
        pair.inject(True, packet)
    pair.run_for(0.1)
    opening = [s for s in pair.server.subflows if s.state is State.SYN_RECEIVED]
    assert len(syns) > 3
    assert len(opening) == 3


def test_flag_c_keeps_the_peer_from_joining_the_initial_address() -> None:
    pair = talk(server=MptcpConfig(allow_join_initial_addr_port=False))
    assert pair.client.remote_denies_initial
    assert pair.counters["MPTcpExtMPJoinSynTx"] == 0
