"""Sending: new data, retransmissions, pacing, and the timer that watches over them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.tcp.buffers import split_chunks
from proxy.tcp.chronograph import Limited
from proxy.tcp.core import (
    ACK_NOW,
    CA_OPEN,
    INFINITE,
    LOSS_TIMER_OFF,
    LOSS_TIMER_PERSIST,
    LOSS_TIMER_RTO,
    LOSS_TIMER_TLP,
    MASK,
)
from proxy.tcp.paced_senders import MIN_BURST
from proxy.tcp.segments import PACE_SLACK, Segments
from proxy.tcp.states import State
from proxy.tcp.transmission import Transmission

if TYPE_CHECKING:
    from proxy.tcp.buffers import Buffer

MAX_PAYLOAD = 65400
"""Largest super-segment: an IP packet of 65535 bytes less the longest headers."""
BURST_HALF_LIFE = 0.001
"""On paths as short as this a burst may hold half of ``MAX_PAYLOAD`` more, a quarter on paths of
twice that length, and so on (Linux: tcp_tso_rtt_log, 512 us).

DEVIATION: twice Linux' time, since each end of ours adds what Linux has not: a way to user space.
"""
MIN_PACED_RTT = 0.001
PEER_DELAYED_ACK = 0.05
"""What a probe of a lone segment allows for (RFC 8985 §7.2: WCDelAckT; most stacks: 40 ms)."""

ESTABLISHED = State.ESTABLISHED
CLOSE_WAIT = State.CLOSE_WAIT
FIN_WAIT_1 = State.FIN_WAIT_1
CLOSING = State.CLOSING
LAST_ACK = State.LAST_ACK


class Output(Segments):
    """When data leaves. Only ``poll`` sends data and ACKs; RSTs and challenge ACKs go at once."""

    __slots__ = ()

    # -- poll -----------------------------------------------------------------------------------

    def poll(self, now: float) -> None:
        """Send what may be sent: lost data first, then new data, then the pending ACK."""
        if self._handshake_ack_due:
            self._send_handshake_ack(now)
        if self._fin_queued:
            self._enter_closing_state()
        state = self.state
        if (
            state is ESTABLISHED
            or state is CLOSE_WAIT
            or state is FIN_WAIT_1
            or state is CLOSING
            or state is LAST_ACK
        ):
            self._pace_at = INFINITE
            if self._lost_bytes:
                self._retransmit_lost(now)
            if not self._lost_bytes and (
                self._unsent.size or (self._fin_queued and not self._fin_sent)
            ):
                self._send_new(now)
        if self._ack_state == ACK_NOW or self._ack_options_due:
            self._send_ack(now)
        self._arm(now)

    def _arm(self, now: float) -> None:
        """Tell the host if the earliest deadline moved forward.

        A deadline in the past was passed over by the host when it had moved back.
        """
        earliest = self._loss_at  # by hand: min() of six costs twice as much
        at = self._ack_at
        if at < earliest:
            earliest = at
        at = self._idle_at
        if at < earliest:
            earliest = at
        at = self._pace_at
        if at < earliest:
            earliest = at
        at = self._reorder_at
        if at < earliest:
            earliest = at
        at = self._life_at
        if at < earliest:
            earliest = at
        if earliest < self._armed_at or self._armed_at <= now:
            self._armed_at = earliest
            self.host.arm(self)

    def _enter_closing_state(self) -> None:
        """The application has closed its side; possibly before the connection was established."""
        if self.state is ESTABLISHED:
            self.state = FIN_WAIT_1
        elif self.state is CLOSE_WAIT:
            self.state = LAST_ACK

    def request_ack(self) -> None:
        """Send a pure ACK at the next ``poll`` even if data goes out (for one-shot options)."""
        self._ack_options_due = True
        self._wake()

    def acknowledge(self) -> None:
        """Send an ACK at the next ``poll``, on its own unless a segment that goes out has it."""
        self._ack_state = ACK_NOW
        self._wake()

    # -- new data -------------------------------------------------------------------------------

    def _send_new(self, now: float) -> None:
        unsent = self._unsent
        flight = self._flight
        if not flight:
            self._restart_after_idle(now)
        sent = now >= self._mtu_search_at and self._probe_path(now)
        if (
            self._pace_next + PACE_SLACK < now
            and (self._limited_until - self.snd_nxt) & MASK > 1
            and self._delivered
        ):
            # Neither window nor pacing held back the sender: there was nothing to send.
            self._bubble_end = self._delivered + self.bytes_in_flight
        while True:
            size = unsent.size
            room = self.cwnd - self.bytes_in_flight
            window = self.snd_wnd - ((self.snd_nxt - self.snd_una) & MASK)
            if size:
                if now < self._pace_next or self._must_queue(now):
                    self._pace_at = self._pace_next
                    break
                count = self._sendable(size, room, window, now)
                if not count:
                    break
            elif self._fin_queued and not self._fin_sent and window > 0:
                count = 0
            else:
                break
            self._send_one(count, now)
            sent = True
        if sent:
            if self.bytes_in_flight + self._effective_mss > self.cwnd:
                self._limited_until = self.snd_nxt
            self._schedule_loss_timer(now)
        elif not flight and self._loss_kind == LOSS_TIMER_OFF:
            self._schedule_loss_timer(now)
        self._on_sent(now)

    def hindrance(self, now: float) -> Limited:
        """See ``ConnectionCore``: why ``_sendable`` or pacing has let no more go."""
        if self.rto_count:
            return Limited.SILENCE
        if now < self._pace_next and not self._lost_bytes:
            return Limited.RATE_LIMIT if self._booked else Limited.PACING
        window = self.snd_wnd - ((self.snd_nxt - self.snd_una) & MASK)
        if window < self.cwnd - self.bytes_in_flight and not self._lost_bytes:
            return Limited.READER if 2 * self.snd_wnd < self.snd_max_wnd else Limited.WINDOW
        return Limited.CONGESTION

    def _must_queue(self, now: float) -> bool:
        """Whether others have taken the time of the uplink's limit; then ours is booked."""
        limit = self.limit
        if limit is None or self._booked or limit.free_at <= now or not limit.rate:
            return False
        self._booked = 2 * self._effective_mss
        self._pace_next = limit.book(self._booked, now)
        return now < self._pace_next

    def _burst_size(self, rate: float, now: float) -> int:
        """Bytes that may leave back to back at a pacing ``rate`` (0: any), at least two segments.

        What a timer that is late has missed leaves at once anyway: then as one super-segment.
        """
        time = self._burst_time()
        late = now - self._pace_next
        if late > time:
            late = time
        elif late < 0.0:
            late = 0.0
        burst = int(rate * (time + late)) if rate else MAX_PAYLOAD
        halvings = self.min_rtt / BURST_HALF_LIFE
        if halvings < 6.0:
            burst += MAX_PAYLOAD >> int(halvings)
        limit = self.limit
        if limit is not None and limit.rate:
            shared = int(limit.rate * MIN_BURST)
            if shared < burst:
                burst = shared
        mss = self._effective_mss
        return burst - burst % mss if burst > 2 * mss else 2 * mss

    def _sendable(self, size: int, room: int, window: int, now: float) -> int:
        """Bytes of new data for one super-segment now; 0: wait."""
        mss = self._effective_mss
        count = MAX_PAYLOAD - MAX_PAYLOAD % mss
        rate = self.pacing_rate
        if rate or self.limit is not None:
            burst = self._burst_size(rate, now)
            if burst < count:
                count = burst
        if size <= count:
            count = size
        limit = self._segment_limit(self.snd_nxt)
        if limit < count:
            count = limit
        if count <= room and count <= window:
            return count
        if window <= room:
            return self._window_limited(count, window, mss)
        # The window of congestion control is the limit: full segments only, and not a dribble of
        # them for every ACK (Linux: tcp_tso_should_defer), for each one costs a whole traversal.
        if room < mss:
            if self.bytes_in_flight or room < 0:
                return 0
            return min(count, mss, window)
        goal = min(count, self.cwnd >> 3)
        if room < goal and self.bytes_in_flight > self.cwnd >> 1:
            self._limited_until = (self.snd_nxt + 1) & MASK
            return 0
        return room - room % mss

    def _window_limited(self, count: int, window: int, mss: int) -> int:
        """Sender's side of silly window avoidance (RFC 9293 §3.8.6.2.1)."""
        if window >= mss:
            return window - window % mss
        if window > 0 and (
            window * 2 >= self.snd_max_wnd or (not self._flight and count <= window)
        ):
            return window
        return 0

    def _send_one(self, count: int, now: float) -> None:
        """Send ``count`` bytes of new data, with FIN if they are the last."""
        unsent = self._unsent
        seq = self.snd_nxt
        chunks: list[Buffer] = unsent.take(count) if count else []
        fin = self._fin_queued and not unsent.size
        end = (seq + count + (1 if fin else 0)) & MASK
        tx = Transmission(seq, end, chunks, fin, now)
        tx.delivered = self._delivered
        if not self._flight:
            self._delivered_at = self._rate_sent_at = now
        tx.delivered_at = self._delivered_at
        tx.rate_sent_at = self._rate_sent_at
        tx.app_limited = self._delivered <= self._bubble_end
        self._flight.append(tx)
        self.snd_nxt = end
        self.bytes_in_flight += count + 1 if fin else count
        tx.in_flight = self.bytes_in_flight
        tx.lost_before = self._lost_total
        self.bytes_sent += count
        if fin:
            self._fin_sent = True
        if self._stalled_since == INFINITE:
            self._stalled_since = self._busy_since = now
        self._transmit(tx, count, now)

    def _restart_after_idle(self, now: float) -> None:
        """RFC 5681 §4.1: a window that was not used lately says nothing about the path.

        Half of it per RTO of silence, as Linux does, and ``ssthresh`` remembers (RFC 7661 §4.4):
        the way back is a slow start, short and paced.
        """
        idle = now - self._delivered_at
        if idle > self.rto and self._delivered:
            self.congestion.on_restart(idle / self.rto)
            self._take_congestion_window()
            self._delivered_at = now

    def send_capacity(self, now: float) -> int:
        """Bytes of new data that may go to the network at once (the packet scheduler's input)."""
        state = self.state
        if (state is not ESTABLISHED and state is not CLOSE_WAIT) or self._fin_queued:
            return 0
        if self._lost_bytes or now < self._pace_next or self._must_queue(now):
            return 0
        if not self._flight:
            self._restart_after_idle(now)  # what is queued now could not be moved elsewhere later
        queued = self._unsent.size
        room = self.cwnd - self.bytes_in_flight
        window = self.snd_wnd - ((self.snd_nxt - self.snd_una) & MASK)
        capacity = (room if room < window else window) - queued
        if capacity < self._effective_mss and self.bytes_in_flight + queued:
            return 0
        return capacity if capacity > 0 else 0

    def _take_congestion_window(self) -> None:
        """Copy the controller's decisions to where schedulers read them."""
        congestion = self.congestion
        self.cwnd = congestion.cwnd
        self.ssthresh = congestion.ssthresh
        srtt = self.srtt
        if srtt >= MIN_PACED_RTT and self.config.pacing:
            self.pacing_rate = congestion.pacing_rate(srtt)
        else:
            self.pacing_rate = 0.0

    # -- retransmissions ------------------------------------------------------------------------

    def _retransmit_lost(self, now: float) -> None:
        """Send again what is marked lost, in order, as the congestion window allows."""
        mss = self._effective_mss
        index = 0
        sent = False
        flight = self._flight
        while self._lost_bytes and index < len(flight):
            tx = flight[index]
            if not tx.lost:
                index += 1
                continue
            if now < self._pace_next or self._must_queue(now):
                self._pace_at = self._pace_next
                break
            room = self.cwnd - self.bytes_in_flight
            if room < mss and room < ((tx.end - tx.seq) & MASK) and self.bytes_in_flight:
                break
            self._retransmit(index, max(room, mss), now)
            index += 1
            sent = True
        if sent:
            self._schedule_loss_timer(now)

    def _retransmit(self, index: int, limit: int, now: float) -> None:
        """Send record ``index`` again, at most about ``limit`` bytes of it (it is split)."""
        tx = self._flight[index]
        length = (tx.end - tx.seq) & MASK
        mss = self._effective_mss
        allowed = limit - limit % mss if limit > mss else mss
        allowed = min(allowed, MAX_PAYLOAD - MAX_PAYLOAD % mss, self._segment_limit(tx.seq))
        if self.pacing_rate or self.limit is not None:
            allowed = min(allowed, self._burst_size(self.pacing_rate, now))
        if length - (1 if tx.fin else 0) > allowed:
            self._split(index, allowed)
            length = allowed
        if tx.lost:
            tx.lost = False
            self._lost_bytes -= length
            self.bytes_in_flight += length
        tx.retransmitted += 1
        tx.sent_at = now
        tx.delivered = self._delivered
        tx.delivered_at = self._delivered_at
        tx.rate_sent_at = self._rate_sent_at
        tx.app_limited = self._delivered <= self._bubble_end
        tx.in_flight = self.bytes_in_flight
        tx.lost_before = self._lost_total
        self._prr_out += length
        if self._undo_marker >= 0:
            self._undo_bytes += length
            self._undo_sent = True
        payload = length - 1 if tx.fin else length
        self.bytes_retransmitted += payload
        self.counters.add("TcpRetransSegs")
        self._transmit(tx, payload, now)

    def _split(self, index: int, count: int) -> None:
        """Cut record ``index`` after ``count`` bytes of payload."""
        tx = self._flight[index]
        head, rest = split_chunks(tx.chunks, count)
        middle = (tx.seq + count) & MASK
        other = Transmission(middle, tx.end, rest, tx.fin, tx.sent_at)
        other.retransmitted = tx.retransmitted
        other.sacked = tx.sacked
        other.lost = tx.lost
        other.delivered = tx.delivered
        other.delivered_at = tx.delivered_at
        other.rate_sent_at = tx.rate_sent_at
        other.app_limited = tx.app_limited
        other.in_flight = tx.in_flight
        other.lost_before = tx.lost_before
        tx.chunks = head
        tx.end = middle
        tx.fin = False
        self._flight.insert(index + 1, other)

    # -- the loss timer -------------------------------------------------------------------------

    def _current_rto(self) -> float:
        """RTO with back-off (RFC 6298 §5.5)."""
        cap = self.rto_backoff_cap
        if cap is None:
            cap = self.config.max_rto
        rto = self.rto
        backed_off = rto * (1 << min(self.rto_count, 20))
        return max(rto, min(backed_off, cap))

    def _schedule_loss_timer(self, now: float) -> None:
        """One of RTO, tail loss probe and persist timer (RFC 8985 §7.2, RFC 9293 §3.8.6.1)."""
        flight = self._flight
        if not flight:
            self._rto_at = INFINITE
            if self._unsent.size or (self._fin_queued and not self._fin_sent):
                self._schedule_persist(now)
            else:
                self._loss_at = INFINITE
                self._loss_kind = LOSS_TIMER_OFF
            return
        if self._rto_at == INFINITE:
            self._rto_at = now + self._current_rto()
        if (
            self._ca_state == CA_OPEN
            and self._tlp_end < 0
            and self.sack_permitted
            and not self.rto_count
            and not self._sacked_bytes
        ):
            srtt = self.srtt
            probe = now + (max(2.0 * srtt, 0.01) if srtt else self.config.initial_rto)
            if self.bytes_in_flight <= self._effective_mss:
                probe += PEER_DELAYED_ACK
            if probe < self._rto_at:
                self._loss_at = probe
                self._loss_kind = LOSS_TIMER_TLP
                return
        self._loss_at = self._rto_at
        self._loss_kind = LOSS_TIMER_RTO

    def _schedule_persist(self, now: float) -> None:
        """Nothing in flight and yet data waits: the peer's window is too small, or pacing."""
        if self._pace_at != INFINITE:
            self._loss_at = INFINITE
            self._loss_kind = LOSS_TIMER_OFF
            return
        if self._loss_kind != LOSS_TIMER_PERSIST:
            self._probe_count = 0
        pause = min(self.rto * (1 << min(self._probe_count, 20)), self.config.max_rto)
        self._loss_at = now + max(pause, self.config.min_rto)
        self._loss_kind = LOSS_TIMER_PERSIST
