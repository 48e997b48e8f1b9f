"""DATA_FIN, MP_FASTCLOSE, MP_TCPRST and sending again: RFC 8684 §3.3.3 to §3.3.6, §3.5, §3.6."""

from __future__ import annotations

import errno
import json

import pytest

from proxy.control.events import EventHub
from proxy.mptcp.notes import Fallback
from proxy.seg import DSS_FIN, dss_checksum
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.mptcp_options import MpFail, MpFastclose, MpTcprst
from tests.script.mptcp_harness import PEER_KEY, Leg, MptcpScript, config, has_option, option_of

FIN = 1


@pytest.fixture
def script() -> MptcpScript:
    return MptcpScript.client(mptcp=config())


def finish(script: MptcpScript) -> None:
    script.conn.shutdown_write()
    script.flush()


def data_fins(leg: Leg) -> list[tuple[int, int]]:
    """(SSN, length) of the DATA_FINs that came."""
    return [
        (s.ssn, s.data_length) for s in leg.take() if s.dss_flags >= 0 and s.dss_flags & DSS_FIN
    ]


# -- DATA_FIN ------------------------------------------------------------------------------------


def test_fin_01_a_data_fin_alone_has_ssn_0_and_length_1(script: MptcpScript) -> None:
    script.send(b"abc")
    script.first.inject(options=script.dss(ack=3))
    script.first.take()
    finish(script)
    seg = script.first.last()
    assert seg.dss_flags & DSS_FIN
    assert (seg.dsn, seg.ssn, seg.data_length, seg.length) == (script.data_ack(3), 0, 1, 0)
    assert not seg.flags & FIN


def test_fin_01_its_checksum_covers_the_pseudo_header_alone() -> None:
    script = MptcpScript.client(mptcp=config(), checksum=True)
    finish(script)
    seg = script.first.last()
    assert seg.dss_checksum == dss_checksum(seg.dsn, 0, 1, [])


@pytest.mark.parametrize("dsn64", [False, True])
@pytest.mark.parametrize("data", [b"", b"bye"])
def test_fin_01_a_data_fin_of_the_peer_takes_one_number(
    script: MptcpScript, data: bytes, dsn64: bool
) -> None:
    size = len(data)
    option = script.dss(at=0, ssn=1 if size else 0, length=size + 1, fin=True, ack=0, dsn64=dsn64)
    script.first.inject(payload=data, options=option)
    assert script.read() == data
    assert script.conn.eof
    seg = script.first.last()
    mask = (1 << 64) - 1 if seg.data_ack64 else 0xFFFFFFFF
    assert seg.data_ack == script.dsn(size + 1) & mask


def test_fin_02_a_data_fin_ahead_of_data_waits_for_it(script: MptcpScript) -> None:
    script.first.inject(options=script.dss(at=3, length=1, fin=True, ack=0))
    assert not script.conn.eof
    leg = script.joined()
    leg.inject(payload=b"abc", options=script.dss(at=0, ssn=1, length=3, ack=0))
    assert script.read() == b"abc"
    assert script.conn.eof


def test_fin_02_it_goes_on_every_subflow_and_again_until_acknowledged(
    script: MptcpScript,
) -> None:
    leg = script.joined()
    finish(script)
    assert data_fins(script.first) == data_fins(leg) == [(0, 1)]
    script.sleep(10.0)
    repeated = data_fins(leg)
    assert 3 <= len(repeated) <= 12, "with back-off"
    leg.inject(options=script.dss(ack=1))
    assert script.conn.state is State.FIN_WAIT_2
    script.sleep(10.0)
    assert data_fins(leg) == []


def test_fin_02_a_repeated_data_fin_is_acknowledged_again(script: MptcpScript) -> None:
    option = script.dss(at=0, length=1, fin=True, ack=0)
    script.first.inject(options=option)
    script.first.take()
    script.first.inject(options=option)
    assert script.first.last().data_ack & 0xFFFFFFFF == script.dsn(1) & 0xFFFFFFFF


def test_fin_03_the_states_of_the_side_that_closes_first(script: MptcpScript) -> None:
    finish(script)
    assert script.conn.state is State.FIN_WAIT_1
    assert script.count("MPCurrEstab") == 0
    script.first.inject(options=script.dss(ack=1))
    assert script.conn.state is State.FIN_WAIT_2
    assert not any(s.flags & FIN for s in script.first.take())
    script.first.inject(options=script.dss(at=0, length=1, fin=True, ack=1))
    assert script.conn.state is State.CLOSED
    came = script.first.take()
    assert any(s.flags & FIN for s in came), "both are acknowledged: the subflows close"


