"""The stop-watches of a sender."""

from __future__ import annotations

import pytest

from proxy.tcp.chronograph import Limited, Timed


@pytest.fixture
def timed() -> Timed:
    timed = Timed()
    timed.start_chronograph()
    return timed


def test_time_goes_to_what_limits(timed: Timed) -> None:
    assert timed.spent(5.0) == [0.0] * len(Limited)
    timed.turn(Limited.CONGESTION, 5.0)
    timed.turn(Limited.WINDOW, 8.0)
    timed.turn(Limited.CONGESTION, 9.0)
    spent = timed.spent(9.5)
    assert spent[Limited.CONGESTION] == 3.5
    assert spent[Limited.WINDOW] == 1.0
    timed.turn(Limited.NOTHING, 10.0)
    assert timed.spent(20.0)[Limited.CONGESTION] == 4.0
    assert sum(timed.spent(20.0)) == 15.0


def test_a_lap_counts_only_if_it_was_long(timed: Timed) -> None:
    assert timed.lap(0.0, 1.0) == 0.0
    timed.turn(Limited.GAP, 1.0)
    assert timed.lap(0.5, 1.4) == 0.0
    assert timed.lap(0.5, 2.4) == 1.0
    timed.turn(Limited.NOTHING, 2.4)
    assert timed.spent(9.0)[Limited.GAP] == 1.0


def test_charged_time_does_not_stop_the_watch(timed: Timed) -> None:
    timed.charge(Limited.GAP, 3.0, 10.0)
    timed.turn(Limited.PACING, 11.0)
    timed.charge(Limited.GAP, 1.0, 12.0)
    spent = timed.spent(13.0)
    assert (spent[Limited.GAP], spent[Limited.PACING]) == (4.0, 2.0)
