"""Subscribing to events over the socket, with both clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from proxy.control.aio import AsyncControlClient
from proxy.control.client import ControlClient, ControlError, NoDaemonError
from proxy.control.events import EventHub
from proxy.control.fields import CommandError
from proxy.control.server import ControlServer


def refuse(request: object) -> object:
    raise CommandError("EBUSY", "not now")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def hub() -> EventHub:
    return EventHub(clock=lambda: 7.5)


@pytest_asyncio.fixture
async def server(path: Path, hub: EventHub) -> AsyncIterator[ControlServer]:
    def close(request: Any) -> object:
        hub.publish("closed", {"token": request["token"]})
        return request["token"]

    server = ControlServer(path, lambda: {"role": "x"}, {"end": close, "refuse": refuse}, hub)
    await server.start()
    yield server
    await server.stop()


async def test_a_subscriber_gets_what_it_asked_for(
    server: ControlServer, path: Path, hub: EventHub
) -> None:
    async with AsyncControlClient(path) as client:
        assert not hub.listening
        await client.subscribe("closed", "announced")
        assert hub.listening
        hub.publish("created", {"token": "1"})
        hub.publish("closed", {"token": "2"})
        async for event in client.events():
            assert event == {"version": 1, "event": "closed", "time": 7.5, "token": "2"}
            break
        assert await client.request("end", token="3") == "3"
        assert (await client.status())["role"] == "x"
        assert (await anext(client.events()))["token"] == "3"


async def test_who_hangs_up_listens_no_more(
    server: ControlServer, path: Path, hub: EventHub
) -> None:
    async with AsyncControlClient(path) as client:
        await client.subscribe()
    async with AsyncControlClient(path) as other:
        for _ in range(100):
            if not hub.listening:
                break
            await other.status()
    assert not hub.listening


async def test_requests_of_several_tasks_get_their_own_replies(
    server: ControlServer, path: Path
) -> None:
    async with AsyncControlClient(path) as client:
        tokens = [str(number) for number in range(20)]
        assert await asyncio.gather(*(client.request("end", token=t) for t in tokens)) == tokens


async def test_refusals_name_the_kernels_error(server: ControlServer, path: Path) -> None:
    async with AsyncControlClient(path) as client:
        with pytest.raises(ControlError, match=r"^not now$") as caught:
            await client.request("refuse")
        assert caught.value.errno_name == "EBUSY"
        with pytest.raises(ControlError, match="known commands: end, refuse, status, subscribe"):
            await client.request("bogus")
        with pytest.raises(ControlError, match="events must be a list"):
            await client.subscribe("bogus")


async def test_events_end_when_the_daemon_does(
    server: ControlServer, path: Path, hub: EventHub
) -> None:
    async with AsyncControlClient(path) as client:
        await client.subscribe()
        hub.publish("closed", {"token": "2"})
        await server.stop()
        assert (await anext(client.events()))["token"] == "2"
        with pytest.raises(ControlError, match="hung up"):
            await anext(client.events())
        with pytest.raises(ControlError, match="hung up"):
            await client.status()


async def test_no_daemon_is_an_error_of_its_own(path: Path) -> None:
    with pytest.raises(NoDaemonError):
        await AsyncControlClient(path).connect()


async def test_who_does_not_read_loses_events_and_is_told(
    server: ControlServer, path: Path, hub: EventHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.control.server.MAX_BACKLOG", 100_000)
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b'{"command": "subscribe"}\n')
    assert b"result" in await reader.readline()
    count = 20_000
    for number in range(count):
        hub.publish("closed", {"token": str(number)})
    received = 0
    while received < 100:
        received += b'"closed"' in await reader.readline()
    hub.publish("closed", {"token": "last"})
    lost = 0
    while True:
        event = json.loads(await reader.readline())
        if event["event"] == "overrun":
            lost = event["lost"]
            continue
        received += 1
        if event["token"] == "last":
            break
        if lost == 0:
            hub.publish("closed", {"token": "last"})
            count += 1
    assert lost > 0
    assert received <= count + 1 - lost
    writer.close()


async def test_the_plain_client_gives_events_too(
    server: ControlServer, path: Path, hub: EventHub
) -> None:
    def follow() -> list[Any]:
        with ControlClient(path) as client, ControlClient(path) as other:
            events = client.events("closed")
            other.request("end", token="0")
            tokens = [next(events)["token"]]
            client.request("end", token="own")
            return [*tokens, next(events)["token"]]

    assert await asyncio.to_thread(follow) == ["0", "own"]
