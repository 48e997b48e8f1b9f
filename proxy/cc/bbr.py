"""BBR (version 3, draft-ietf-ccwg-bbr): send at the bandwidth of the path, not until it drops.

It measures what the path delivers (``bbr_model``), paces at that rate, probes for more every two
to three seconds, and drains the queue that the probe has made. Loss matters above 2 % alone.
"""

from __future__ import annotations

from typing import ClassVar

from proxy.cc.base import UNLIMITED, CongestionControl
from proxy.cc.bbr_model import BETA, INFINITE, NO_LIMIT, BbrModel
from proxy.cc.sample import Sample

# States, and the gains of pacing and window that belong to them.
STARTUP = "startup"
DRAIN = "drain"
DOWN = "probe-down"
CRUISE = "probe-cruise"
REFILL = "probe-refill"
UP = "probe-up"
PROBE_RTT = "probe-rtt"
PACING_GAIN = {
    STARTUP: 2.77, DRAIN: 0.5, DOWN: 0.9, CRUISE: 1.0, REFILL: 1.0, UP: 1.25, PROBE_RTT: 1.0,
}  # fmt: skip
CWND_GAIN = {
    STARTUP: 2.0, DRAIN: 2.0, DOWN: 2.0, CRUISE: 2.0, REFILL: 2.0, UP: 2.25, PROBE_RTT: 0.5,
}  # fmt: skip
PROBING = (STARTUP, REFILL, UP)  # loss here says where the limit is, nothing else
PROBE_BW = (DOWN, CRUISE, REFILL, UP)

PACING_MARGIN = 0.99
FULL_BW_GROWTH = 1.25
FULL_BW_ROUNDS = 3
STARTUP_LOSS_EVENTS = 6
PROBE_RTT_TIME = 0.2
MARK_BETA = 0.85
QUANTUM = 0.001  # seconds of the rate that leave as one super-segment
MAX_QUANTUM = 65536

# Whose effect the samples show: of bandwidth probing, in its order.
ACKS_INIT = 0
ACKS_REFILLING = 1
ACKS_STARTING = 2
ACKS_FEEDBACK = 3
ACKS_STOPPING = 4


