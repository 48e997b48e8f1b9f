"""The budget that all receive buffers of a host share."""

from __future__ import annotations

from proxy.tcp.memory import MemoryBudget
from tests.pair.harness import CounterTable


def test_grants_what_is_left_and_takes_it_back() -> None:
    counters = CounterTable()
    memory = MemoryBudget(1000, counters)
    assert memory.take(500) == 500
    assert not memory.tight
    assert memory.take(800) == 500
    assert memory.used == 1000
    assert memory.tight
    assert memory.take(100) == 0
    assert counters["TCPRcvGrowthDenied"] == 2
    assert counters["TCPMemoryPressures"] == 1
    memory.give_back(500)
    assert not memory.tight
    assert memory.take(500) == 500


def test_a_budget_of_nothing_lets_nobody_grow() -> None:
    memory = MemoryBudget(0, CounterTable())
    assert memory.take(100) == 0
    assert memory.used == 0
