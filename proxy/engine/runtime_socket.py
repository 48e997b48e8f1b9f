"""A kernel TCP socket behind the methods of a byte stream: how the gateway reaches servers."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable

from proxy.engine.runtime_poll import ENDING, HUNG_UP, IN, OUT, SocketPoll
from proxy.tcp.events import Event
from proxy.wire.address import Address

# One read; larger ones cost more in page faults than they save in system calls.
_READ_SIZE = 131072
_QUEUE_LIMIT = 262144
_QUEUE_LOW = 131072
# sendmsg takes at most IOV_MAX (1024) buffers; a few dozen already fill the socket buffer.
_WRITE_BUFFERS = 64

StreamHandler = Callable[["KernelStream", Event], None]
FlushLater = Callable[["KernelStream"], None]


class KernelStream:
    """A connected, non-blocking kernel socket.

    Bytes sent are queued and leave with ``flush()``, which the runtime calls once per turn, so
    that many small chunks cost one system call. Bytes that the flow leaves in the socket raise no
    event: it comes back for them when its sink has room. ``hung_up``: the other end neither reads
    nor writes any more; what it has written may still be here.
    """

    __slots__ = (
        "_drained",
        "_ending",
        "_finish",
        "_flush_later",
        "_handler",
        "_loop",
        "_poll",
        "_queue",
        "_queued",
        "_socket",
        "_starved",
        "_unwritable",
        "eof",
        "hung_up",
        "peer",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poll: SocketPoll,
        connected: socket.socket,
        peer: Address,
        flush_later: FlushLater,
    ) -> None:
        """``connected`` is watched by ``poll``."""
        self.eof = False
        self.hung_up = False
        self.peer = peer
        self._loop = loop
        self._poll = poll
        self._socket: socket.socket | None = connected
        self._flush_later = flush_later
        self._handler: StreamHandler | None = None
        self._queue: deque[bytes | memoryview] = deque()
        self._queued = 0
        self._finish = False
        self._drained = True
        self._ending = False
        self._starved = False
        self._unwritable = False

    def start(self, handler: StreamHandler) -> None:
        """Begin to tell ``handler`` what happens."""
        self._handler = handler
        if not self._drained:
            self._tell(Event.READABLE)

    # -- ByteStream ---------------------------------------------------------------------------

    def send(self, chunk: bytes | memoryview) -> None:
        """Queue bytes for the server."""
        if self._socket is None:
            return
        if not self._queue:
            self._flush_later(self)
        self._queue.append(chunk)
        self._queued += len(chunk)

    def send_room(self) -> int:
        """Bytes that may be queued now."""
        room = _QUEUE_LIMIT - self._queued
        if room <= 0:
            self._starved = True
            return 0
        return room

    def receive(self, limit: int) -> list[memoryview | bytes]:
        """Read once from the socket, at most ``limit`` bytes."""
        connected = self._socket
        if self.eof or connected is None or self._drained:
            return []
        size = min(limit, _READ_SIZE)
        try:
            chunk = connected.recv(size)
        except BlockingIOError:
            self._drained = True
            return []
        except OSError as error:
            self._failed(error)
            return []
        if not chunk:
            self.eof = True
            self._close_when_done()
            return []
        if len(chunk) < size and not self._ending:
            self._drained = True
        return [chunk]

    def skip(self, size: int) -> None:
        """Drop bytes that are known to have come, whether or not an event has said so."""
        connected = self._socket
        while size > 0 and connected is not None:
            try:
                size -= len(connected.recv(size)) or size
            except OSError:
                return  # what is wrong the next event says

    def hang_up(self) -> None:
        """As if the other end had closed: what it has written can still be received."""
        if self._socket is not None:
            self._socket.shutdown(socket.SHUT_RDWR)

    def shutdown_write(self) -> None:
        """Send a FIN once the queue is empty."""
        self._finish = True
        if not self._queue:
            self._flush_later(self)

    def abort(self, now: float) -> None:
        """Close with a RST (RFC 9293 §3.10.5) and drop what is queued."""
        del now
        if self._socket is None:
            return
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self._close()

    # -- towards the runtime ------------------------------------------------------------------

    def flush(self) -> None:
        """Write what the socket takes; the rest waits until it is writable."""
        connected = self._socket
        if connected is None or self._unwritable:
            return
        queue = self._queue
        try:
            while queue:
                sent = connected.sendmsg([queue[i] for i in range(min(len(queue), _WRITE_BUFFERS))])
                self._sent(sent)
        except BlockingIOError:
            self._unwritable = True
        except OSError as error:
            self._failed(error)
            return
        if self._finish and not queue:
            self._send_fin(connected)
        if self._starved and self._queued <= _QUEUE_LOW:
            self._starved = False
            self._tell(Event.WRITABLE)

    def _sent(self, size: int) -> None:
        queue = self._queue
        self._queued -= size
        while size:
            head = queue[0]
            if size < len(head):
                queue[0] = memoryview(head)[size:]
                return
            size -= len(head)
            queue.popleft()

    def _send_fin(self, connected: socket.socket) -> None:
        try:
            connected.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._failed(error)
            return
        self._close_when_done()

    def on_ready(self, events: int) -> None:
        """What ``SocketPoll`` tells."""
        if self._socket is None:
            return
        if self._unwritable and events & (OUT | ENDING):
            self._unwritable = False
            self.flush()
        if events & ENDING:
            # A read that takes less than it could is not the last one then.
            self._ending = True
        elif not events & IN:
            return
        news = bool(events & HUNG_UP) and not self.hung_up
        self.hung_up |= news
        if news or (self._drained and not self.eof):
            self._drained = False
            self._tell(Event.READABLE)

    def _close_when_done(self) -> None:
        if self.eof and self._finish and not self._queue and self._socket is not None:
            self._close()
            self._loop.call_soon(self._tell, Event.CLOSED)

    def _failed(self, error: OSError) -> None:
        self._close()
        timed_out = error.errno in (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
        # Later, not now: the flow that reads or writes us is in the middle of its own step.
        self._loop.call_soon(self._tell, Event.TIMED_OUT if timed_out else Event.RESET)

    def _close(self) -> None:
        connected = self._socket
        if connected is None:
            return
        self._socket = None
        self._queue.clear()
        self._queued = 0
        self._poll.close(connected)

    def _tell(self, event: Event) -> None:
        if self._handler is not None:
            self._handler(self, event)


class Dial:
    """A connection attempt to a server in progress; ``cancel()`` gives it up."""

    __slots__ = ("_cancelled", "_done", "_flush_later", "_loop", "_peer", "_poll", "_socket")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        poll: SocketPoll,
        peer: Address,
        done: Callable[[KernelStream | None, int], None],
        flush_later: FlushLater,
    ) -> None:
        """Start to connect; ``done(stream, 0)`` or ``done(None, errno)`` follows, later."""
        self._loop = loop
        self._poll = poll
        self._peer = peer
        self._done = done
        self._flush_later = flush_later
        self._cancelled = False
        self._socket: socket.socket | None = None
        try:
            self._connect()
        except OSError as error:  # no descriptor is left, for example
            loop.call_soon(self._fail, error.errno or errno.EIO)

    def _connect(self) -> None:
        ip, port = self._peer
        family = socket.AF_INET if len(ip) == 4 else socket.AF_INET6
        self._socket = socket.socket(
            family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        # A relay must add no delay of its own to what its client already coalesced.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self._socket.connect_ex((socket.inet_ntop(family, ip), port))
        if code in (0, errno.EINPROGRESS):
            self._poll.watch(self._socket, self._on_ready)
        else:
            self._loop.call_soon(self._finish, code)

    def cancel(self) -> None:
        """Give up; ``done`` is not called any more."""
        self._cancelled = True
        pending = self._socket
        if pending is None:
            return
        self._socket = None
        self._poll.close(pending)

    def _on_ready(self, events: int) -> None:
        pending = self._socket
        if pending is None or not events & (OUT | ENDING):
            return
        code = pending.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & ENDING else 0
        self._finish(code, events)

    def _fail(self, code: int) -> None:
        if self._cancelled:
            return
        pending, self._socket = self._socket, None
        if pending is not None:
            self._poll.close(pending)
        self._done(None, code)

    def _finish(self, code: int, events: int = 0) -> None:
        pending = self._socket
        if pending is None:
            return
        self._socket = None
        if code:
            self._poll.close(pending)
            self._done(None, code)
            return
        stream = KernelStream(self._loop, self._poll, pending, self._peer, self._flush_later)
        self._poll.hand_over(pending, stream.on_ready)
        stream.on_ready(events)  # the server may have spoken, and hung up, already
        self._done(stream, 0)


def describe(code: int) -> str:
    """An errno in words, for logs."""
    return os.strerror(code)
