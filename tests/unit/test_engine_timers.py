"""The timer heap: lazy, exact, and empty when nothing is armed."""

from __future__ import annotations

import weakref

from proxy.engine.timers import Timers


class Alarm:
    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.fired: list[float] = []
        self.called: list[float] = []

    def next_timeout(self) -> float | None:
        return self.deadline

    def on_timeout(self, now: float) -> None:
        self.called.append(now)
        if self.deadline is not None and now >= self.deadline:
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


def test_passing_over_a_deadline_that_moved_is_told() -> None:
    timers = Timers()
    alarm = Alarm(1.0)
    timers.arm(alarm)
    alarm.deadline = 3.0
    timers.arm(alarm)
    timers.fire(1.0)
    assert alarm.called == [1.0]  # or it would believe that an earlier deadline is still armed


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


def test_what_was_disarmed_long_before_its_deadline_does_not_stay_in_memory() -> None:
    timers = Timers()
    keeper = Alarm(7200.0)
    timers.arm(keeper)
    gone = []
    for _ in range(10_000):
        alarm = Alarm(7200.0)
        gone.append(weakref.ref(alarm))
        timers.arm(alarm)
        timers.disarm(alarm)
        del alarm
    assert sum(reference() is not None for reference in gone) < 2_000
    timers.fire(7200.0)
    assert keeper.fired == [7200.0]


def test_alarm_whose_deadline_stays_in_the_past_does_not_hold_up_the_others() -> None:
    class Stuck(Alarm):
        def on_timeout(self, now: float) -> None:
            self.fired.append(now)

    timers = Timers()
    stuck, alarm = Stuck(1.0), Alarm(1.0)
    timers.arm(stuck)
    timers.arm(alarm)
    timers.fire(1.0)
    assert (stuck.fired, alarm.fired) == ([1.0], [1.0])
    assert timers.next_timeout() is not None
