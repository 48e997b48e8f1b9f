"""What a box counts, read for whoever asks: Prometheus, or the first process of several."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxy.control.fields import Request

if TYPE_CHECKING:
    from proxy.relay.usage import Meters, Usage

COMMAND = "worker-metrics"


@dataclass(frozen=True, slots=True)
class Report:
    """``status``: a ``schema.Status`` without its connections."""

    status: Mapping[str, Any]
    usage: Usage


class Reading:
    """Reads the meters of one process; ``summary`` gives its status without connections."""

    def __init__(
        self,
        meters: Meters,
        summary: Callable[[], Mapping[str, Any]],
        clock: Callable[[], float],
    ) -> None:
        self._meters = meters
        self._summary = summary
        self._clock = clock
        self._sampled_at = clock()

    async def report(self, sample: bool = False) -> Report:
        """All that was counted; ``sample``: with another reading of the round-trip times."""
        await self._read(sample)
        return Report(self._summary(), self._meters.usage)

    async def command(self, request: Request) -> object:
        """``worker-metrics``: the status, and what was counted since this was asked last."""
        await self._read(bool(request.get("sample")))
        return {"status": self._summary(), "usage": self._meters.usage.take()}

    async def _read(self, sample: bool) -> None:
        since, now = self._sampled_at, self._clock()
        for flows in self._meters.slices():
            self._meters.read(flows)
            if sample:
                self._meters.sample(flows, since)
            await asyncio.sleep(0)
        if sample:
            self._sampled_at = now
