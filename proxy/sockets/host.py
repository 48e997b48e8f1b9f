"""The engine of a program: set up on the host as a daemon's, driven by a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import errno
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from socket import AF_INET, SOCK_STREAM, getaddrinfo
from typing import Any, ParamSpec, TypeVar

import uvloop

from proxy.config.sockets import MAX_HOSTS, SocketsConfig, read_sockets
from proxy.engine.runtime import Runtime
from proxy.engine.runtime_follow import Follower
from proxy.engine.stack import Stack
from proxy.errors import DeviceError
from proxy.mptcp.config import MptcpConfig
from proxy.net.sockets_setup import SocketsSetup
from proxy.net.sysctl import RoleTakenError
from proxy.sockets import streams
from proxy.sockets.engine import Engine
from proxy.sockets.listener import Listener, Place
from proxy.sockets.options import IPPROTO_MPTCP
from proxy.sockets.socket import Socket
from proxy.tcp.config import TcpConfig
from proxy.tun.device import TunDevice

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

LINGER = 10.0
"""How long ``Host.close`` waits for what the program has sent and closed, in seconds."""

_LOOK_AGAIN = 0.01
# Announced addresses of a server that are joined: as many as there may be endpoints.
_ADDRESSES = 8


class Host:
    """An engine with its TUN device, addresses, rules and nft table; a context manager.

    There may be ``MAX_HOSTS`` of them in a network namespace, beside a proxy and a gateway.
    """

    def __init__(self, config: SocketsConfig, setup: SocketsSetup, device: TunDevice) -> None:
        self.config = config
        self._setup = setup
        self._device = device
        self._loop = uvloop.new_event_loop()
        self._lock = threading.Lock()
        self._redirecting = threading.Lock()
        self._closed = False
        self._ports: set[tuple[int, bytes, int]] = set()
        self._stack = Stack(random.SystemRandom(), TcpConfig(**config.tcp), _mptcp_settings(config))
        self._runtime = Runtime(self._loop, device, self._stack)
        self._engine = Engine(config, self._runtime)
        self._stopping = asyncio.Event()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._run, args=(started,), name="mptcp-sockets", daemon=True
        )
        self._thread.start()
        started.result()
        atexit.register(self.close)

    @classmethod
    def open(
        cls,
        uplinks: Sequence[str | Mapping[str, object]],
        *,
        tcp: Mapping[str, object] | None = None,
        mptcp: Mapping[str, object] | None = None,
    ) -> Host:
        """Set the host up; needs root, or CAP_NET_ADMIN and the right to write below /run.

        ``uplinks``: interfaces, the preferred one first, by name or as tables with the keys of
        ``[[uplink]]``; ``tcp`` and ``mptcp``: the keys of these sections (docs/configuration.md).
        What a program left that was killed is removed. Raises ConfigError or DeviceError.
        """
        setup = _claim(lambda slot: read_sockets(uplinks, tcp or {}, mptcp or {}, slot))
        config = setup.config
        try:
            device = TunDevice.open(config.tun.name, mtu=config.tun.mtu)
            try:
                setup.apply()
                return cls(config, setup, device)
            except BaseException:
                device.close()
                raise
        except BaseException:
            setup.undo()
            raise

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, linger: float = LINGER) -> None:
        """Close all sockets and take everything back; also done when the interpreter exits.

        In between it waits, ``linger`` seconds at most, until what was sent is delivered; what
        is not by then is reset. Idempotent.
        """
        with self._redirecting, self._lock:
            if self._closed:
                return
            self._closed = True
        atexit.unregister(self.close)
        self._loop.call_soon_threadsafe(self._stop, linger)
        self._thread.join()
        self._ended.result()

    # -- sockets ----------------------------------------------------------------------------------

    def socket(
        self,
        family: int = AF_INET,
        kind: int = SOCK_STREAM,
        proto: int = IPPROTO_MPTCP,
    ) -> Socket:
        """As ``socket.socket``; with IPPROTO_TCP or 0 for plain TCP on the engine.

        OSError: EAFNOSUPPORT, ESOCKTNOSUPPORT, EPROTONOSUPPORT, EINVAL as the kernel's, and
        ENOPROTOOPT when ``mptcp.enabled`` is false.
        """
        return Socket.create(self, family, kind, proto)

    def create_connection(
        self,
        address: tuple[str, int],
        timeout: float | None = None,
        source_address: tuple[str, int] | None = None,
    ) -> Socket:
        """As ``socket.create_connection``."""
        failure = OSError(f"{address[0]} has no address")
        for family, _, _, _, target in getaddrinfo(*address, type=SOCK_STREAM):
            sock = self.socket(family)
            try:
                sock.settimeout(timeout)
                if source_address is not None:
                    sock.bind(source_address)
                sock.connect(target)
                return sock
            except OSError as error:
                sock.close()
                failure = error
        raise failure

    def create_server(
        self, address: tuple[str, int], *, family: int = AF_INET, backlog: int = 128
    ) -> Socket:
        """As ``socket.create_server``."""
        sock = self.socket(family)
        try:
            sock.bind(address)
            sock.listen(backlog)
        except BaseException:
            sock.close()
            raise
        return sock

    async def open_connection(
        self, address: str, port: int, **options: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """See ``streams.open_connection``."""
        return await streams.open_connection(self, address, port, **options)

    async def start_server(
        self, served: streams.Served, address: str, port: int, **options: Any
    ) -> streams.Server:
        """See ``streams.start_server``."""
        return await streams.start_server(self, served, address, port, **options)

    # -- for sockets ------------------------------------------------------------------------------

    @property
    def mptcp_enabled(self) -> bool:
        """Whether sockets of MPTCP may be made."""
        return self._stack.mptcp_config.enabled

    @property
    def engine(self) -> Engine:
        """To be used on the engine's thread alone, by ``call``."""
        return self._engine

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` on the engine's thread; OSError ENETDOWN once the host is closed."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
            self._runtime.turn()

        with self._lock:
            if self._closed:
                raise OSError(errno.ENETDOWN, "the host is closed")
            if self._runtime.failed.done():
                raise OSError(errno.ENETDOWN, str(self._runtime.failed.exception()))
            self._loop.call_soon_threadsafe(run)
        return future.result()

    def listen(self, source: Place, make: Callable[[], Listener]) -> Listener:
        """A listener that ``make`` makes on the engine's thread, with its port redirected."""
        with self._redirecting:
            listener = self.call(make)
            try:
                self._redirect(self._ports | {source})
            except BaseException:
                self.call(listener.close, time.monotonic())
                raise
            return listener

    def unlisten(self, source: Place, listener: Listener) -> None:
        """The end of a listener."""
        with self._redirecting, contextlib.suppress(OSError):  # with the host, all have ended
            self.call(listener.close, time.monotonic())
            self._redirect(self._ports - {source})

    def _redirect(self, ports: set[tuple[int, bytes, int]]) -> None:
        changed = asyncio.run_coroutine_threadsafe(self._change(ports), self._loop)
        try:
            changed.result()
        except DeviceError as error:
            raise OSError(errno.ENETDOWN, str(error)) from error
        self._ports = ports

    # -- the thread -------------------------------------------------------------------------------

    # It is in the network namespace of the thread that opened the host, and so is what it starts.

    def _run(self, started: concurrent.futures.Future[None]) -> None:
        try:
            try:
                self._loop.run_until_complete(self._serve(started))
                self._loop.run_until_complete(asyncio.sleep(0))  # called while it stopped
            finally:
                self._loop.close()
                self._take_back()
            self._ended.set_result(None)
        except BaseException as error:
            self._ended.set_exception(error)
            if not started.done():
                started.set_exception(error)

    def _take_back(self) -> None:
        try:
            self._setup.undo()
        finally:
            self._device.close()

    async def _serve(self, started: concurrent.futures.Future[None]) -> None:
        follower = Follower(self._loop, _Follow(self._setup, self._engine))
        self._engine.follow(self._setup.uplinks)
        self._runtime.start(self._engine)
        started.set_result(None)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((stopping, self._runtime.failed), return_when="FIRST_COMPLETED")
        if self._runtime.failed.done():
            log.error("%s: %s", self.config.tun.name, self._runtime.failed.exception())
            self._engine.hang_up()
            await stopping
        await follower.stop()
        self._runtime.stop()

    async def _change(self, ports: set[tuple[int, bytes, int]]) -> None:
        await self._loop.run_in_executor(None, self._setup.listen, ports)

    def _stop(self, linger: float) -> None:
        """On the loop: stop when nothing is under way any more, or after ``linger`` seconds."""
        deadline = self._loop.time() + linger
        self._engine.hang_up()

        def look() -> None:
            if self._engine.busy and self._loop.time() < deadline:
                self._loop.call_later(_LOOK_AGAIN, look)
            else:
                self._stopping.set()

        look()


class _Follow:
    """What ``Follower`` calls while the host changes."""

    def __init__(self, setup: SocketsSetup, engine: Engine) -> None:
        self._setup = setup
        self._engine = engine

    def refresh(self) -> list[str]:
        """On another thread."""
        return self._setup.refresh()

    def follow(self) -> None:
        """On the engine's."""
        self._engine.follow(self._setup.uplinks)


def _claim(read: Callable[[int], SocketsConfig]) -> SocketsSetup:
    """The first slot that is free; what dead programs left in any of them is removed."""
    found: SocketsSetup | None = None
    for slot in range(MAX_HOSTS):
        setup = SocketsSetup(read(slot))
        if found is not None and not setup.left_behind:
            continue
        try:
            setup.clean_stale()
        except RoleTakenError:
            continue
        if found is None:
            found = setup
        else:
            setup.undo()
    if found is None:
        raise DeviceError(f"{MAX_HOSTS} programs have an engine in this network namespace already")
    return found


def _mptcp_settings(config: SocketsConfig) -> MptcpConfig:
    settings: dict[str, object] = {
        "subflows": _ADDRESSES,
        "add_addr_accepted": _ADDRESSES,
        **config.mptcp,
    }
    return MptcpConfig(**settings)  # type: ignore[arg-type]
