"""MP_JOIN: RFC 8684 §3.2, and the counters and reasons of Linux."""

from __future__ import annotations

import pytest

from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import Fallback
from proxy.pm.base import Endpoint
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.address import Address
from proxy.wire.mptcp_options import (
    AddAddr,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpPrio,
)
from tests.script.mptcp_harness import (
    OURS_2,
    PEER,
    PEER_KEY,
    PEER_NONCE,
    SECOND,
    Leg,
    MptcpScript,
    config,
    has_option,
    option_of,
    reset_reason,
)


def joins(role: str) -> tuple[MptcpScript, Leg]:
    """A join after its SYN-ACK, by the engine or by the peer."""
    script = getattr(MptcpScript, role)(mptcp=config())
    return script, script.joining() if role == "client" else script.half_joined_by_peer()


# -- the engine joins ------------------------------------------------------------------------------


def test_join_01_to_04_a_join_of_ours() -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joining()
    syn = option_of(leg.came[0], MpJoinSyn)
    assert (syn.token, syn.address_id, syn.backup) == (script.peer.token, 2, False)
    leg.inject("SA", options=script.join_syn_ack(leg))
    ack = option_of(leg.next(), MpJoinAck)
    assert ack.hmac == script.join_hmac_of_ours(syn.nonce)[:20]
    assert not leg.subflow.fully_established
    leg.inject(options=script.dss(ack=0))
    assert leg.subflow.fully_established
    assert Event.SUBFLOW_ESTABLISHED in script.events
    assert script.count("MPJoinSynTx") == script.count("MPJoinSynAckRx") == 1


def test_join_03_a_wrong_hmac_in_the_answer_is_reset_with_reason_1() -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joining()
    leg.take()
    leg.inject("SA", options=MpJoinSynAck(False, 0, bytes(8), PEER_NONCE).build())
    assert reset_reason(leg) == 1
    assert leg.dead()
    assert script.count("MPJoinSynAckHMacFailure") == script.count("MPRstTx") == 1
    assert script.conn.state is State.ESTABLISHED


@pytest.mark.parametrize("option", [b"", b"\x1e\x0c\x01\x01" + PEER_KEY], ids=["none", "capable"])
def test_join_03_an_answer_without_mp_join_is_reset_with_reason_1(option: bytes) -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joining()
    leg.take()
    leg.inject("SA", options=option)
    assert reset_reason(leg) == 1
    assert script.conn.fallback is Fallback.NONE


def test_join_04_the_third_ack_is_repeated_and_no_data_goes_before_the_fourth() -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joining()
    leg.inject("SA", options=script.join_syn_ack(leg))
    assert has_option(leg.next(), MpJoinAck)
    script.first.subflow.backup = True
    script.send(b"data")
    assert leg.quiet()
    script.sleep(3.0)
    repeated = leg.take()
    assert len(repeated) >= 2
    assert all(has_option(seg, MpJoinAck) and not seg.length for seg in repeated)
    leg.inject(options=script.dss(ack=0))
    script.sleep(3.0)
    assert not any(has_option(seg, MpJoinAck) for seg in leg.take())


@pytest.mark.parametrize("kind", ["data-ack", "add-addr", "echo", "bare"])
def test_join_04_what_counts_as_the_fourth_ack(kind: str) -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joining()
    leg.inject("SA", options=script.join_syn_ack(leg))
    leg.take()
    options = {
        "data-ack": script.dss(ack=0, ack64=False),
        "add-addr": AddAddr(5, b"\x0a\x09\x00\x05", hmac=bytes(8)).build(),
        "echo": AddAddr(5, b"\x0a\x09\x00\x05", echo=True).build(),
        "bare": b"",
    }
    leg.inject(options=options[kind])
    if kind == "bare":
        assert reset_reason(leg) == 6
        assert leg.dead()
    else:
        assert leg.subflow.fully_established
    assert script.conn.fallback is Fallback.NONE


def test_join_05_the_initial_addresses_have_id_0() -> None:
    script = MptcpScript.client(mptcp=config())
    assert (script.first.subflow.local_id, script.first.subflow.remote_id) == (0, 0)
    leg = script.joined()
    assert (leg.subflow.local_id, leg.subflow.remote_id) == (2, 0)
    other = script.joined_by_peer(address_id=9)
    assert (other.subflow.local_id, other.subflow.remote_id) == (0, 9)


