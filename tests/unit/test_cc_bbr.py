"""BBR as a function of the samples that a fluid model of a path gives it."""

from __future__ import annotations

from collections import deque

import pytest

from proxy.cc import bbr as b
from proxy.cc.base import UNLIMITED, create
from proxy.cc.bbr_model import INFINITE, BbrModel
from proxy.cc.sample import Sample

MSS = 1448
INITIAL = 10 * MSS


class Path:
    """Segments one by one through a bottleneck of ``rate`` bytes per second with a queue."""

    def __init__(self, rate: float, rtt: float, queue: float = 1e9, every: int = 0) -> None:
        """``every``: each n-th segment is lost."""
        self.cc = b.Bbr(MSS, INITIAL)
        self.rate = rate
        self.rtt = rtt
        self.queue = queue
        self.every = every
        self.now = 1.0
        self.delivered = 0
        self.lost = 0
        self.told = 0
        self.in_flight = 0
        self.sent = 0
        self.free_at = 0.0
        self.next_send = 0.0
        self.first_sent = self.delivered_at = self.now
        # arrival of the ACK, sent at, delivered then, its time, first_sent, in flight, lost
        self.pipe: deque[tuple[float, float, int, float, float, int, int, bool]] = deque()
        self.states: list[str] = []

    def send(self) -> None:
        self.sent += 1
        if not self.in_flight:
            self.first_sent = self.delivered_at = self.now
        self.in_flight += MSS
        drop = self.every > 0 and self.sent % self.every == 0
        drop = drop or self.free_at - self.now > self.queue
        if not drop:
            self.free_at = max(self.free_at, self.now) + MSS / self.rate
        self.pipe.append(
            (
                max(self.free_at, self.now) + self.rtt, self.now, self.delivered,
                self.delivered_at, self.first_sent, self.in_flight, self.lost, drop,
            )
        )  # fmt: skip

    def acknowledge(self) -> None:
        at, sent, delivered, delivered_at, first, in_flight, lost, drop = self.pipe.popleft()
        self.now = max(self.now, at)
        self.in_flight -= MSS
        if drop:
            self.lost += MSS
            self.cc.on_lost(MSS, in_flight, self.lost - lost, False, delivered)
            return
        self.delivered += MSS
        self.delivered_at = self.now
        self.first_sent = sent
        sample = self.cc.sample
        interval = max(self.now - delivered_at, sent - first)
        sample.acked = MSS
        sample.lost = self.lost - self.told
        self.told = self.lost
        sample.rtt = self.now - sent
        sample.in_flight = self.in_flight
        sample.delivered = self.delivered
        sample.prior = delivered
        sample.rate = (self.delivered - delivered) / interval
        sample.tx_in_flight = in_flight
        sample.tx_lost = self.lost - lost
        sample.limited = in_flight + MSS > self.cc.cwnd
        self.cc.on_delivery(sample, self.now)
        if not self.states or self.states[-1] != self.cc.state:
            self.states.append(self.cc.state)

    def run(self, seconds: float) -> float:
        """Bytes per second delivered."""
        end = self.now + seconds
        before = self.delivered
        while self.now < end:
            can_send = self.in_flight + MSS <= self.cc.cwnd
            ack_at = self.pipe[0][0] if self.pipe else float("inf")
            if can_send and max(self.next_send, self.now) <= ack_at:
                self.now = max(self.now, self.next_send)
                self.send()
                pace = self.cc.pacing_rate(self.rtt)
                self.next_send = self.now + MSS / pace
            else:
                self.acknowledge()
        return (self.delivered - before) / seconds

    @property
    def waiting(self) -> float:
        """Seconds of queue."""
        return max(0.0, self.free_at - self.now)


def test_it_is_found_by_name_and_keeps_samples() -> None:
    cc = create("bbr", MSS, INITIAL)
    assert isinstance(cc, b.Bbr)
    assert isinstance(cc.sample, Sample)
    assert cc.cwnd == INITIAL
    assert cc.pacing_rate(0.1) == pytest.approx(2.77 * INITIAL / 0.1)
    assert cc.pacing_rate(0.0) == 0.0


