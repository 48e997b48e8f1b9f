"""RACK: time-based loss detection (RFC 8985 §6)."""

from __future__ import annotations

from proxy.tcp.core import CA_OPEN, INFINITE, MASK
from proxy.tcp.output import Output
from proxy.tcp.transmission import Transmission

HALF = 0x80000000
DUP_THRESHOLD = 3
MIN_RTT_WINDOW = 300.0


class Rack(Output):
    """RTT estimation, and who is lost given what was delivered."""

    __slots__ = ()

    def _on_rtt(self, rtt: float, now: float) -> None:
        """One RTT sample in seconds (RFC 6298 §2; the floor of the variance is Linux')."""
        if rtt < self.min_rtt or now - self._min_rtt_at > MIN_RTT_WINDOW:
            self.min_rtt = rtt
            self._min_rtt_at = now
        srtt = self.srtt
        if self._rtt_provisional:
            self._rtt_provisional = False
            if rtt < srtt:
                srtt = 0.0  # a proxy answers a SYN late: the first sample of data replaces that
        if srtt:
            delta = rtt - srtt
            self.srtt = srtt = srtt + 0.125 * delta
            var = self.rttvar
            self.rttvar = var = var + 0.25 * ((delta if delta > 0.0 else -delta) - var)
        else:
            self.srtt = srtt = rtt if rtt > 1e-6 else 1e-6
            self.rttvar = var = rtt / 2.0
        floor = self.config.min_rto
        var *= 4.0
        self.rto = srtt + (var if var > floor else floor)

    def _rack_delivered(self, tx: Transmission, ts_ecr: int, now: float) -> None:
        """``tx`` was newly acknowledged or SACKed (RFC 8985 §6.2 steps 1-3)."""
        end = tx.end
        if tx.retransmitted:
            # Which copy was it? Not the last one if the echo is older, or if it came too soon. But
            # behind a hole the echo stands still and tells nothing (RFC 7323 §4.3).
            if ts_ecr >= 0 and not tx.sacked:
                sent_ts = (int(tx.sent_at * 1000.0) + self._ts_offset) & MASK
                if (ts_ecr - sent_ts) & HALF:
                    return
            if now - tx.sent_at < self.min_rtt:
                return
        else:
            ahead = (end - self._rack_fack) & MASK
            if ahead < HALF:
                self._rack_fack = end
            elif not self._rack_reordering:
                self._rack_reordering = True
                self.counters.add("TCPSACKReorder")
        sent_at = tx.sent_at
        if sent_at > self._rack_at or (
            sent_at == self._rack_at and (end - self._rack_end) & MASK < HALF
        ):
            self._rack_at = sent_at
            self._rack_end = end
            self._rack_rtt = now - sent_at

    def _rack_window(self) -> float:
        """The time that a segment may be overtaken (RFC 8985 §6.2 step 4)."""
        if not self._rack_reordering and (
            self._ca_state != CA_OPEN or self._sacked_bytes >= DUP_THRESHOLD * self._effective_mss
        ):
            return 0.0
        min_rtt = self.min_rtt
        if min_rtt == INFINITE:
            return 0.0
        window = self._rack_mult * min_rtt / 4.0
        return window if window < self.srtt else self.srtt

    def _rack_on_dsack(self, una: int) -> None:
        """A DSACK: the window was too small; widen it once per round trip."""
        if (una - self._rack_round) & MASK < HALF:
            self._rack_dsack = True

    def _rack_adapt(self, una: int, left_recovery: bool) -> None:
        if self._rack_dsack:
            self._rack_dsack = False
            self._rack_round = self.snd_nxt
            self._rack_mult = min(self._rack_mult + 1, 64)
            self._rack_persist = 16
        elif left_recovery:
            self._rack_persist -= 1
            if self._rack_persist <= 0:
                self._rack_mult = 1

    def _rack_detect(self, now: float) -> bool:
        """Mark what was sent long enough before something delivered; True: something was.

        Arms the reordering timer for what is not yet old enough.
        """
        self._reorder_at = INFINITE
        newest = self._rack_at
        if not newest or not self.sack_permitted:
            return False
        newest_end = self._rack_end
        window = self._rack_window()
        patience = self._rack_rtt + window
        pause = 0.0
        found = False
        for tx in self._flight:
            if tx.sacked or tx.lost:
                continue
            sent_at = tx.sent_at
            if sent_at > newest or (sent_at == newest and (newest_end - tx.end) & MASK >= HALF):
                if not tx.retransmitted:
                    break  # what follows was sent later still (or again, and then later too)
                continue
            if tx.end == newest_end and sent_at == newest:
                continue
            remaining = sent_at + patience - now
            if remaining <= 1e-6:
                self._mark_lost(tx)
                found = True
            elif remaining > pause:
                pause = remaining
        if pause:
            self._reorder_at = now + pause
        return found

    def _mark_lost(self, tx: Transmission) -> None:
        length = (tx.end - tx.seq) & MASK
        tx.lost = True
        self._lost_bytes += length
        self.bytes_in_flight -= length
        self._lost_total = total = self._lost_total + length
        congestion = self.congestion
        if congestion.sample is not None:
            congestion.on_lost(
                length, tx.in_flight, total - tx.lost_before, tx.app_limited, tx.delivered
            )
