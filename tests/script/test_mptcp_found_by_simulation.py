"""Scripts of what the seeded simulation (``tests/sim``) has found in the MPTCP engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.mptcp.notes import Fallback
from proxy.pm.base import Endpoint
from proxy.seg import DSS_ACK, DSS_FIN
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.address import Address
from proxy.wire.mptcp_options import (
    AddAddr,
    MpCapable,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSynAck,
    MpTcprst,
    RemoveAddr,
)
from proxy.wire.tcp_options import sack_option
from tests.script.mptcp_harness import (
    PEER_KEY,
    SECOND,
    TCP,
    MptcpScript,
    config,
    has_option,
    option_of,
)

THIRD = Address(SECOND.ip, SECOND.port + 1)


@pytest.fixture
def script() -> MptcpScript:
    return MptcpScript.client(mptcp=config())


def sack(script: MptcpScript, left: int, right: int) -> bytes:
    """A SACK block of the peer."""
    iss = script.first.iss
    return sack_option([(iss + left & 0xFFFFFFFF, iss + right & 0xFFFFFFFF)], 40)


def test_a_client_without_data_asks_a_mute_server_for_proof_and_then_finishes() -> None:
    script = MptcpScript.client(proven=False, mptcp=config())
    script.conn.shutdown_write()
    probe = script.first.last()
    assert has_option(probe, MpCapable)
    assert (probe.seq - script.first.iss) & 0xFFFFFFFF == 0  # left of the window: to be answered
    script.first.inject(options=script.dss(ack=0))
    assert script.first.last().dss_flags & DSS_FIN


def test_the_request_for_proof_is_repeated() -> None:
    script = MptcpScript.client(proven=False, mptcp=config())
    script.conn.shutdown_write()
    script.first.take()
    script.sleep(10.0)
    assert any(has_option(seg, MpCapable) for seg in script.first.take())


def test_a_tiny_send_buffer_still_takes_bytes() -> None:
    script = MptcpScript.client(mptcp=config(), tcp=replace(TCP, send_buffer_max=1000))
    assert script.conn.send_room() > 0
    script.send(bytes(script.conn.send_room()))
    assert script.conn.send_room() == 0
    script.first.inject(options=script.dss(ack=1000))
    assert script.events[-1] is Event.WRITABLE


def test_an_ack_with_sack_blocks_and_no_dss_is_no_stripped_option(script: MptcpScript) -> None:
    script.send(b"x" * 100)
    script.first.take()
    script.first.inject(options=sack(script, 1, 101))
    script.sleep(5.0)
    assert script.conn.fallback is Fallback.NONE


def test_the_first_answer_of_all_may_be_one_with_sack_alone() -> None:
    script = MptcpScript.client(proven=False, mptcp=config())
    script.send(b"x" * 100)
    script.first.take()
    script.first.inject(options=sack(script, 51, 101), ack=1)
    assert script.conn.fallback is Fallback.NONE


def test_a_new_data_ack_is_told_although_sack_takes_its_place(script: MptcpScript) -> None:
    # Out of order on one subflow all the time, while the other brings the stream forward.
    leg = script.joined()
    options = script.dss(at=1000, ssn=1001, length=10)
    script.first.inject(options=options, payload=b"y" * 10, seq=script.first.seq + 1000)
    for at in range(0, 200, 10):
        script.first.take()
        leg.inject(options=script.dss(at=at, ssn=at + 1, length=10), payload=b"x" * 10)
        again = script.dss(at=1000, ssn=1001, length=10)
        script.first.inject(options=again, payload=b"y" * 10, seq=script.first.seq + 1000)
        told = [s.data_ack for s in script.first.take() + leg.take() if s.dss_flags & DSS_ACK]
        assert script.dsn(at + 10) in told


def test_the_timer_is_armed_anew_when_its_back_off_ends(script: MptcpScript) -> None:
    script.send(b"x" * 100)
    script.conn.shutdown_write()
    script.flush()
    script.sleep(30.0)  # no answer: all time-outs back off
    script.first.take()
    script.first.inject(options=script.dss(ack=100))
    script.sleep(3.0)
    assert any(seg.dss_flags & DSS_FIN for seg in script.first.take())


def test_fastclose_counts_on_a_reset_that_only_fits_the_window(script: MptcpScript) -> None:
    option = MpFastclose(script.conn.local_key.key).build()
    script.first.inject("R", options=option, seq=script.first.seq + 500)
    assert script.conn.state is State.CLOSED
    assert Event.RESET in script.events


def test_a_peer_that_returns_takes_the_place_of_its_old_subflow() -> None:
    script = MptcpScript.server(mptcp=config(subflows=1))
    old = script.joined_by_peer(SECOND, address_id=3)
    new = script.joined_by_peer(THIRD, address_id=3)
    assert old.dead()
    assert not new.dead()


def test_a_stranger_takes_no_place() -> None:
    script = MptcpScript.server(mptcp=config(subflows=1))
    old = script.joined_by_peer(SECOND, address_id=3)
    script.half_joined_by_peer(THIRD, address_id=3)
    script.sleep(5.0)
    assert not old.dead()


def test_data_after_close_is_answered_by_fastclose(script: MptcpScript) -> None:
    script.conn.close(script.now)
    script.first.take()
    script.first.inject(options=script.dss(at=0, ssn=1, length=4), payload=b"late")
    assert has_option(script.first.last(), MpFastclose)
    assert script.events[-1] is Event.CLOSED


def test_a_mute_peer_is_given_up_after_close(script: MptcpScript) -> None:
    script.conn.close(script.now)
    script.flush()
    script.first.inject(options=script.dss(ack=1))
    assert script.conn.state is State.FIN_WAIT_2
    script.sleep(TCP.fin_timeout + 1.0)
    assert script.conn.state is State.CLOSED
    assert script.events[-1] is Event.CLOSED


def test_a_join_that_is_never_confirmed_is_given_up(script: MptcpScript) -> None:
    leg = script.joining()
    leg.inject("SA", options=script.join_syn_ack(leg))
    leg.take()
    script.sleep(60.0)
    assert leg.dead()


def test_what_follows_a_bad_checksum_in_one_piece_is_held_with_it() -> None:
    script = MptcpScript.client(mptcp=config(), checksum=True)
    script.first.inject(options=script.dss(at=0, ssn=1, length=4, payload=b"good"), payload=b"good")
    # The second mapping is known already when both come in one segment (a box has joined them).
    start = script.first.seq
    good = script.dss(at=8, ssn=9, length=4, payload=b"next")
    bad = script.dss(at=4, ssn=5, length=4, payload=b"sent")
    script.first.inject(options=good, payload=b"t", seq=start + 7)
    script.first.inject(options=bad, payload=b"SENTne", seq=start)
    script.first.inject(payload=b"xt", seq=start + 6)
    assert script.read() == b"good"
    script.first.seq = start + 8
    infinite = script.dss(at=12, ssn=13, length=0, checksum=0)
    script.first.inject(options=infinite, payload=b"more")
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    assert script.read() == b"SENTnextmore"


def test_a_bare_answer_to_a_probe_is_no_reason_to_fall_back_but_several_are() -> None:
    script = MptcpScript.client(proven=False, mptcp=config())
    script.conn.shutdown_write()
    script.flush()
    script.first.inject(ack=1)  # a half-open socket that has not seen our third ACK
    assert script.conn.fallback is Fallback.NONE
    script.first.inject(ack=1)
    script.first.inject(ack=1)
    assert script.conn.fallback is Fallback.AT_HANDSHAKE
    script.sleep(1.0)
    assert any(seg.flags & 1 for seg in script.first.take())


def test_what_waits_since_a_time_out_goes_over_a_subflow_that_joins() -> None:
    script = MptcpScript.server(mptcp=config())
    script.send(b"x" * 100)
    script.sleep(5.0)  # the only path is dead
    script.first.take()
    leg = script.joined_by_peer()
    script.flush()
    again = [bytes(seg.payload) for seg in leg.came] + [bytes(s.payload) for s in leg.take()]
    assert b"x" * 100 in again or script.count("MPTCPRetrans")


@pytest.mark.parametrize("window", [0, 200])
def test_a_shut_or_small_window_is_probed_after_fall_back(window: int) -> None:
    script = MptcpScript.syn_sent(mptcp=config())
    script.first.take()
    script.first.inject("SA", window=60_000)
    assert script.conn.fallback is Fallback.AT_HANDSHAKE
    script.first.inject(window=window)
    script.send(b"x" * 5000)
    script.first.take()
    script.sleep(3.0)
    assert script.first.take()


def test_a_join_that_is_opening_ends_with_the_fall_back_and_the_connection_does_not() -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joining()
    script.send(b"x" * 100)
    script.first.take()
    script.first.inject()  # acknowledged, and no DATA_ACK: the path strips options
    script.sleep(3.0)
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    assert leg.dead()
    assert script.conn.state is State.ESTABLISHED
    script.first.inject(payload=b"plain")
    assert script.read() == b"plain"


def test_what_tcp_acknowledged_before_the_fall_back_is_free_after_it(script: MptcpScript) -> None:
    script.send(b"x" * 100)
    script.first.take()
    script.first.inject(options=script.dss(ack=0))  # TCP has it, the connection not yet
    assert script.conn.tx.una == 0
    infinite = script.dss(at=0, ssn=1, length=0)
    script.first.inject(options=infinite, payload=b"plain")
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    assert script.conn.tx.una == 100


def test_a_fall_back_delivers_what_waited_for_its_checksum() -> None:
    script = MptcpScript.client(mptcp=config(), checksum=True)
    option = script.dss(at=0, ssn=1, length=8, payload=b"in parts")
    script.first.inject(options=option, payload=b"in p")
    script.send(b"x" * 100)
    script.first.take()
    assert script.read() == b""
    script.first.inject()  # acknowledged without a DATA_ACK: no options pass any more
    script.sleep(5.0)
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    script.first.inject(payload=b"arts")
    assert script.read() == b"in parts"


def test_plain_data_after_mp_fail_is_as_good_as_an_answer() -> None:
    script = MptcpScript.client(mptcp=config(), checksum=True)
    good = script.dss(at=0, ssn=1, length=4, payload=b"good")
    script.first.inject(options=good, payload=b"good")
    bad = script.dss(at=4, ssn=5, length=4, payload=b"sent")
    script.first.inject(options=bad, payload=b"SENT")
    script.first.inject("FA", payload=b"last")
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    assert script.read() == b"goodSENTlast"
    assert script.conn.eof


def test_bytes_that_tcp_has_are_not_sent_again_on_the_only_subflow_before_dss_was_seen(
    script: MptcpScript,
) -> None:
    script.send(b"x" * 100)
    script.first.take()
    script.first.inject(options=sack(script, 1, 101))  # plain TCP answers a duplicate like this
    script.sleep(1.0)
    sent = script.first.take()
    assert sent
    assert not any(seg.length for seg in sent)
    script.first.inject()  # the answer to the probe: no DSS either
    script.sleep(3.0)
    assert script.conn.fallback is Fallback.INFINITE_MAPPING


def failed_checksum() -> MptcpScript:
    """The second mapping had a bad checksum, MP_FAIL was sent and then lost."""
    script = MptcpScript.client(mptcp=config(), checksum=True)
    good = script.dss(at=0, ssn=1, length=4, payload=b"good")
    script.first.inject(options=good, payload=b"good")
    bad = script.dss(at=4, ssn=5, length=4, payload=b"sent")
    script.first.inject(options=bad, payload=b"SENT")
    assert has_option(script.first.last(), MpFail)
    return script


def test_mp_fail_is_repeated_while_data_comes() -> None:
    script = failed_checksum()
    script.sleep(1.0)
    more = script.dss(at=8, ssn=9, length=4, payload=b"more")
    script.first.inject(options=more, payload=b"more")
    assert has_option(script.first.last(), MpFail)


def test_the_same_bytes_once_more_in_a_good_mapping_make_mp_fail_moot() -> None:
    script = failed_checksum()
    again = script.dss(at=4, ssn=9, length=4, payload=b"sent")
    script.first.inject(options=again, payload=b"sent")
    assert script.read() == b"goodsent"
    assert script.conn.fallback is Fallback.NONE


def test_a_single_sack_block_leaves_the_dss_in_place(script: MptcpScript) -> None:
    for _ in range(12):
        option = script.dss(at=100, ssn=101, length=4)
        script.first.inject(options=option, payload=b"late", seq=script.first.seq + 100)
        seg = script.first.last()
        assert seg.sack
        if len(seg.sack) == 1:
            assert seg.dss_flags & DSS_ACK


def test_a_join_whose_options_were_stripped_does_not_end_a_connection_without_paths() -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joining()
    script.first.inject("R")
    assert script.first.dead()
    leg.inject("SA")  # no MP_JOIN in the answer
    assert leg.dead()
    assert script.conn.state is not State.CLOSED


def test_a_join_that_the_peer_does_not_know_ends_a_connection_without_paths() -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joining()
    script.first.inject("R")
    leg.inject("RA", options=MpTcprst(1).build())
    assert script.conn.state is State.CLOSED


def test_a_data_fin_without_any_answer_asks_whether_the_peer_still_speaks_mptcp() -> None:
    script = MptcpScript.client(mptcp=config())
    first = script.first
    script.conn.shutdown_write()
    assert first.last().dss_flags & DSS_FIN
    end = first.ack
    script.sleep(4.0)  # the peer has fallen back and sees ACKs without options
    probes = [seg for seg in first.take() if (seg.seq - first.iss) & 0xFFFFFFFF == end - 1]
    assert probes
    first.inject()  # a bare answer
    script.sleep(10.0)
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    assert first.take()[-1].flags & 1


def test_a_data_fin_lost_on_the_first_subflow_after_none_is_sent_again(
    script: MptcpScript,
) -> None:
    script.conn.shutdown_write()
    assert script.first.last().dss_flags & DSS_FIN
    script.first.inject("R")
    assert script.first.dead()
    script.sleep(5.0)  # the timer of the DATA_FIN runs off
    leg = script.joined()
    script.sleep(5.0)
    again = leg.take()
    assert any(seg.dss_flags >= 0 and seg.dss_flags & DSS_FIN for seg in again)


def test_a_join_that_completes_while_mp_fail_waits_is_refused_and_the_answer_still_counts() -> None:
    script = failed_checksum()
    leg = script.half_joined_by_peer()
    answer = option_of(leg.last(), MpJoinSynAck)
    leg.inject(options=MpJoinAck(script.join_hmac(answer.nonce)[:20]).build())
    rst = leg.last()
    assert rst.flags & 4
    assert not has_option(rst, MpFail)  # nothing was wrong here
    assert not script.first.dead()
    script.first.inject(options=MpFail(script.conn.fail_dsn).build())
    assert script.conn.fallback is Fallback.INFINITE_MAPPING


def test_the_data_fin_is_repeated_after_one_of_two_subflows_lost_its_options() -> None:
    script = MptcpScript.client(mptcp=config())
    first = script.first
    leg = script.joined()
    script.conn.shutdown_write()
    for _ in range(8):
        script.sleep(0.5)
        if not first.dead():
            first.inject()  # bare
    assert first.dead()
    leg.take()
    script.sleep(30.0)
    assert any(seg.dss_flags >= 0 and seg.dss_flags & DSS_FIN for seg in leg.take())


def test_a_fin_without_options_ends_the_stream_and_not_only_the_subflow() -> None:
    script = MptcpScript.server(mptcp=config())
    first = script.first
    mapping = script.dss(at=0, ssn=1, length=4)
    first.inject(options=mapping, payload=b"asks")
    first.take()
    first.inject("FA")  # the peer had no DATA_ACK and went on as plain TCP
    assert script.conn.fallback is Fallback.NONE
    probes = [seg for seg in first.take() if (seg.seq - first.iss) & 0xFFFFFFFF == first.ack - 1]
    assert probes
    first.inject()
    assert script.conn.fallback is Fallback.INFINITE_MAPPING
    assert Event.EOF in script.events
    assert not any(seg.flags & 1 for seg in first.take())  # we have not finished
    script.send(b"answer")
    assert bytes(first.last().payload) == b"answer"


def test_the_first_ack_proves_mptcp_also_where_an_announcement_leaves_no_room() -> None:
    endpoint = Endpoint(bytes((10, 0, 0, 9)), 3, signal=True, port=9003)
    script = MptcpScript.syn_received(
        mptcp=config(),
        path_manager="kernel",
        endpoints=[endpoint],
        tcp=replace(TCP, timestamps=True),
    )
    first = script.first
    first.take()
    capable = script.capable(PEER_KEY + script.conn.local_key.key)
    first.inject(options=capable)
    came = first.take()
    assert came[0].dss_flags >= 0
    assert came[0].dss_flags & DSS_ACK
    assert any(has_option(seg, AddAddr) for seg in came)


def test_a_fin_without_options_of_a_peer_that_still_speaks_mptcp_ends_the_subflow_alone() -> None:
    script = MptcpScript.server(mptcp=config())
    first = script.first
    first.inject(options=script.dss(at=0, ssn=1, length=4), payload=b"asks")
    first.inject("FA")
    script.sleep(1.0)
    first.take()
    first.inject(options=script.dss(ack=0))
    assert script.conn.fallback is Fallback.NONE
    assert Event.EOF not in script.events
    assert any(seg.flags & 1 for seg in first.take())


def test_a_fin_without_options_and_without_an_answer_ends_the_subflow_alone() -> None:
    script = MptcpScript.server(mptcp=config())
    first = script.first
    first.inject(options=script.dss(at=0, ssn=1, length=4), payload=b"asks")
    first.inject("FA")
    script.sleep(60.0)
    assert any(seg.flags & 1 for seg in first.take())
    assert Event.EOF not in script.events


def test_the_only_subflow_is_closed_by_a_rst_since_a_fin_may_lose_its_options() -> None:
    script = MptcpScript.client(mptcp=config(), path_manager="kernel")
    first = script.first
    endpoint = Endpoint(first.ours.ip, 1, subflow=True)
    first.take()
    script.conn.path_manager.on_endpoint_removed(script.conn, endpoint, script.now)
    came = first.take()
    assert not any(seg.flags & 1 for seg in came)
    assert option_of(came[0], RemoveAddr).address_ids == (0,)
    assert came[-1].flags & 4
    assert has_option(came[-1], MpTcprst)
    assert script.conn.state is State.ESTABLISHED
    assert script.joined().subflow.fully_established  # it goes on elsewhere


def test_the_only_subflow_is_closed_by_a_fin_after_the_data_fin() -> None:
    script = MptcpScript.client(mptcp=config())
    script.conn.shutdown_write()
    script.first.take()
    script.conn.close_subflow(script.first.subflow, script.now)
    assert script.first.last().flags & 1


def test_the_last_of_several_subflows_is_closed_by_a_fin() -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joined()
    leg.inject("R", options=MpTcprst(0).build())
    script.first.take()
    script.conn.close_subflow(script.first.subflow, script.now)  # nobody may fall back any more
    assert script.first.last().flags & 1


def test_a_fin_without_options_in_answer_to_ours_is_no_question() -> None:
    script = MptcpScript.server(mptcp=config())
    first = script.first
    script.send(b"done")
    script.conn.shutdown_write()
    first.take()
    first.inject(options=script.dss(ack=5))
    script.conn.close_subflow(first.subflow, script.now)
    first.take()
    first.inject("FA", ack=first.ack - 1)  # they crossed
    first.inject(ack=first.ack - 1)
    assert script.conn.fallback is Fallback.NONE
    assert Event.EOF not in script.events