class Bbr(CongestionControl):
    """The states and their outputs: ``cwnd`` and the pacing rate."""

    __slots__ = (
        "_ack_phase", "_full_bw", "_full_bw_count", "_full_bw_now", "_full_bw_reached",
        "_idle_restart", "_now", "_pacing", "_probe_rounds", "_probe_rtt_done_at",
        "_probe_rtt_round_done", "_probe_samples", "_probe_wait", "_rounds_since_probe",
        "_state_since", "_undo", "_up_acks", "_up_count", "_up_rounds", "_was_recovering",
        "model", "state",
    )  # fmt: skip

    name: ClassVar[str] = "bbr"
    sample: Sample

    def __init__(self, mss: int, initial_cwnd: int) -> None:
        super().__init__(mss, initial_cwnd)
        self.sample = Sample()
        self.model = BbrModel(mss)
        self.state = STARTUP
        self._now = 0.0
        self._state_since = 0.0
        self._pacing = 0.0
        self._full_bw = 0.0
        self._full_bw_count = 0
        self._full_bw_now = False
        self._full_bw_reached = False
        self._idle_restart = False
        self._was_recovering = False
        self._undo: tuple[float, int, int] | None = None
        self._ack_phase = ACKS_INIT
        self._probe_samples = False
        self._probe_rounds = 63
        self._probe_wait = 2.0
        self._rounds_since_probe = 0
        self._up_rounds = 0
        self._up_acks = 0
        self._up_count = INFINITE
        self._probe_rtt_done_at = 0.0
        self._probe_rtt_round_done = False

    # -- what the connection tells --------------------------------------------------------------

    def on_ack(self, acked: int, rtt: float, now: float, in_flight: int, app_limited: bool) -> None:
        """Not used: ``on_delivery`` is told instead."""

    def on_delivery(self, sample: Sample, now: float) -> None:
        self._now = now
        model = self.model
        model.update(sample, self.state in PROBING, now)
        if sample.acked:
            model.update_aggregation(sample.acked, self.cwnd, self._full_bw_reached, now)
        self._check_full_bw(sample)
        self._check_startup(sample)
        self._check_drain(sample)
        self._adapt_upper_bounds(sample)
        self._cycle(sample)
        self._check_probe_rtt(sample)
        model.finish(sample)
        self._set_pacing()
        self._set_cwnd(sample)

    def on_lost(
        self, length: int, tx_in_flight: int, tx_lost: int, app_limited: bool, prior: int
    ) -> None:
        model = self.model
        model.note_lost(length, prior)
        if self._probe_samples and model.too_high(tx_in_flight, tx_lost):
            self._too_high(tx_in_flight, app_limited)

    def on_congestion(self, now: float) -> None:
        """Fast recovery begins; ``on_lost`` has told all that matters."""
        self._save_for_undo()

    def on_mark(self, now: float) -> None:
        """A queue was marked: no more probing now, and less in flight until the next probe."""
        sample = self.sample
        if self.state == STARTUP:
            self._full_bw_reached = self.model.max_bw > 0.0
        elif self._probe_samples:
            self._too_high(sample.in_flight, sample.app_limited)
        self.model.bound_inflight(sample.in_flight, MARK_BETA)

    def on_rto(self, now: float) -> None:
        self._save_for_undo()
        self.cwnd = self.mss

    def _save_for_undo(self) -> None:
        model = self.model
        self._prior_cwnd = max(self.cwnd, self._prior_cwnd if self.state == PROBE_RTT else 0)
        self._undo = (model.bw_lo, model.inflight_lo, model.inflight_hi)

    def on_undo(self) -> None:
        self.cwnd = max(self.cwnd, self._prior_cwnd)
        if self._undo is not None:
            model = self.model
            bw_lo, inflight_lo, inflight_hi = self._undo
            model.bw_lo = max(model.bw_lo, bw_lo)
            model.inflight_lo = max(model.inflight_lo, inflight_lo)
            model.inflight_hi = max(model.inflight_hi, inflight_hi)

    def on_restart(self, idle: float) -> None:
        """The model is kept: pacing sees to it that there is no burst."""
        self._idle_restart = True
        self.model.restart_aggregation(self._now)

    def restore(self, cwnd: int, ssthresh: int) -> None:
        """The path was dead: its bandwidth may be another now, so look for it anew."""
        self.cwnd = cwnd
        self._prior_cwnd = 0
        self.model.reset_lower_bounds()

    def set_mss(self, mss: int, initial_cwnd: int) -> None:
        super().set_mss(mss, initial_cwnd)
        self.model.mss = mss

    def handover(self) -> tuple[int, int]:
        bdp = self.model.bdp(self.model.bw)
        if not self._full_bw_reached or bdp == NO_LIMIT:
            return self.cwnd, UNLIMITED
        window = max(min(int(bdp), self.cwnd), self.initial_cwnd)
        return window, window

    def take_over(self, cwnd: int, ssthresh: int, srtt: float, min_rtt: float, rate: float) -> None:
        self.cwnd = max(cwnd, self.mss)
        if cwnd >= ssthresh:
            self.model.seed(rate, min_rtt)
            if srtt > 0.0:
                self._pacing = cwnd / srtt

    def pacing_rate(self, srtt: float) -> float:
        """Bytes per second; before anything was measured, what slow start would take."""
        if self._pacing:
            if self._full_bw_reached or srtt <= 0.0:
                return self._pacing
            # What little was sent first says nothing about the path (BBRInitPacingRate).
            return max(self._pacing, PACING_GAIN[STARTUP] * self.initial_cwnd / srtt)
        return PACING_GAIN[STARTUP] * self.cwnd / srtt if srtt > 0.0 else 0.0

    # -- startup and drain ----------------------------------------------------------------------

    def _enter(self, state: str) -> None:
        if self.state in PROBING and state not in PROBING:
            self.model.end_probe()
        self.state = state
        self._state_since = self._now

    def _reset_full_bw(self) -> None:
        self._full_bw = 0.0
        self._full_bw_count = 0
        self._full_bw_now = False

    def _check_full_bw(self, sample: Sample) -> None:
        """Three rounds in which the bandwidth has not grown by a quarter: the pipe is full."""
        if self._full_bw_now or sample.app_limited or sample.prior < 0:
            return
        if sample.rate >= self._full_bw * FULL_BW_GROWTH:
            self._reset_full_bw()
            self._full_bw = sample.rate
            return
        if not self.model.round_start:
            return
        self._full_bw_count += 1
        self._full_bw_now = self._full_bw_count >= FULL_BW_ROUNDS
        if self._full_bw_now:
            self._full_bw_reached = True

    def _check_startup(self, sample: Sample) -> None:
        if self.state != STARTUP:
            return
        model = self.model
        if (
            not self._full_bw_reached
            and sample.recovering
            and model.loss_events >= STARTUP_LOSS_EVENTS
            and model.high_loss_round()
        ):
            self._full_bw_reached = True
            # Without a round trip (all was sent twice, no timestamps) what has arrived must do.
            full = model.bdp(model.max_bw)
            model.inflight_hi = max(int(full) if full < INFINITE else 0, model.inflight_latest)
        if self._full_bw_reached:
            self._enter(DRAIN)

    def _check_drain(self, sample: Sample) -> None:
        if self.state == DRAIN and sample.in_flight <= self._inflight(self.model.bw, 1.0):
            self._start_down()

    # -- probing for bandwidth ------------------------------------------------------------------

    def _cycle(self, sample: Sample) -> None:
        state = self.state
        if state not in PROBE_BW:
            return
        model = self.model
        if model.round_start:
            self._rounds_since_probe += 1
        if state == DOWN:
            if self._time_to_probe():
                self._start_refill()
            elif self._drained(sample.in_flight):
                self._start_cruise()
        elif state == CRUISE:
            if self._time_to_probe():
                self._start_refill()
        elif state == REFILL:
            if model.round_start:
                self._probe_samples = True
                self._start_up(sample)
        elif self._probed_enough(sample):
            self._start_down()

    def _drained(self, in_flight: int) -> bool:
        model = self.model
        return in_flight <= model.inflight_with_headroom() and in_flight <= self._inflight(
            model.max_bw, 1.0
        )

    def _time_to_probe(self) -> bool:
        if self._now - self._state_since >= self._probe_wait:
            return True
        # As often as Reno would need to grow by what the path holds, so that it gets its share.
        rounds = min(self._target_inflight() // self.mss, 63)
        return self._rounds_since_probe >= rounds

    def _probed_enough(self, sample: Sample) -> bool:
        model = self.model
        if sample.limited and self.cwnd >= model.inflight_hi:
            self._reset_full_bw()  # the bound held us back, the path may have more
            self._full_bw = sample.rate
            return False
        if self._full_bw_now:
            return True
        # DEVIATION from the draft, which waits for three rounds; after Linux' BBRv2: the probe has
        # shown that there is no more once the quarter that it adds has become a queue.
        return self._now - self._state_since > model.min_rtt and sample.in_flight >= self._inflight(
            model.max_bw, 1.25
        )

    def _start_down(self) -> None:
        model = self.model
        model.reset_congestion_signals()
        self._up_count = INFINITE
        # Flows that share a queue must not probe in step; any number that differs will do.
        noise = (model.delivered * 2654435761 + int(self._now * 1e6)) >> 7 & 1023
        self._rounds_since_probe = noise & 1
        self._probe_wait = 2.0 + noise / 1024.0
        self._ack_phase = ACKS_STOPPING
        model.start_round()
        self._enter(DOWN)
        # For those who ask whether this is still slow start: below what PROBE_RTT leaves.
        self.ssthresh = min(self._probe_rtt_cwnd(), self.cwnd)

    def _start_cruise(self) -> None:
        model = self.model
        if model.inflight_lo != INFINITE:
            model.inflight_lo = min(model.inflight_lo, model.inflight_hi)
        self.state = CRUISE  # the wait for the next probe counts from its beginning, DOWN

    def _start_refill(self) -> None:
        model = self.model
        model.reset_lower_bounds()
        self._up_rounds = 0
        self._up_acks = 0
        self._ack_phase = ACKS_REFILLING
        model.start_round()
        self._enter(REFILL)

    def _start_up(self, sample: Sample) -> None:
        self._ack_phase = ACKS_STARTING
        self.model.start_round()
        self._reset_full_bw()
        self._full_bw = sample.rate
        self._enter(UP)
        self._raise_slope()

    # -- inflight_hi ----------------------------------------------------------------------------

    def _adapt_upper_bounds(self, sample: Sample) -> None:
        model = self.model
        if model.round_start:
            if self._ack_phase == ACKS_STARTING:
                self._ack_phase = ACKS_FEEDBACK
            elif self._ack_phase == ACKS_STOPPING:
                self._probe_samples = False
                self._ack_phase = ACKS_INIT
                if self.state in PROBE_BW and not sample.app_limited:
                    model.advance_max_bw_filter()
        if sample.prior < 0:
            return
        if model.too_high(sample.tx_in_flight, sample.tx_lost):
            if self._probe_samples:
                self._too_high(sample.tx_in_flight, sample.app_limited)
            return
        if model.inflight_hi == INFINITE:
            return
        if sample.tx_in_flight > model.inflight_hi:
            model.inflight_hi = sample.tx_in_flight
        if self.state == UP:
            self._raise_inflight_hi(sample)

    def _too_high(self, tx_in_flight: int, app_limited: bool) -> None:
        model = self.model
        self._probe_samples = False
        if not app_limited:
            model.inflight_hi = max(tx_in_flight, int(self._target_inflight() * BETA))
        if self.state == UP:
            self._start_down()

    def _raise_inflight_hi(self, sample: Sample) -> None:
        model = self.model
        if not sample.limited or self.cwnd < model.inflight_hi:
            return
        self._up_acks += sample.acked
        if self._up_acks >= self._up_count:
            segments = self._up_acks // self._up_count
            self._up_acks -= segments * self._up_count
            model.inflight_hi += segments * self.mss
        if model.round_start:
            self._raise_slope()

    def _raise_slope(self) -> None:
        """Twice as fast with each round: one segment in the first."""
        self._up_count = max(self.cwnd >> self._up_rounds, self.mss)
        self._up_rounds = min(self._up_rounds + 1, 30)

    # -- probing for the round trip -------------------------------------------------------------

    def _check_probe_rtt(self, sample: Sample) -> None:
        model = self.model
        if self.state != PROBE_RTT:
            if model.probe_rtt_expired and not self._idle_restart:
                self._prior_cwnd = self.cwnd
                self._ack_phase = ACKS_STOPPING
                self._probe_rtt_done_at = 0.0
                model.start_round()
                self._enter(PROBE_RTT)
        elif not self._probe_rtt_done_at:
            if sample.in_flight <= self._probe_rtt_cwnd():
                self._probe_rtt_done_at = self._now + PROBE_RTT_TIME
                self._probe_rtt_round_done = False
                model.start_round()
        else:
            if model.round_start:
                self._probe_rtt_round_done = True
            if self._probe_rtt_round_done and self._now > self._probe_rtt_done_at:
                self._leave_probe_rtt()
        if sample.acked:
            self._idle_restart = False

    def _leave_probe_rtt(self) -> None:
        model = self.model
        model.probe_rtt_at = self._now
        self.cwnd = max(self.cwnd, self._prior_cwnd)
        model.reset_lower_bounds()
        if self._full_bw_reached:
            self._start_down()
            self._start_cruise()
        else:
            self._enter(STARTUP)

    def _probe_rtt_cwnd(self) -> int:
        model = self.model
        bdp = model.bdp(model.bw) * CWND_GAIN[PROBE_RTT]
        return max(int(min(bdp, INFINITE)), model.min_pipe)

    # -- outputs --------------------------------------------------------------------------------

    def _inflight(self, bw: float, gain: float) -> int:
        """Bytes in flight at ``gain`` times the pipe, not less than the sender's bursts need."""
        model = self.model
        bdp = model.bdp(bw)
        if bdp == NO_LIMIT:
            return self.initial_cwnd
        burst = min(max(int(bw * QUANTUM), 2 * self.mss), MAX_QUANTUM)
        room = max(int(bdp * gain), 3 * burst, model.min_pipe)
        return room + 2 * self.mss if self.state == UP else room

    def _target_inflight(self) -> int:
        return int(min(self.model.bdp(self.model.bw), self.cwnd))

    def _set_pacing(self) -> None:
        bw = self.model.bw
        if not bw:
            return
        rate = PACING_GAIN[self.state] * bw * PACING_MARGIN
        if self._full_bw_reached or rate > self._pacing:
            self._pacing = rate

    def _set_cwnd(self, sample: Sample) -> None:
        model = self.model
        cwnd = self.cwnd
        if self._was_recovering and not sample.recovering:
            cwnd = max(cwnd, self._prior_cwnd)  # what is lost is repaired: as before
        self._was_recovering = sample.recovering
        acked = sample.acked
        room = self._inflight(model.bw, CWND_GAIN[self.state]) + model.extra_acked
        if self._full_bw_reached:
            cwnd = min(cwnd + acked, room)
        elif cwnd < room or sample.delivered < self.initial_cwnd:
            cwnd += acked
        if self.state == PROBE_RTT:
            cwnd = min(cwnd, self._probe_rtt_cwnd())
        self.cwnd = max(min(cwnd, self._bound()), model.min_pipe)

    def _bound(self) -> int:
        model = self.model
        if self.state in (CRUISE, PROBE_RTT):
            bound = model.inflight_with_headroom()
        elif self.state in PROBE_BW:
            bound = model.inflight_hi
        else:
            bound = INFINITE
        return max(min(bound, model.inflight_lo), model.min_pipe)
