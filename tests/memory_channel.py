"""The channel between workers, in lists."""

from __future__ import annotations

from collections import Counter


class MemoryChannel:
    """The channel of one worker; ``room`` is how many messages the others' queues take."""

    def __init__(self, index: int, queues: list[list[bytes]]) -> None:
        self.index = index
        self.queues = queues
        self.room = 1 << 30
        self.sent: Counter[int] = Counter()

    def send(self, worker: int, *parts: bytes) -> bool:
        if len(self.queues[worker]) >= self.room:
            return False
        message = b"".join(parts)
        self.sent[message[0]] += 1
        self.queues[worker].append(message)
        return True

    def receive(self) -> list[bytes]:
        messages, self.queues[self.index][:] = self.queues[self.index][:], []
        return messages
