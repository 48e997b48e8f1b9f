"""``trace-start``, ``trace-stop`` and ``trace-dump`` over a live pair."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.control import trace
from tests.pair.mptcp_harness import payload
from tests.unit.test_control_commands import Plane


@pytest.fixture
def plane() -> Plane:
    return Plane(endpoints=2).open()


def transfer(plane: Plane, size: int = 100_000) -> None:
    plane.pair.client.send(payload(size))
    plane.wait()


def sent(page: dict[str, Any]) -> int:
    return sum(event["bytes"] for event in page["events"] if event["event"] == "send")


def test_what_is_decided_is_recorded_from_start_to_stop_and_read_afterwards(plane: Plane) -> None:
    before = plane.ask("trace-dump")
    assert before == {"events": [], "cursor": [0], "lost": 0, "more": False, "tracing": False}
    transfer(plane)
    assert plane.ask("trace-start") == {"size": 4, "token": None}
    assert plane.errno("trace-start")[0] == "EBUSY"
    transfer(plane, 30_000)
    page = plane.ask("trace-dump")
    assert sent(page) == 30_000
    assert page["tracing"]
    assert {event["token"] for event in page["events"]} == {plane.token}
    assert plane.ask("trace-stop") == {"events": len(page["events"])}
    transfer(plane)
    assert plane.ask("trace-dump") == {**page, "tracing": False}
    assert plane.errno("trace-stop")[0] == "EINVAL"
    plane.ask("trace-start")
    assert plane.ask("trace-dump")["events"] == [], "another one begins anew"


def test_nothing_stands_before_the_scheduler_afterwards(plane: Plane) -> None:
    scheduler = plane.pair.client.scheduler
    plane.ask("trace-start")
    assert plane.pair.client.scheduler is not scheduler
    assert plane.ask("sockets")[0]["scheduler"] == "default"
    plane.ask("trace-stop")
    assert plane.pair.client.scheduler is scheduler


def test_a_trace_is_read_in_pages(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_PAGE", 2000)
    plane.ask("trace-start", size=1)
    transfer(plane)
    plane.ask("trace-stop")
    page = plane.ask("trace-dump")
    total, pages = sent(page), 1
    while page["more"]:
        page = plane.ask("trace-dump", cursor=page["cursor"])
        total, pages = total + sent(page), pages + 1
        assert page["lost"] == 0
    assert total == 100_000
    assert pages > 2


def test_one_connection_by_number_or_token(plane: Plane) -> None:
    assert plane.ask("trace-start", conn=1) == {"size": 4, "token": plane.token}
    transfer(plane)
    assert sent(plane.ask("trace-dump")) == 100_000
    plane.ask("trace-stop")
    assert plane.ask("trace-start", token=plane.token)["token"] == plane.token
    plane.ask("trace-stop")
    assert plane.errno("trace-start", conn=9)[0] == "ENOENT"
    assert plane.errno("trace-start", token="00000009")[0] == "ENOENT"


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        ("trace-start", {"size": 0}),
        ("trace-start", {"size": 65}),
        ("trace-start", {"token": "x"}),
        ("trace-dump", {"cursor": 1}),
        ("trace-dump", {"cursor": [0, 0]}),
        ("trace-dump", {"cursor": [-1]}),
        ("trace-dump", {"cursor": [True]}),
    ],
)
def test_what_makes_no_sense_is_refused(
    plane: Plane, command: str, fields: dict[str, object]
) -> None:
    assert plane.errno(command, **fields)[0] == "EINVAL"