def test_startup_drain_and_probing_follow_each_other() -> None:
    path = Path(2e6, 0.04)
    path.run(5.0)
    # The queue is gone when DRAIN ends, so that DOWN, which would drain it, is over at once.
    assert path.states[:5] == [b.STARTUP, b.DRAIN, b.CRUISE, b.REFILL, b.UP]
    assert path.states[5:7] == [b.DOWN, b.CRUISE]
    assert path.cc.ssthresh < path.cc.cwnd  # no slow start any more
    assert path.cc.model.max_bw == pytest.approx(2e6, rel=0.02)
    assert path.cc.model.min_rtt == pytest.approx(0.0407, rel=0.05)


@pytest.mark.parametrize("rtt", [0.005, 0.04, 0.2])
@pytest.mark.parametrize("rate", [2e5, 2e6, 2e7])
def test_the_pipe_is_full_and_the_queue_short(rate: float, rtt: float) -> None:
    path = Path(rate, rtt)
    path.run(max(3.0, 20 * rtt))
    waits = []
    got = 0.0
    for _ in range(40):
        got += path.run(0.1)
        waits.append(path.waiting)
    assert got / 40 > 0.88 * rate
    # On a thin path the windows of a few segments, which delayed ACKs need, are the floor.
    assert sum(waits) / 40 < max(0.25 * rtt, 12 * MSS / rate)


def test_the_round_trip_is_probed_every_five_seconds() -> None:
    path = Path(2e6, 0.04)
    path.run(30.0)
    # Five seconds after the last time that the queue was empty, which a probe of the bandwidth
    # can be as well.
    assert path.states.count(b.PROBE_RTT) in (5, 6)


def test_a_first_flight_of_a_few_bytes_does_not_set_the_pace() -> None:
    cc = b.Bbr(MSS, INITIAL)
    sample = cc.sample
    sample.acked = sample.delivered = sample.in_flight = 18
    sample.prior, sample.rate, sample.rtt, sample.app_limited = 0, 18 / 0.1, 0.1, True
    cc.on_delivery(sample, 1.0)
    assert cc.pacing_rate(0.1) >= INITIAL / 0.1


def test_one_percent_of_loss_costs_little() -> None:
    path = Path(4e6, 0.04, every=100)
    path.run(2.0)
    assert path.run(20.0) > 0.85 * 4e6


def test_more_than_the_threshold_of_loss_sets_a_bound() -> None:
    path = Path(4e6, 0.04, queue=0.002)
    path.run(10.0)
    assert path.cc.model.inflight_hi < INFINITE
    assert path.run(10.0) > 0.75 * 4e6
    assert path.lost < 0.03 * path.delivered


def test_a_path_that_becomes_faster_is_found_and_a_slower_one_believed() -> None:
    path = Path(1e6, 0.04)
    path.run(5.0)
    path.rate = 5e6
    path.run(12.0)
    assert path.run(3.0) > 0.85 * 5e6
    path.rate = 1e6
    path.run(8.0)
    assert path.run(3.0) > 0.85 * 1e6
    assert path.waiting < 0.04


def test_two_segments_lost_are_no_proof_on_a_small_window() -> None:
    model = BbrModel(MSS)
    assert not model.too_high(50 * MSS, 2 * MSS)
    assert model.too_high(50 * MSS, 3 * MSS)
    assert not model.too_high(1000 * MSS, 15 * MSS)


def test_marks_end_startup_and_leave_less_in_flight_until_the_next_probe() -> None:
    path = Path(2e6, 0.04)
    path.run(0.3)
    assert path.cc.state == b.STARTUP
    path.cc.on_mark(path.now)
    path.run(0.1)
    assert path.cc.state != b.STARTUP
    path.run(1.0)
    before = path.in_flight
    path.cc.on_mark(path.now)
    path.run(0.08)
    assert path.in_flight <= 0.9 * before
    assert path.cc.model.max_bw > 1.5e6
    path.run(5.0)
    assert path.run(1.0) > 0.9 * 2e6


