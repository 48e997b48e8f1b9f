"""The timer heap: lazy, exact, and empty when nothing is armed."""

from __future__ import annotations

from proxy.engine.timers import Timers


class Alarm:
    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.fired: list[float] = []

    def next_timeout(self) -> float | None:
        return self.deadline

    def on_timeout(self, now: float) -> None:
        self.fired.append(now)
        self.deadline = None


def test_fires_in_order_and_only_what_is_due() -> None:
    timers = Timers()
    early, late = Alarm(1.0), Alarm(2.0)
    timers.arm(late)
    timers.arm(early)
    assert timers.next_timeout() == 1.0
    timers.fire(1.5)
    assert (early.fired, late.fired) == ([1.5], [])
    assert timers.next_timeout() == 2.0


def test_deadline_that_moved_later_does_not_fire_early() -> None:
    timers = Timers()
    alarm = Alarm(1.0)
    timers.arm(alarm)
    alarm.deadline = 3.0
    timers.arm(alarm)
    timers.fire(1.0)
    assert alarm.fired == []
    assert timers.next_timeout() == 3.0


def test_deadline_that_moved_earlier_fires_at_the_earlier_time_once() -> None:
    timers = Timers()
    alarm = Alarm(3.0)
    timers.arm(alarm)
    alarm.deadline = 1.0
    timers.arm(alarm)
    timers.fire(1.0)
    timers.fire(5.0)
    assert alarm.fired == [1.0]


def test_disarmed_alarm_is_forgotten() -> None:
    timers = Timers()
    alarm = Alarm(1.0)
    timers.arm(alarm)
    timers.disarm(alarm)
    timers.fire(2.0)
    assert alarm.fired == []
    assert timers.next_timeout() is None
    assert len(timers) == 0


def test_alarm_that_rearms_itself_while_firing_is_kept() -> None:
    class Periodic(Alarm):
        def on_timeout(self, now: float) -> None:
            self.fired.append(now)
            self.deadline = now + 1.0

    timers = Timers()
    alarm = Periodic(1.0)
    timers.arm(alarm)
    timers.fire(1.0)
    timers.fire(2.0)
    assert alarm.fired == [1.0, 2.0]
    assert timers.next_timeout() == 3.0