def test_fin_03_the_states_of_the_side_that_closes_last(script: MptcpScript) -> None:
    script.first.inject(options=script.dss(at=0, length=1, fin=True, ack=0))
    assert script.conn.state is State.CLOSE_WAIT
    assert script.count("MPCurrEstab") == 1
    finish(script)
    assert script.conn.state is State.LAST_ACK
    assert script.count("MPCurrEstab") == 0
    script.first.inject(options=script.dss(ack=1))
    assert script.conn.state is State.CLOSED


def test_fin_03_crossed_data_fins(script: MptcpScript) -> None:
    finish(script)
    script.first.inject(options=script.dss(at=0, length=1, fin=True, ack=0))
    assert script.conn.state is State.CLOSING
    script.first.inject(options=script.dss(ack=1))
    assert script.conn.state is State.CLOSED
    assert Event.CLOSED in script.events


def test_fin_04_a_fin_of_a_subflow_ends_that_subflow_alone(script: MptcpScript) -> None:
    leg = script.joined()
    leg.inject("FA")
    assert leg.last().flags & FIN
    assert script.conn.state is State.ESTABLISHED
    assert not script.conn.eof
    script.send(b"on")
    assert script.first.last().length == 2


def test_fin_04_the_last_fin_without_a_data_fin_leaves_the_connection_for_a_while(
    script: MptcpScript,
) -> None:
    script.first.inject("FA", options=script.dss(ack=0))
    script.first.take()
    script.first.inject()
    script.sleep(50.0)
    assert not script.conn.eof
    assert script.conn.state is State.ESTABLISHED
    script.sleep(12.0)
    assert script.conn.state is State.CLOSED
    assert script.conn.error is not None


def test_fin_05_the_last_subflow_stays_while_data_is_not_acknowledged(
    script: MptcpScript,
) -> None:
    script.send(b"unacknowledged")
    script.first.take()
    script.first.inject("FA", ack=1)
    assert not any(s.flags & FIN for s in script.first.take())
    script.first.inject(options=script.dss(ack=14))
    assert script.conn.tx.una == 14
    assert any(s.flags & FIN for s in script.first.take()), "now it may go"
    script.first.inject()
    script.sleep(61.0)
    assert Event.TIMED_OUT in script.events, "and no new one has come"


def test_fin_06_a_subflow_that_does_not_answer_is_reset_at_the_end(script: MptcpScript) -> None:
    leg = script.joined()
    leg.subflow.stale = True
    finish(script)
    script.first.inject(options=script.dss(at=0, length=1, fin=True, ack=1))
    assert any(seg.flags & 4 for seg in leg.take())


def test_fin_08_half_close_lets_the_other_direction_go_on(script: MptcpScript) -> None:
    finish(script)
    script.first.inject(options=script.dss(ack=1))
    script.first.inject(payload=b"more", options=script.dss(at=0, ssn=1, length=4, ack=1))
    assert script.read() == b"more"
    script.first.inject(options=script.dss(at=4, length=1, fin=True, ack=1))
    assert script.conn.eof
    assert script.conn.state is State.CLOSED


# -- MP_FASTCLOSE --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ack", "rst"])
def test_fc_01_fastclose_with_our_key_ends_everything(script: MptcpScript, form: str) -> None:
    leg = script.joined()
    option = MpFastclose(script.conn.local_key.key).build()
    script.first.inject("A" if form == "ack" else "RA", options=option)
    assert script.conn.state is State.CLOSED
    assert script.conn.error is not None
    assert script.conn.error.errno == errno.ECONNRESET
    assert Event.RESET in script.events
    assert leg.last().flags & 4, "the others are reset"
    assert script.count("MPFastcloseRx") == 1


def test_fc_01_fastclose_with_another_key_is_ignored(script: MptcpScript) -> None:
    script.first.inject(options=MpFastclose(PEER_KEY).build())
    assert script.conn.state is State.ESTABLISHED
    assert script.count("MPFastcloseRx") == 0


def test_fc_02_ours_is_a_rst_with_the_peers_key_on_every_subflow(script: MptcpScript) -> None:
    leg = script.joined()
    script.conn.abort(script.now)
    for one in (script.first, leg):
        seg = one.last()
        assert seg.flags & 4
        assert option_of(seg, MpFastclose).receiver_key == PEER_KEY
        assert has_option(seg, MpTcprst)
    assert script.count("MPFastcloseTx") == 2


def test_fc_02_what_was_received_before_stays_readable(script: MptcpScript) -> None:
    script.first.inject(payload=b"abc", options=script.dss(at=0, ssn=1, length=3, ack=0))
    script.first.inject("RA", options=MpFastclose(script.conn.local_key.key).build())
    assert script.read() == b"abc"


