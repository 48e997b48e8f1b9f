"""A proxied TCP conversation: bytes, half-close and resets between its two sides.

A flow knows neither packets nor sockets. Each side is a ``ByteStream``: a ``TcpConnection``, an
``MptcpConnection`` or a kernel socket behind the same methods. Back-pressure is the bound of the
sinks: a side is read only as far as the other has room, so a slow reader stops its sender
(RFC 8803 §5; design: bounded buffers from end to end).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from proxy.mptcp.keys import TokenShare
from proxy.tcp.events import Event

_RUN_SHIFT = 32  # more flows than one process will ever carry


class ByteStream(Protocol):
    """One side of a flow.

    ``eof`` is true once the peer has finished and every byte of its stream was received here.
    """

    eof: bool

    def send(self, chunk: bytes | memoryview) -> None:
        """Queue ``chunk``; the caller keeps within ``send_room()``."""
        ...

    def send_room(self) -> int:
        """Bytes that may be queued now."""
        ...

    def receive(self, limit: int) -> list[memoryview | bytes]:
        """Take up to ``limit`` bytes, in order; an empty list when there are none."""
        ...

    def shutdown_write(self) -> None:
        """Finish our direction once all queued bytes are sent (half-close)."""
        ...

    def abort(self, now: float) -> None:
        """Reset the stream at once."""
        ...


class FlowNumbers:
    """Ids of flows: no two workers give the same one, and one that is started again none that it
    gave before."""

    __slots__ = ("_next", "_step")

    def __init__(self, share: TokenShare) -> None:
        self._next = 1 + share.index + share.count * (share.run << _RUN_SHIFT)
        self._step = share.count

    def take(self) -> int:
        """A new id."""
        number, self._next = self._next, self._next + self._step
        return number


def worker_of(number: int, workers: int) -> int:
    """The worker that has the flow with id ``number``."""
    return (number - 1) % workers


class Flow:
    """Two byte streams joined to one conversation.

    ``near`` is the side that opened the conversation, ``far`` the one that was opened for it.
    ``bytes_out`` counts payload bytes from near to far, ``bytes_in`` the other way; ``id`` is
    unique in its relay, ``started`` the time at which it began.
    """

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "ended",
        "far",
        "far_closed",
        "far_finished",
        "id",
        "mark",
        "near",
        "near_closed",
        "near_finished",
        "on_end",
        "on_mark",
        "started",
    )

    def __init__(
        self,
        number: int,
        near: ByteStream,
        far: ByteStream,
        on_end: Callable[[Flow], None],
        now: float,
    ) -> None:
        self.id = number
        self.started = now
        self.near = near
        self.far = far
        self.on_end = on_end
        self.bytes_out = 0
        self.bytes_in = 0
        # A side is finished when its end of stream was passed on to the other side.
        self.near_finished = False
        self.far_finished = False
        self.near_closed = False
        self.far_closed = False
        self.ended = False
        # Called once as many bytes have passed, in both directions together; it sets the next.
        self.mark = math.inf
        self.on_mark: Callable[[Flow, float], None] = _no_mark

    def on_event(self, side: ByteStream, kind: Event, now: float) -> None:
        """React to what happened on one side; any other kind of event is none of a flow's."""
        if self.ended:
            return
        if kind is Event.READABLE or kind is Event.EOF:
            self._pump_from(side)
        elif kind is Event.WRITABLE:
            self._pump_from(self.far if side is self.near else self.near)
        elif kind in (Event.RESET, Event.TIMED_OUT, Event.UNREACHABLE):
            self._fail(side, now)
        elif kind is Event.CLOSED:
            self._closed(side)
        if self.bytes_out + self.bytes_in >= self.mark and not self.ended:
            self.on_mark(self, now)

    def start(self) -> None:
        """Move what either side already holds."""
        self._pump_from(self.near)
        self._pump_from(self.far)

    def abort(self, now: float) -> None:
        """Reset both sides, for example because the operator asked for it."""
        if self.ended:
            return
        self.near.abort(now)
        self.far.abort(now)
        self._end()

    def _pump_from(self, side: ByteStream) -> None:
        if side is self.near:
            if not self.near_finished:
                moved, self.near_finished = _pump(side, self.far)
                self.bytes_out += moved
        elif not self.far_finished:
            moved, self.far_finished = _pump(side, self.near)
            self.bytes_in += moved

    def _fail(self, side: ByteStream, now: float) -> None:
        # Bytes that arrived in order before the reset still belong to the other side's reader,
        # but a reset outranks them in TCP (RFC 9293 §3.10.7.4): it travels as a reset.
        (self.far if side is self.near else self.near).abort(now)
        self._end()

    def _closed(self, side: ByteStream) -> None:
        # Closed is the clean end, so what a full sink leaves unread still follows: a later
        # WRITABLE of the sink takes it, and its end of stream with it.
        if side is self.near:
            self.near_closed = True
        else:
            self.far_closed = True
        self._pump_from(side)
        if self.near_closed and self.far_closed:
            self._end()

    def _end(self) -> None:
        self.ended = True
        self.on_end(self)


def _no_mark(flow: Flow, now: float) -> None:
    flow.mark = math.inf


def _pump(source: ByteStream, sink: ByteStream) -> tuple[int, bool]:
    """Move what fits from source to sink; returns the bytes moved and whether source finished."""
    moved = 0
    # Asked anew each time: the sink raises WRITABLE only if it has told us that it is full.
    while (room := sink.send_room()) > 0:
        chunks = source.receive(room)
        if not chunks:
            break
        for chunk in chunks:
            moved += len(chunk)
            sink.send(chunk)
    if source.eof:
        sink.shutdown_write()
        return moved, True
    return moved, False
