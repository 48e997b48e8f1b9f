"""asyncio over a ``Host``: ``open_connection`` and ``start_server`` as in ``asyncio``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from proxy.sockets.options import IPPROTO_MPTCP, refuse

if TYPE_CHECKING:
    from proxy.sockets.host import Host
    from proxy.sockets.socket import Socket

log = logging.getLogger(__name__)

LIMIT = 1 << 16
"""What a ``StreamReader`` buffers, in bytes; twice as much stops the peer."""

Served = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


async def open_connection(
    host: Host,
    address: str,
    port: int,
    *,
    limit: int = LIMIT,
    family: int = socket.AF_UNSPEC,
    proto: int = IPPROTO_MPTCP,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a name or number, each of its addresses in turn; OSError of the last one."""
    loop = _own_loop()
    found = await loop.getaddrinfo(address, port, family=family, type=socket.SOCK_STREAM)
    failure = OSError(f"{address} has no address")
    for kind, _, _, _, target in found:
        sock = host.socket(kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, proto)
        try:
            await _connect(loop, sock, target)
            return await asyncio.open_connection(sock=sock, limit=limit)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


def _own_loop() -> asyncio.AbstractEventLoop:
    """The running loop; OSError EOPNOTSUPP for one whose transports know descriptors alone.

    Those (uvloop's) would take ours for a UNIX socket: what ended a connection was lost.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        raise OSError(errno.EOPNOTSUPP, "streams need an event loop of asyncio: use asyncio.run()")
    return loop


async def _connect(loop: asyncio.AbstractEventLoop, sock: Socket, target: Any) -> None:
    # Not loop.sock_connect(): it asks getaddrinfo() for IPPROTO_MPTCP, which knows none.
    code = sock.connect_ex(target)
    if code == errno.EINPROGRESS:
        connected = asyncio.Event()
        loop.add_writer(sock.fileno(), connected.set)
        try:
            await connected.wait()
        finally:
            loop.remove_writer(sock.fileno())
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise refuse(code)


class Server:
    """Accepts until it is closed; a context manager that closes. See ``asyncio.Server``."""

    def __init__(self, listener: Socket, served: Served, limit: int) -> None:
        self._listener = listener
        self._served = served
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept())

    @property
    def sockets(self) -> tuple[Socket, ...]:
        """The listener; none once it is closed."""
        return (self._listener,) if self._listener.fileno() >= 0 else ()

    def close(self) -> None:
        """Accept no more; what is connected stays."""
        self._accepting.cancel()

    async def wait_closed(self) -> None:
        """Wait until it accepts no more."""
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait((self._accepting,))

    async def serve_forever(self) -> None:
        """Wait until it is closed; cancelling this closes it."""
        try:
            await asyncio.shield(self._accepting)
        finally:
            self.close()

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        with self._listener as listener:
            while True:
                try:
                    sock, _ = await loop.sock_accept(listener)
                except OSError as error:
                    log.error("%s: cannot accept: %s", listener.getsockname(), error)
                    return
                task = asyncio.create_task(self._serve(sock))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock, limit=self._limit)
        try:
            result = self._served(reader, writer)
            if inspect.isawaitable(result):
                await result
        except OSError as error:
            log.debug("%s: %s", writer.get_extra_info("peername"), error)
        except Exception:
            log.exception("error in the server's function")
            writer.close()


async def start_server(
    host: Host,
    served: Served,
    address: str,
    port: int,
    *,
    limit: int = LIMIT,
    family: int = socket.AF_INET,
    backlog: int = 128,
    proto: int = IPPROTO_MPTCP,
) -> Server:
    """Listen on an uplink's address, or on all of them (an empty one).

    ``served(reader, writer)``, a function or a coroutine, is called for each connection.
    """
    loop = _own_loop()
    listener = host.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, proto)
    try:
        listener.bind((address, port))
        await loop.run_in_executor(None, listener.listen, backlog)
    except BaseException:
        listener.close()
        raise
    return Server(listener, served, limit)
