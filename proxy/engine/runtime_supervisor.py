"""The process that keeps several workers: starts them, asks them as one, starts them again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from proxy.config import Changes, GatewayConfig, ProxyConfig
from proxy.config.gateway import MAX_CLIENTS
from proxy.control.capture import WorkerCapture
from proxy.control.worker_metrics import WorkerReports
from proxy.control.workers import WorkerCommands, WorkerEvents, WorkerLink
from proxy.engine.runtime_channel import make_pair
from proxy.engine.runtime_role import HostState, set_log_level
from proxy.engine.runtime_worker import EXIT_NO_DEVICE, Boot, encode
from proxy.errors import DeviceError, MptcpProxyError
from proxy.mptcp.keys import TokenShare
from proxy.relay.usage import MAX_HOSTS
from proxy.tun.device import TunDevice

log = logging.getLogger(__name__)

# A worker that lasts less (seconds) is started again after a pause that doubles up to the longest.
_SHORT_LIFE = 5.0
_LONGEST_PAUSE = 30.0
_STOP_TIMEOUT = 5.0
_START_TIMEOUT = 60.0  # to load the program, on a machine that has much else to do


@dataclass(slots=True)
class _Place:
    """One worker's place: what stays when the process in it changes."""

    index: int
    device: TunDevice
    inlet: socket.socket
    outlet: socket.socket
    runs: int = 0
    failures: int = 0
    forgot_until: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    link: WorkerLink | None = None


class Supervisor:
    """Keeps ``config.workers`` workers on the queues of ``device``.

    ``failed`` has an exception once it makes no sense to go on.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: ProxyConfig | GatewayConfig,
        device: TunDevice,
        host: HostState,
    ) -> None:
        self._host = host
        self.failed: asyncio.Future[None] = loop.create_future()
        self.events = WorkerEvents()
        self.events.links = self._links
        self.capture = WorkerCapture(self._links)
        self.commands = WorkerCommands(config.role, config.workers, self._links)
        self.reports = WorkerReports(
            config.role,
            MAX_HOSTS if isinstance(config, ProxyConfig) else MAX_CLIENTS,
            self._links,
            lambda: {"WorkerRestarts": self.commands.restarts},
        )
        self._loop = loop
        self._config = config
        self._secret = secrets.token_bytes(32)
        self._places = [
            _Place(index, queue, *make_pair())
            for index, queue in enumerate((device, *device.siblings))
        ]
        self._started = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start all; DeviceError if one does not come up."""
        try:
            # Together: each waits for what the others have to tell.
            await asyncio.gather(*(self._start(place) for place in self._places))
        except MptcpProxyError as error:
            raise DeviceError(f"cannot start the workers: {error}") from error
        self._started = True

    async def stop(self) -> None:
        """Let all reset what they have, and wait for their end."""
        self._started = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        end = time.monotonic() + _STOP_TIMEOUT
        for place in self._places:
            if place.link is not None:
                place.link.hang_up()
        for place in self._places:
            await _wait_for_end(place, end)
            place.inlet.close()
            place.outlet.close()

    def follow(self, host: HostState) -> None:
        """The host has changed."""
        self._host = host
        self._begin(self.commands.broadcast({"command": "worker-follow", "host": encode(host)}))

    async def reconfigure(self, changes: Changes, host: HostState) -> None:
        """All workers go by ``changes.config``, also those that are started later."""
        set_log_level(changes)
        async with self.commands.lock:
            self._config, self._host = changes.config, host
            await self.commands.broadcast(
                {"command": "worker-reload", "changes": encode(changes), "host": encode(host)}
            )
            await self.commands.reloaded(changes.changed)

    # -- private ----------------------------------------------------------------------------------

    def _links(self) -> list[WorkerLink]:
        return [place.link for place in self._places if place.link and place.link.open]

    async def _start(self, place: _Place) -> None:
        host = self._host
        connected = self._spawn(place)
        link = place.link
        assert link is not None
        await link.connect(connected)
        await link.request({"command": "worker-hello"}, _START_TIMEOUT)
        await self.commands.restore(link)
        if self.events.listening:
            await link.request({"command": "subscribe"})
        if self.capture.request is not None:
            await link.request(self.capture.request)
        await link.request({"command": "worker-open"})
        link.open = True
        if self._host is not host:  # it has changed meanwhile
            await link.request({"command": "worker-follow", "host": encode(self._host)})

    def _spawn(self, place: _Place) -> socket.socket:
        """Start a process in ``place``; returns our end of its control connection."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        boot = self._boot(place, theirs)
        title = f"worker {place.index} of the {self._config.role}"
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "proxy.cli.worker", title],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(boot.device, boot.control, boot.inlet, *boot.outlets.values()),
            )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            boot.write(process.stdin)
        place.process = process
        place.pidfd = os.pidfd_open(process.pid)
        place.link = WorkerLink(
            place.index, process.pid, self.events.from_worker(place.index), self.capture.take
        )
        self._loop.add_reader(place.pidfd, self._on_end, place)
        return ours

    def _boot(self, place: _Place, control: socket.socket) -> Boot:
        return Boot(
            config=self._config,
            host=self._host,
            log_level=logging.getLevelName(logging.getLogger().level).lower(),
            parent=os.getpid(),
            share=TokenShare(place.index, len(self._places), place.runs),
            secret=self._secret,
            forgot_until=place.forgot_until,
            device=place.device.fileno(),
            control=control.fileno(),
            inlet=place.inlet.fileno(),
            outlets={p.index: p.outlet.fileno() for p in self._places if p is not place},
        )

    def _on_end(self, place: _Place) -> None:
        process, link = place.process, place.link
        assert process is not None
        assert link is not None
        self._loop.remove_reader(place.pidfd)
        os.close(place.pidfd)
        status = process.wait()
        link.hang_up()
        if not self._started:
            return
        if status == EXIT_NO_DEVICE:
            if not self.failed.done():
                self.failed.set_exception(DeviceError("a worker has lost the TUN device"))
            return
        log.error(
            "worker %d (pid %d) has ended, %s: its connections are lost, it is started again",
            place.index,
            process.pid,
            _words(status),
        )
        self.commands.ended(place.index)
        self.reports.ended(place.index)
        place.runs += 1
        place.forgot_until = time.time()
        lasted = time.monotonic() - link.started
        place.failures = place.failures + 1 if lasted < _SHORT_LIFE else 0
        self._begin(self._start_again(place))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start_again(self, place: _Place) -> None:
        # Not in the second in which it ended: what a client signs from the next one on is new.
        pause = math.floor(place.forgot_until) + 1 - place.forgot_until
        if place.failures:
            pause = max(pause, min(2.0**place.failures, _LONGEST_PAUSE))
        await asyncio.sleep(pause)
        try:
            async with self.commands.lock:
                await self._start(place)
        except MptcpProxyError as error:
            log.error("worker %d does not start: %s", place.index, error)
            if place.process is not None:
                place.process.kill()  # if it is there still; what follows is up to _on_end()


def _words(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


async def _wait_for_end(place: _Place, end: float) -> None:
    process = place.process
    if process is None:
        return
    while process.poll() is None:
        if time.monotonic() > end:
            log.error("worker %d does not stop", place.index)
            process.kill()
            process.wait()
            return
        await asyncio.sleep(0.01)
