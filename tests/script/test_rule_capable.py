"""MP_CAPABLE, keys and versions: RFC 8684 §3.1, Appendix B."""

from __future__ import annotations

import pytest

from proxy.mptcp import keys
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import Fallback
from proxy.tcp.connection import TcpConnection
from proxy.tcp.events import Event
from proxy.wire.address import Address
from proxy.wire.mptcp_options import AddAddr, MpCapable, MpJoinSyn
from tests.script.mptcp_harness import (
    PEER_KEY,
    Leg,
    MptcpScript,
    config,
    has_option,
    option_of,
)


def raw_capable(first: int = 0x01, flags: int = 0x01, body: bytes = b"") -> bytes:
    """An MP_CAPABLE of any version and flags."""
    return bytes((30, 4 + len(body), first, flags)) + body


def is_plain(script: MptcpScript) -> bool:
    return script.conn.fallback is Fallback.AT_HANDSHAKE


def speaks_plain_tcp(script: MptcpScript, leg: Leg) -> bool:
    """Data goes both ways, and no segment of the engine carries an MPTCP option."""
    leg.inject(payload=b"from the peer")
    script.send(b"from us")
    came = leg.take()
    data = b"".join(bytes(seg.payload) for seg in came)
    return (
        script.read() == b"from the peer"
        and data == b"from us"
        and not any(seg.has_mptcp for seg in came)
    )


# -- the engine opens ----------------------------------------------------------------------------


def test_cap_01_the_syn_has_no_key_and_the_third_ack_has_both() -> None:
    script = MptcpScript.syn_sent()
    syn = option_of(script.first.next(), MpCapable)
    assert (syn.sender_key, syn.receiver_key, syn.version) == (b"", b"", 1)
    script.first.inject("SA", options=script.capable())
    ack = option_of(script.first.next(), MpCapable)
    assert (ack.sender_key, ack.receiver_key) == (script.conn.local_key.key, PEER_KEY)
    assert script.count("MPCapableSYNTX") == script.count("MPCapableSYNACKRX") == 1


@pytest.mark.parametrize("checksum", [False, True])
def test_cap_01_first_data_repeats_the_keys_until_the_peer_has_confirmed(checksum: bool) -> None:
    script = MptcpScript.client(proven=False, checksum=checksum)
    script.send(b"hello")
    first = option_of(script.first.next(), MpCapable)
    assert (first.sender_key, first.receiver_key) == (script.conn.local_key.key, PEER_KEY)
    assert first.data_length == 5
    assert (first.checksum is not None) == checksum
    script.first.inject(options=script.dss(ack=5))
    script.send(b"world")
    later = script.first.last()
    assert later.dss_flags >= 0
    assert not has_option(later, MpCapable)
    assert (later.ssn, later.data_length) == (6, 5)


def test_cap_06_a_syn_ack_without_the_option_means_tcp_for_life() -> None:
    script = MptcpScript.syn_sent()
    script.first.take()
    script.first.inject("SA")
    assert is_plain(script)
    assert script.count("MPCapableFallbackSYNACK") == 1
    assert Event.ESTABLISHED in script.events
    assert speaks_plain_tcp(script, script.first)
    script.first.inject(options=script.dss(ack=0))
    assert is_plain(script)


@pytest.mark.parametrize(
    "option",
    [
        raw_capable(0x00, body=PEER_KEY),
        raw_capable(0x02, body=PEER_KEY),
        raw_capable(flags=0x41, body=PEER_KEY),
        raw_capable(flags=0x00, body=PEER_KEY),
        raw_capable(flags=0x03, body=PEER_KEY),
        raw_capable(),
        raw_capable(body=PEER_KEY * 2),
    ],
    ids=["version-0", "version-2", "flag-b", "no-crypto", "two-cryptos", "no-key", "two-keys"],
)
def test_cap_03_and_04_an_unfit_answer_counts_as_none(option: bytes) -> None:
    script = MptcpScript.syn_sent()
    script.first.take()
    script.first.inject("SA", options=option)
    assert is_plain(script)
    assert speaks_plain_tcp(script, script.first)


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
def test_cap_04_checksums_are_used_if_either_side_asks(ours: bool, theirs: bool) -> None:
    script = MptcpScript.client(mptcp=config(checksum_enabled=ours), checksum=theirs)
    script.send(b"hello")
    assert (script.first.last().dss_checksum >= 0) == (ours or theirs)
    script = MptcpScript.server(mptcp=config(checksum_enabled=ours), checksum=theirs)
    script.send(b"hello")
    assert (script.first.last().dss_checksum >= 0) == (ours or theirs)


def test_cap_04_the_third_ack_confirms_the_checksum_that_the_answer_asked_for() -> None:
    script = MptcpScript.syn_sent(checksum=True)
    assert not option_of(script.first.next(), MpCapable).checksum_required
    script.first.inject("SA", options=script.capable())
    assert option_of(script.first.next(), MpCapable).checksum_required


