"""Acknowledgements: the scoreboard, fast recovery (PRR), undo, time-outs and probes."""

from __future__ import annotations

import errno
from bisect import bisect_left
from typing import TYPE_CHECKING

from proxy.tcp.buffers import drop_front
from proxy.tcp.core import (
    CA_LOSS,
    CA_OPEN,
    CA_RECOVERY,
    INFINITE,
    LOSS_TIMER_OFF,
    LOSS_TIMER_PERSIST,
    LOSS_TIMER_RTO,
    LOSS_TIMER_TLP,
    MASK,
)
from proxy.tcp.events import Failure
from proxy.tcp.rack import DUP_THRESHOLD, HALF, Rack

if TYPE_CHECKING:
    from proxy.seg import Segment
    from proxy.tcp.transmission import Transmission

MAX_RECORDS = 8192
"""Records in flight beyond which SACK no longer splits them (CVE-2019-11478)."""


class Recovery(Rack):
    """What an arriving ACK does to the send side, and what silence does."""

    __slots__ = ()

    # -- one acknowledgement --------------------------------------------------------------------

    def _process_ack(self, seg: Segment, now: float) -> bool:
        """The ACK field of an acceptable segment; False: drop the rest of the segment."""
        ack = seg.ack
        una = self.snd_una
        advance = (ack - una) & MASK
        if advance > (self.snd_nxt - una) & MASK:
            behind = (una - ack) & MASK
            if behind < HALF and behind <= max(self.snd_max_wnd, 65535):
                return True  # an old ACK, overtaken on its way
            self._challenge_ack(now)  # RFC 5961 §5.2
            return False
        window_before = self.snd_wnd
        self._update_send_window(seg)
        if (
            advance
            and not seg.sack
            and self._ca_state == CA_OPEN
            and not self._sacked_bytes
            and self._tlp_end < 0
            and not self.rto_count
        ):
            self._advance(ack, advance, seg.ts_ecr, now)
        elif advance or seg.sack or self._ca_state != CA_OPEN or self._tlp_end >= 0:
            self._process_sack(seg, advance, now)
        if not self.sack_permitted and self._flight:
            self._newreno(advance, seg.length or self.snd_wnd != window_before, now)
        if not self.snd_wnd and self._stalled_since != INFINITE:
            self._stalled_since = now  # a peer that answers with a closed window is alive
        if self._loss_kind == LOSS_TIMER_PERSIST and self.snd_wnd > window_before:
            self._probe_count = 0
        if (self._unsent.size or self._lost_bytes or self._fin_queued) and (
            advance or self.snd_wnd > window_before or self._lost_bytes
        ):
            self._wake()
        return True

    def _advance(self, ack: int, advance: int, ts_ecr: int, now: float) -> None:
        """The common case: data in order was acknowledged and nothing is amiss."""
        in_flight = self.bytes_in_flight
        last = self._take_acked(ack)
        self.snd_una = ack
        self.bytes_in_flight = after = in_flight - advance
        self._delivered += advance
        self._delivered_at = now
        rtt = 0.0
        if last is not None:
            if last.retransmitted:
                rtt = self._echo_rtt(ts_ecr, now)
            else:
                sent_at = last.sent_at
                rtt = now - sent_at
                if sent_at >= self._rack_at:
                    self._rack_at = sent_at
                    self._rack_end = ack
                    self._rack_rtt = rtt
            self._rack_fack = ack
            self._sample_rate(last, now)
            if rtt > 0.0:
                self._on_rtt(rtt, now)
        self._progress(advance, now)
        congestion = self.congestion
        limited = (self._limited_until - ack + advance) & MASK
        if self.cwnd < self.ssthresh:
            app_limited = in_flight * 2 < self.cwnd and not 0 < limited < HALF
        else:
            app_limited = not 0 < limited < HALF
        congestion.on_ack(advance, rtt, now, after, app_limited)
        self._take_congestion_window()
        if self._flight:
            self._rto_at = now + self.rto
        self._schedule_loss_timer(now)
        self._on_acked(now)

    def _newreno(self, advance: int, busy: int | bool, now: float) -> None:
        """Fast retransmit and recovery for a peer without SACK (RFC 6582)."""
        if advance:
            self._dup_acks = 0
            repair = self._ca_state == CA_RECOVERY  # a partial ACK shows the next hole
        elif busy:
            return
        else:
            self._dup_acks += 1
            repair = self._dup_acks == DUP_THRESHOLD and self._ca_state == CA_OPEN
            if self._ca_state == CA_RECOVERY:
                self._prr(self._effective_mss, 0, False)
                self._wake()
        head = self._flight[0]
        if repair and not head.lost:
            if (head.end - head.seq - head.fin) & MASK > self._effective_mss:
                self._split(0, self._effective_mss)
                head = self._flight[0]
            self._mark_lost(head)
            if self._ca_state == CA_OPEN:
                self._enter_recovery(0, now)
                self._prr(DUP_THRESHOLD * self._effective_mss, 0, True)
            self._wake()

    def _take_acked(self, ack: int) -> Transmission | None:
        """Remove what lies left of ``ack`` from the flight; the last record touched."""
        flight = self._flight
        count = 0
        last = None
        for tx in flight:
            if (ack - tx.end) & MASK >= HALF:
                part = (ack - tx.seq) & MASK
                if part and part < HALF:
                    drop_front(tx.chunks, part)
                    tx.seq = ack
                    last = tx
                break
            last = tx
            count += 1
        if count:
            del flight[:count]
        return last

    def _echo_rtt(self, ts_ecr: int, now: float) -> float:
        """RTT by the timestamp echo, for data sent more than once (RFC 7323 §4.1); 0: none."""
        if ts_ecr <= 0 or not self.timestamps:
            return 0.0
        delta = ((int(now * 1000.0) + self._ts_offset) - ts_ecr) & MASK
        return max(delta, 1) / 1000.0 if delta < 600_000 else 0.0

    def _progress(self, advance: int, now: float) -> None:
        self.bytes_acked += advance
        self.rto_count = 0
        self.last_progress = now
        self._stalled_since = now if self._flight else INFINITE
        if self._fin_sent and self.snd_una == self.snd_nxt:
            self._fin_acked = True

    def _sample_rate(self, tx: Transmission, now: float) -> None:
        """Delivery rate by the draft-cheng-iccrg-delivery-rate-estimation."""
        interval = max(now - tx.delivered_at, tx.sent_at - tx.rate_sent_at)
        self._rate_sent_at = tx.sent_at
        if interval > 0.0 and interval >= self.min_rtt:
            rate = (self._delivered - tx.delivered) / interval
            if rate > self.delivery_rate or not tx.app_limited:
                self.delivery_rate = rate

    # -- the general case -----------------------------------------------------------------------

    def _process_sack(self, seg: Segment, advance: int, now: float) -> None:
        """An ACK while something is or may be missing."""
        ack = seg.ack
        ts_ecr = seg.ts_ecr if self.timestamps and seg.ts_val >= 0 else -1
        delivered_before = self._delivered
        in_flight = self.bytes_in_flight
        una = self.snd_una
        acked: list[Transmission] = []
        dsack = self._dsack_in(seg, una)
        original = False
        if advance:
            original = self._cumulative(ack, acked)
        for left, right in seg.sack:
            if (
                (left - self.snd_una) & MASK < HALF
                and 0 < (right - left) & MASK < HALF
                and (self.snd_nxt - right) & MASK < HALF
            ):
                self._mark_sacked(left, right, acked)
        rtt = self._rack_update(acked, ts_ecr, advance, now)
        for tx in acked:
            # Sent once, written off by the time-out, and yet delivered: RFC 5682 §3.
            if tx.lost:
                tx.lost = False
                if not tx.retransmitted:
                    original = True
        delivered = self._delivered - delivered_before
        if delivered:
            self._delivered_at = now
        if acked:
            self._sample_rate(acked[-1], now)
        if dsack:
            self._on_dsack(seg.sack[0], una)
        blackout = self.rto_count >= 2 and advance > 0
        if advance:
            self._progress(advance, now)
        self._tlp_on_ack(ack, advance, dsack, now)
        head = acked[0] if advance and acked and acked[0].seq == una else None
        self._try_undo(ts_ecr, advance, original, head)
        lost = self._rack_detect(now)
        self._next_state(advance, delivered, lost, blackout, rtt, in_flight, now)
        if advance:
            self._rto_at = now + self.rto if self._flight else INFINITE
        self._schedule_loss_timer(now)
        if advance:
            self._on_acked(now)

    def _dsack_in(self, seg: Segment, una: int) -> bool:
        """Does the first SACK block report a duplicate (RFC 2883 §4)?"""
        blocks = seg.sack
        if not blocks:
            return False
        left, right = blocks[0]
        if (seg.ack - right) & MASK < HALF and (seg.ack - left) & MASK < HALF:
            return True
        if len(blocks) > 1:
            outer_left, outer_right = blocks[1]
            return (left - outer_left) & MASK < HALF and (outer_right - right) & MASK < HALF
        return False

    def _cumulative(self, ack: int, acked: list[Transmission]) -> bool:
        """Remove what lies left of ``ack``; True if something lost by RTO arrived unaided."""
        flight = self._flight
        count = 0
        original = False
        for tx in flight:
            end = tx.end
            if (ack - end) & MASK >= HALF:
                part = (ack - tx.seq) & MASK
                if not part or part >= HALF:
                    break
                self._split(count, part)
            count += 1
            length = (tx.end - tx.seq) & MASK
            if tx.sacked:
                self._sacked_bytes -= length
                continue
            self._delivered += length
            if tx.lost:
                self._lost_bytes -= length
                if not tx.retransmitted:
                    original = True
            else:
                self.bytes_in_flight -= length
            acked.append(tx)
            if tx.end == ack:
                break
        if count:
            del flight[:count]
        self.snd_una = ack
        return original

    def _mark_sacked(self, left: int, right: int, acked: list[Transmission]) -> None:
        """Mark ``left`` to ``right`` as received; records are split at the edges."""
        flight = self._flight
        una = self.snd_una
        index = bisect_left(flight, (left - una) & MASK, key=lambda tx: (tx.end - una - 1) & MASK)
        right_offset = (right - una) & MASK
        left_offset = (left - una) & MASK
        while index < len(flight):
            tx = flight[index]
            start = (tx.seq - una) & MASK
            if start >= right_offset:
                return
            if tx.sacked:
                index += 1
                continue
            end = (tx.end - una) & MASK
            if start < left_offset or end > right_offset:
                if len(flight) >= MAX_RECORDS:
                    index += 1
                    continue
                if start < left_offset:
                    self._split(index, left_offset - start)
                    index += 1
                    continue
                self._split(index, right_offset - start)
                end = right_offset
            length = end - start
            if tx.lost:
                self._lost_bytes -= length
            else:
                self.bytes_in_flight -= length
            self._sacked_bytes += length
            self._delivered += length
            tx.sacked = True
            acked.append(tx)
            index = self._join_sacked(index) + 1

    def _rack_update(
        self, acked: list[Transmission], ts_ecr: int, advance: int, now: float
    ) -> float:
        """Tell RACK; the RTT of the newest record sent once, else by timestamp; 0: none."""
        newest = 0.0
        ambiguous = False
        for tx in acked:
            self._rack_delivered(tx, ts_ecr, now)
            if tx.retransmitted:
                # What follows a repaired hole may have waited behind it (Karn, RFC 6298 §3).
                ambiguous = True
            elif tx.sent_at > newest:
                newest = tx.sent_at
        rtt = now - newest if newest and not ambiguous else 0.0
        if ambiguous and advance:
            rtt = self._echo_rtt(ts_ecr, now)
        if rtt > 0.0:
            self._on_rtt(rtt, now)
        return rtt

    def _join_sacked(self, index: int) -> int:
        """Neighbours that were both received become one record, so that scans stay short."""
        flight = self._flight
        tx = flight[index]
        if index + 1 < len(flight) and flight[index + 1].sacked:
            after = flight.pop(index + 1)
            tx.chunks = tx.chunks + after.chunks
            tx.end = after.end
            tx.fin = after.fin
        if index and flight[index - 1].sacked:
            before = flight[index - 1]
            before.chunks += tx.chunks
            before.end = tx.end
            before.fin = tx.fin
            del flight[index]
            return index - 1
        return index

    # -- congestion states ----------------------------------------------------------------------

    def _next_state(
        self, advance: int, delivered: int, lost: bool, blackout: bool, rtt: float,
        prior_flight: int, now: float,
    ) -> None:  # fmt: skip
        una = self.snd_una
        congestion = self.congestion
        state = self._ca_state
        if state != CA_OPEN and (una - self._recovery_point) & MASK < HALF:
            self._leave_recovery()
            state = CA_OPEN
        if blackout:
            # Nothing at all came through for several RTOs: that was the path, not its queue.
            window = max(self._blackout_cwnd, congestion.initial_cwnd)
            congestion.restore(congestion.initial_cwnd, window)
            self._take_congestion_window()
        if state == CA_OPEN:
            if self._lost_bytes:
                self._enter_recovery(delivered, now)
                self._prr(delivered, advance, lost)
            elif delivered:
                limited = (self._limited_until - una + advance) & MASK
                app_limited = not 0 < limited < HALF and (
                    self.cwnd >= self.ssthresh or prior_flight * 2 < self.cwnd
                )
                congestion.on_ack(delivered, rtt, now, self.bytes_in_flight, app_limited)
                self._take_congestion_window()
        elif state == CA_RECOVERY:
            self._prr(delivered, advance, lost)
        elif delivered and not blackout:
            congestion.on_ack(delivered, rtt, now, self.bytes_in_flight, False)
            self._take_congestion_window()

    def _enter_recovery(self, delivered: int, now: float) -> None:
        """The first loss of a window (RFC 6675 §5, RFC 6937)."""
        self._ca_state = CA_RECOVERY
        self._recovery_point = self.snd_nxt
        self._undo_marker = self.snd_una
        self._undo_bytes = 0
        self._undo_sent = False
        self._tlp_end = -1
        self._prr_delivered = self._prr_out = 0
        self._prr_flight = ((self.snd_nxt - self.snd_una) & MASK) - self._sacked_bytes + delivered
        self._blackout_cwnd = max(self.congestion.cwnd, self._blackout_cwnd)
        self.congestion.on_congestion(now)
        self._take_congestion_window()
        self.counters.add("TCPSackRecovery")

    def _prr(self, delivered: int, advance: int, lost: bool) -> None:
        """Proportional rate reduction (RFC 6937 §3, with the safe bound of its revision)."""
        self._prr_delivered += delivered
        pipe = self.bytes_in_flight
        ssthresh = self.ssthresh
        mss = self._effective_mss
        if pipe > ssthresh:
            flight = max(self._prr_flight, 1)
            count = -(-self._prr_delivered * ssthresh // flight) - self._prr_out
        else:
            count = max(self._prr_delivered - self._prr_out, delivered)
            if advance and not lost:
                count += mss
            count = min(count, ssthresh - pipe)
        if not self._prr_out:
            count = max(count, mss)  # the first retransmission goes at once
        self.cwnd = pipe + max(count, 0)

    def _leave_recovery(self) -> None:
        if self._ca_state == CA_RECOVERY:
            self._take_congestion_window()
        self._ca_state = CA_OPEN
        self._rack_adapt(self.snd_una, True)
        self._blackout_cwnd = 0

    def _on_dsack(self, block: tuple[int, int], una: int) -> None:
        self._rack_on_dsack(una)
        self._rack_adapt(una, False)
        self.counters.add("TCPDSACKRecv")
        if self._undo_marker >= 0 and (block[0] - self._undo_marker) & MASK < HALF:
            self._undo_bytes -= (block[1] - block[0]) & MASK

    def _try_undo(
        self, ts_ecr: int, advance: int, original: bool, head: Transmission | None
    ) -> None:
        """Take back a reduction that was not due (RFC 5682, RFC 3522, RFC 3708)."""
        if self._undo_marker < 0:
            return
        eifel = False
        if head is not None and head.retransmitted == 1 and ts_ecr > 0:
            # RFC 3522: what filled the hole was sent before its retransmission.
            again = (int(head.sent_at * 1000.0) + self._ts_offset) & MASK
            eifel = (ts_ecr - again) & MASK >= HALF and self._ca_state != CA_OPEN
        frto = self._ca_state == CA_LOSS and original and advance > 0 and self.sack_permitted
        dsack = self._undo_bytes <= 0 and self._undo_sent
        if not (eifel or frto or dsack):
            if self._ca_state == CA_OPEN and not self._undo_bytes:
                self._undo_marker = -1
            return
        self._undo_marker = -1
        for tx in self._flight:
            if tx.lost:
                tx.lost = False
                length = (tx.end - tx.seq) & MASK
                self._lost_bytes -= length
                self.bytes_in_flight += length
        self.congestion.on_undo()
        self._ca_state = CA_OPEN
        self._take_congestion_window()
        self.counters.add("TCPSpuriousRTOs" if frto else "TCPDSACKUndo" if dsack else "TCPFullUndo")

    # -- tail loss probe ------------------------------------------------------------------------

    def _tlp_on_ack(self, ack: int, advance: int, dsack: bool, now: float) -> None:
        """Was the probe needed (RFC 8985 §7.4.2)?"""
        end = self._tlp_end
        if end < 0 or (ack - end) & MASK >= HALF:
            return
        if not self._tlp_is_retransmission or dsack:
            self._tlp_end = -1
        elif ack != end:
            # The probe repaired a loss: that is a congestion signal like any other.
            self._tlp_end = -1
            if self._ca_state == CA_OPEN:
                self.congestion.on_congestion(now)
                self._take_congestion_window()
                self.counters.add("TCPLossProbeRecovery")
        elif not advance:
            self._tlp_end = -1  # both the original and the probe arrived

    def _send_tail_probe(self, now: float) -> None:
        """Two round trips of silence: repeat the tail, or send something new (RFC 8985 §7.3)."""
        flight = self._flight
        mss = self._effective_mss
        window = self.snd_wnd - ((self.snd_nxt - self.snd_una) & MASK)
        count = min(self._unsent.size, mss, self._segment_limit(self.snd_nxt))
        self.counters.add("TCPLossProbes")
        if 0 < count <= window:
            self._tlp_is_retransmission = False
            self._send_one(count, now)
        else:
            self._tlp_is_retransmission = True
            tail = len(flight) - 1
            tx = flight[tail]
            length = (tx.end - tx.seq - tx.fin) & MASK
            if length > mss:
                self._split(tail, length - mss)
                tail += 1
            marker, self._undo_marker = self._undo_marker, -1
            self._retransmit(tail, mss, now)
            tx = flight[tail]
            # It was in the pipe already and still is: _retransmit counts only what was lost.
            self._undo_marker = marker
        self._tlp_end = self.snd_nxt
        self._rto_at = now + self.rto
        self._schedule_loss_timer(now)
        self._on_probe(now)

    # -- timers ---------------------------------------------------------------------------------

    def _on_loss_timer(self, now: float) -> None:
        kind = self._loss_kind
        self._loss_at = INFINITE
        self._loss_kind = LOSS_TIMER_OFF
        if kind == LOSS_TIMER_TLP and self._flight:
            self._send_tail_probe(now)
        elif kind == LOSS_TIMER_RTO and self._flight:
            self._on_retransmission_timeout(now)
        elif kind == LOSS_TIMER_PERSIST:
            self._on_persist_timeout(now)

    def _given_up(self, now: float) -> bool:
        """No progress for longer than the settings allow (RFC 9293 §3.8.3)."""
        config = self.config
        limit = config.user_timeout
        if limit is None:
            limit = give_up_after(config.retries, config.min_rto, config.max_rto)
        if now - self._stalled_since < limit:
            return False
        self._die(Failure(errno.ETIMEDOUT), now)
        return True

    def _on_retransmission_timeout(self, now: float) -> None:
        """RFC 6298 §5.4-5.6, RFC 8985 §6.3."""
        if self._given_up(now):
            return
        congestion = self.congestion
        if not self.rto_count:
            self._blackout_cwnd = max(congestion.cwnd, self._blackout_cwnd)
            if self._ca_state != CA_LOSS:
                self._undo_marker = self.snd_una
                self._undo_bytes = 0
                self._undo_sent = False
                congestion.on_rto(now)
            else:
                self._undo_marker = -1
        self.rto_count += 1
        self.counters.add("TCPTimeouts")
        self._ca_state = CA_LOSS
        self._recovery_point = self.snd_nxt
        self._tlp_end = -1
        self._reorder_at = INFINITE
        self._mark_timed_out(now)
        mss = self._effective_mss
        congestion.cwnd = mss
        self._take_congestion_window()
        self.cwnd = self.bytes_in_flight + mss
        self._pace_next = 0.0
        self._pace_at = INFINITE
        self._rto_at = now + self._current_rto()
        self._schedule_loss_timer(now)
        self._on_rto(now)
        self._wake()

    def _mark_timed_out(self, now: float) -> None:
        """The head is lost, and so is all that was sent as long ago as a round trip."""
        flight = self._flight
        if flight[0].sacked:  # the peer went back on its word (RFC 2018 §8)
            self.counters.add("TCPSACKReneging")
            for tx in flight:
                if tx.sacked:
                    tx.sacked = False
                    self.bytes_in_flight += (tx.end - tx.seq) & MASK
            self._sacked_bytes = 0
        oldest = now - self._rack_rtt - self._rack_window()
        for index, tx in enumerate(flight):
            if not tx.sacked and not tx.lost and (not index or tx.sent_at <= oldest):
                self._mark_lost(tx)

    def _resend_without_blame(self) -> None:
        """Lost records are to be sent again though nothing speaks of congestion (path MTU)."""
        if self._ca_state == CA_OPEN:
            self._ca_state = CA_LOSS
            self._recovery_point = self.snd_nxt
            self._undo_marker = self._tlp_end = -1

    def _on_reorder_timer(self, now: float) -> None:
        """What was only late is lost now (RFC 8985 §6.3)."""
        if self._rack_detect(now):
            if self._ca_state == CA_OPEN:
                self._enter_recovery(0, now)
            if self._ca_state == CA_RECOVERY:
                self._prr(0, 0, True)
            self._schedule_loss_timer(now)
            self._wake()

    def _on_persist_timeout(self, now: float) -> None:
        """The window is shut: ask (RFC 9293 §3.8.6.1). A silent peer is given up in the end."""
        if self._stalled_since == INFINITE:
            self._stalled_since = now
        if self._given_up(now):
            return
        if self._flight or not (self._unsent.size or self._fin_queued):
            return
        self._probe_count += 1
        self.counters.add("TCPWinProbe")
        window = self.snd_wnd
        if window > 0 and self._unsent.size:
            # Small but open: the sender's silly window rule has waited long enough.
            self._send_one(min(window, self._unsent.size, self._segment_limit(self.snd_nxt)), now)
            self._schedule_loss_timer(now)
            return
        self._send_probe_ack(now)
        self._loss_kind = LOSS_TIMER_PERSIST
        self._schedule_loss_timer(now)


def give_up_after(retries: int, min_rto: float, max_rto: float) -> float:
    """Seconds that ``retries`` retransmissions with back-off take (Linux: tcp_retries2)."""
    doublings = 0
    while min_rto * (2 << doublings) <= max_rto:
        doublings += 1
    if retries <= doublings:
        return ((2 << retries) - 1) * min_rto
    return ((2 << doublings) - 1) * min_rto + (retries - doublings) * max_rto