@pytest.mark.parametrize("backup", [False, True])
def test_join_06_the_backup_bit_of_each_direction(backup: bool) -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joining(backup=backup)
    assert option_of(leg.came[0], MpJoinSyn).backup == backup
    leg.inject("SA", options=script.join_syn_ack(leg, backup=not backup))
    assert leg.subflow.peer_backup == (not backup)
    assert script.count("MPJoinSynAckBackupRx") == (not backup)
    other = script.half_joined_by_peer(backup=backup)
    assert other.subflow.peer_backup == backup
    assert not option_of(other.last(), MpJoinSynAck).backup
    assert script.count("MPJoinSynBackupRx") == backup


def test_join_08_a_refused_join_is_not_tried_again_until_the_address_is_announced_anew() -> None:
    endpoint = Endpoint(OURS_2, 2, subflow=True)
    script = MptcpScript.client(
        mptcp=config(subflows=2, subflow_keepalive=0.0), path_manager="kernel", endpoints=[endpoint]
    )
    leg = next(leg for (ours, _), leg in script.legs.items() if ours.ip == OURS_2)
    refusal = b"\x1e\x04\x80\x03"
    leg.inject("RA", options=refusal, seq=0)
    assert leg.dead()
    assert script.count("MPRstRx") == 1
    script.sleep(300.0)
    assert script.count("MPJoinSynTx") == 1


def test_join_09_a_join_goes_to_the_port_of_the_initial_subflow_from_a_port_of_its_own() -> None:
    endpoint = Endpoint(OURS_2, 2, subflow=True)
    script = MptcpScript.client(mptcp=config(), path_manager="kernel", endpoints=[endpoint])
    theirs = [theirs for (ours, theirs) in script.legs if ours.ip == OURS_2]
    assert theirs == [script.conn.remote]


def test_join_10_the_first_subflow_may_die() -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joined()
    local, remote = script.conn.local, script.conn.remote
    script.first.inject("R", seq=script.first.seq)
    assert script.first.dead()
    script.send(b"still here")
    assert leg.last().length == 10
    leg.inject(options=script.dss(ack=10, at=0, ssn=1, length=3), payload=b"yes")
    assert script.read() == b"yes"
    assert (script.conn.local, script.conn.remote) == (local, remote)


# -- the peer joins --------------------------------------------------------------------------------


def test_join_01_to_04_a_join_of_the_peer() -> None:
    script = MptcpScript.server(mptcp=config())
    leg = script.half_joined_by_peer()
    answer = option_of(leg.next(), MpJoinSynAck)
    assert answer.hmac == script.join_hmac_of_ours(answer.nonce)[:8]
    assert not leg.subflow.fully_established
    leg.inject(options=MpJoinAck(script.join_hmac(answer.nonce)[:20]).build())
    fourth = leg.next()
    assert fourth.dss_flags & 1, "the fourth ACK carries a DATA_ACK, at once"
    assert leg.subflow.fully_established
    leg.inject(options=MpJoinAck(script.join_hmac(answer.nonce)[:20]).build())
    assert leg.next().dss_flags & 1, "a repeated third ACK is answered again"
    assert script.count("MPJoinSynRx") == script.count("MPJoinAckRx") == 1


def test_join_01_the_token_finds_the_connection_at_any_address_and_port() -> None:
    script = MptcpScript.server(mptcp=config())
    leg = script.leg(Address(b"\x0a\x07\x07\x07", 4711), SECOND)
    leg.inject("S", options=script.join_syn())
    answer = option_of(leg.next(), MpJoinSynAck)
    leg.inject(options=MpJoinAck(script.join_hmac(answer.nonce)[:20]).build())
    assert leg.subflow.fully_established
    assert script.count("MPJoinPortSynRx") == script.count("MPJoinPortAckRx") == 1


def test_join_02_an_unknown_token_is_reset_with_reason_1() -> None:
    script = MptcpScript.server(mptcp=config())
    leg = script.half_joined_by_peer(token=script.conn.local_key.token ^ 1)
    assert reset_reason(leg) == 1
    assert script.count("MPJoinNoTokenFound") == script.count("MPJoinSynRx") == 1
    assert len(script.accepted) == 1, "a join never makes a connection"


