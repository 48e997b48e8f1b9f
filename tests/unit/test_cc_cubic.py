"""Congestion controls as functions of what they are told."""

from __future__ import annotations

import random

import pytest

from proxy.cc.base import UNLIMITED, CongestionControl, create, names, register
from proxy.cc.cubic import BETA, C, Cubic
from proxy.cc.hystart import HyStart
from proxy.cc.reno import Reno

MSS = 1448
INITIAL = 10 * MSS
LOSS_BASED = ["reno", "cubic", "lia", "olia", "balia"]


def test_registry_knows_the_built_in_controls_and_takes_new_ones() -> None:
    assert {"balia", "bbr", "cubic", "lia", "olia", "reno"} <= set(names())
    assert isinstance(create("cubic", MSS, INITIAL), Cubic)
    with pytest.raises(KeyError):
        create("no-such-control", MSS, INITIAL)
    register("mine", Reno)
    assert isinstance(create("mine", MSS, INITIAL), Reno)


@pytest.mark.parametrize("name", LOSS_BASED)
def test_slow_start_doubles_per_round(name: str) -> None:
    cc = create(name, MSS, INITIAL)
    for _ in range(10):
        cc.on_ack(MSS, 0.05, 1.0, INITIAL, False)
    assert cc.cwnd == 2 * INITIAL


@pytest.mark.parametrize("name", LOSS_BASED)
def test_unused_window_does_not_grow(name: str) -> None:
    cc = create(name, MSS, INITIAL)
    for i in range(100):
        cc.on_ack(MSS, 0.05, 1.0 + i, 0, True)
    assert cc.cwnd == INITIAL


@pytest.mark.parametrize("name", LOSS_BASED)
def test_undo_restores_what_was_before(name: str) -> None:
    cc = create(name, MSS, INITIAL)
    cc.cwnd = 100 * MSS
    cc.on_congestion(1.0)
    assert cc.cwnd < 100 * MSS
    cc.on_undo()
    assert (cc.cwnd, cc.ssthresh) == (100 * MSS, UNLIMITED)
    cc.on_rto(2.0)
    assert cc.cwnd == MSS
    cc.on_undo()
    assert cc.cwnd == 100 * MSS


def test_reno_adds_a_segment_per_window() -> None:
    cc = Reno(MSS, INITIAL)
    cc.ssthresh = cc.cwnd = 20 * MSS
    for _ in range(20):
        cc.on_ack(MSS, 0.05, 1.0, INITIAL, False)
    assert cc.cwnd == 21 * MSS


def drive(cc: CongestionControl, start: float, seconds: float, rtt: float) -> float:
    """Acknowledge a window per round trip; the time at the end."""
    now = start
    while now < start + seconds:
        for _ in range(max(cc.cwnd // MSS // 4, 1)):
            cc.on_ack(4 * MSS, rtt, now, cc.cwnd, False)
        now += rtt
    return now


def test_cubic_returns_to_its_maximum_after_k_seconds() -> None:
    cc = Cubic(MSS, INITIAL)
    cc.cwnd = 1000 * MSS
    cc.on_congestion(10.0)
    assert cc.cwnd == int(1000 * MSS * BETA)
    k = (1000 * (1 - BETA) / C) ** (1 / 3)
    drive(cc, 10.0, k, 0.1)
    assert cc.cwnd == pytest.approx(1000 * MSS, rel=0.03)
    drive(cc, 10.0 + k, 5, 0.1)
    assert cc.cwnd > 1030 * MSS


def test_cubic_is_as_fast_as_reno_on_short_paths() -> None:
    cc = Cubic(MSS, INITIAL)
    cc.cwnd = 20 * MSS
    cc.on_congestion(1.0)
    drive(cc, 1.0, 1.0, 0.01)
    assert cc.cwnd > 40 * MSS


def test_fast_convergence_aims_lower_after_a_second_loss() -> None:
    cc = Cubic(MSS, INITIAL)
    cc.cwnd = 1000 * MSS
    cc.on_congestion(1.0)
    cc.on_congestion(2.0)
    assert cc._w_max == pytest.approx(700 * (1 + BETA) / 2)


def test_idle_decays_but_remembers() -> None:
    cc = Cubic(MSS, INITIAL)
    cc.cwnd = 160 * MSS
    cc.ssthresh = 100 * MSS
    cc.on_restart(2.5)
    assert cc.cwnd == 40 * MSS
    assert cc.ssthresh == 120 * MSS
    cc.on_restart(100.0)
    assert cc.cwnd == INITIAL


def test_restore_slow_starts_to_the_former_window() -> None:
    cc = Cubic(MSS, INITIAL)
    cc.cwnd = 500 * MSS
    cc.on_rto(1.0)
    cc.restore(INITIAL, 500 * MSS)
    for _ in range(20):
        cc.on_ack(cc.cwnd, 0.05, 2.0, cc.cwnd, False)
        if cc.cwnd >= 499 * MSS:
            break
    assert cc.cwnd >= 499 * MSS


def rounds(hystart: HyStart, delays: list[list[float]]) -> int | None:
    """Feed rounds of samples; the round in which slow start ended."""
    for number, samples in enumerate(delays):
        for delay in samples:
            if hystart.on_ack(1000, delay, len(samples) * 1000):
                return number
    return None


def test_hystart_ends_slow_start_when_the_delay_keeps_rising() -> None:
    delays = [[0.02 + 0.006 * i] * 10 for i in range(12)]
    ended = rounds(HyStart(), delays)
    assert ended is not None
    assert ended <= 4


def test_hystart_resumes_after_a_spike() -> None:
    hystart = HyStart()
    delays = [[0.02] * 10, [0.02] * 10, [0.03] * 10, [0.02] * 10, [0.02] * 10, [0.02] * 10]
    assert rounds(hystart, delays) is None
    assert not hystart.in_css


@pytest.mark.parametrize("seed", range(50))
def test_hystart_is_not_fooled_by_jitter(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    delays = [[0.02 + rng.random() * 0.02 for _ in range(10 << i)] for i in range(7)]
    assert rounds(HyStart(), delays) is None
