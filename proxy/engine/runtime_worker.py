"""One of several workers: a stack on a queue of the device, beside others of its kind."""

from __future__ import annotations

import asyncio
import base64
import copyreg
import ctypes
import logging
import os
import pickle
import random
import signal
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, TypeVar

import uvloop

from proxy.config import Changes, GatewayConfig, ProxyConfig
from proxy.control.capture import peer_commands
from proxy.control.fields import Request
from proxy.control.metrics import COMMAND as METRICS
from proxy.control.server import ControlServer
from proxy.engine.handover import Handover
from proxy.engine.runtime import Device, Runtime, settle_memory
from proxy.engine.runtime_channel import SocketChannel
from proxy.engine.runtime_role import HostState, make_role, mptcp_settings, set_log_level
from proxy.engine.stack import Stack
from proxy.errors import DeviceError
from proxy.mptcp.keys import TokenShare
from proxy.relay.shared import share_blackhole
from proxy.tcp.config import TcpConfig
from proxy.tun.device import TunDevice

log = logging.getLogger(__name__)
T = TypeVar("T", HostState, Changes)

EXIT_NO_DEVICE = 3
"""The interface is gone: starting again would not help."""

# Another worker that does not answer for so long (seconds) is being started itself.
_SYNC_TIMEOUT = 1.0
_RETRY = 0.005  # seconds until there may be room in another worker's queue
_PR_SET_PDEATHSIG = 1


def _read_only(values: dict[str, Any]) -> MappingProxyType[str, Any]:
    return MappingProxyType(values)


# Settings of a configuration are such mappings, of which pickle knows nothing.
copyreg.pickle(MappingProxyType, lambda mapping: (_read_only, (dict(mapping),)))


@dataclass(frozen=True, slots=True)
class Boot:
    """What a worker is told at its start, over its standard input.

    The numbers of descriptors that it inherits: ``device``, ``control``, ``inlet`` and
    ``outlets`` (by worker). ``parent`` is a process id.
    """

    config: ProxyConfig | GatewayConfig
    host: HostState
    log_level: str
    parent: int
    share: TokenShare
    secret: bytes
    forgot_until: float
    device: int
    control: int
    inlet: int
    outlets: dict[int, int]

    def write(self, file: IO[bytes]) -> None:
        """For ``read`` in the new process."""
        pickle.dump(self, file)

    @classmethod
    def read(cls, file: IO[bytes]) -> Boot:
        """What the parent wrote."""
        boot = pickle.load(file)
        assert isinstance(boot, cls)
        return boot


def encode(what: HostState | Changes) -> str:
    """For the commands ``worker-follow`` and ``worker-reload``, which the parent alone can give."""
    return base64.b64encode(pickle.dumps(what)).decode()


def decode(request: Request, name: str, kind: type[T]) -> T:
    """The other way."""
    what = pickle.loads(base64.b64decode(str(request[name])))
    assert isinstance(what, kind)
    return what


class WorkerRuntime(Runtime):
    """A runtime that also takes what other workers hand over."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        device: Device,
        stack: Stack,
        handover: Handover,
        channel: SocketChannel,
    ) -> None:
        super().__init__(loop, device, stack)
        self._handover = handover
        self._channel = channel
        self._opened = False
        self._retry: asyncio.TimerHandle | None = None
        loop.add_reader(channel.fileno(), self._on_message)

    async def sync(self) -> None:
        """Wait until the others have told what they hold, or for as long as makes sense."""
        self._handover.begin()
        end = self.loop.time() + _SYNC_TIMEOUT
        while not self._handover.synced and self.loop.time() < end:
            await asyncio.sleep(0.005)
        self._opened = True

    def turn(self) -> None:
        """See ``Runtime``; first what was handed over."""
        while self._opened and self._handover.pending:
            try:
                self._handover.receive(time.monotonic())
            except Exception:
                self._internal_error()
        super().turn()
        if self._handover.waiting and self._retry is None:
            self._retry = self.loop.call_later(_RETRY, self._on_retry)

    def stop(self) -> None:
        """See ``Runtime``."""
        self.loop.remove_reader(self._channel.fileno())
        super().stop()
        if self._retry is not None:
            self._retry.cancel()

    def _on_message(self) -> None:
        self._handover.read()
        self.turn()

    def _on_retry(self) -> None:
        self._retry = None
        self._handover.flush()
        self.turn()


def run(boot: Boot) -> int:
    """Work until the parent hangs up or is gone; returns an exit status."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != boot.parent:
        return 1
    # The parent says when to stop; a terminal and systemd would tell us all at once.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return uvloop.run(_serve(boot))


async def _serve(boot: Boot) -> int:
    loop = asyncio.get_running_loop()
    config, share = boot.config, boot.share
    device = TunDevice.adopt(boot.device, config.tun.name, offload=config.tun.offload)
    tcp = TcpConfig(**config.tcp)
    tcp = replace(tcp, memory=share.part(tcp.memory))
    stack = Stack(random.SystemRandom(), tcp, mptcp_settings(config), share)
    outlets = {index: socket.socket(fileno=number) for index, number in boot.outlets.items()}
    channel = SocketChannel(socket.socket(fileno=boot.inlet), outlets)
    handover = Handover(stack, share, boot.secret, channel, boot.forgot_until)
    share_blackhole(stack, handover)
    runtime = WorkerRuntime(loop, device, stack, handover, channel)
    role = make_role(config, runtime, boot.host)

    async def open_(request: object) -> None:
        await runtime.sync()
        role.start()
        settle_memory()

    def follow(request: Request) -> None:
        role.follow(decode(request, "host", HostState))

    def reload(request: Request) -> None:
        changes = decode(request, "changes", Changes)
        set_log_level(changes)
        role.reconfigure(changes.config, decode(request, "host", HostState))

    commands = {
        **role.commands(),
        "worker-hello": lambda request: None,
        "worker-open": open_,
        "worker-follow": follow,
        "worker-reload": reload,
        METRICS: role.reading().command,
    }
    capture = peer_commands(role.capture())
    control = ControlServer(Path(), role.status, commands, role.plane.events, capture)
    try:
        serving = asyncio.ensure_future(control.serve(socket.socket(fileno=boot.control)))
        await asyncio.wait((serving, runtime.failed), return_when=asyncio.FIRST_COMPLETED)
        if runtime.failed.done():
            runtime.failed.result()
        return 0
    except DeviceError as error:
        log.error("%s", error)
        return EXIT_NO_DEVICE
    finally:
        runtime.stop()