def test_join_02_a_join_beyond_the_limit_is_reset_with_reason_3() -> None:
    script = MptcpScript.server(mptcp=config(subflows=0))
    assert reset_reason(script.half_joined_by_peer()) == 3
    assert script.count("MPJoinRejected") == 1


def test_join_03_a_wrong_hmac_in_the_third_ack_is_reset_with_reason_1() -> None:
    script = MptcpScript.server(mptcp=config())
    leg = script.half_joined_by_peer()
    leg.take()
    leg.inject(options=MpJoinAck(bytes(20)).build())
    assert reset_reason(leg) == 1
    assert leg.dead()
    assert script.count("MPJoinAckHMacFailure") == 1
    assert script.conn.state is State.ESTABLISHED


@pytest.mark.parametrize("payload", [b"", b"data"])
def test_join_03_a_third_ack_without_mp_join_is_reset_with_reason_1(payload: bytes) -> None:
    script = MptcpScript.server(mptcp=config())
    leg = script.half_joined_by_peer()
    leg.take()
    leg.inject(payload=payload)
    assert reset_reason(leg) == 1
    assert script.read() == b""
    assert script.conn.fallback is Fallback.NONE


def test_join_07_crossed_joins_between_the_same_ports_leave_the_connection_unharmed() -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joining()
    leg.take()
    leg.inject("S", options=script.join_syn())
    script.sleep(1.0)
    script.send(b"on")
    assert script.first.last().length == 2
    assert script.conn.fallback is Fallback.NONE


def test_join_07_of_crossed_joins_between_two_addresses_that_of_the_initiator_stays() -> None:
    script = MptcpScript.client(mptcp=config())
    ours = script.joining()
    theirs = script.leg(Address(ours.ours.ip, PEER.port), Address(PEER.ip, 51000))
    theirs.inject("S", options=script.join_syn(address_id=0))
    assert reset_reason(theirs) == 3
    ours.inject("SA", options=script.join_syn_ack(ours))
    assert not ours.dead()

    script = MptcpScript.server(mptcp=config())
    ours = script.joining()
    ours.take()
    theirs = script.leg(Address(ours.ours.ip, 80), Address(script.conn.remote.ip, 51000))
    theirs.inject("S", options=script.join_syn(address_id=0))
    assert theirs.last().flags == 0x12
    assert ours.dead()


def test_join_07_a_join_between_other_addresses_does_not_cross() -> None:
    script = MptcpScript.client(mptcp=config())
    ours = script.joining()
    theirs = script.leg(Address(ours.ours.ip, PEER.port), SECOND)
    theirs.inject("S", options=script.join_syn(address_id=3))
    assert theirs.last().flags == 0x12
    assert not ours.dead()


@pytest.mark.parametrize("end", ["fallback", "fastclose", "closed"])
def test_join_11_a_connection_that_is_ending_takes_no_join(end: str) -> None:
    script = MptcpScript.server(mptcp=config())
    token = script.conn.local_key.token
    first = script.first
    if end == "fallback":
        first.inject(payload=b"no mapping")
        assert script.conn.fallback is Fallback.INFINITE_MAPPING
    elif end == "fastclose":
        first.inject(options=MpFastclose(script.conn.local_key.key).build())
    else:
        script.conn.shutdown_write()
        script.flush()
        first.inject(options=script.dss(at=0, length=1, fin=True, ack=1))
        assert script.conn.state is State.CLOSED
    assert reset_reason(script.half_joined_by_peer(token=token)) == 1
    assert not isinstance(script.accepted[-1], MptcpConnection) or len(script.accepted) == 1


def test_sec_02_half_open_joins_are_bounded_and_told_to_come_again() -> None:
    script = MptcpScript.server(mptcp=config(subflows=50))
    reasons = []
    for port in range(10):
        leg = script.half_joined_by_peer(Address(b"\x0a\x02\x00\x09", 51000 + port))
        seg = leg.last()
        reasons.append(seg.mptcp[0][2:] if seg.flags & 4 else b"")
    assert reasons == [b""] * 3 + [b"\x81\x02"] * 7
    script.sleep(1.0)
    assert len([s for s in script.conn.subflows if s.state is State.SYN_RECEIVED]) == 3


