"""When each object wants to be called again: one heap, O(log n), no periodic scan."""

from __future__ import annotations

import heapq
from typing import Protocol

# A heap with at most this many dead entries is left alone: cleaning it would cost more.
_MIN_DEAD = 1024
# How late an object is called again whose deadline is still not in the future (seconds).
_STUCK_PAUSE = 0.001


class Timed(Protocol):
    """Something with a deadline of its own."""

    def next_timeout(self) -> float | None:
        """Seconds (same origin as ``now``) of the earliest deadline, None for none."""
        ...

    def on_timeout(self, now: float) -> None:
        """A deadline that was armed has passed; perhaps not the one that counts by now."""
        ...


class Timers:
    """A lazy heap of deadlines.

    A deadline that moves later is not touched until the earlier one fires, which is the common
    case (every ACK pushes the RTO back); only one that moves earlier is pushed again. The entry
    it leaves behind is dead; when dead ones are most of the heap they are thrown out, so that what
    is disarmed long before its deadline (a keep-alive is hours away) does not stay in memory.
    """

    __slots__ = ("_armed", "_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timed]] = []
        self._armed: dict[Timed, float] = {}
        self._order = 0

    def __len__(self) -> int:
        return len(self._armed)

    def arm(self, timed: Timed) -> None:
        """``timed.next_timeout()`` may have become earlier."""
        deadline = timed.next_timeout()
        if deadline is None:
            return
        armed = self._armed.get(timed)
        if armed is not None and armed <= deadline:
            return
        self._push(timed, deadline)

    def disarm(self, timed: Timed) -> None:
        """Forget all about ``timed``."""
        self._armed.pop(timed, None)

    def next_timeout(self) -> float | None:
        """The earliest moment at which ``fire`` could have work."""
        heap = self._heap
        while heap:
            deadline, _, timed = heap[0]
            if self._armed.get(timed) == deadline:
                return deadline
            heapq.heappop(heap)
        return None

    def fire(self, now: float) -> None:
        """Call ``on_timeout`` of all whose deadline is not after ``now``.

        Also of those whose deadline has moved later since: they must know that what they had
        armed is gone, or they would rely on it.
        """
        heap = self._heap
        armed = self._armed
        while heap and heap[0][0] <= now:
            deadline, _, timed = heapq.heappop(heap)
            if armed.get(timed) != deadline:
                continue
            del armed[timed]
            timed.on_timeout(now)
            self._rearm(timed, now)

    def _rearm(self, timed: Timed, now: float) -> None:
        # A deadline that stays in the past would keep ``fire`` from ever returning.
        deadline = timed.next_timeout()
        if deadline is None:
            return
        if deadline <= now:
            deadline = now + _STUCK_PAUSE
        armed = self._armed.get(timed)
        if armed is None or armed > deadline:
            self._push(timed, deadline)

    def _push(self, timed: Timed, deadline: float) -> None:
        self._armed[timed] = deadline
        self._order += 1
        heapq.heappush(self._heap, (deadline, self._order, timed))
        if len(self._heap) > 2 * len(self._armed) + _MIN_DEAD:
            self._throw_out_dead()

    def _throw_out_dead(self) -> None:
        armed = self._armed
        # In place: ``fire`` may be at work on this very list.
        self._heap[:] = [entry for entry in self._heap if armed.get(entry[2]) == entry[0]]
        heapq.heapify(self._heap)
