"""What a rule does to a conversation while it runs: its scheduler, and what its size changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from proxy.mptcp.connection import MptcpConnection

if TYPE_CHECKING:
    from proxy.config import RuleConfig
    from proxy.relay.flow import Flow


class Treatment:
    """Of one conversation. ``metered`` gives the names of the uplinks to be spared now."""

    __slots__ = ("_metered", "_redundant_until", "_scheduler", "_spared_from", "rule", "via")

    def __init__(
        self, rule: RuleConfig | None, via: str, metered: Callable[[], Iterable[str]]
    ) -> None:
        self.rule = rule
        self.via = via
        self._metered = metered
        self._scheduler = ""
        self._redundant_until: float = rule.redundant_bytes if rule else 0
        self._spared_from: float = math.inf
        if rule is not None and rule.bulk_bytes is not None:
            self._spared_from = rule.bulk_bytes

    def begin(self, flow: Flow) -> None:
        """The conversation begins."""
        stream = flow.far
        if self.rule is None or not isinstance(stream, MptcpConnection):
            return
        self._scheduler = self.rule.scheduler or stream.config.scheduler
        if self._redundant_until:
            stream.set_scheduler("redundant")
        elif self.rule.scheduler:
            stream.set_scheduler(self.rule.scheduler)
        self._set_mark(flow)

    def on_mark(self, flow: Flow, now: float) -> None:
        """As many bytes as were asked for have passed, both directions together."""
        stream = flow.far
        if not isinstance(stream, MptcpConnection):
            return
        size = flow.bytes_in + flow.bytes_out
        if 0 < self._redundant_until <= size:
            self._redundant_until = 0
            stream.set_scheduler(self._scheduler)
        self.on_subflow(flow, now)
        self._set_mark(flow)

    def on_subflow(self, flow: Flow, now: float) -> None:
        """It is bulk by now, or one that is got another subflow."""
        stream = flow.far
        if not isinstance(stream, MptcpConnection):
            return
        if flow.bytes_in + flow.bytes_out < self._spared_from:
            return
        metered = set(self._metered())
        for subflow in stream.subflows:
            if subflow.uplink in metered and not subflow.backup:
                stream.set_backup(subflow, True, now)

    def _set_mark(self, flow: Flow) -> None:
        size = flow.bytes_in + flow.bytes_out
        marks = [m for m in (self._redundant_until, self._spared_from) if m > size]
        flow.mark = min(marks, default=math.inf)
