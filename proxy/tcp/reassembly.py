"""Out-of-order data of one connection: coalesced ranges in sequence order."""

from __future__ import annotations

from bisect import bisect_right

from proxy.tcp.buffers import SMALL, Chunk, append_chunk

MASK = 0xFFFFFFFF
SACK_BLOCKS = 4


class Range:
    """Contiguous bytes ``start`` to ``end`` (modulo 2**32)."""

    __slots__ = ("chunks", "end", "start")

    def __init__(self, start: int, end: int, chunks: list[Chunk]) -> None:
        self.start = start
        self.end = end
        self.chunks = chunks


class Reassembly:
    """Bounded: at most ``max_ranges`` ranges, and bytes only inside the receive window.

    The first copy of a byte wins; a conflicting later one is ignored (what was reported by SACK
    must not change). Over the limit the range farthest to the right goes (CVE-2018-5390).
    """

    __slots__ = ("_recent", "max_ranges", "ranges", "size")

    def __init__(self, max_ranges: int) -> None:
        self.max_ranges = max_ranges
        self.ranges: list[Range] = []
        self._recent: list[Range] = []
        self.size = 0

    def insert(self, seq: int, payload: memoryview, rcv_nxt: int) -> bool:
        """Keep ``payload`` (beyond ``rcv_nxt``, inside the window); False: all of it was known."""
        ranges = self.ranges
        start = (seq - rcv_nxt) & MASK
        end = start + len(payload)
        at = bisect_right(ranges, start, key=lambda r: (r.start - rcv_nxt) & MASK)
        if at and (ranges[at - 1].end - rcv_nxt) & MASK >= start:
            at -= 1
        stop = at
        while stop < len(ranges) and (ranges[stop].start - rcv_nxt) & MASK <= end:
            stop += 1
        if at == stop:
            target = Range(seq, seq, [])
            ranges.insert(at, target)
            added = self._append(target, payload)
        else:
            target = ranges[at]
            added = self._merge(ranges[at:stop], payload, start, rcv_nxt)
            del ranges[at + 1 : stop]
        self.size += added
        recent = self._recent
        if not recent or recent[0] is not target:
            if target in recent:
                recent.remove(target)
            recent.insert(0, target)
            del recent[SACK_BLOCKS:]
        if len(ranges) > self.max_ranges:
            self._drop_last()
        return added > 0

    def _append(self, target: Range, piece: memoryview) -> int:
        size = len(piece)
        if size >= SMALL and size * 2 < len(piece.obj):  # type: ignore[arg-type]
            target.chunks.append(bytes(piece))  # a trimmed piece must not pin its packet
        else:
            append_chunk(target.chunks, piece)
        target.end = (target.end + size) & MASK
        return size

    def _merge(self, touched: list[Range], payload: memoryview, start: int, rcv_nxt: int) -> int:
        """Join ``payload`` and the ranges it touches into the first of them; bytes added."""
        target = touched[0]
        added = 0
        end = start + len(payload)
        first_start = (target.start - rcv_nxt) & MASK
        if first_start > start:
            old_chunks, old_end = target.chunks, target.end
            target.chunks, target.start = [], (rcv_nxt + start) & MASK
            target.end = target.start
            added += self._append(target, payload[: first_start - start])
            for chunk in old_chunks:
                append_chunk(target.chunks, chunk)
            target.end = old_end
        position = (target.end - rcv_nxt) & MASK
        for other in touched[1:]:
            other_start = (other.start - rcv_nxt) & MASK
            if other_start > position:
                added += self._append(target, payload[position - start : other_start - start])
            for chunk in other.chunks:
                append_chunk(target.chunks, chunk)
            target.end = other.end
            position = (other.end - rcv_nxt) & MASK
            if other in self._recent:
                self._recent.remove(other)
        if end > position:
            added += self._append(target, payload[position - start :])
        return added

    def _drop_last(self) -> None:
        last = self.ranges.pop()
        self.size -= (last.end - last.start) & MASK
        if last in self._recent:
            self._recent.remove(last)

    def pop_ready(self, rcv_nxt: int) -> Range | None:
        """Remove and return the first range if it begins at or before ``rcv_nxt``."""
        ranges = self.ranges
        if not ranges or (rcv_nxt - ranges[0].start) & MASK >= 0x80000000:
            return None
        first = ranges.pop(0)
        self.size -= (first.end - first.start) & MASK
        if first in self._recent:
            self._recent.remove(first)
        return first

    def blocks(self) -> list[tuple[int, int]]:
        """SACK blocks, the one that holds the latest segment first (RFC 2018 §4)."""
        found = [(r.start, r.end) for r in self._recent]
        if len(found) < SACK_BLOCKS:
            for r in self.ranges[:SACK_BLOCKS]:
                if r not in self._recent and len(found) < SACK_BLOCKS:
                    found.append((r.start, r.end))
        return found
