"""Several workers asked as one: who gets a request, and how answers become one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from proxy.control.aio import AsyncControlClient
from proxy.control.client import ControlError
from proxy.control.events import EventHub
from proxy.control.fields import CommandError, Request
from proxy.control.merge import merged_status
from proxy.control.server import Command, ControlServer
from proxy.control.workers import WorkerCommands, WorkerEvents, WorkerLink


def uplink(name: str, subflows: int, up: bool, sent: int, srtt: float | None) -> dict[str, Any]:
    return {
        "name": name, "interface": "u1", "address": "198.18.92.10", "backup": False, "up": up,
        "subflows": subflows, "bytes_sent": sent, "bytes_received": 2 * sent, "srtt": srtt,
    }  # fmt: skip


class Worker:
    """One worker's end: what it was asked, and the events that it tells."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.asked: list[Request] = []
        self.events = EventHub()
        self.endpoints: list[dict[str, Any]] = [{"addr": {"id": 1, "addr4": "198.18.92.10"}}]
        names = ("connection", "why", "announce", "sysctl", "add-addr", "flush-addrs", "set-limits")
        commands: dict[str, Command] = dict.fromkeys(names, self._answer)
        commands["counters"] = lambda request: {"TCPOutRsts": 1 + index, f"Only{index}": 1}
        commands["trace-start"] = self._answer
        commands["trace-stop"] = lambda request: {"events": 1 + index}
        commands["trace-dump"] = self._dump
        commands["sockets"] = lambda request: [{"id": 1 + index}]
        commands["get-addr"] = lambda request: self.endpoints
        commands["get-limits"] = lambda request: {"subflows": 2, "rcv-add-addrs": 0}
        self.server = ControlServer(Path(), self._status, commands, self.events)

    def _answer(self, request: Request) -> object:
        self.asked.append({key: value for key, value in request.items() if key != "id"})
        if request.get("value") == "wrong":
            raise CommandError("EINVAL", "it is wrong")
        return {"worker": self.index}

    def _dump(self, request: Request) -> object:
        cursor = request["cursor"]
        assert isinstance(cursor, list)
        (at,) = cursor
        events = [{"time": float(10 * at + self.index), "worker": self.index}]
        return {"events": events, "cursor": [at + 1], "lost": 1, "more": at < self.index}

    def _status(self) -> dict[str, Any]:
        return {
            "role": "proxy", "pid": 1, "uptime": 1.0,
            "uplinks": [uplink("fibre", self.index, True, 100, 0.02 + self.index)],
            "connections": [{"id": 1 + self.index}], "counters": {"TCPOutRsts": 1 + self.index},
        }  # fmt: skip


