"""BBR's model of the path: bandwidth, round trip, aggregation of ACKs, and what is safe.

After BBR version 3 (draft-ietf-ccwg-bbr, and Linux' tcp_bbr.c of Google's v3 branch); the names
of methods follow the draft's functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.cc.sample import Sample

INFINITE = 1 << 60
NO_LIMIT = float("inf")

LOSS_THRESHOLD = 0.02
MIN_LOST_SEGMENTS = 3
BETA = 0.7
HEADROOM = 0.15
MIN_PIPE_SEGMENTS = 4
MIN_RTT_WINDOW = 10.0
PROBE_RTT_INTERVAL = 5.0
EXTRA_ACKED_ROUNDS = 5  # two windows of these


class BbrModel:
    """Estimates from delivery samples. Bytes, seconds, bytes per second.

    ``max_bw``: most of the last two probing cycles. ``bw_lo``, ``inflight_lo``: bounds since the
    last probe, where there was loss. ``inflight_hi``: more than this in flight means loss.
    """

    __slots__ = (
        "_bw", "_extra", "_extra_delivered", "_extra_round", "_extra_since", "_loss_round_at",
        "_lost_in_round", "_min_rtt_at", "_next_round_at", "_probe_end", "_round_delivered",
        "bw_latest", "bw_lo", "delivered", "extra_acked", "inflight_hi", "inflight_latest",
        "inflight_lo",
        "loss_events", "loss_round_start", "max_bw", "min_rtt", "mss", "probe_rtt_at",
        "probe_rtt_expired", "probe_rtt_min", "round_count", "round_start",
    )  # fmt: skip

    def __init__(self, mss: int) -> None:
        self.mss = mss
        self._bw = [0.0, 0.0]  # the finished cycle, the current one
        self.max_bw = 0.0
        self.bw_latest = 0.0
        self.inflight_latest = 0
        self.inflight_hi = INFINITE
        self.reset_lower_bounds()
        # rounds: one is over when all that was in flight at its start is delivered
        self.delivered = 0
        self.round_count = 0
        self.round_start = False
        self._next_round_at = 0
        self.loss_round_start = False
        self._loss_round_at = 0
        self._lost_in_round = 0
        self._probe_end = -1
        self._round_delivered = 0
        self.loss_events = 0
        # the least delay
        self.min_rtt = NO_LIMIT
        self._min_rtt_at = 0.0
        self.probe_rtt_min = NO_LIMIT
        self.probe_rtt_at = 0.0
        self.probe_rtt_expired = False
        # ACKs that come in heaps
        self.extra_acked = 0
        self._extra = [0, 0]
        self._extra_round = 0
        self._extra_since = 0.0
        self._extra_delivered = 0

    # -- questions ------------------------------------------------------------------------------

    @property
    def bw(self) -> float:
        """What the path carries, as far as is known; 0: nothing is."""
        return self.max_bw if self.max_bw < self.bw_lo else self.bw_lo

    def bdp(self, bw: float) -> float:
        """Bytes that fill a pipe of that bandwidth; infinite without an RTT sample."""
        return bw * self.min_rtt if self.min_rtt != NO_LIMIT else NO_LIMIT

    @property
    def min_pipe(self) -> int:
        """The least window with which a delayed ACK does not stop everything."""
        return MIN_PIPE_SEGMENTS * self.mss

    def inflight_with_headroom(self) -> int:
        """Room below ``inflight_hi`` for other flows to come in."""
        high = self.inflight_hi
        if high == INFINITE:
            return INFINITE
        return max(high - max(self.mss, int(high * HEADROOM)), self.min_pipe)

    def too_high(self, tx_in_flight: int, tx_lost: int) -> bool:
        """Did that much in flight lose too much?

        DEVIATION from the draft: less than three segments prove nothing. Of a window of 50, one
        segment lost at random is the 2 % that count as congestion.
        """
        return tx_lost >= MIN_LOST_SEGMENTS * self.mss and tx_lost > LOSS_THRESHOLD * tx_in_flight

    # -- one ACK --------------------------------------------------------------------------------

    def update(self, sample: Sample, probing: bool, now: float) -> None:
        """Everything but the decisions; ``probing``: the state means to find the limits."""
        self.delivered = sample.delivered
        prior = sample.prior
        self.round_start = self.loss_round_start = False
        if prior >= 0:
            if prior >= self._next_round_at:
                self.start_round()
                self.round_count += 1
                self.round_start = True
            rate = sample.rate
            if rate > self.bw_latest:
                self.bw_latest = rate
            carried = sample.delivered - prior
            if carried > self.inflight_latest:
                self.inflight_latest = carried
            if prior >= self._loss_round_at:
                self._loss_round_at = sample.delivered
                self.loss_round_start = True
            if rate and (rate >= self.max_bw or not sample.app_limited):
                self._take_bandwidth(rate)
        if self.loss_round_start and not probing:
            self._adapt_lower_bounds()
        self._update_min_rtt(sample.rtt, now)

    def finish(self, sample: Sample) -> None:
        """After the decisions: the latest signals begin anew with each loss round."""
        if self.loss_round_start:
            self.bw_latest = sample.rate
            self.inflight_latest = sample.delivered - sample.prior
            self._lost_in_round = 0
            self.loss_events = 0
            self._round_delivered = sample.delivered

    def note_lost(self, length: int, prior: int) -> None:
        """Bytes are lost that were sent when ``prior`` bytes were delivered.

        DEVIATION from the draft, which counts losses when they are found: those of the last round
        of a probe would be held against the rate after it, and bound it until the next probe.
        """
        self.loss_events += 1
        if prior > self._probe_end:
            self._lost_in_round += length

    def end_probe(self) -> None:
        """What was sent up to now was sent to find the limits."""
        self._probe_end = self.delivered
        self._lost_in_round = 0

    def high_loss_round(self) -> bool:
        """A round has just ended and lost more than a link's noise."""
        carried = self.delivered - self._round_delivered
        return (
            self.loss_round_start
            and self._lost_in_round >= MIN_LOST_SEGMENTS * self.mss
            and self._lost_in_round > LOSS_THRESHOLD * (carried + self._lost_in_round)
        )

    def start_round(self) -> None:
        """A round begins with what is delivered now."""
        self._next_round_at = self.delivered

    # -- bandwidth ------------------------------------------------------------------------------

    def _take_bandwidth(self, rate: float) -> None:
        bw = self._bw
        if rate > bw[1]:
            bw[1] = rate
            self.max_bw = bw[0] if bw[0] > rate else rate

    def advance_max_bw_filter(self) -> None:
        """A cycle is over: the one before last is forgotten."""
        if self._bw[1]:
            self._bw = [self._bw[1], 0.0]
            self.max_bw = self._bw[0]

    def seed(self, rate: float, min_rtt: float) -> None:
        """What another control has seen."""
        if rate > 0.0:
            self._take_bandwidth(rate)
        if 0.0 < min_rtt < NO_LIMIT:
            self.probe_rtt_min = self.min_rtt = min_rtt

    # -- bounds ---------------------------------------------------------------------------------

    def reset_lower_bounds(self) -> None:
        """No bound in the short term."""
        self.bw_lo = NO_LIMIT
        self.inflight_lo = INFINITE

    def reset_congestion_signals(self) -> None:
        """Forget the latest round."""
        self._lost_in_round = 0
        self.loss_events = 0
        self.bw_latest = 0.0
        self.inflight_latest = 0

    def bound_inflight(self, in_flight: int, factor: float) -> None:
        """What is in flight now, or fills the pipe at the least, is too much by ``factor``."""
        now = max(in_flight, int(min(self.bdp(self.bw), INFINITE)))
        self.inflight_lo = max(int(min(self.inflight_lo, now) * factor), self.min_pipe)

    def _adapt_lower_bounds(self) -> None:
        # DEVIATION from the draft, which reacts to any loss of a round: at 1 % of random loss each
        # round has one, and the bounds would shrink round by round until the next probe. Loss
        # below the threshold is taken for noise here, as it is for `inflight_hi`.
        if not self.high_loss_round():
            return
        if self.bw_lo == NO_LIMIT:
            self.bw_lo = self.max_bw
        if self.inflight_lo == INFINITE:
            self.inflight_lo = int(min(self.bdp(self.max_bw) * 2.0, self.inflight_hi, INFINITE))
        self.bw_lo = max(self.bw_latest, self.bw_lo * BETA)
        self.inflight_lo = max(self.inflight_latest, int(self.inflight_lo * BETA))

    # -- delay ----------------------------------------------------------------------------------

    def _update_min_rtt(self, rtt: float, now: float) -> None:
        if not self.probe_rtt_at:
            self.probe_rtt_at = self._min_rtt_at = now
        self.probe_rtt_expired = now > self.probe_rtt_at + PROBE_RTT_INTERVAL
        if rtt > 0.0 and (rtt < self.probe_rtt_min or self.probe_rtt_expired):
            self.probe_rtt_min = rtt
            self.probe_rtt_at = now
        if self.probe_rtt_min < self.min_rtt or now > self._min_rtt_at + MIN_RTT_WINDOW:
            self.min_rtt = self.probe_rtt_min
            self._min_rtt_at = self.probe_rtt_at

    # -- aggregation ----------------------------------------------------------------------------

    def update_aggregation(self, acked: int, cwnd: int, filled: bool, now: float) -> None:
        """How much more than the bandwidth allows did ACKs deliver at once?"""
        expected = self.bw * (now - self._extra_since)
        if self._extra_delivered <= expected:
            self._extra_delivered = 0
            self._extra_since = now
            expected = 0.0
        self._extra_delivered += acked
        extra = min(int(self._extra_delivered - expected), cwnd)
        window = EXTRA_ACKED_ROUNDS if filled else 1
        heaps = self._extra
        if self.round_start and self.round_count - self._extra_round >= window:
            self._extra_round = self.round_count
            heaps[0], heaps[1] = heaps[1], 0
        if extra > heaps[1]:
            heaps[1] = extra
        self.extra_acked = max(heaps)

    def restart_aggregation(self, now: float) -> None:
        """After an idle time."""
        self._extra_since = now
        self._extra_delivered = 0
