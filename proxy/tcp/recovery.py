"""Acknowledgements: congestion states, fast recovery (PRR), undo, tail loss probes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.cc.base import create
from proxy.tcp.chronograph import Limited
from proxy.tcp.core import (
    CA_LOSS,
    CA_OPEN,
    CA_RECOVERY,
    INFINITE,
    LOSS_TIMER_PERSIST,
    MASK,
)
from proxy.tcp.path_mtu import PathMtu
from proxy.tcp.rack import DUP_THRESHOLD, HALF

if TYPE_CHECKING:
    from proxy.cc.sample import Sample
    from proxy.seg import Segment
    from proxy.tcp.transmission import Transmission

MAX_RECORDS = 8192
"""Records in flight beyond which SACK no longer splits them (CVE-2019-11478)."""


class Recovery(PathMtu):
    """What an arriving ACK does to the send side."""

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
        if seg.sack and not self.sack_permitted:
            seg.sack = ()
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
            busy = seg.length > 0 or seg.has_mptcp or self.snd_wnd != window_before
            self._newreno(advance, busy, now)
        if advance and self._mtu_probe is not None:
            self._judge_probe(now)
        if not self.snd_wnd and self._stalled_since != INFINITE:
            self._stalled_since = now  # a peer that answers with a closed window is alive
        if self._loss_kind == LOSS_TIMER_PERSIST and self.snd_wnd > window_before:
            self._probe_count = 0
        if (self._unsent.size or self._lost_bytes or self._fin_queued) and (
            advance or seg.sack or self.snd_wnd > window_before or self._lost_bytes
        ):
            self._wake()
        elif self._loss_at < self._armed_at or self._reorder_at < self._armed_at:
            self._arm(now)  # nothing to send, but a timer is due earlier now
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
        if congestion.sample is not None:
            self._tell_model(congestion.sample, advance, 0 < limited < HALF, rtt, now)
        else:
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

    def _newreno(self, advance: int, busy: bool, now: float) -> None:
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

    def _progress(self, advance: int, now: float) -> None:
        self.bytes_acked += advance
        if self.rto_count:
            self.rto_count = 0
            self.turn(Limited.NOTHING, now)
        self.last_progress = now
        if self._flight:
            self._stalled_since = now
        else:
            self._busy_time += now - self._busy_since
            self._stalled_since = self._busy_since = INFINITE
        if self._fin_sent and self.snd_una == self.snd_nxt:
            self._fin_acked = True

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
        rtt = self._rack_update(acked, seg, advance, dsack, now)
        if acked and self._take_delivered(acked, now):
            original = True
        delivered = self._delivered - delivered_before
        if dsack:
            self._on_dsack(seg.sack[0], una)
        blackout = self.rto_count >= 2 and advance > 0
        if advance:
            self._progress(advance, now)
        self._tlp_on_ack(ack, advance, dsack, now)
        head = acked[0] if advance and acked and acked[0].seq == una else None
        if not blackout:  # whose RTOs were right, whatever was delivered before it
            self._try_undo(ts_ecr, advance, original, head)
        lost = self._rack_detect(now)
        if lost:
            self._on_loss(now)
        if self._mtu_probe is not None:
            self._judge_probe(now)
        self._next_state(advance, delivered, lost, blackout, rtt, in_flight, now)
        if advance:
            self._rto_at = now + self.rto if self._flight else INFINITE
        self._schedule_loss_timer(now)
        if advance:
            self._on_acked(now)

    def _take_delivered(self, acked: list[Transmission], now: float) -> bool:
        """A sample of the rate; True: something sent once was delivered after it was written off.

        By a time-out, that is: it came too early (RFC 5682 §3).
        """
        self._delivered_at = now
        original = False
        newest = acked[-1]
        for tx in acked:
            if tx.lost:
                tx.lost = False
                if not tx.retransmitted:
                    original = True
            if tx.delivered > newest.delivered:
                newest = tx
        self._sample_rate(newest, now)
        return original

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
        if congestion.sample is not None:
            if state == CA_OPEN and self._lost_bytes:
                self._enter_recovery(delivered, now)
            limited = (self._limited_until - una + advance) & MASK
            self._tell_model(congestion.sample, delivered, 0 < limited < HALF, rtt, now)
        elif state == CA_OPEN:
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

    def _tell_model(
        self, sample: Sample, delivered: int, limited: bool, rtt: float, now: float
    ) -> None:
        """One ACK for a congestion control that keeps a model of the path."""
        if not delivered:
            sample.prior = -1
            sample.rate = 0.0
        sample.acked = delivered
        sample.lost = self._lost_total - self._lost_told
        self._lost_told = self._lost_total
        sample.rtt = rtt
        sample.in_flight = self.bytes_in_flight
        sample.delivered = self._delivered
        sample.recovering = self._ca_state != CA_OPEN
        sample.limited = limited
        self.congestion.on_delivery(sample, now)
        self._take_congestion_window()

    def set_congestion_control(self, name: str, now: float) -> None:
        """Go on under another control with the window that there is; KeyError if unknown.

        A repair that is under way is finished in the manner of the new one.
        """
        old = self.congestion
        if old.name == name:
            return
        new = create(name, old.mss, old.initial_cwnd)
        cwnd, ssthresh = old.handover()
        least = 0.0 if self.min_rtt == INFINITE else self.min_rtt
        new.take_over(cwnd, ssthresh, self.srtt, least, self.delivery_rate)
        old.release()
        self.congestion = new
        self._lost_told = self._lost_total
        if self._ca_state == CA_OPEN or new.sample is not None:
            self._take_congestion_window()
        else:
            self.ssthresh = new.ssthresh
        self._wake()

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
        if not self.ecn or self.bytes_acked >= self._reduced_at:
            self.congestion.on_congestion(now)  # else a mark has said so in this window already
        self._reduced_at = self.bytes_sent
        self._cwr_due = True
        self._take_congestion_window()
        self.counters.add("TCPSackRecovery")

    def _prr(self, delivered: int, advance: int, lost: bool) -> None:
        """Proportional rate reduction (RFC 6937 §3, with the safe bound of its revision)."""
        if self.congestion.sample is not None:
            self._take_congestion_window()
            return
        if not delivered and self._prr_out:
            # Nothing arrived (tcp_cwnd_reduction): what an ACK of the same batch allowed stays.
            return
        self._prr_delivered += delivered
        pipe = self.bytes_in_flight
        ssthresh = self.ssthresh
        mss = self._effective_mss
        out = self._prr_out + self.bytes_sent - self._reduced_at  # sent again, and new
        if pipe > ssthresh:
            flight = max(self._prr_flight, 1)
            count = -(-self._prr_delivered * ssthresh // flight) - out
        else:
            count = max(self._prr_delivered - out, delivered)
            if advance and not lost:
                # By bytes (RFC 3465), for one ACK stands for many segments: slow start.
                count += max(mss, delivered)
            count = min(count, ssthresh - pipe)
        if not self._prr_out:
            count = max(count, mss)  # the first retransmission goes at once
        self.cwnd = max(pipe + count, pipe, mss)

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
