"""What silence does: retransmission time-out, reordering timer, zero-window probes, giving up."""

from __future__ import annotations

import errno

from proxy.tcp.chronograph import Limited
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
from proxy.tcp.ecn import Ecn
from proxy.tcp.events import Failure


class Timeouts(Ecn):
    """Timers of the send side."""

    __slots__ = ()

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
                self._reduced_at = self.bytes_sent
                self._cwr_due = True
            else:
                self._undo_marker = -1
        self.rto_count += 1
        self.turn(Limited.SILENCE, now)
        self.counters.add("TCPTimeouts")
        self._ca_state = CA_LOSS
        self._recovery_point = self.snd_nxt
        self._tlp_end = -1
        self._reorder_at = INFINITE
        self._mark_timed_out(now)
        if self._mtu_probe is not None:
            self._judge_probe(now)
        if self.config.mtu_probing and self._flight[0].retransmitted:
            self._suspect_black_hole(now)
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

    def _on_reorder_timer(self, now: float) -> None:
        """What was only late is lost now (RFC 8985 §6.3)."""
        if self._rack_detect(now):
            self._on_loss(now)
            if self._mtu_probe is not None:
                self._judge_probe(now)
            if self._ca_state == CA_OPEN:
                self._enter_recovery(0, now)
            if self._ca_state == CA_RECOVERY:
                self._prr(0, 0, True)
            self._schedule_loss_timer(now)
            self._wake()

    def _on_persist_timeout(self, now: float) -> None:
        """The window is shut: ask (RFC 9293 §3.8.6.1). A silent peer is given up in the end."""
        if self._stalled_since == INFINITE:
            self._stalled_since = self._busy_since = now
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