def test_a_mark_is_a_loss_to_other_controls() -> None:
    for name in ("reno", "cubic", "lia"):
        cc = create(name, MSS, INITIAL)
        cc.on_mark(1.0)
        assert cc.cwnd < INITIAL


def test_loss_in_startup_without_any_round_trip_is_survived() -> None:
    cc = b.Bbr(MSS, INITIAL)
    sample = cc.sample
    now = 1.0
    for _ in range(20):
        for _ in range(6):
            cc.on_lost(MSS, 10 * MSS, 6 * MSS, False, sample.delivered)
        sample.prior = sample.delivered
        sample.acked = MSS
        sample.delivered += MSS
        sample.lost = 6 * MSS
        sample.rate = 1e5
        sample.recovering = True
        now += 0.1
        cc.on_delivery(sample, now)
        assert cc.cwnd >= 4 * MSS
    assert cc.state != b.STARTUP


def test_undo_takes_back_the_bounds() -> None:
    path = Path(2e6, 0.04)
    path.run(4.0)
    cc = path.cc
    model = cc.model
    before = cc.cwnd
    cc.on_congestion(path.now)
    model.bw_lo, model.inflight_lo, model.inflight_hi, cc.cwnd = 1e5, 1000, 2000, MSS
    cc.on_undo()
    assert cc.cwnd == before
    assert (model.inflight_lo, model.inflight_hi) == (INFINITE, INFINITE)
    assert model.bw > 1.9e6


def test_after_a_time_out_the_window_comes_back() -> None:
    path = Path(2e6, 0.04)
    path.run(4.0)
    before = path.cc.cwnd
    path.cc.on_rto(path.now)
    assert path.cc.cwnd == MSS
    path.run(0.5)
    assert path.cc.cwnd > 0.7 * before


def test_idle_time_does_not_shrink_the_model() -> None:
    path = Path(2e6, 0.04)
    path.run(4.0)
    rate = path.cc.pacing_rate(0.04)
    path.cc.on_restart(10.0)
    assert path.cc.pacing_rate(0.04) == rate


def test_it_hands_over_what_fills_the_pipe() -> None:
    path = Path(2e6, 0.04)
    assert path.cc.handover() == (INITIAL, UNLIMITED)
    path.run(4.0)
    window, threshold = path.cc.handover()
    assert window == threshold
    assert window == pytest.approx(2e6 * 0.0407, rel=0.1)


def test_it_takes_over_where_another_one_was() -> None:
    cc = b.Bbr(MSS, INITIAL)
    cc.take_over(80_000, 80_000, 0.05, 0.04, 2e6)
    assert cc.cwnd == 80_000
    assert cc.pacing_rate(0.05) == pytest.approx(80_000 / 0.05)
    assert cc.model.max_bw == 2e6
    fresh = b.Bbr(MSS, INITIAL)
    fresh.take_over(INITIAL, UNLIMITED, 0.0, 0.0, 0.0)
    assert fresh.model.max_bw == 0.0


def test_what_startup_lost_does_not_bound_the_rate_after_it() -> None:
    # Retransmissions that are lost once more are found lost rounds after the burst.
    path = Path(2e6, 0.04)
    path.run(0.6)
    cc, model, sample = path.cc, path.cc.model, path.cc.sample
    assert cc.state == b.CRUISE
    assert path.states[0] == b.STARTUP
    sent_in_startup = model._probe_end
    for prior, bound in ((sent_in_startup, False), (path.delivered, True)):
        for _ in range(2):  # two rounds
            for _ in range(20):
                cc.on_lost(MSS, cc.cwnd, 20 * MSS, False, prior)
            sample.prior = model.delivered
            sample.delivered = model.delivered + MSS
            sample.rate = 1e6
            cc.on_delivery(sample, path.now)
        assert (model.bw < model.max_bw) is bound
