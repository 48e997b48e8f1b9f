"""Bytes to the gateway and back: do all return, and unchanged?"""

from __future__ import annotations

from functools import partial

from proxy.diagnose.prober import Talk, Verdict
from proxy.relay.trials import PATTERN

_WINDOW = 131072  # bytes under way at most


class Echo:
    """``received`` bytes came back; ``altered``: not as they were sent; ``trouble``: what ended
    it before all had."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.received = 0
        self.sent = 0
        self.altered = False
        self.complete = False
        self.trouble = ""

    async def run(self, total: int, stall: float) -> None:
        """Send ``total`` bytes and wait for them, but not ``stall`` seconds for none."""
        talk = self.talk
        if talk.verdict is not Verdict.SERVED:
            self.trouble = f"no connection ({talk.verdict.value})"
            return
        while self.received < total and not self.altered:
            self._fill(total)
            before = self.received
            moved = await talk.until(partial(self._took_more, before), stall)
            if not moved or talk.ended is not None:
                what = f"it ended ({talk.ended.value})" if talk.ended else "it stands still"
                self.trouble = f"{what} after {self.received} of {total} bytes"
                return
        self.complete = not self.altered

    def close(self) -> None:
        """End the connection."""
        self.talk.close()

    def _fill(self, total: int) -> None:
        while self.sent < total and self.sent - self.received < _WINDOW:
            at = self.sent % len(PATTERN)
            chunk = memoryview(PATTERN)[at : at + min(16384, total - self.sent)]
            self.talk.send(chunk)
            self.sent += len(chunk)

    def _took_more(self, than: int) -> bool:
        data = self.talk.receive()
        at = self.received % len(PATTERN)
        wanted = (PATTERN * (2 + len(data) // len(PATTERN)))[at : at + len(data)]
        self.altered = self.altered or data != wanted
        self.received += len(data)
        return self.received > than
