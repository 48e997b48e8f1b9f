"""What several workers count, as one: sums that only grow, whichever worker ends or is late."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from proxy.control.merge import Gone, add_counters, merged_status
from proxy.control.metrics import COMMAND, Report
from proxy.control.workers import WorkerLink
from proxy.errors import MptcpProxyError
from proxy.relay.usage import Usage

log = logging.getLogger(__name__)

# Seconds for which a report waits for a worker; its answer counts whenever it comes.
_PATIENCE = 2.0
_LOST_AFTER = 60.0


class WorkerReports:
    """Each worker tells what it counted since it was asked last, so that what it told stays.

    ``links`` gives those that are open, ``limit`` is that of ``Usage``, ``counters`` what the
    first process has counted itself.
    """

    def __init__(
        self,
        role: str,
        limit: int,
        links: Callable[[], list[WorkerLink]],
        counters: Callable[[], dict[str, int]],
    ) -> None:
        self._role = role
        self._links = links
        self._counters = counters
        self._usage = Usage(limit)
        self._gone = Gone()
        self._last: dict[int, dict[str, Any]] = {}
        self._before: dict[str, Any] = {"uplinks": [], "connections": [], "counters": {}}
        self._open: dict[int, dict[str, int]] = {}
        self._asking: dict[WorkerLink, asyncio.Task[None]] = {}

    async def report(self, sample: bool = False) -> Report:
        """As ``metrics.Reading.report``; of a worker that is late, what it told before."""
        for link in self._links():
            if link not in self._asking:
                self._asking[link] = asyncio.ensure_future(self._ask(link, sample))
        if self._asking:
            await asyncio.wait(list(self._asking.values()), timeout=_PATIENCE)
        # With all of them gone, the sums of the uplinks are those of before.
        parts = list(self._last.values()) or [self._before]
        status = merged_status(parts, self._gone.uplinks if self._last else {})
        status["role"] = self._role
        self._before = {**status, "counters": {}}
        add_counters(status["counters"], self._gone.counters)
        add_counters(status["counters"], self._counters())
        self._usage.set_open(self._open.values())
        return Report(status, self._usage)

    def ended(self, index: int) -> None:
        """What a worker told stays; what it had open is gone."""
        self._open.pop(index, None)
        last = self._last.pop(index, None)
        if last is not None:
            self._gone.add(last)

    async def _ask(self, link: WorkerLink, sample: bool) -> None:
        try:
            answer = await link.request({"command": COMMAND, "sample": sample}, _LOST_AFTER)
            self._usage.add(answer["usage"])
            if link.open:  # else it has ended meanwhile
                accounts = answer["usage"]["accounts"]
                self._last[link.index] = answer["status"]
                self._open[link.index] = {name: account[3] for name, account in accounts.items()}
        except MptcpProxyError as error:
            log.debug("%s", error)
        finally:
            del self._asking[link]
