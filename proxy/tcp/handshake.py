"""Opening a connection: active, passive with a held-back answer, simultaneous."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from proxy.seg import build_header
from proxy.tcp.core import (
    ACK,
    ACK_NOW,
    CWR,
    ECE,
    INFINITE,
    LOSS_TIMER_OFF,
    LOSS_TIMER_SYN,
    MASK,
    RST,
    SYN,
)
from proxy.tcp.events import Failure
from proxy.tcp.isn import initial_numbers
from proxy.tcp.receiver import Receiver
from proxy.tcp.states import State
from proxy.wire.tcp_options import SynOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.seg import Segment

HALF = 0x80000000
SYN_LINEAR = 4
"""This many SYNs go at the initial RTO before it doubles (Linux: tcp_syn_linear_timeouts)."""


class Handshake(Receiver):
    """Everything up to ESTABLISHED (RFC 9293 §3.5)."""

    __slots__ = ()

    def connect(
        self, now: float, syn_payload: bytes = b"", stamp: Callable[[int], int] | None = None
    ) -> None:
        """Send a SYN, with ``syn_payload`` in it (RFC 7413 without a cookie).

        The payload is the start of the byte stream. ``syn_payload_acked`` says afterwards how
        much of it the SYN-ACK acknowledged; the rest is sent again as ordinary data. ``stamp``
        makes the timestamp (u32) of the SYN from its sequence number; the clock goes on from it.
        """
        self._begin(now)
        if stamp is not None and self.timestamps:
            self._syn_stamp = stamp(self.iss)
        self.syn_payload = syn_payload
        self.state = State.SYN_SENT
        self.snd_nxt = (self.iss + 1 + len(syn_payload)) & MASK
        self._send_syn(now)
        self._arm_syn(now)

    def _begin(self, now: float, isn: int | None = None) -> None:
        self.iss, self._ts_offset = initial_numbers(self.host.secret, self.key, now)
        if isn is not None:
            self.iss = isn
        self.snd_una = self.iss
        self.snd_nxt = (self.iss + 1) & MASK
        self._rack_fack = self._rack_round = self._limited_until = self.snd_nxt
        self._syn_at = self.last_received = self.last_progress = self._stalled_since = now
        self._delivered_at = now
        self._recall_path(now)
        biggest = self.config.receive_buffer_max
        shift = 0
        while biggest >> shift > 65536 and shift < 14:
            shift += 1
        self.rcv_wscale = shift if self.config.window_scale else 0

    def _syn_segment_options(self, now: float, wscale: int) -> bytes:
        v4 = len(self.local.ip) == 4
        options = SynOptions(
            mss=self._mtu - (40 if v4 else 60),
            wscale=wscale,
            sack_permitted=self.sack_permitted,
            ts_val=(int(now * 1000.0) + self._ts_offset) & MASK if self.timestamps else -1,
            ts_ecr=max(self._ts_recent, 0),
        )
        return options.build(self._syn_options())

    def _syn_window(self) -> int:
        """The window of a SYN is never scaled (RFC 7323 §2.2)."""
        return min(self._rcv_buffer, 65535)

    def _send_syn(self, now: float) -> None:
        """A SYN; a payload goes along on the first try and then on every second.

        A path that eats SYNs with payload must not make the connection impossible (RFC 7413
        §4.1.3), nor a lossy one make the far end miss what it needs to answer.
        """
        payload = b"" if self._syn_tries % 2 else self.syn_payload
        if self._syn_stamp >= 0:
            self._ts_offset = (self._syn_stamp - int(now * 1000.0)) & MASK
        options = self._syn_segment_options(
            now, self.rcv_wscale if self.config.window_scale else -1
        )
        flags = SYN
        if self.config.ecn == "on" and not self._syn_tries:
            # Once only: some paths drop such SYNs (RFC 3168 §6.1.1.1).
            self._ecn_asked = True
            flags |= ECE | CWR
        self._send_handshake(self.iss, 0, flags, options, payload)

    def _send_syn_ack(self, now: float, payload: bytes = b"") -> None:
        options = self._syn_segment_options(now, self.rcv_wscale if self._scaling() else -1)
        flags = SYN | ACK | ECE if self.ecn else SYN | ACK
        self._send_handshake(self.iss, self.rcv_nxt, flags, options, payload)
        self._last_ack_sent = self.rcv_nxt
        self.rcv_right = (self.rcv_nxt + self._syn_window()) & MASK

    def _scaling(self) -> bool:
        return self._peer_scales and self.config.window_scale

    def _send_handshake(
        self, seq: int, ack: int, flags: int, options: bytes, payload: bytes
    ) -> None:
        local = self.local
        remote = self.remote
        header = build_header(
            local.ip, remote.ip, local.port, remote.port, seq, ack, flags, self._syn_window(),
            options, len(payload), 0,
        )  # fmt: skip
        self.host.transmit([header, payload] if payload else [header])

    def _arm_syn(self, now: float) -> None:
        initial = self.config.initial_rto
        doublings = max(self._syn_tries - SYN_LINEAR + 1, 0)
        pause = min(initial * (1 << min(doublings, 20)), self._longest_syn_pause())
        self._loss_at = now + pause
        self._loss_kind = LOSS_TIMER_SYN
        self._arm(now)

    def _longest_syn_pause(self) -> float:
        """Seconds between repetitions of a SYN at most."""
        return self.config.max_rto

    def _on_syn_timeout(self, now: float) -> None:
        self._syn_tries += 1
        if self._syn_tries > self.config.syn_retries:
            self._die(self._soft_error or Failure(errno.ETIMEDOUT), now)
            return
        self.counters.add("TCPTimeouts")
        self.rto_count += 1
        self._syn_at = now
        if self.state is State.SYN_SENT:
            self._send_syn(now)
        else:
            self._send_syn_ack(now)
        self._arm_syn(now)
        self._on_rto(now)

    # -- passive --------------------------------------------------------------------------------

    def open_passive(self, syn: Segment, now: float, isn: int | None = None) -> None:
        """Take a SYN, and keep the SYN-ACK back until ``accept``, ``refuse`` or ``discard``.

        ``isn`` replaces the drawn initial sequence number (stateless handshakes).
        A SYN with an absurd MSS is refused, and a hook may reset the connection at once: then
        ``state`` is CLOSED afterwards.
        """
        self._begin(now, isn)
        self.state = State.LISTEN
        self.irs = syn.seq
        self.rcv_nxt = (syn.seq + 1) & MASK
        self.syn_payload = bytes(syn.payload)
        self._take_syn_options(syn)
        if 0 <= syn.mss < self.config.min_mss:
            self.counters.add("TCPMinMSSReject")
            self.refuse(now)
            return
        self._on_syn(syn, now)

    def accept(self, now: float, take_syn_payload: bool = False, payload: bytes = b"") -> None:
        """Send the SYN-ACK.

        With ``take_syn_payload`` it acknowledges ``syn_payload``, which the caller has consumed;
        else the peer sends these bytes again. ``payload`` is the start of our stream and goes in
        the first SYN-ACK only; what the third ACK leaves of it is sent again as ordinary data
        (``_on_syn_payload_unacked``).
        """
        if self.state is not State.LISTEN:
            return
        if take_syn_payload:
            taken = len(self.syn_payload)
            self.rcv_nxt = (self.rcv_nxt + taken) & MASK
            self.bytes_received += taken
        self.state = State.SYN_RECEIVED
        self._syn_at = now
        self.syn_ack_payload = payload
        self._send_syn_ack(now, payload)
        self._arm_syn(now)

    def carry_in_timestamp(self, bits: int, now: float) -> None:
        """Make ``bits`` (0..63) the low bits of the SYN-ACK's timestamp, which comes back.

        The clock is set back for it, by less than 64 ms, as Linux does (cookie_init_timestamp).
        """
        clock = int(now * 1000.0) + self._ts_offset
        self._ts_offset = (self._ts_offset - ((clock - bits) & 63)) & MASK

    def refuse(self, now: float) -> None:
        """Answer the SYN by RST and forget the connection."""
        if self.state is State.LISTEN:
            ack = (self.irs + 1 + len(self.syn_payload)) & MASK
            self._send_bare(0, ack, RST | ACK, 0, self._rst_options())
            self.counters.add("TcpOutRsts")
        self.discard(now)

    def discard(self, now: float) -> None:
        """Forget the connection in silence."""
        self._release()
        self.host.forget(self)

    def _release(self) -> None:
        """CLOSED: no timers, no buffers but what the application may still read."""
        raise NotImplementedError

    # -- negotiation ----------------------------------------------------------------------------

    def _take_syn_options(self, seg: Segment) -> None:
        """What the peer's SYN or SYN-ACK offers (RFC 7323, RFC 2018, RFC 9293 §3.7.1)."""
        config = self.config
        if seg.mss >= 0:
            self._peer_mss = seg.mss
        self._peer_scales = seg.wscale >= 0
        if self._peer_scales and config.window_scale:
            self.snd_wscale = min(seg.wscale, 14)
        else:
            self.snd_wscale = 0
            self.rcv_wscale = 0
        self.sack_permitted = config.sack and seg.sack_permitted
        self.timestamps = config.timestamps and seg.ts_val >= 0
        self._negotiate_ecn(seg)
        if self.timestamps:
            self._ts_recent = seg.ts_val
            self._ts_recent_at = self._syn_at
        self.snd_wnd = self.snd_max_wnd = seg.window
        self._snd_wl1 = seg.seq
        self._snd_wl2 = self.snd_una

    def _establish(self, ts_ecr: int, prompt: bool, now: float) -> None:
        """The handshake is complete: set up the senses of an established connection.

        ``prompt``: what completes it answers our SYN at once, so it tells the round trip.
        """
        self.state = State.ESTABLISHED
        self._set_mss()
        self._rcv_mss = min(self.mss, 1460)
        # After a repetition only the echo tells which SYN was answered (Karn). If not the last
        # one, either the path is slower than the time-out or the first answer was lost.
        rtt = max(now - self._syn_at, 1e-6)
        if self.rto_count:
            last = (int(self._syn_at * 1000.0) + self._ts_offset) & MASK
            rtt = self._echo_rtt(ts_ecr, now) if (ts_ecr - last) & MASK < HALF else 0.0
        if rtt and prompt:
            self._on_rtt(rtt, now)
            self._drs_rtt = self.srtt
        self.rto_count = 0
        self._take_congestion_window()
        self._drs_at = now
        self._drs_space = 10 * self._rcv_mss
        self.opening_time = now - self._stalled_since
        self._loss_at = self._stalled_since = INFINITE
        self._loss_kind = LOSS_TIMER_OFF
        self.last_progress = self._delivered_at = now
        self._idle_at = now + self.config.keepalive_idle

    # -- segments before ESTABLISHED ------------------------------------------------------------

    def _on_segment_opening(self, seg: Segment, now: float) -> None:
        """LISTEN, SYN_SENT, SYN_RECEIVED, or CLOSED."""
        state = self.state
        if seg.flags & SYN and seg.seq == self.irs and self.timestamps and seg.ts_val >= 0:
            self._ts_recent = seg.ts_val  # the answer echoes the last SYN, not the first
            self._ts_recent_at = now
        if state is State.SYN_SENT:
            self._on_segment_syn_sent(seg, now)
        elif state is State.SYN_RECEIVED:
            self._on_segment_syn_received(seg, now)
        elif (
            # LISTEN: the SYN-ACK is held back, repetitions of the SYN are absorbed.
            state is State.LISTEN
            and seg.flags & RST
            and (seg.seq - self.irs - 1) & MASK <= len(self.syn_payload)
        ):
            self._die(Failure(errno.ECONNRESET), now, seg)

    def _on_segment_syn_sent(self, seg: Segment, now: float) -> None:
        """RFC 9293 §3.10.7.3."""
        flags = seg.flags
        if flags & ACK:
            acked = (seg.ack - self.iss) & MASK
            if not 0 < acked <= 1 + len(self.syn_payload):
                if not flags & RST:
                    self._send_bare(seg.ack, 0, RST, 0, b"")
                return
            if flags & RST:
                self._die(Failure(errno.ECONNREFUSED), now, seg)
                return
        elif flags & RST:
            return
        if not flags & SYN:
            return
        if 0 <= seg.mss < self.config.min_mss:
            self.counters.add("TCPMinMSSReject")
            self._send_bare(seg.ack, (seg.seq + 1) & MASK, RST | ACK, 0, b"")
            self._die(Failure(errno.EPROTO), now, seg)
            return
        self.irs = seg.seq
        self.rcv_nxt = (seg.seq + 1) & MASK
        self.rcv_right = (self.rcv_nxt + self._syn_window()) & MASK
        self._take_syn_options(seg)
        if flags & ACK:
            self._on_syn_ack(seg, now)
        elif self._on_syn(seg, now):  # both ends opened at once (RFC 9293 §3.5 figure 7)
            self.state = State.SYN_RECEIVED
            self._crossed = True
            self.snd_nxt = (self.iss + 1) & MASK
            self._send_syn_ack(now)
            self._arm_syn(now)

    def _on_syn_ack(self, seg: Segment, now: float) -> None:
        acked = (seg.ack - self.iss - 1) & MASK
        self.syn_payload_acked = acked
        self.snd_una = self.snd_nxt = seg.ack
        self._rack_fack = self._rack_round = self._limited_until = seg.ack
        self.bytes_sent += acked
        self.bytes_acked += acked
        self.syn_ack_payload = bytes(seg.payload)
        self.rcv_nxt = (self.rcv_nxt + seg.length) & MASK
        self.bytes_received += seg.length
        if not self._on_syn(seg, now) or self.state is not State.SYN_SENT:
            return
        self._establish(seg.ts_ecr, True, now)
        self._wake()
        rest = self.syn_payload[acked:]
        if rest:
            self.counters.add("TCPFastOpenActiveFail")
            self._on_syn_payload_unacked(rest, now)
        self._rtt_provisional = True  # the far end may have held its answer back
        self._handshake_ack_due = True
        self._on_established(now)

    def _on_segment_syn_received(self, seg: Segment, now: float) -> None:
        """RFC 9293 §3.10.7.4 for SYN-RECEIVED; becomes ESTABLISHED by the ACK of our SYN."""
        flags = seg.flags
        if flags & SYN:
            if seg.seq == self.irs:  # it did not get our answer: repeat it
                if flags & ACK and seg.ack == self.snd_nxt:
                    if self._passive_established(seg, now):  # crossed SYNs
                        self._ack_state = ACK_NOW
                        self._wake()
                elif now >= self._oow_ack_at:
                    self._oow_ack_at = now + 0.5
                    self._send_syn_ack(now)
            else:
                self._challenge_ack(now)
            return
        offset = (seg.seq - self.rcv_nxt) & MASK
        room = (self.rcv_right - self.rcv_nxt) & MASK
        if flags & RST:
            if offset == 0:
                self._die(Failure(errno.ECONNRESET), now, seg)
            elif offset < room:
                self._challenge_ack(now)
            return
        if room < offset < HALF or (offset >= HALF and (offset + seg.length) & MASK >= HALF):
            self._reject(now, seg.length > 0)
            return
        if not flags & ACK:
            return
        if (seg.ack - self.snd_nxt) & MASK > len(self.syn_ack_payload):
            self._send_bare(seg.ack, 0, RST, 0, b"")
            return
        if not self._on_options(seg, now) or self.state is not State.SYN_RECEIVED:
            return
        if not self._passive_established(seg, now):
            return
        if self.timestamps and seg.ts_val >= 0 and not (seg.ts_val - self._ts_recent) & HALF:
            self._ts_recent = seg.ts_val
            self._ts_recent_at = now
        if self.ecn:
            self._on_ecn(seg, now)
        if seg.length or flags & 1:
            self._process_data(seg, now)
            self._wake()

    def _passive_established(self, seg: Segment, now: float) -> bool:
        """The ACK of our SYN came; False if a hook ended the connection."""
        acked = (seg.ack - self.snd_nxt) & MASK
        rest = self.syn_payload if self._crossed else self.syn_ack_payload[acked:]
        self.bytes_sent += acked
        self.bytes_acked += acked
        self.snd_una = self.snd_nxt = seg.ack
        self._rack_fack = self._rack_round = self._limited_until = seg.ack
        self.snd_wnd = self.snd_max_wnd = (
            seg.window if seg.flags & SYN else seg.window << self.snd_wscale
        )
        self._snd_wl1 = seg.seq
        self._snd_wl2 = seg.ack
        # Data that completes it has come instead of a lost third ACK, whenever it was sent.
        self._establish(seg.ts_ecr, not seg.length and not seg.flags & 1, now)
        if rest:
            self._on_syn_payload_unacked(rest, now)
        self._on_established(now)
        if self._unsent.size or self._fin_queued:
            self._wake()
        return self.state is State.ESTABLISHED
