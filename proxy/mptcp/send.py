"""The sending side of a connection: stream offsets, the peer's window, what to send again."""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, NamedTuple

from proxy.mptcp.send_buffer import SendBuffer

if TYPE_CHECKING:
    from proxy.mptcp.notes import Again
    from proxy.mptcp.subflow import Subflow

MASK64 = 0xFFFFFFFFFFFFFFFF
_HALF32 = 0x80000000
_MASK32 = 0xFFFFFFFF
_HALF64 = 1 << 63


class Reinjection(NamedTuple):
    """Bytes ``start`` .. ``end`` of the stream to send again, not on ``exclude``."""

    start: int
    end: int
    exclude: Subflow | None
    reason: Again


class DataSender(SendBuffer):
    """The send buffer with DSNs, the window of the peer and the state of our DATA_FIN.

    ``edge`` is the right edge of the peer's window as a stream offset; it never moves left
    (WND-02). The DATA_FIN takes the offset ``end``; ``fin`` is set once the application has
    finished, ``fin_sent`` and ``fin_acked`` follow.
    """

    __slots__ = ("_idsn1", "bytes_reinjected", "edge", "fin", "fin_acked", "fin_sent", "reinject")

    def __init__(self) -> None:
        super().__init__()
        self._idsn1 = 0
        self.edge = 0
        self.fin = False
        self.fin_sent = False
        self.fin_acked = False
        self.reinject: list[Reinjection] = []
        self.bytes_reinjected = 0

    def start(self, idsn: int) -> None:
        """Our key is known: the first byte has DSN ``idsn`` + 1."""
        self._idsn1 = (idsn + 1) & MASK64

    def dsn(self, offset: int) -> int:
        """DSN (u64) of a stream offset."""
        return (self._idsn1 + offset) & MASK64

    def ack_offset(self, data_ack: int, is64: bool) -> int:
        """Stream offset of a DATA_ACK as on the wire, nearest to what is outstanding (DSS-04)."""
        near = self.una
        if is64:
            return near + ((data_ack - self._idsn1 - near + _HALF64) & MASK64) - _HALF64
        return near + ((data_ack - self._idsn1 - near + _HALF32) & _MASK32) - _HALF32

    def offset(self, dsn: int) -> int:
        """Stream offset of one of our own DSNs (u64)."""
        near = self.una
        return near + ((dsn - self._idsn1 - near + _HALF64) & MASK64) - _HALF64

    def queue_again(self, start: int, end: int, exclude: Subflow | None, reason: Again) -> None:
        """Ask for bytes to be sent again, in the order of the stream."""
        insort(self.reinject, Reinjection(start, end, exclude, reason), key=_start)

    def next_again(self) -> Reinjection | None:
        """The first bytes to send again that are still not DATA_ACKed."""
        queue = self.reinject
        while queue:
            first = queue[0]
            if first.end > self.una:
                if first.start < self.una:
                    queue[0] = first = first._replace(start=self.una)
                return first
            queue.pop(0)
        return None

    def sent_again(self, end: int) -> None:
        """The first entry of the queue was sent up to ``end``."""
        queue = self.reinject
        first = queue.pop(0)
        if end < first.end:
            queue.insert(0, first._replace(start=end))


def _start(entry: Reinjection) -> int:
    return entry.start