def test_cap_04_flag_c_of_ours_and_of_the_peer() -> None:
    script = MptcpScript.syn_sent(mptcp=config(allow_join_initial_addr_port=False), c_flag=True)
    assert option_of(script.first.next(), MpCapable).no_subflows_here
    script.first.inject("SA", options=script.capable())
    assert script.conn.remote_denies_initial


def test_cap_07_the_third_syn_repetition_is_plain() -> None:
    script = MptcpScript.syn_sent()
    script.sleep(3.5)
    syns = script.first.take()
    assert [has_option(seg, MpCapable) for seg in syns] == [True, True, True, False]
    assert script.count("MPCapableSYNTXDrop") == 1


@pytest.mark.parametrize("last", [0, 5])
def test_cap_07_the_number_of_syns_with_the_option_is_settable(last: int) -> None:
    script = MptcpScript.syn_sent(mptcp=config(syn_retrans_before_tcp_fallback=last))
    script.sleep(30.0)
    tried = [has_option(seg, MpCapable) for seg in script.first.take()]
    assert tried == [index <= last for index in range(len(tried))]


def test_cap_07_a_late_answer_to_a_syn_with_the_option_still_gives_mptcp() -> None:
    script = MptcpScript.syn_sent()
    script.sleep(3.5)
    script.first.take()
    script.first.inject("SA", options=script.capable())
    assert has_option(script.first.next(), MpCapable)
    assert script.conn.fallback is Fallback.NONE


def test_cap_08_a_join_waits_for_the_first_data_ack() -> None:
    script = MptcpScript.client(proven=False, mptcp=config())
    assert script.conn.open_subflow(script.conn.local, script.conn.remote, script.now) is None
    script.first.inject(options=script.dss(ack=0))
    assert script.conn.fully_established


def test_cap_08_a_valid_announcement_proves_the_peer_too_and_a_forged_one_does_not() -> None:
    for valid in (False, True):
        script = MptcpScript.client(proven=False)
        ip = b"\x0a\x09\x00\x07"
        mac = keys.add_addr_hmac(PEER_KEY, script.conn.local_key.key, 7, ip, None)
        script.first.inject(options=AddAddr(7, ip, hmac=mac if valid else bytes(8)).build())
        assert script.conn.fully_established == valid


def test_cap_10_crossed_syns_give_plain_tcp() -> None:
    script = MptcpScript.syn_sent()
    script.first.take()
    script.first.inject("S", options=script.capable(b""))
    assert is_plain(script)
    assert script.count("SimultConnectFallback") == 1
    assert not any(seg.has_mptcp for seg in script.first.take())


# -- the peer opens ------------------------------------------------------------------------------


def test_cap_01_the_answer_has_our_key_alone() -> None:
    script = MptcpScript.syn_received()
    answer = option_of(script.first.next(), MpCapable)
    assert (answer.sender_key, answer.receiver_key) == (script.conn.local_key.key, b"")
    assert (answer.version, answer.checksum_required) == (1, False)
    assert script.count("MPCapableSYNRX") == 1
    script.first.inject(options=script.capable(PEER_KEY + script.conn.local_key.key))
    assert script.count("MPCapableACKRX") == 1
    assert script.conn.fully_established


def test_cap_02_keys_with_data_map_the_first_bytes_however_often_they_come() -> None:
    script = MptcpScript.syn_received()
    both = PEER_KEY + script.conn.local_key.key
    data = bytes(range(100))
    script.first.take()
    option = script.capable(both, length=100)
    for at in (0, 40, 0, 40):  # two slices of a super-segment, and both once more
        script.first.inject(
            options=option, payload=data[at : at + 40] if not at else data[40:], seq=1 + at
        )
    script.first.inject(options=script.dss(at=100, ssn=101, length=3, ack=0), payload=b"end",
                        seq=101)  # fmt: skip
    assert script.read() == data + b"end"
    assert script.first.last().data_ack64 or script.first.subflow.ack64


def test_cap_02_keys_with_data_that_cross_our_own_data() -> None:
    script = MptcpScript.server()
    script.send(b"first from the server")
    both = PEER_KEY + script.conn.local_key.key
    script.first.inject(options=script.capable(both, length=5), payload=b"hello", ack=1)
    assert script.read() == b"hello"


@pytest.mark.parametrize("option", [b"", raw_capable(0x00, body=PEER_KEY)], ids=["none", "v0"])
def test_cap_03_and_06_a_syn_that_does_not_ask_gets_plain_tcp(option: bytes) -> None:
    script = MptcpScript()
    leg = script.leg(Address(b"\x0a\x09\x00\x02", 80), Address(b"\x0a\x02\x00\x01", 50000))
    leg.inject("S", options=option)
    assert not leg.next().has_mptcp
    assert isinstance(script.accepted[0], TcpConnection)


