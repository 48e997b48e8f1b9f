"""One TCP connection: the facade that the stack and the application see."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar

from proxy.errors import LocalProtocolError
from proxy.seg import predict_tcp
from proxy.tcp.core import (
    ACK,
    ACK_DELAYED,
    ACK_NOW,
    FIN,
    INFINITE,
    LOSS_TIMER_SYN,
    MASK,
    RST,
    SYN,
)
from proxy.tcp.events import Failure
from proxy.tcp.handshake import Handshake
from proxy.tcp.icmp_errors import icmp_failure, is_hard
from proxy.tcp.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.seg import Segment
    from proxy.tcp.buffers import Buffer
    from proxy.tcp.config import TcpConfig
    from proxy.tcp.host import IcmpError

HALF = 0x80000000
SEND_FLOOR = 131072
"""The send buffer holds two windows and this much more."""
LOW_WATER = 65536
PAWS_IDLE = 24 * 86400.0

ESTABLISHED = State.ESTABLISHED
CLOSED = State.CLOSED
FIN_WAIT_1 = State.FIN_WAIT_1
FIN_WAIT_2 = State.FIN_WAIT_2
CLOSE_WAIT = State.CLOSE_WAIT
CLOSING = State.CLOSING
LAST_ACK = State.LAST_ACK
TIME_WAIT = State.TIME_WAIT
OPENING = (State.LISTEN, State.SYN_SENT, State.SYN_RECEIVED, CLOSED)


class TcpConnection(Handshake):
    """Plain TCP; ``proxy.mptcp.subflow.Subflow`` overrides the hooks of ``ConnectionCore``.

    ``_predict`` takes the segments that bulk transfers consist of, in the extension, with the same
    result as what follows in ``on_segment``. Nothing is sent inside ``on_segment`` but challenge
    ACKs and RSTs: it records work and wakes; ``poll`` sends. ``host.event`` may be called from any
    entry point.
    """

    __slots__ = ()
    _predict: ClassVar[Callable[..., bool]] = predict_tcp

    # -- application ----------------------------------------------------------------------------

    def send(self, chunk: Buffer) -> None:
        """Queue all of ``chunk``; the caller honours ``send_room()``. Not copied: keep it as is.

        LocalProtocolError after ``shutdown_write`` or ``close``; ignored once the connection died.
        """
        if self._fin_queued:
            raise LocalProtocolError("send after shutdown_write")
        if self.state is CLOSED and self.error is not None:
            return
        self._unsent.append(chunk)
        self._wake()

    def send_room(self) -> int:
        """Bytes the send buffer still takes (0 when closed); WRITABLE follows a shortage."""
        if self._fin_queued or self.state is CLOSED:
            return 0
        limit = 2 * self.cwnd + SEND_FLOOR
        if limit > self.config.send_buffer_max:
            limit = self.config.send_buffer_max
        room = limit - self._unsent.size - ((self.snd_nxt - self.snd_una) & MASK)
        if room < LOW_WATER:
            self._write_blocked = True
            return room if room > 0 else 0
        self._write_blocked = False
        return room

    def shutdown_write(self) -> None:
        """Send FIN after what is queued."""
        if self._fin_queued:
            return
        self._fin_queued = True
        self._enter_closing_state()
        self._wake()

    def close(self, now: float) -> None:
        """Send FIN and read no more: later data is answered by RST.

        A SYN-ACK that was sent stands (RFC 9293 §3.10.4): its payload and what is queued arrive.
        """
        self._closed_by_app = True
        self._received.clear()
        self.receivable = 0
        if self.state in OPENING and self.state is not State.SYN_RECEIVED:
            self.abort(now)
            return
        self.shutdown_write()
        if self.state is FIN_WAIT_2:
            self._life_at = now + self.config.fin_timeout
            self._arm(now)

    def abort(self, now: float) -> None:
        """Send RST and forget everything; no event follows."""
        state = self.state
        if state is CLOSED:
            return
        if state is not State.LISTEN and state is not State.SYN_SENT and state is not TIME_WAIT:
            self._send_reset(now)
        self._received.clear()
        self.receivable = 0
        self._release()
        self.host.forget(self)

    def configure(self, config: TcpConfig, now: float) -> None:
        """Go by ``config`` from now on, where it is not what the handshake has settled.

        The congestion control stays: see ``set_congestion_control``.
        """
        self.config = config
        if self.state not in OPENING and self.state is not TIME_WAIT:
            self._keepalive_sent = 0
            self._idle_at = now + self._keepalive_idle()
            self._arm(now)

    # -- segments -------------------------------------------------------------------------------

    def on_segment(self, seg: Segment, now: float) -> None:
        """A segment of this connection arrived (RFC 9293 §3.10.7)."""
        state = self.state
        if state is ESTABLISHED and self.host.header_prediction:
            if self._predict(seg, now):
                return
            if seg.length:
                self.counters.add("TCPHPMisses")
        silence = now - self.last_received
        self.last_received = now
        if state is not ESTABLISHED and state in OPENING:
            self._on_segment_opening(seg, now)
            return
        flags = seg.flags
        if (flags & (SYN | RST | ACK)) != ACK or not self._acceptable(seg, now):
            self._on_odd_segment(seg, now)
            return
        if not self._on_options(seg, now):
            return
        if not self._process_ack(seg, now) or self.state is CLOSED:
            return
        if self.ecn:
            self._on_ecn(seg, now)
        length = seg.length
        if length or flags & FIN:
            if self._closed_by_app and length and state is not TIME_WAIT:
                self._reset_late_data(seg, now)
                return
            size = seg.gso_size or length
            if size > self._rcv_mss and size <= self.mss:
                self._rcv_mss = size
            if silence > self.rto:
                self._after_silence()
            self._process_data(seg, now)
            if self.state is CLOSED:
                return
            if self.timestamps:
                self._sample_receiver_rtt(seg, now)
            if now - self._drs_at >= self._drs_rtt:
                self._tune_receive_buffer(now)
            if self._ack_state == ACK_NOW:
                self._wake()
            elif self._ack_at < self._armed_at or self._armed_at <= now:
                self._arm(now)
        if self._fin_acked:
            self._on_fin_acked(now)

    def _acceptable(self, seg: Segment, now: float) -> bool:
        """PAWS and the window check (RFC 7323 §5.3, RFC 9293 §3.10.7.4 'first').

        DEVIATION: a segment without timestamps is taken on a connection that negotiated them, as
        Linux does: middleboxes make keep-alives without.
        """
        seq = seg.seq
        rcv_nxt = self.rcv_nxt
        end = (seq + seg.length) & MASK
        ts_val = seg.ts_val
        if ts_val >= 0 and self.timestamps:
            age = (ts_val - self._ts_recent) & MASK
            if age >= HALF and now - self._ts_recent_at < PAWS_IDLE:
                self.counters.add("PAWSEstab")
                return False
            # RFC 7323 §4.3: only a segment at the left edge tells the RTT of what we acknowledge.
            if (self._last_ack_sent - seq) & MASK < HALF and (
                end - self._last_ack_sent
            ) & MASK < HALF:
                self._ts_recent = ts_val
                self._ts_recent_at = now
        if seq == rcv_nxt:
            return True
        return (end - self._last_ack_sent) & MASK < HALF and (self.rcv_right - seq) & MASK < HALF

    def _on_odd_segment(self, seg: Segment, now: float) -> None:
        """RST, SYN, no ACK, or outside the window (RFC 5961 §3-§5)."""
        flags = seg.flags
        if flags & RST:
            self._on_rst(seg, now)
        elif flags & SYN:
            if self.state is TIME_WAIT:
                return
            if flags & ACK and seg.seq == self.irs and self.snd_una != self.iss:
                self._handshake_ack_due = True  # our third ACK was lost
                if self.timestamps and seg.ts_val >= 0:
                    self._echo_repeated_syn(seg, now)
                self._wake()
                return
            self.counters.add("TCPSYNChallenge")
            self._challenge_ack(now)
        elif flags & ACK:
            if self.state is TIME_WAIT and flags & FIN:
                self._life_at = now + self.config.time_wait
            length = seg.length
            if length and (self.rcv_nxt - seg.seq - length) & MASK < HALF:
                self._duplicate(seg.seq, (seg.seq + length) & MASK)
            self._reject(now, length > 0 or flags & FIN > 0)

    def _echo_repeated_syn(self, seg: Segment, now: float) -> None:
        """Nothing came since the SYN-ACK: let its sender see which copy is answered."""
        if self.rcv_nxt == (self.irs + 1 + len(self.syn_ack_payload)) & MASK:
            self._ts_recent = seg.ts_val
            self._ts_recent_at = now

    def _on_rst(self, seg: Segment, now: float) -> None:
        if self.state is TIME_WAIT:
            return  # RFC 1337: no assassination of TIME_WAIT
        offset = (seg.seq - self.rcv_nxt) & MASK
        if offset == 0:
            self._die(Failure(errno.ECONNRESET), now, seg)
        elif offset < ((self.rcv_right - self.rcv_nxt) & MASK) < HALF:
            self._challenge_ack(now)

    def _reset_late_data(self, seg: Segment, now: float) -> None:
        """Nobody will read this (RFC 1122 §4.2.2.13)."""
        self.rcv_nxt = (seg.seq + seg.length) & MASK
        self.counters.add("TCPAbortOnData")
        self._send_reset(now)
        self._release()
        self._on_closed(now)
        self.host.forget(self)

    def accepts_reuse(self, syn: Segment) -> bool:
        """In TIME_WAIT: may ``syn`` begin a new incarnation (RFC 6191)?"""
        if self.state is not TIME_WAIT:
            return False
        if syn.ts_val >= 0 and self._ts_recent >= 0 and syn.ts_val != self._ts_recent:
            return (syn.ts_val - self._ts_recent) & MASK < HALF
        ahead = (syn.seq - self.rcv_nxt) & MASK
        return 0 < ahead < HALF

    # -- closing --------------------------------------------------------------------------------

    def _peer_finished(self, now: float) -> None:
        state = self.state
        if state is ESTABLISHED:
            self.state = CLOSE_WAIT
        elif state is FIN_WAIT_1:
            self.state = CLOSING  # _on_fin_acked follows at once if our FIN is acknowledged too
        elif state is FIN_WAIT_2:
            self._enter_time_wait(now)

    def _on_fin_acked(self, now: float) -> None:
        state = self.state
        if state is FIN_WAIT_1:
            self.state = FIN_WAIT_2
            if self._closed_by_app:
                self._life_at = now + self.config.fin_timeout
                self._arm(now)
        elif state is CLOSING:
            self._enter_time_wait(now)
            self._on_closed(now)
        elif state is LAST_ACK:
            self._release()
            self._on_closed(now)
            self.host.forget(self)

    def _enter_time_wait(self, now: float) -> None:
        self.state = TIME_WAIT
        self._no_timers()
        self._life_at = now + self.config.time_wait
        self._arm(now)

    def _release(self) -> None:
        """CLOSED: no timers, no buffers but what the application may still read."""
        self.state = CLOSED
        self._no_timers()
        self._drop_receive_buffer()
        self._life_at = INFINITE
        self._unsent.clear()
        self._flight = []
        self._reassembly = self._mtu_probe = None
        self.bytes_in_flight = self._lost_bytes = self._sacked_bytes = 0
        self._ack_state = 0
        self._ack_options_due = self._handshake_ack_due = False

    def _die(self, error: Failure, now: float, seg: Any = None) -> None:
        """End the connection at once because of ``error``."""
        self.error = error
        self._release()
        self._on_reset(seg, now)
        self.host.forget(self)

    # -- timers ---------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """When ``on_timeout`` must be called; None: never."""
        earliest = min(
            self._loss_at, self._reorder_at, self._ack_at, self._pace_at, self._idle_at,
            self._life_at,
        )  # fmt: skip
        return None if earliest == INFINITE else earliest

    def on_timeout(self, now: float) -> None:
        """A deadline may have passed; early calls do nothing."""
        self._armed_at = INFINITE
        if now >= self._life_at:
            self._on_life_timeout(now)
            return
        if now >= self._ack_at:
            self._ack_at = INFINITE
            if self._ack_state == ACK_DELAYED:
                self._ack_state = ACK_NOW
                self.counters.add("DelayedACKs")
                self._wake()
        if now >= self._reorder_at:
            self._on_reorder_timer(now)
        if now >= self._loss_at:
            if self._loss_kind == LOSS_TIMER_SYN:
                self._on_syn_timeout(now)
            else:
                self._on_loss_timer(now)
        if now >= self._pace_at:
            self._pace_at = INFINITE
            self._wake()
        if now >= self._idle_at:
            self._on_idle_timeout(now)
        self._arm(now)

    def _on_life_timeout(self, now: float) -> None:
        """TIME_WAIT is over, or the peer never finished after our close."""
        waited = self.state is TIME_WAIT
        self._release()
        if not waited:
            self._on_closed(now)
        self.host.forget(self)

    def _on_idle_timeout(self, now: float) -> None:
        """Keep-alive (RFC 1122 §4.2.3.6)."""
        config = self.config
        idle = self._keepalive_idle()
        if now - self.last_received < idle or self._flight:
            self._keepalive_sent = 0
            self._idle_at = max(self.last_received + idle, now + 1.0)
            return
        if not self._keepalive_sent and not self._may_ask(now):
            self._idle_at = now + idle * (0.5 + self.host.rng.random())
            return
        if self._keepalive_sent >= config.keepalive_count:
            self._die(Failure(errno.ETIMEDOUT), now)
            return
        self._keepalive_sent += 1
        self.counters.add("TCPKeepAlive")
        self._send_probe_ack(now)
        self._idle_at = now + config.keepalive_interval

    def _keepalive_idle(self) -> float:
        """Silence after which the peer is asked, in seconds."""
        return self.config.keepalive_idle

    def _may_ask(self, now: float) -> bool:
        """Whether to ask now, or about one idle time later."""
        return True

    # -- ICMP -----------------------------------------------------------------------------------

    def on_icmp(self, error: IcmpError, now: float) -> None:
        """An ICMP error quoting this connection (RFC 5461, RFC 5927).

        Believed only if it quotes something in flight; hard errors end a connection only before
        it is established.
        """
        quoted = (error.seq - self.snd_una) & MASK
        if quoted > (self.snd_nxt - self.snd_una) & MASK:
            self.counters.add("OutOfWindowIcmps")
            return
        v4 = len(self.local.ip) == 4
        if (error.type == 3 and error.code == 4) if v4 else error.type == 2:
            self._on_packet_too_big(error.mtu, now)
            return
        if self.state is not State.SYN_SENT and self.state is not State.SYN_RECEIVED:
            return
        failure = icmp_failure(v4, error.type, error.code)
        if failure is None:
            return
        if is_hard(v4, error.type):
            self._die(failure, now)
        else:
            self._soft_error = failure
