"""Data sequence mappings: which bytes of a subflow are which bytes of the stream (§3.3.1).

Sequence numbers here are those of the subflow's TCP header (u32); the SSN on the wire is relative
to the subflow's initial sequence number and is made at the edge.
"""

from __future__ import annotations

MASK = 0xFFFFFFFF

# Pruned mappings leave the list in batches of this many.
_COMPACT = 64
# Mappings announced but not yet reached by in-order data; a segment beyond them is dropped
# unacknowledged, so TCP brings it again.
MAX_PENDING = 16384


class TxMapping:
    """``length`` bytes of the stream from ``offset``, sent as bytes ``seq``... of a subflow.

    Never changed once sent: each retransmission repeats the same DSS (DSS-02). ``reinjected``:
    another subflow has been given the same bytes.
    """

    __slots__ = ("checksum", "length", "offset", "reinjected", "sent_at", "seq")

    def __init__(self, seq: int, offset: int, length: int, checksum: int, now: float) -> None:
        self.seq = seq
        self.offset = offset
        self.length = length
        self.checksum = checksum
        self.sent_at = now
        self.reinjected = False


class TxMappings:
    """The mappings of one subflow in order, kept until subflow and connection acknowledged them."""

    __slots__ = ("_head", "_items")

    def __init__(self) -> None:
        self._items: list[TxMapping] = []
        self._head = 0

    def __len__(self) -> int:
        return len(self._items) - self._head

    def add(self, mapping: TxMapping) -> None:
        """Append; its sequence numbers follow those of the last one."""
        self._items.append(mapping)

    def find(self, seq: int) -> TxMapping | None:
        """The mapping that covers ``seq``."""
        items = self._items
        if len(items) <= self._head:
            return None
        last = items[-1]
        ahead = (seq - last.seq) & MASK
        if ahead < 0x80000000:
            return last if ahead < last.length else None
        low, high = self._head, len(items)
        base = items[low].seq
        distance = (seq - base) & MASK
        while high - low > 1:
            middle = (low + high) >> 1
            if (items[middle].seq - base) & MASK <= distance:
                low = middle
            else:
                high = middle
        found = items[low]
        return found if (seq - found.seq) & MASK < found.length else None

    def first(self, data_una: int) -> TxMapping | None:
        """The oldest mapping with bytes that are not DATA_ACKed."""
        items = self._items
        for index in range(self._head, len(items)):
            mapping = items[index]
            if mapping.offset + mapping.length > data_una:
                return mapping
        return None

    def unacked(self, data_una: int) -> list[TxMapping]:
        """All mappings with bytes that are not DATA_ACKed, oldest first."""
        items = self._items
        return [
            items[index]
            for index in range(self._head, len(items))
            if items[index].offset + items[index].length > data_una
        ]

    def prune(self, snd_una: int, data_una: int) -> None:
        """Drop from the front what the subflow and the connection have acknowledged."""
        items, head = self._items, self._head
        count = len(items)
        while head < count:
            mapping = items[head]
            end = mapping.seq + mapping.length
            if (snd_una - end) & MASK >= 0x80000000 or mapping.offset + mapping.length > data_una:
                break
            head += 1
        if head - self._head >= _COMPACT or head == count or head >= _COMPACT:
            del items[:head]
            head = 0
        self._head = head


class RxMapping:
    """``length`` bytes from sequence number ``seq`` are the stream from ``offset``.

    ``chunks`` collects the payload while its checksum is not verified; None without checksums.
    """

    __slots__ = ("checksum", "chunks", "fin", "length", "offset", "seq")

    def __init__(self, seq: int, offset: int, length: int, checksum: int) -> None:
        self.seq = seq
        self.offset = offset
        self.length = length
        self.checksum = checksum
        self.fin = False  # the DATA_FIN counts in the length that the checksum covers
        self.chunks: list[memoryview] | None = [] if checksum >= 0 else None


def insert_pending(pending: list[RxMapping], mapping: RxMapping) -> bool:
    """Enter a mapping in order of sequence numbers; the first one to claim bytes keeps them.

    False if it contradicts one that is there (the kernel's DSSNotMatching).
    """
    index = len(pending)
    seq = mapping.seq
    while index:
        ahead = (seq - pending[index - 1].seq) & MASK
        if ahead < 0x80000000:
            before = pending[index - 1]
            if ahead < before.length:
                same = ahead == 0 and mapping.length == before.length
                return same and mapping.offset == before.offset
            break
        index -= 1
    if index < len(pending) and (pending[index].seq - seq) & MASK < mapping.length:
        return False
    pending.insert(index, mapping)
    return True