def test_addr_07_flag_c_of_ours_refuses_joins_to_the_initial_address_alone() -> None:
    script = MptcpScript.server(mptcp=config(allow_join_initial_addr_port=False))
    assert reset_reason(script.half_joined_by_peer()) == 3
    leg = script.leg(Address(b"\x0a\x07\x07\x07", 80), SECOND)
    leg.inject("S", options=script.join_syn())
    assert has_option(leg.next(), MpJoinSynAck)


@pytest.mark.parametrize("role", ["client", "server"])
def test_opt_05_reserved_bits_of_joins_are_ignored(role: str) -> None:
    script, leg = joins(role)
    if role == "client":
        raw = bytearray(script.join_syn_ack(leg))
        raw[2] |= 0x0E
        leg.inject("SA", options=bytes(raw))
        leg.take()
        leg.inject(options=script.dss(ack=0))
    else:
        answer = option_of(leg.last(), MpJoinSynAck)
        raw = bytearray(MpJoinAck(script.join_hmac(answer.nonce)[:20]).build())
        raw[2] |= 0x0F
        raw[3] = 0xFF
        leg.inject(options=bytes(raw))
    assert leg.subflow.fully_established


def test_addr_06_mp_prio_changes_its_own_subflow_alone() -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joined()
    leg.inject(options=MpPrio(True).build())
    assert leg.subflow.peer_backup
    assert not script.first.subflow.peer_backup
    leg.inject(options=MpPrio(False).build())
    assert not leg.subflow.peer_backup
    assert script.count("MPPrioRx") == 2
    script.conn.set_backup(leg.subflow, True, script.now)
    assert option_of(leg.last(), MpPrio).backup
    assert not leg.subflow.peer_backup


def test_addr_02_a_join_to_another_port_is_counted() -> None:
    script = MptcpScript.client(mptcp=config())
    local, remote = Address(OURS_2, 41000), Address(script.conn.remote.ip, 9000)
    script.conn.open_subflow(local, remote, script.now, local_id=2, remote_id=5)
    script.flush()
    leg = script.leg(local, remote)
    leg.inject("SA", options=script.join_syn_ack(leg))
    assert script.count("MPJoinPortSynAckRx") == 1


def test_rm_subflow_counts_what_we_remove_ourselves() -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joined()
    script.conn.close_subflow(leg.subflow, script.now)
    assert any(seg.flags & 1 for seg in leg.take())
    assert script.count("RmSubflow") == 1
    other = script.joined_by_peer()
    other.inject("FA")
    assert script.count("RmSubflow") == 1


def test_sec_05_resets_of_guessed_tokens_are_limited() -> None:
    script = MptcpScript.server(mptcp=config())
    for port in range(1000):
        script.half_joined_by_peer(Address(b"\x0a\x02\x00\x09", 1000 + port), token=port)
    resets = sum(bool(seg.flags & 4) for leg in script.legs.values() for seg in leg.take())
    assert 0 < resets <= 500
    assert script.stack.counters["ResetsSuppressed"] == 1000 - resets
    leg = script.half_joined_by_peer(Address(b"\x0a\x02\x00\x09", 52000))
    assert has_option(leg.next(), MpJoinSynAck), "who knows the token is served all the same"


@pytest.mark.parametrize("mptcp", [False, True])
def test_cap_12_a_port_that_was_announced_takes_joins_alone(mptcp: bool) -> None:
    there = Address(b"\x0a\x09\x00\x07", 9000)
    script = MptcpScript.server(
        mptcp=config(),
        path_manager="kernel",
        endpoints=[Endpoint(there.ip, 5, signal=True, port=there.port)],
    )
    stranger = script.leg(there, Address(b"\x0a\x02\x00\x0a", 1234))
    stranger.inject("S", options=script.capable(b"") if mptcp else b"")
    assert stranger.last().flags & 4
    assert script.count("MPCapableEndpAttempt") == 1
    assert len(script.accepted) == 1
    leg = script.leg(there, SECOND)
    leg.inject("S", options=script.join_syn())
    assert has_option(leg.next(), MpJoinSynAck)
