"""Puts the data of all subflows into one stream again, by data offset (RFC 8684 §3.3.1).

Memory is bounded whatever the peer sends: bytes by the right edge that the caller passes,
fragments by ``MAX_FRAGMENTS``, and small pieces are copied together so that each does not hold a
packet of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

MAX_FRAGMENTS = 16384
_SMALL = 512  # pieces below this are copied into a common buffer
_SMALL_BUFFER = 4096

Piece = memoryview | bytes | bytearray


class Reassembly:
    """``rcv_nxt`` is the next offset in order; what is before it waits in ``ready`` to be read.

    ``duplicates``, ``beyond``, ``tails``, ``queued`` and ``merged`` count what happened since the
    owner last took them (the kernel's DuplicateData, NoDSSInWindow, OFOQueueTail, OFOQueue and
    OFOMerge).
    """

    __slots__ = (
        "_parts",
        "_starts",
        "beyond",
        "duplicates",
        "merged",
        "queued",
        "rcv_nxt",
        "ready",
        "ready_bytes",
        "tails",
        "waiting_bytes",
    )

    def __init__(self) -> None:
        self.rcv_nxt = 0
        self.ready: deque[Piece] = deque()
        self.ready_bytes = 0
        self.waiting_bytes = 0
        self._starts: list[int] = []
        self._parts: list[Piece] = []
        self.duplicates = 0
        self.beyond = 0
        self.queued = 0
        self.merged = 0
        self.tails = 0

    @property
    def fragments(self) -> int:
        """Pieces that wait for bytes before them."""
        return len(self._starts)

    def insert(self, start: int, payload: Piece, edge: int) -> int:
        """Take ``payload`` at offset ``start``; returns by how much ``rcv_nxt`` advanced.

        The first copy of a byte wins (DSS-09); bytes at or after ``edge`` are dropped (DSS-10).
        """
        end = start + len(payload)
        nxt = self.rcv_nxt
        if end > edge:
            self.beyond += 1
            if start >= edge:
                return 0
            payload = payload[: edge - start]
            end = edge
        if start < nxt:
            if end <= nxt:
                self.duplicates += 1
                return 0
            payload = _trim(payload, nxt - start, end - start)
            start = nxt
        if start == nxt:
            if not self._starts:
                self._append(payload, end - start)
                self.rcv_nxt = end
                return end - nxt
            return self._fill(payload, end)
        self._hold(start, end, payload)
        return 0

    def take(self, limit: int) -> list[memoryview | bytes]:
        """Up to ``limit`` bytes in order."""
        ready = self.ready
        out: list[memoryview | bytes] = []
        while ready and limit > 0:
            piece = ready[0]
            size = len(piece)
            if size > limit:
                view = memoryview(piece)
                out.append(view[:limit])
                ready[0] = view[limit:]
                self.ready_bytes -= limit
                break
            ready.popleft()
            out.append(memoryview(piece) if isinstance(piece, bytearray) else piece)
            self.ready_bytes -= size
            limit -= size
        return out

    def clear(self) -> None:
        """Forget all data that waits for bytes before it."""
        self._starts.clear()
        self._parts.clear()
        self.waiting_bytes = 0

    def _append(self, payload: Piece, size: int) -> None:
        ready = self.ready
        self.ready_bytes += size
        if size < _SMALL:
            last = ready[-1] if ready else None
            if isinstance(last, bytearray) and len(last) < _SMALL_BUFFER:
                last += payload
            else:
                ready.append(bytearray(payload))
            return
        ready.append(payload)

    def _fill(self, payload: Piece, end: int) -> int:
        # In-order data in front of pieces that wait: it may overlap them and set some free.
        starts, parts = self._starts, self._parts
        before = self.rcv_nxt
        first = starts[0]
        if end > first:
            rest = _trim(payload, first - before, end - before)
            payload = payload[: first - before]
            self._hold(first, end, rest)
            end = first
        self._append(payload, end - before)
        count = 0
        for index, start in enumerate(starts):
            if start != end:
                break
            part = parts[index]
            size = len(part)
            self._append(part, size)
            self.waiting_bytes -= size
            end += size
            count = index + 1
        if count:
            del starts[:count]
            del parts[:count]
        self.rcv_nxt = end
        return end - before

    def _hold(self, start: int, end: int, payload: Piece) -> None:
        starts, parts = self._starts, self._parts
        index = bisect_right(starts, start)
        if index:
            previous = parts[index - 1]
            covered = starts[index - 1] + len(previous)
            if covered >= end:
                self.duplicates += 1
                return
            if covered > start:
                payload = _trim(payload, covered - start, end - start)
                start = covered
        self.queued += 1
        if index == len(starts):
            self.tails += index > 0  # as in the kernel, the first one is no tail
            self._place(index, start, payload)
            return
        while start < end:
            bound = starts[index] if index < len(starts) else end
            if bound > start:
                stop = min(bound, end)
                index += self._place(index, start, payload[: stop - start])
                payload = payload[stop - start :]
                start = stop
            if start < end:
                skip = min(starts[index] + len(parts[index]), end) - start
                self.duplicates += 1
                payload = payload[skip:]
                start += skip
                index += 1

    def _place(self, index: int, start: int, payload: Piece) -> int:
        # Returns how many entries were added at ``index``: none if joined to the one before.
        size = len(payload)
        starts, parts = self._starts, self._parts
        if size < _SMALL:
            if index > 0:
                last = parts[index - 1]
                adjacent = starts[index - 1] + len(last) == start
                if adjacent and isinstance(last, bytearray) and len(last) < _SMALL_BUFFER:
                    last += payload
                    self.waiting_bytes += size
                    self.merged += 1
                    return 0
            payload = bytearray(payload)
        if len(starts) >= MAX_FRAGMENTS:
            # Not DATA_ACKed, so the peer sends it again (DSS-10).
            self.beyond += 1
            return 0
        self.waiting_bytes += size
        starts.insert(index, start)
        parts.insert(index, payload)
        return 1


def _trim(payload: Piece, begin: int, end: int) -> Piece:
    # What is left of a piece must not hold a much larger packet in memory.
    if (end - begin) * 2 < len(payload):
        return bytes(payload[begin:end])
    return payload[begin:end]
