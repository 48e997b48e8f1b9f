"""What an engine decided and why, while somebody traces it: a ring of JSON lines.

Off, it costs nothing: connections look for it only where they are made, where their scheduler is
changed, and where something goes wrong. On, it stands between a connection and its scheduler.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from proxy.sched.base import ConnectionView, S, Scheduler

if TYPE_CHECKING:
    from proxy.mptcp.connection_core import ConnectionCore
    from proxy.mptcp.send import Reinjection
    from proxy.mptcp.subflow import Subflow
    from proxy.mptcp.subflow_core import SubflowCore


class Page(NamedTuple):
    """Some lines of a trace. ``cursor`` continues after them, ``lost`` came before them."""

    lines: list[str]
    cursor: int
    lost: int


class Trace:
    """The newest events, as many as ``size`` bytes hold.

    ``epoch`` is the wall clock's time at ``now`` 0. ``token`` names the only connection to be
    traced; None: all of them.
    """

    def __init__(self, size: int, epoch: float, token: int | None = None) -> None:
        self.size = size
        self._epoch = epoch
        self._token = token
        self._lines: deque[str] = deque()
        self._bytes = 0
        self._first = 0
        """The number of the oldest line that is still there."""

    @property
    def count(self) -> int:
        """Lines written so far."""
        return self._first + len(self._lines)

    def wants(self, conn: ConnectionCore) -> bool:
        """Whether events of this connection are written."""
        return self._token is None or self._token == conn.local_key.token

    def write(
        self, event: str, conn: ConnectionCore, now: float, fields: Mapping[str, object]
    ) -> None:
        """One event; the oldest ones make room for it."""
        if not self.wants(conn):
            return
        line = json.dumps(
            {
                "time": round(self._epoch + now, 6),
                "event": event,
                "token": f"{conn.local_key.token:08x}",
                **fields,
            },
            separators=(",", ":"),
        )
        lines = self._lines
        lines.append(line)
        self._bytes += len(line)
        while self._bytes > self.size:
            self._bytes -= len(lines.popleft())
            self._first += 1

    def write_subflow(
        self,
        event: str,
        conn: ConnectionCore,
        subflow: SubflowCore,
        now: float,
        fields: Mapping[str, object],
    ) -> None:
        """Something that happened to one subflow."""
        ends = {"local": str(subflow.local), "remote": str(subflow.remote)}
        self.write(event, conn, now, {"subflow": _name(subflow), **ends, **fields})

    def read(self, cursor: int, limit: int) -> Page:
        """Lines from number ``cursor`` on, at most ``limit`` bytes of them, but one at least."""
        if not 0 <= cursor <= self.count:
            cursor = 0  # of another trace
        start = max(cursor, self._first)
        page: list[str] = []
        for line in islice(self._lines, start - self._first, None):
            limit -= len(line)
            if limit < 0 and page:
                break
            page.append(line)
        return Page(page, start + len(page), start - cursor)

    def wrap(self, conn: ConnectionCore, scheduler: Scheduler) -> Scheduler:
        """``scheduler``, with its decisions written if ``conn`` is traced."""
        return TracedScheduler(scheduler, self) if self.wants(conn) else scheduler


class TracedScheduler(Scheduler):
    """Asks ``inner``, and writes what it was asked and what it said."""

    __slots__ = ("_trace", "duplicates", "inner", "name")

    def __init__(self, inner: Scheduler, trace: Trace) -> None:
        self.inner = inner
        self.name = inner.name
        self.duplicates = inner.duplicates
        self._trace = trace

    def get_send(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """See ``Scheduler``."""
        able = [s for s in subflows if s.room > 0 and not s.stale]
        chosen = self.inner.get_send(conn, subflows, now)
        if chosen is not None and chosen.room > 0:
            self._write_send(conn, subflows, chosen, len(able), now)
        elif able:
            self._write("wait", conn, now, reason=self.inner.waits, **_situation(conn, subflows))
        return chosen

    def get_probe(self, conn: ConnectionView, subflows: Sequence[S], now: float) -> S | None:
        """See ``Scheduler``."""
        probed = self.inner.get_probe(conn, subflows, now)
        if probed is not None and probed.room > 0:
            reason = "its round trip was long when it was measured last"
            self._write("copy", conn, now, to=_name(probed), reason=reason)
        return probed

    def get_retrans(
        self, conn: ConnectionView, subflows: Sequence[S], now: float, exclude: S | None
    ) -> S | None:
        """See ``Scheduler``."""
        chosen = self.inner.get_retrans(conn, subflows, now, exclude)
        if chosen is not None:
            entry: Reinjection = cast("ConnectionCore", conn).tx.reinject[0]
            self._write(
                "reinject",
                conn,
                now,
                offset=entry.start,
                bytes=min(chosen.room, entry.end - entry.start),
                to=_name(chosen),
                instead_of=None if entry.exclude is None else _name(entry.exclude),
                reason=entry.reason.value,
                candidates=[_numbers(s) for s in subflows],
            )
        return chosen

    def _write_send(
        self, conn: ConnectionView, subflows: Sequence[S], chosen: S, able: int, now: float
    ) -> None:
        count = min(chosen.room, conn.pending)
        fields: dict[str, Any] = {}
        if self.duplicates:
            others = (s for s in subflows if s is not chosen and s.room >= count)
            fields["copies"] = [_name(s) for s in others]
        self._write(
            "send",
            conn,
            now,
            offset=cast("ConnectionCore", conn).tx.nxt,
            bytes=count,
            to=_name(chosen),
            reason="the only one with room" if able == 1 else self.inner.policy,
            **fields,
            **_situation(conn, subflows),
        )

    def _write(self, event: str, conn: ConnectionView, now: float, **fields: object) -> None:
        shown = {name.replace("_", "-"): value for name, value in fields.items()}
        self._trace.write(
            event, cast("ConnectionCore", conn), now, {"scheduler": self.name, **shown}
        )


def unwrapped(scheduler: Scheduler) -> Scheduler:
    """What was wrapped, or the scheduler itself."""
    return scheduler.inner if isinstance(scheduler, TracedScheduler) else scheduler


def _situation(conn: ConnectionView, subflows: Sequence[S]) -> dict[str, object]:
    return {
        "pending": conn.pending,
        "window_left": conn.window_left,
        "candidates": [_numbers(subflow) for subflow in subflows],
    }


def _name(subflow: object) -> str:
    """The uplink, or where it comes from."""
    real = cast("Subflow", subflow)
    return real.uplink or str(real.remote)


def _numbers(subflow: object) -> dict[str, object]:
    real = cast("Subflow", subflow)
    return {
        "subflow": _name(real),
        "room": real.room,
        "srtt": round(real.srtt, 6),
        "rttvar": round(real.rttvar, 6),
        "cwnd": real.cwnd,
        "in-flight": real.bytes_in_flight,
        "backup": real.backup or real.peer_backup,
    }