class Daemon:
    """Two workers, and the control socket of their daemon."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.workers = [Worker(0), Worker(1)]
        self.links: list[WorkerLink] = []
        self.events = WorkerEvents()
        self.events.links = lambda: self.links
        self.commands = WorkerCommands("proxy", 2, lambda: self.links)
        self.server = ControlServer(path, dict, self.commands.commands(), self.events)
        self.serving: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for worker in self.workers:
            self.links.append(await self.link(worker))
        await self.server.start()

    async def link(self, worker: Worker) -> WorkerLink:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        self.serving.append(asyncio.ensure_future(worker.server.serve(theirs)))
        link = WorkerLink(worker.index, 100 + worker.index, self.events.from_worker(worker.index))
        await link.connect(ours)
        return link

    async def stop(self) -> None:
        await self.server.stop()
        for link in self.links:
            link.hang_up()
        await asyncio.gather(*self.serving)

    def lose(self, index: int) -> None:
        link = next(link for link in self.links if link.index == index)
        link.hang_up()
        self.links.remove(link)
        self.commands.ended(index)

    def asked(self) -> list[list[object]]:
        return [[request["command"] for request in worker.asked] for worker in self.workers]


@pytest_asyncio.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    daemon = Daemon(tmp_path / "proxy.sock")
    await daemon.start()
    yield daemon
    await daemon.stop()


@pytest_asyncio.fixture
async def client(daemon: Daemon) -> AsyncIterator[AsyncControlClient]:
    async with AsyncControlClient(daemon.path) as client:
        yield client


async def test_the_status_of_all_is_one(client: AsyncControlClient) -> None:
    status = await client.status()
    assert [entry["id"] for entry in status["connections"]] == [1, 2]
    assert status["counters"] == {"TCPOutRsts": 3, "WorkerRestarts": 0}
    (found,) = status["uplinks"]
    assert (found["subflows"], found["bytes_sent"], found["srtt"]) == (1, 200, 0.02)
    assert [(w["worker"], w["pid"], w["connections"]) for w in status["workers"]] == [
        (0, 100, 1),
        (1, 101, 1),
    ]
    assert [entry["id"] for entry in await client.request("sockets")] == [1, 2]


async def test_sums_do_not_shrink_when_a_worker_ends(
    daemon: Daemon, client: AsyncControlClient
) -> None:
    await client.status()
    daemon.lose(1)
    status = await client.status()
    assert status["counters"] == {"TCPOutRsts": 3, "WorkerRestarts": 1}
    assert status["uplinks"][0]["bytes_sent"] == 200
    assert [entry["id"] for entry in status["connections"]] == [1]


@pytest.mark.parametrize(("number", "worker"), [(1, 0), (2, 1), (3, 0), (1 << 33 | 2, 1)])
async def test_a_connection_is_asked_for_at_its_worker(
    daemon: Daemon, client: AsyncControlClient, number: int, worker: int
) -> None:
    answer = await client.request("connection", conn=number, action="show")
    assert answer == {"worker": worker}
    assert [len(commands) for commands in daemon.asked()] == [1 - worker, worker]


async def test_why_is_asked_for_at_the_worker_of_a_number_or_a_token(
    daemon: Daemon, client: AsyncControlClient
) -> None:
    assert await client.request("why", conn=2) == {"worker": 1}
    assert await client.request("why", token="0000000a") == {"worker": 0}


async def test_a_trace_is_of_all_workers_with_a_cursor_for_each(
    daemon: Daemon, client: AsyncControlClient
) -> None:
    await client.request("trace-start", size=2)
    assert daemon.asked() == [["trace-start"], ["trace-start"]]
    with pytest.raises(ControlError, match="running already") as caught:
        await client.request("trace-start")
    assert caught.value.errno_name == "EBUSY"
    page = await client.request("trace-dump")
    assert [event["worker"] for event in page["events"]] == [0, 1]
    assert (page["cursor"], page["lost"], page["more"], page["tracing"]) == ([1, 1], 2, True, True)
    page = await client.request("trace-dump", cursor=[3, 1])
    assert [event["worker"] for event in page["events"]] == [1, 0], "in the order of time"
    assert (page["cursor"], page["more"]) == ([4, 2], False)
    with pytest.raises(ControlError, match="cursor"):
        await client.request("trace-dump", cursor=[0])

    daemon.lose(1)
    assert (await client.request("trace-dump"))["cursor"] == [1, 0]
    daemon.workers[1] = Worker(1)
    link = await daemon.link(daemon.workers[1])
    await daemon.commands.restore(link)
    daemon.links.append(link)
    assert daemon.workers[1].asked == [{"command": "trace-start", "size": 2}]
    assert await client.request("trace-stop") == {"events": 3}
    with pytest.raises(ControlError, match="no trace is running"):
        await client.request("trace-stop")


async def test_a_trace_of_one_connection_is_its_workers(
    daemon: Daemon, client: AsyncControlClient
) -> None:
    await client.request("trace-start", conn=2)
    assert daemon.asked() == [[], ["trace-start"]]
    daemon.lose(1)
    daemon.workers[1] = Worker(1)
    daemon.links.append(await daemon.link(daemon.workers[1]))
    await daemon.commands.restore(daemon.links[-1])
    assert daemon.workers[1].asked == [], "its connection has ended"
    await client.request("trace-stop")
    await client.request("trace-start", token="0000000a")
    assert daemon.asked() == [["trace-start"], []]


async def test_a_token_names_its_worker(daemon: Daemon, client: AsyncControlClient) -> None:
    assert await client.request("announce", token="0000000b") == {"worker": 1}
    assert await client.request("announce", token=10) == {"worker": 0}
    daemon.lose(1)
    with pytest.raises(ControlError, match="started again") as caught:
        await client.request("announce", token=11)
    assert caught.value.errno_name == "ENOENT"


async def test_a_change_reaches_all_and_a_refusal_none_but_the_first(
    daemon: Daemon, client: AsyncControlClient
) -> None:
    await client.request("sysctl", name="scheduler", value="blest")
    assert daemon.asked() == [["sysctl"], ["sysctl"]]
    with pytest.raises(ControlError, match="it is wrong"):
        await client.request("sysctl", name="scheduler", value="wrong")
    assert daemon.asked() == [["sysctl", "sysctl"], ["sysctl"]]
    await client.request("sysctl", name="scheduler")
    assert daemon.asked() == [["sysctl"] * 3, ["sysctl"]]


async def test_a_worker_that_is_started_again_gets_what_was_changed(
    daemon: Daemon, client: AsyncControlClient
) -> None:
    await client.request("sysctl", name="scheduler", value="blest")
    await client.request("add-addr", addr={"addr4": "198.18.92.11"})
    daemon.lose(1)
    daemon.workers[1] = Worker(1)
    link = await daemon.link(daemon.workers[1])
    await daemon.commands.restore(link)
    daemon.links.append(link)
    assert daemon.workers[1].asked == [
        {"command": "flush-addrs"},
        {"command": "add-addr", "addr": {"id": 1, "addr4": "198.18.92.10"}},
        {"command": "set-limits", "subflows": 2, "rcv-add-addrs": 0},
        {"command": "sysctl", "name": "scheduler", "value": "blest"},
    ]


async def test_events_of_all_come_once_and_only_while_somebody_listens(
    daemon: Daemon, client: AsyncControlClient
) -> None:
    first, second = (worker.events for worker in daemon.workers)
    assert not first.listening
    await client.subscribe("closed", "listener-created")
    assert first.listening
    assert second.listening
    for hub, name in ((first, "listener-created"), (second, "listener-created")):
        hub.publish(name, {})
    first.publish("closed", {"token": "00000002"})
    second.publish("closed", {"token": "00000003"})
    seen = []
    async for event in client.events():
        seen.append((event["event"], event.get("token")))
        if len(seen) == 3:
            break
    assert sorted(seen, key=str) == [
        ("closed", "00000002"),
        ("closed", "00000003"),
        ("listener-created", None),
    ]
    await client.request("unsubscribe")
    await daemon.events.ready()
    assert not first.listening
    assert not second.listening


async def test_without_any_worker_there_is_an_answer(
    daemon: Daemon, client: AsyncControlClient
) -> None:
    daemon.lose(0)
    daemon.lose(1)
    status = await client.status()
    assert (status["role"], status["connections"], status["workers"]) == ("proxy", [], [])
    with pytest.raises(ControlError, match="no worker"):
        await client.request("get-limits")


def test_an_uplink_is_up_if_those_who_use_it_say_so() -> None:
    def up(*parts: tuple[int, bool]) -> bool:
        status = [
            {"connections": [], "counters": {}, "uplinks": [uplink("a", n, is_up, 0, None)]}
            for n, is_up in parts
        ]
        return bool(merged_status(status, {})["uplinks"][0]["up"])

    assert up((0, True), (0, True))
    assert not up((1, False), (0, True))
    assert up((1, False), (1, True))
    assert not up((0, False), (0, False))