def test_cap_03_a_later_version_is_answered_with_ours() -> None:
    script = MptcpScript.syn_received(capable=raw_capable(0x02))
    assert option_of(script.first.next(), MpCapable).version == 1


@pytest.mark.parametrize("flags", [0x00, 0x41, 0x10], ids=["no-crypto", "flag-b", "other-crypto"])
def test_cap_04_an_unfit_offer_gets_plain_tcp(flags: int) -> None:
    script = MptcpScript()
    leg = script.leg(Address(b"\x0a\x09\x00\x02", 80), Address(b"\x0a\x02\x00\x01", 50000))
    leg.inject("S", options=raw_capable(flags=flags))
    assert not leg.next().has_mptcp
    assert not isinstance(script.accepted[0], MptcpConnection)


def test_cap_04_an_offer_of_several_algorithms_is_answered_by_one() -> None:
    script = MptcpScript.syn_received(capable=raw_capable(flags=0x1F))
    raw = script.first.next().mptcp[0]
    assert raw[3] & 0x1F == 1


@pytest.mark.parametrize("wrong", [False, True], ids=["missing", "wrong-key"])
def test_cap_06_a_third_ack_without_our_key_means_plain_tcp(wrong: bool) -> None:
    script = MptcpScript.syn_received()
    script.first.take()
    option = script.capable(PEER_KEY + bytes(8)) if wrong else b""
    script.first.inject(options=option)
    assert is_plain(script)
    assert script.count("MPCapableFallbackACK") == 1
    assert speaks_plain_tcp(script, script.first)
    assert script.stack.tokens == {}


def test_cap_06_data_ahead_of_the_keys_waits_for_them() -> None:
    script = MptcpScript.syn_received()
    script.first.take()
    option = script.dss(at=3, ssn=4, length=3, ack=0)
    script.first.inject(options=option, payload=b"def", seq=4)
    assert script.conn.fallback is Fallback.NONE
    both = PEER_KEY + script.conn.local_key.key
    script.first.inject(options=script.capable(both, length=3), payload=b"abc", seq=1)
    script.first.inject(options=option, payload=b"def", seq=4)
    assert script.read() == b"abcdef"


def test_key_02_no_free_token_means_plain_tcp_on_both_sides() -> None:
    script = MptcpScript.syn_sent()
    taken = script.stack.tokens

    class All(dict[int, MptcpConnection]):
        def __contains__(self, token: object) -> bool:
            return True

    script.stack.tokens = All(taken)
    conn = script.stack.connect_mptcp(b"\x0a\x01\x00\x02", script.conn.remote, script.now, b"", "")
    assert conn.fallback is Fallback.AT_HANDSHAKE
    leg = script.leg(conn.local, conn.remote)
    assert not leg.next().has_mptcp
    assert script.count("MPFallbackTokenInit") == 1


def test_sec_06_keys_and_nonces_are_drawn_anew_each_time() -> None:
    script = MptcpScript.client(mptcp=config())
    nonces = set()
    seen = {script.conn.local_key.key}
    for port in range(3):
        leg = script.joining(Address(b"\x0a\x02\x00\x01", 42000 + port))
        nonces.add(option_of(leg.next(), MpJoinSyn).nonce)
        other = script.stack.connect_mptcp(b"\x0a\x01\x00\x03", script.conn.remote, script.now,
                                           b"", "")  # fmt: skip
        seen.add(other.local_key.key)
    assert len(nonces) == 3
    assert len(seen) == 4
    assert bytes(4) not in nonces


# -- data in the SYN (Appendix B) ------------------------------------------------------------------


def test_tfo_01_syn_payload_is_outside_the_data_sequence_space() -> None:
    script = MptcpScript.syn_sent(syn_payload=b"request")
    assert bytes(script.first.next().payload) == b"request"
    script.first.inject("SA", options=script.capable(), ack=8)
    script.first.take()
    script.first.inject(options=script.dss(ack=0), ack=8)
    script.send(b"stream")
    data = script.first.last()
    assert (data.seq - script.first.iss) & 0xFFFFFFFF == 8
    assert (data.ssn, data.data_length) == (1, 6)
    assert data.dsn == script.data_ack(0)


@pytest.mark.parametrize("taken", [0, 3])
def test_tfo_01_what_the_answer_leaves_of_it_becomes_mapped_data(taken: int) -> None:
    script = MptcpScript.syn_sent(syn_payload=b"request")
    script.first.take()
    script.first.inject("SA", options=script.capable(), ack=1 + taken)
    came = [seg for seg in script.first.take() if seg.length]
    assert b"".join(bytes(seg.payload) for seg in came) == b"request"[taken:]
    assert option_of(came[0], MpCapable).data_length == 7 - taken
