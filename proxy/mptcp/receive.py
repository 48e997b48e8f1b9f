"""The receiving side of a connection: one window and one buffer for all subflows (§3.3.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.mptcp.reassembly import Reassembly
from proxy.tcp.chronograph import Timed

if TYPE_CHECKING:
    from proxy.tcp.memory import MemoryBudget

MASK64 = 0xFFFFFFFFFFFFFFFF
_HALF32 = 0x80000000
_MASK32 = 0xFFFFFFFF
_HALF64 = 1 << 63
# Announced windows are rounded up to the unit of the window scale; data up to here is taken.
_EDGE_SLACK = 65536
_MIN_SEGMENT = 1460
_INFINITE = 1 << 62


class DataReceiver(Timed):
    """Stream offsets in, bytes in order out; says what window all subflows may advertise.

    The right edge is the largest DATA_ACK + window ever announced and never moves left. The
    buffer grows by dynamic right-sizing: the space is kept above what the application took per
    round trip of the slowest subflow, times the growth of a sender in slow start (RCV-01).
    """

    __slots__ = (
        "_copied",
        "_copied_before",
        "_idsn1",
        "_least",
        "_measured_at",
        "_reserved",
        "buffer",
        "buffer_max",
        "edge",
        "fin_at",
        "finished",
        "memory",
        "stream",
    )

    def __init__(self, buffer: int, buffer_max: int, memory: MemoryBudget) -> None:
        self.start_chronograph()
        self.stream = Reassembly()
        self.memory = memory
        self._reserved = 0  # bytes of the host's budget
        self._least = self.buffer = buffer
        self.buffer_max = max(buffer, buffer_max)
        self.edge = 0
        self.fin_at = -1
        self.finished = False
        self._idsn1 = 0
        self._copied = 0
        self._copied_before = 0
        self._measured_at = 0.0

    # -- numbers ------------------------------------------------------------------------------

    def start(self, idsn: int) -> None:
        """The peer's key is known: its first byte has DSN ``idsn`` + 1."""
        self._idsn1 = (idsn + 1) & MASK64

    def offset(self, dsn: int, is64: bool) -> int:
        """Stream offset of a DSN as on the wire, nearest to what is expected; may be negative."""
        near = self.stream.rcv_nxt
        if is64:
            ahead = ((dsn - self._idsn1 - near + _HALF64) & MASK64) - _HALF64
        else:
            ahead = ((dsn - self._idsn1 - near + _HALF32) & _MASK32) - _HALF32
        return near + ahead

    def data_ack(self) -> int:
        """The DATA_ACK to send: the next DSN expected, u64 (a DATA_FIN counts one)."""
        return (self._idsn1 + self.stream.rcv_nxt + self.finished) & MASK64

    def dsn(self, offset: int) -> int:
        """DSN (u64) of a stream offset."""
        return (self._idsn1 + offset) & MASK64

    # -- data ---------------------------------------------------------------------------------

    def insert(self, offset: int, payload: memoryview) -> int:
        """Take data; returns by how many bytes the readable stream grew."""
        limit = self.edge + _EDGE_SLACK
        if 0 <= self.fin_at < limit:
            limit = self.fin_at
        return self.stream.insert(offset, payload, limit)

    def append(self, payload: memoryview) -> int:
        """Take data of a connection that fell back: it continues the stream."""
        return self.stream.insert(self.stream.rcv_nxt, payload, _INFINITE)

    def data_fin(self, offset: int) -> bool:
        """A DATA_FIN at ``offset``; False if it contradicts an earlier one or the data."""
        if self.fin_at >= 0:
            return offset == self.fin_at
        if offset < self.stream.rcv_nxt or offset > self.edge + _EDGE_SLACK:
            return False
        self.fin_at = offset
        return True

    # -- window -------------------------------------------------------------------------------

    def window(self) -> int:
        """Bytes from the DATA_ACK on that may be advertised; moves the right edge."""
        stream = self.stream
        nxt = stream.rcv_nxt
        edge = nxt + self.buffer - stream.ready_bytes
        gain = edge - self.edge
        # RFC 9293 §3.8.6.2.2: small steps of the edge are kept back, except on a small buffer.
        if gain > 0 and (gain >= _MIN_SEGMENT or gain * 2 >= self.buffer):
            self.edge = edge
        window = self.edge - nxt
        return window if window > 0 else 0

    def update_due(self) -> bool:
        """Whether reading has opened the window enough to tell the peer (at least doubled)."""
        stream = self.stream
        now_open = max(self.edge - stream.rcv_nxt, 0)
        free = self.buffer - stream.ready_bytes
        gain = free - now_open
        return gain >= now_open and (gain >= _MIN_SEGMENT or gain * 2 >= self.buffer)

    def read(self, limit: int) -> list[memoryview | bytes]:
        """Up to ``limit`` bytes of the stream."""
        stream = self.stream
        before = stream.ready_bytes
        pieces = stream.take(limit)
        self._copied += before - stream.ready_bytes
        return pieces

    def measure(self, now: float, round_trip: float) -> None:
        """Grow the buffer if the application took more in a round trip than ever before."""
        if now - self._measured_at < round_trip:
            return
        self._measured_at = now
        copied, before = self._copied, max(self._copied_before, self.buffer >> 3)
        self._copied = 0
        if copied <= self._copied_before:
            if self.memory.tight:
                self._shrink(copied)
            return
        # Twice what was read, and as much more as the sender is growing (tcp_rcv_space_adjust);
        # twice again, since a slow subflow's hole keeps back what the fast ones bring.
        space = 4 * copied + 16 * _MIN_SEGMENT
        space += max(0, space * (copied - before) // before)
        space = min(space, self.buffer_max)
        if space > self.buffer and not self._grow(space):
            return  # asks again while the rate is as high
        self._copied_before = copied

    def _grow(self, space: int) -> bool:
        # False: not all of it was to be had.
        more = space - self._least - self._reserved
        granted = self.memory.take(more) if more > 0 else more
        self._reserved += max(granted, 0)
        self.buffer = max(self.buffer, min(space, self._least + self._reserved))
        return granted >= more

    def _shrink(self, copied: int) -> None:
        # Others are short of what this one does not need. What was promised stays promised, and
        # is given back as the peer uses it up.
        enough = max(4 * copied + 16 * _MIN_SEGMENT, self._least)
        if 2 * enough < self.buffer:
            self.buffer = enough
            self._copied_before = copied
        stream = self.stream
        held = stream.ready_bytes + max(self.edge - stream.rcv_nxt, 0)
        unused = min(self._reserved + self._least - max(self.buffer, held), self._reserved)
        if unused > 0:
            self._reserved -= unused
            self.memory.give_back(unused)

    def release(self) -> None:
        """Nothing more will be received."""
        self.memory.give_back(self._reserved)
        self._reserved = 0
        self.buffer = self.buffer_max = self._least