# -- MP_TCPRST -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [-1, 0, 1, 2, 3, 4, 5, 6, 77])
def test_rst_01_a_rst_ends_its_subflow_alone_and_its_reason_is_told(
    script: MptcpScript, reason: int
) -> None:
    leg = script.joined()
    script.conn.notes.clear()
    leg.inject("R", options=MpTcprst(reason).build() if reason >= 0 else b"")
    assert leg.dead()
    assert script.conn.state is State.ESTABLISHED
    note = script.conn.notes[-1]
    assert (note.kind, note.reason) == (Event.SUBFLOW_CLOSED, reason)
    assert script.count("MPRstRx") == (reason >= 0)


@pytest.mark.parametrize("transient", [False, True])
def test_rst_02_the_event_of_a_closed_subflow_has_reason_and_flags(
    script: MptcpScript, transient: bool
) -> None:
    told: list[dict[str, object]] = []
    hub = EventHub()
    hub.subscribe(lambda name, line: told.append(json.loads(line)))
    leg = script.joined()
    subflow = leg.subflow
    leg.inject("R", options=MpTcprst(3, transient).build())
    hub.event("sub-closed", script.conn, subflow, reason=subflow.reset_reason)
    assert (told[0]["reset-reason"], told[0]["reset-flags"]) == (3, transient)


def test_rst_01_mp_tcprst_counts_on_a_rst_alone(script: MptcpScript) -> None:
    script.first.inject(options=MpTcprst(1).build() + script.dss(ack=0))
    assert not script.first.dead()
    assert script.count("MPRstRx") == 0


def test_opt_02_nothing_outside_the_window_is_acted_on(script: MptcpScript) -> None:
    key = script.conn.local_key.key
    far = script.first.seq + (1 << 30)
    script.first.inject(options=MpFastclose(key).build(), seq=far)
    script.first.inject("R", options=MpFastclose(PEER_KEY).build(), seq=far)
    script.first.inject(options=MpFail(0).build(), seq=far)
    assert script.conn.state is State.ESTABLISHED
    assert script.conn.fallback is Fallback.NONE
    assert not script.first.dead()


# -- sending again -------------------------------------------------------------------------------


def test_rtx_01_the_same_numbers_may_go_elsewhere_and_the_first_subflow_keeps_its_bytes(
    script: MptcpScript,
) -> None:
    data = bytes(range(200)) * 5
    script.send(data)
    before = script.first.last()
    leg = script.joined()
    script.sleep(3.0)
    again = [s for s in leg.take() if s.length]
    assert bytes(again[0].payload) == data
    assert again[0].dsn == before.dsn
    same = [s for s in script.first.take() if s.seq == before.seq and s.length]
    assert all((s.ssn, s.dsn) == (before.ssn, before.dsn) for s in same)
    assert all(data.startswith(bytes(s.payload)) for s in same)  # perhaps smaller ones pass
    assert same
    assert script.count("MPTCPRetrans") >= 1


def test_rtx_02_data_that_only_tcp_acknowledged_is_sent_again(script: MptcpScript) -> None:
    leg = script.joined()
    script.send(b"swallowed by a proxy on the way")
    carrier = next(one for one in (script.first, leg) if any(s.length for s in one.take()))
    carrier.inject(options=script.dss(ack=0))
    script.sleep(3.0)
    again = [s for one in (script.first, leg) for s in one.take() if s.length]
    assert again
    assert bytes(again[0].payload) == b"swallowed by a proxy on the way"


def test_rtx_04_fall_back_is_not_allowed_once_data_was_sent_again(script: MptcpScript) -> None:
    leg = script.joined()
    script.first.inject("R", seq=script.first.seq)
    leg.inject(payload=b"no mapping")
    assert script.conn.fallback is Fallback.NONE
    assert leg.dead()


@pytest.mark.parametrize("together", [False, True])
def test_fin_04_fins_behind_a_data_fin_leave_our_direction_open(
    script: MptcpScript, together: bool
) -> None:
    leg = script.joined()
    fin = script.dss(at=0, length=1, fin=True, ack=0)
    if not together:
        script.first.inject(options=fin)
    script.first.inject("FA", options=fin)
    leg.inject("FA", options=fin)
    assert not any(seg.flags & FIN for one in (script.first, leg) for seg in one.take())
    assert script.conn.state is State.CLOSE_WAIT
    script.send(b"the other half")
    finish(script)
    came = [seg for one in (script.first, leg) for seg in one.take()]
    assert b"the other half" in b"".join(bytes(seg.payload) for seg in came)
    assert any(seg.dss_flags >= 0 and seg.dss_flags & DSS_FIN for seg in came)
    for one in (script.first, leg):
        one.inject(options=script.dss(ack=15))
        assert any(seg.flags & FIN for seg in one.take())
        one.inject()
    assert script.conn.state is State.CLOSED
    assert Event.CLOSED in script.events
    script.sleep(100.0)
    assert script.first.dead()
    assert script.stack.next_timeout() is None
