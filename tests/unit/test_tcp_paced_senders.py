"""Bursts are longer the more senders there are, and short again when they are gone."""

from __future__ import annotations

from proxy.tcp.paced_senders import MIN_BURST, PERIOD, RELEASE_TIME, PacedSenders


def send(senders: PacedSenders, count: int, now: float) -> None:
    for _ in range(count):
        senders.add(now)


def test_a_few_senders_keep_the_shortest_bursts() -> None:
    senders = PacedSenders()
    send(senders, 4, 10.0)
    assert senders.burst == MIN_BURST


def test_bursts_grow_with_the_senders_of_the_period() -> None:
    senders = PacedSenders()
    send(senders, 100, 10.0)
    assert senders.burst == 100 * RELEASE_TIME


def test_the_beginning_of_a_period_remembers_the_last_one() -> None:
    senders = PacedSenders()
    send(senders, 100, 10.0)
    first = senders.period
    assert senders.add(10.0 + PERIOD) == first + 1
    assert senders.burst == 100 * RELEASE_TIME
    send(senders, 19, 10.0 + PERIOD)
    senders.add(10.0 + 2 * PERIOD)
    assert senders.burst == 20 * RELEASE_TIME


def test_senders_of_long_ago_are_forgotten() -> None:
    senders = PacedSenders()
    send(senders, 100, 10.0)
    senders.add(10.0 + 2 * PERIOD)
    assert senders.burst == MIN_BURST
