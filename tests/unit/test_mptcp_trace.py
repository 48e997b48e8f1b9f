"""The ring of a trace."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.mptcp.trace import Trace, TracedScheduler, unwrapped
from proxy.sched import base

CONN: Any = SimpleNamespace(local_key=SimpleNamespace(token=0xA1))
OTHER: Any = SimpleNamespace(local_key=SimpleNamespace(token=0xB2))


def numbers(lines: list[str]) -> list[int]:
    return [json.loads(line)["n"] for line in lines]


def filled(count: int, size: int = 1 << 20) -> Trace:
    trace = Trace(size, 1_000_000.0)
    for number in range(count):
        trace.write("send", CONN, float(number), {"n": number})
    return trace


def test_a_line_has_the_time_of_the_wall_the_event_and_the_token() -> None:
    (line,) = filled(1).read(0, 1000).lines
    assert json.loads(line) == {"time": 1_000_000.0, "event": "send", "token": "000000a1", "n": 0}


def test_the_ring_holds_the_newest_and_tells_how_many_are_lost() -> None:
    trace = filled(1000, size=3000)
    page = trace.read(0, 1 << 20)
    assert sum(map(len, page.lines)) <= 3000
    assert numbers(page.lines) == list(range(1000 - len(page.lines), 1000))
    assert page.lost == 1000 - len(page.lines)
    assert page.cursor == trace.count == 1000
    assert trace.read(page.cursor, 1000) == ([], 1000, 0)


def test_pages_follow_each_other_without_a_gap() -> None:
    trace = filled(300)
    cursor, seen = 0, []
    while cursor < trace.count:
        page = trace.read(cursor, 1000)
        assert page.lines
        assert page.lost == 0
        cursor = page.cursor
        seen += numbers(page.lines)
    assert seen == list(range(300))
    assert len(trace.read(0, 1).lines) == 1, "at least one, however long"


def test_a_cursor_of_another_trace_begins_anew() -> None:
    assert numbers(filled(3).read(77, 1000).lines) == [0, 1, 2]


def test_one_connection_can_be_traced_alone() -> None:
    trace = Trace(1000, 0.0, token=0xB2)
    trace.write("send", CONN, 1.0, {})
    trace.write("send", OTHER, 2.0, {})
    assert trace.count == 1
    scheduler = base.create("default")
    assert trace.wrap(CONN, scheduler) is scheduler
    wrapped = trace.wrap(OTHER, scheduler)
    assert isinstance(wrapped, TracedScheduler)
    assert unwrapped(wrapped) is unwrapped(scheduler) is scheduler


@pytest.mark.parametrize("name", base.names())
def test_a_traced_scheduler_passes_for_the_one_that_it_asks(name: str) -> None:
    inner = base.create(name)
    wrapped = Trace(1000, 0.0).wrap(CONN, inner)
    assert (wrapped.name, wrapped.duplicates) == (name, inner.duplicates)
    assert inner.policy
    assert inner.waits
