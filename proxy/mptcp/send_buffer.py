"""What the application wrote and the peer has not DATA_ACKed: chunks by offset, never copied.

An offset counts bytes of the data stream from 0 and never wraps; the DSN on the wire is
IDSN + 1 + offset modulo 2**64 (RFC 8684 §3.1).
"""

from __future__ import annotations

from bisect import bisect_right

from proxy.tcp.chronograph import Timed

# Released chunks are dropped from the lists in batches of this many.
_COMPACT = 64


class SendBuffer(Timed):
    """Bytes ``una`` .. ``end`` of the stream; ``nxt`` is the first one never sent yet."""

    __slots__ = ("_chunks", "_head", "_starts", "end", "nxt", "una")

    def __init__(self) -> None:
        self.start_chronograph()
        self._chunks: list[memoryview] = []
        self._starts: list[int] = []
        self._head = 0
        self.una = 0
        self.nxt = 0
        self.end = 0

    def append(self, chunk: bytes | memoryview) -> None:
        """Add bytes at the end; the buffer must not change afterwards."""
        view = memoryview(chunk)
        if not view:
            return
        self._chunks.append(view)
        self._starts.append(self.end)
        self.end += len(view)

    def prepend(self, chunk: bytes) -> None:
        """Put bytes in front of all others; only before anything was sent."""
        if self.nxt:
            raise ValueError("the stream has begun already")
        chunks = [memoryview(chunk), *self._chunks] if chunk else self._chunks
        self._chunks, self._starts, self.end = [], [], 0
        for view in chunks:
            self.append(view)

    def slice(self, offset: int, length: int) -> list[memoryview]:
        """Views of ``length`` bytes from ``offset``; both within ``una`` .. ``end``."""
        chunks, starts = self._chunks, self._starts
        index = bisect_right(starts, offset, self._head) - 1
        chunk = chunks[index]
        begin = offset - starts[index]
        if begin + length <= len(chunk):
            return [chunk[begin : begin + length] if length != len(chunk) else chunk]
        views = [chunk[begin:] if begin else chunk]
        left = length - len(views[0])
        while left > 0:
            index += 1
            chunk = chunks[index]
            if len(chunk) > left:
                chunk = chunk[:left]
            views.append(chunk)
            left -= len(chunk)
        return views

    def release(self, offset: int) -> None:
        """Everything before ``offset`` is DATA_ACKed."""
        if offset <= self.una:
            return
        self.una = offset
        if self.nxt < offset:
            self.nxt = offset
        starts, head = self._starts, self._head
        # The chunk that contains ``offset`` stays whole.
        keep = len(starts) if offset >= self.end else bisect_right(starts, offset, head) - 1
        if keep - head < _COMPACT and keep < len(starts):
            for index in range(head, keep):
                self._chunks[index] = _RELEASED
            self._head = keep
            if keep < _COMPACT:
                return
        del self._chunks[:keep]
        del starts[:keep]
        self._head = 0


_RELEASED = memoryview(b"")
