"""The scoreboard: which records in flight an acknowledgement covers (RFC 2018, RFC 6675)."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from proxy.tcp.buffers import drop_front
from proxy.tcp.core import MASK
from proxy.tcp.rack import HALF, Rack

if TYPE_CHECKING:
    from proxy.seg import Segment
    from proxy.tcp.transmission import Transmission

MAX_RECORDS = 8192
"""Records in flight beyond which SACK no longer splits them (CVE-2019-11478)."""


class Scoreboard(Rack):
    """Bookkeeping over ``_flight``: records in sequence order, each in the pipe, sacked or lost."""

    __slots__ = ()

    def _take_acked(self, ack: int) -> Transmission | None:
        """Remove what lies left of ``ack`` from the flight.

        Returns the last record touched, or one that was retransmitted if there is any: what was
        received behind a hole says nothing of the RTT when the hole is filled (Karn).
        """
        flight = self._flight
        count = 0
        last = again = None
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
            if tx.retransmitted:
                again = tx
        if count:
            del flight[:count]
        return last if again is None else again

    def _echo_is_fresh(self, head: Transmission, ts_ecr: int, dsack: bool, data: bool) -> bool:
        """May the echo be taken as an RTT though ``head`` was retransmitted?

        If it is that of the original, either the path was slow, or the first ACK was lost and
        then the time says nothing: a duplicate is reported, or cannot be for want of SACK. An ACK
        on ``data`` is no answer to what was sent again: the data has waited for its own time-out.
        """
        if dsack:
            return False
        if not head.retransmitted or (self.sack_permitted and not data):
            return True
        again = (int(head.sent_at * 1000.0) + self._ts_offset) & MASK
        return (ts_ecr - again) & MASK < HALF

    def _echo_rtt(self, ts_ecr: int, now: float) -> float:
        """RTT by the timestamp echo, for data sent more than once (RFC 7323 §4.1); 0: none."""
        if ts_ecr <= 0 or not self.timestamps:
            return 0.0
        delta = ((int(now * 1000.0) + self._ts_offset) - ts_ecr) & MASK
        return max(delta, 1) / 1000.0 if delta < 600_000 else 0.0

    def _sample_rate(self, tx: Transmission, now: float) -> None:
        """Delivery rate by the draft-cheng-iccrg-delivery-rate-estimation."""
        interval = max(now - tx.delivered_at, tx.sent_at - tx.rate_sent_at)
        self._rate_sent_at = tx.sent_at
        rate = 0.0
        if interval > 0.0 and interval >= self.min_rtt:
            rate = (self._delivered - tx.delivered) / interval
            if rate > self.delivery_rate or not tx.app_limited:
                self.delivery_rate = rate
        sample = self.congestion.sample
        if sample is not None:
            sample.rate = rate
            sample.prior = tx.delivered
            sample.app_limited = tx.app_limited
            sample.tx_in_flight = tx.in_flight
            sample.tx_lost = self._lost_total - tx.lost_before

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

    def _rack_update(
        self, acked: list[Transmission], seg: Segment, advance: int, dsack: bool, now: float
    ) -> float:
        """Tell RACK; the RTT of the newest record sent once, else by timestamp; 0: none."""
        ts_ecr = seg.ts_ecr if self.timestamps and seg.ts_val >= 0 else -1
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
        if ambiguous and advance and self._echo_is_fresh(acked[0], ts_ecr, dsack, seg.length > 0):
            rtt = self._echo_rtt(ts_ecr, now)
        if rtt > 0.0:
            self._on_rtt(rtt, now)
        return rtt
