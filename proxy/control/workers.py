"""Several workers, asked as one: requests go to those that they concern, answers become one."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from proxy.control.capture import PACKET_LINE
from proxy.control.events import Deliver, EventHub
from proxy.control.fields import CommandError, Request, token
from proxy.control.merge import Gone, add_counters, merged_status
from proxy.control.trace import cursors
from proxy.control.uplinks import megabits
from proxy.errors import MptcpProxyError
from proxy.relay.flow import worker_of

log = logging.getLogger(__name__)

_TIMEOUT = 5.0  # seconds for an answer
_MAX_REPLY = 256 * 1024 * 1024
# What changes all workers alike; the other commands concern one connection, or ask.
_CHANGES = ("add-addr", "del-addr", "flush-addrs", "set-limits", "set-flags")
_OF_ONE_CONNECTION = ("announce", "remove", "subflow-create", "subflow-destroy")


class WorkerError(MptcpProxyError):
    """A worker is gone, or does not answer."""


class WorkerLink:
    """The control connection to one worker; it speaks the protocol of ``schema``.

    ``on_event`` gets the name and the line of each event, ``on_packet`` the line of each packet of
    a capture.
    """

    def __init__(
        self,
        index: int,
        pid: int,
        on_event: Callable[[str, bytes], None],
        on_packet: Callable[[bytes], None] = lambda line: None,
    ) -> None:
        self.index = index
        self.pid = pid
        self.started = time.monotonic()
        self.open = False
        """Whether it carries connections."""
        self._on_event = on_event
        self._on_packet = on_packet
        self._number = 0
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self, connected: socket.socket) -> None:
        """Begin to talk over ``connected``."""
        reader, self._writer = await asyncio.open_unix_connection(sock=connected, limit=_MAX_REPLY)
        self._reading = asyncio.create_task(self._read(reader))

    def hang_up(self) -> None:
        """The worker ends when it sees that."""
        self.open = False
        if self._writer is not None:
            self._writer.close()

    async def request(self, fields: Request, timeout: float = _TIMEOUT) -> Any:
        """The result of a request, which is its ``command`` and the rest.

        CommandError if the worker refuses, WorkerError if it cannot answer.
        """
        if self._writer is None or self._reading is None or self._reading.done():
            raise WorkerError(f"worker {self.index} is gone")
        self._number += 1
        number = self._number
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        line = json.dumps({**fields, "id": number}, separators=(",", ":"))
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(line.encode() + b"\n")
                await self._writer.drain()
                return _result(self.index, await reply)
        except (TimeoutError, OSError) as error:
            raise WorkerError(f"worker {self.index} does not answer") from error
        finally:
            del self._replies[number]

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                if line.startswith(PACKET_LINE):
                    self._on_packet(line)
                    continue
                message = json.loads(line)
                if "event" in message:
                    self._on_event(message["event"], line)
                    continue
                reply = self._replies.get(message["id"])
                if reply is not None and not reply.done():
                    reply.set_result(message)
        except ConnectionError:
            pass  # it ended
        except (OSError, ValueError) as error:
            log.warning("worker %d: %s", self.index, error)
        finally:
            self.open = False
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_exception(WorkerError(f"worker {self.index} is gone"))


class WorkerEvents(EventHub):
    """The events of all workers; they tell only while somebody listens."""

    def __init__(self) -> None:
        super().__init__()
        self.links: Callable[[], Iterable[WorkerLink]] = tuple
        self._told: asyncio.Task[None] | None = None

    def subscribe(self, deliver: Deliver) -> None:
        """See ``EventHub``."""
        first = not self.listening
        super().subscribe(deliver)
        if first:
            self._tell("subscribe")

    def unsubscribe(self, deliver: Deliver) -> None:
        """See ``EventHub``."""
        listening = self.listening
        super().unsubscribe(deliver)
        if listening and not self.listening:
            self._tell("unsubscribe")

    async def ready(self) -> None:
        """See ``EventHub``."""
        if self._told is not None:
            await asyncio.shield(self._told)

    def from_worker(self, index: int) -> Callable[[str, bytes], None]:
        """What takes the events of that worker."""

        def take(name: str, line: bytes) -> None:
            # Endpoints and uplinks are the same for all of them: one says so.
            first = next((link.index for link in self.links()), index)
            if index == first or not name.startswith(("listener-", "uplink-", "gateway-")):
                self.relay(name, line)

        return take

    def _tell(self, command: str) -> None:
        self._told = asyncio.ensure_future(self._tell_all(command, self._told))

    async def _tell_all(self, command: str, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        for link in list(self.links()):
            await _ignoring(link.request({"command": command}))


class WorkerCommands:
    """The commands of a daemon whose work is done by workers.

    ``links`` gives those that are open, in order; ``count`` is how many there should be.
    """

    def __init__(self, role: str, count: int, links: Callable[[], list[WorkerLink]]) -> None:
        self._role = role
        self.lock = asyncio.Lock()
        """Held while the settings of all change."""
        self.restarts = 0
        self._count = count
        self._links = links
        self._started = time.monotonic()
        self._settings: list[Request] = []
        self._sysctls: dict[str, object] = {}
        self._limits: dict[str, float] = {}
        self._last: dict[int, dict[str, Any]] = {}
        self._gone = Gone()
        self._traces: Request | None = None  # what began the trace that is running

    def commands(self) -> dict[str, Callable[[Request], Awaitable[object]]]:
        """By name, for ``ControlServer``."""
        table: dict[str, Callable[[Request], Awaitable[object]]] = {
            "status": self._status,
            "counters": self._counters,
            "sockets": self._sockets,
            "connection": self._connection,
            "why": lambda r: (self._of_token if "token" in r else self._connection)(r),
            "trace-start": self._trace_start,
            "trace-stop": self._trace_stop,
            "trace-dump": self._trace_dump,
            "sysctl": self._sysctl,
            "uplink-limit": self._uplink_limit,
            "get-addr": lambda r: self._of_token(r) if "token" in r else self._ask_one(r),
            "get-limits": self._ask_one,
            "rules": self._rules,
            "rule-test": self._ask_one,
        }
        for name in _CHANGES:
            table[name] = lambda r: self._of_token(r) if "token" in r else self._change(r)
        return table | dict.fromkeys(_OF_ONE_CONNECTION, self._of_token)

    # -- for whoever keeps the workers ------------------------------------------------------------

    async def restore(self, link: WorkerLink) -> None:
        """Bring a worker that was started again to what was changed since the start."""
        for request in self._settings:
            await link.request(request)
        for name, value in self._sysctls.items():
            await link.request({"command": "sysctl", "name": name, "value": value})
        for uplink, rate in self._limits.items():
            await link.request({"command": "uplink-limit", "uplink": uplink, "up": rate})
        if self._traces is not None and not _of_one(self._traces):
            await link.request(self._traces)

    def ended(self, index: int) -> None:
        """What a worker counted that has ended stays in the sums, as far as it was ever asked."""
        self.restarts += 1
        last = self._last.pop(index, None)
        if last is not None:
            self._gone.add(last)

    async def reloaded(self, changed: Iterable[str]) -> None:
        """The file has changed what was set by command, as far as ``changed`` names it."""
        for path in changed:
            for form in (f"net.{path}", f"net.{path}".replace(".", "/"), path.rpartition(".")[2]):
                self._sysctls.pop(form, None)
        if self._settings:
            self._settings = await _settings_of(self._some()[0])

    async def broadcast(self, request: Request) -> None:
        """Tell all that are there."""
        for link in self._links():
            await _ignoring(link.request(request))

    # -- commands ---------------------------------------------------------------------------------

    async def _status(self, request: Request) -> object:
        answers = await self._ask_all("status")
        for link, status in answers:
            self._last[link.index] = {key: status[key] for key in ("counters", "uplinks")}
        status = merged_status([answer for _, answer in answers], self._gone.uplinks)
        add_counters(status["counters"], self._all_gone())
        status["role"] = self._role
        status["pid"] = os.getpid()
        status["uptime"] = time.monotonic() - self._started
        status["workers"] = [
            {
                "worker": link.index,
                "pid": link.pid,
                "uptime": time.monotonic() - link.started,
                "connections": len(answer["connections"]),
            }
            for link, answer in answers
        ]
        return status

    async def _counters(self, request: Request) -> object:
        total = self._all_gone()
        for link, counters in await self._ask_all("counters"):
            self._last.setdefault(link.index, {})["counters"] = counters
            add_counters(total, counters)
        return total

    async def _sockets(self, request: Request) -> object:
        return [entry for _, entries in await self._ask_all("sockets") for entry in entries]

    async def _rules(self, request: Request) -> object:
        answers = [answer for _, answer in await self._ask_all("rules")]
        if not answers:
            return await self._ask_one(request)
        total, *others = answers
        for answer in others:
            total["others"] += answer["others"]
            for rule, other in zip(total["rules"], answer["rules"], strict=True):
                rule["hits"] += other["hits"]
        return total

    async def _connection(self, request: Request) -> object:
        number = request.get("conn")
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            return await self._ask_one(request)  # who refuses it in the words of a single process
        return await self._ask(worker_of(number, self._count), request)

    async def _trace_start(self, request: Request) -> object:
        async with self.lock:
            if self._traces is not None:
                raise CommandError("EBUSY", "a trace is running already: trace stop ends it")
            if "conn" in request:
                result = await self._connection(request)
            elif "token" in request:
                result = await self._of_token(request)
            else:
                result = await self._tell_all(request)
            self._traces = _fields(request)
        return result

    async def _trace_stop(self, request: Request) -> object:
        async with self.lock:
            if self._traces is None:
                raise CommandError("EINVAL", "no trace is running: trace start begins one")
            self._traces = None
            events = 0
            for link in self._links():
                try:
                    events += (await link.request(_fields(request)))["events"]
                except MptcpProxyError as error:
                    log.debug("%s", error)  # it has ended, or traced nothing
        return {"events": events}

    async def _trace_dump(self, request: Request) -> object:
        """A page of each worker's, in the order of time."""
        before = cursors(request, self._count)
        after = list(before)
        events: list[Any] = []
        lost, more = 0, False
        for link in self._links():
            try:
                page = await link.request({"command": "trace-dump", "cursor": [before[link.index]]})
            except WorkerError as error:
                log.debug("%s", error)  # what it had recorded is gone
                continue
            (after[link.index],) = page["cursor"]
            events += page["events"]
            lost += page["lost"]
            more = more or page["more"]
        events.sort(key=lambda event: float(event["time"]))
        tracing = self._traces is not None
        return {"events": events, "cursor": after, "lost": lost, "more": more, "tracing": tracing}

    async def _of_token(self, request: Request) -> object:
        return await self._ask(token(request) % self._count, request)

    async def _sysctl(self, request: Request) -> object:
        if request.get("value") is None:
            return await self._ask_one(request)
        async with self.lock:
            result = await self._tell_all(request)
            self._sysctls[str(request["name"])] = request["value"]
        return result

    async def _uplink_limit(self, request: Request) -> object:
        """Each worker has its part of the limit, since they share nothing while they send."""
        rate = megabits(request)
        if rate is None:
            result = await self._ask_one(request)
        else:
            async with self.lock:
                part = rate / self._count
                result = await self._tell_all({**request, "up": part})
                self._limits[str(request["uplink"])] = part
        return {**result, "up": result["up"] * self._count}

    async def _change(self, request: Request) -> object:
        async with self.lock:
            result = await self._tell_all(request)
            self._settings = await _settings_of(self._some()[0])
        return result

    async def _tell_all(self, request: Request) -> Any:
        """One worker is asked first: what it refuses the others would refuse as well."""
        first, *others = self._some()
        result = await first.request(_fields(request))
        for link in others:
            await _ignoring(link.request(_fields(request)))
        return result

    async def _ask_one(self, request: Request) -> Any:
        return await self._some()[0].request(_fields(request))

    async def _ask(self, index: int, request: Request) -> object:
        for link in self._links():
            if link.index == index:
                return await link.request(_fields(request))
        raise CommandError("ENOENT", f"its worker ({index}) has ended and is started again")

    async def _ask_all(self, command: str) -> list[tuple[WorkerLink, Any]]:
        """The answers of those that give one: what a worker had that is gone is gone."""
        links = self._links()
        answers = await asyncio.gather(
            *(link.request({"command": command}) for link in links), return_exceptions=True
        )
        found = []
        for link, answer in zip(links, answers, strict=True):
            if isinstance(answer, WorkerError):
                log.debug("%s", answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found.append((link, answer))
        return found

    def _some(self) -> list[WorkerLink]:
        links = self._links()
        if not links:
            raise CommandError("EAGAIN", "no worker is running just now")
        return links

    def _all_gone(self) -> dict[str, int]:
        return {**self._gone.counters, "WorkerRestarts": self.restarts}


async def _settings_of(link: WorkerLink) -> list[Request]:
    """Requests that give another worker the endpoints and limits of this one."""
    endpoints = await link.request({"command": "get-addr"})
    limits = await link.request({"command": "get-limits"})
    return [
        {"command": "flush-addrs"},
        *({"command": "add-addr", "addr": endpoint["addr"]} for endpoint in endpoints),
        {"command": "set-limits", **limits},
    ]


def _of_one(request: Request) -> bool:
    """Whether it concerns one connection, whose worker alone was asked."""
    return "conn" in request or "token" in request


def _fields(request: Request) -> dict[str, Any]:
    return {key: value for key, value in request.items() if key not in ("id", "version")}


def _result(index: int, reply: Mapping[str, Any]) -> Any:
    error = reply.get("error")
    if error is None:
        return reply.get("result")
    if "errno" in error:
        raise CommandError(error["errno"], error["message"])
    raise WorkerError(f"worker {index}: {error.get('message')}")


async def _ignoring(request: Awaitable[object]) -> None:
    try:
        await request
    except MptcpProxyError as error:
        log.warning("%s", error)
