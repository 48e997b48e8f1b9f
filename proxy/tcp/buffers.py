"""Byte queues of a connection: chunks are kept as they came, small ones are merged."""

from __future__ import annotations

Buffer = bytes | memoryview
Chunk = bytes | memoryview | bytearray

SMALL = 2048
"""A chunk below this many bytes is copied together with its neighbour: an object and the packet
that it pins cost some 200 bytes, so a peer that sends single bytes must not cost one each."""
MERGED = 65536
"""A merged chunk grows up to about this size (what one super-segment holds)."""


def append_chunk(chunks: list[Chunk], chunk: Chunk) -> None:
    """Append, or copy into the last chunk if both are small or that is a growing one."""
    if len(chunk) < SMALL:
        if chunks:
            tail = chunks[-1]
            if type(tail) is bytearray:
                if len(tail) < MERGED:
                    tail += chunk
                    return
            elif len(tail) < SMALL:
                merged = bytearray(tail)
                merged += chunk
                chunks[-1] = merged
                return
        if type(chunk) is memoryview:
            chunk = bytes(chunk)  # or a byte would pin its whole packet
    chunks.append(chunk)


def sealed(chunk: Chunk) -> Buffer:
    """A chunk for the outside: a growing bytearray becomes a view that nobody extends."""
    return memoryview(chunk) if type(chunk) is bytearray else chunk  # type: ignore[return-value]


class ReceiveQueue:
    """In-order bytes that the application has not taken; the owner counts them."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []

    def append(self, chunk: Chunk) -> None:
        """Add bytes at the end."""
        if len(chunk) >= SMALL:
            self._chunks.append(chunk)
        else:
            append_chunk(self._chunks, chunk)

    def take(self, limit: int) -> list[Buffer]:
        """Remove and return at most ``limit`` (>= 0) bytes from the front."""
        chunks = self._chunks
        taken: list[Buffer] = []
        count = 0
        for chunk in chunks:
            size = len(chunk)
            if size > limit:
                break
            limit -= size
            count += 1
            taken.append(sealed(chunk))
        if count == len(chunks):
            self._chunks = []
            return taken
        if limit:
            view = memoryview(chunks[count])
            taken.append(view[:limit])
            chunks[count] = view[limit:]
        del chunks[:count]
        return taken

    def clear(self) -> None:
        """Drop everything."""
        self._chunks = []


class SendQueue:
    """Bytes that were never sent; ``size`` of them."""

    __slots__ = ("_chunks", "size")

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self.size = 0

    def append(self, chunk: Chunk) -> None:
        """Add bytes at the end."""
        size = len(chunk)
        if not size:
            return
        self.size += size
        if size >= SMALL:
            self._chunks.append(chunk)
        else:
            append_chunk(self._chunks, chunk)

    def prepend(self, chunk: Buffer) -> None:
        """Put bytes back at the front."""
        if len(chunk):
            self._chunks.insert(0, chunk)
            self.size += len(chunk)

    def take(self, count: int) -> list[Buffer]:
        """Remove and return exactly ``count`` bytes (0 < count <= size)."""
        self.size -= count
        chunks = self._chunks
        first = chunks[0]
        size = len(first)
        if size == count:
            del chunks[0]
            return [memoryview(first) if type(first) is bytearray else first]  # type: ignore[list-item]
        if size > count:
            view = first if type(first) is memoryview else memoryview(first)
            chunks[0] = view[count:]
            return [view[:count]]
        return self._take_many(count)

    def _take_many(self, count: int) -> list[Buffer]:
        chunks = self._chunks
        taken: list[Buffer] = []
        used = 0
        for chunk in chunks:
            size = len(chunk)
            if size > count:
                break
            count -= size
            used += 1
            taken.append(sealed(chunk))
            if not count:
                break
        if count:
            view = memoryview(chunks[used])
            taken.append(view[:count])
            chunks[used] = view[count:]
        del chunks[:used]
        return taken

    def clear(self) -> None:
        """Drop everything."""
        self._chunks = []
        self.size = 0


def drop_front(chunks: list[Buffer], count: int) -> None:
    """Remove ``count`` bytes from the front of a list of chunks, in place."""
    used = 0
    for chunk in chunks:
        size = len(chunk)
        if size > count:
            break
        count -= size
        used += 1
    if used:
        del chunks[:used]
    if count:
        chunks[0] = memoryview(chunks[0])[count:]


def split_chunks(chunks: list[Buffer], count: int) -> tuple[list[Buffer], list[Buffer]]:
    """The first ``count`` bytes, and the rest."""
    head: list[Buffer] = []
    for index, chunk in enumerate(chunks):
        if not count:
            return head, chunks[index:]
        size = len(chunk)
        if size > count:
            view = memoryview(chunk)
            head.append(view[:count])
            return head, [view[count:], *chunks[index + 1 :]]
        count -= size
        head.append(chunk)
    return head, []
