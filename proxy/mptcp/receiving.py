"""Bytes in: mapped data of all subflows, the peer's DATA_FIN, window updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.mptcp.sending import Sending
from proxy.tcp.events import Event
from proxy.tcp.states import State

if TYPE_CHECKING:
    from proxy.mptcp.subflow import Subflow

_ESTABLISHED = State.ESTABLISHED


class Receiving(Sending):
    """Data in from whatever subflows there are (RFC 8684 §3.3)."""

    __slots__ = ()

    def on_data_fin(self, offset: int, now: float) -> None:
        """The peer's DATA_FIN, at stream offset ``offset``."""
        rx = self.rx
        if rx.finished:
            self._acknowledge()  # our DATA_ACK was lost (P48)
        elif rx.data_fin(offset) and rx.stream.rcv_nxt == offset:
            self._finish_receiving(now)

    def _finish_receiving(self, now: float) -> None:
        rx = self.rx
        rx.finished = True
        rx.stream.clear()
        self._acknowledge()
        self.eof = not self.receivable
        self.host.event(self, Event.EOF)
        self._data_done(now)

    def _acknowledge(self) -> None:
        for subflow in self.subflows:
            if subflow.fully_established:
                subflow.request_ack()

    # -- receiving ----------------------------------------------------------------------------

    def on_data(self, subflow: Subflow, offset: int, payload: memoryview, now: float) -> None:
        """Mapped payload of a subflow, in the order of the subflow."""
        rx = self.rx
        self._now = now
        self._last_rx = subflow
        stream = rx.stream
        grown = rx.insert(offset, payload)
        if not grown:
            self._count_disorder()
            return
        self.receivable = stream.ready_bytes
        if self._closed_by_app:
            self._late_data = True  # acted on by ``poll``: TCP's receive path must find its state
        elif not self._told:
            self._told = True
            self.host.event(self, Event.READABLE)
        if stream.rcv_nxt == rx.fin_at and not rx.finished:
            self._finish_receiving(now)

    def _count_disorder(self) -> None:
        stream = self.rx.stream
        counters = self.host.counters
        if stream.tails:
            counters.add("MPTcpExtOFOQueueTail", stream.tails)
        if stream.queued:
            counters.add("MPTcpExtOFOQueue", stream.queued)
        if stream.merged:
            counters.add("MPTcpExtOFOMerge", stream.merged)
        if stream.duplicates:
            counters.add("MPTcpExtDuplicateData", stream.duplicates)
        if stream.beyond:
            counters.add("MPTcpExtNoDSSInWindow", stream.beyond)
        stream.tails = stream.queued = stream.merged = stream.duplicates = stream.beyond = 0

    def on_plain_data(self, payload: memoryview, now: float) -> None:
        """Payload of a connection that fell back: it continues the stream as it comes."""
        if self._held is not None:
            self._held.append(payload)
            return
        self._now = now
        rx = self.rx
        if rx.finished or not rx.append(payload):
            return
        self.receivable = rx.stream.ready_bytes
        if self._closed_by_app:
            self._late_data = True
        elif not self._told:
            self._told = True
            self.host.event(self, Event.READABLE)

    def receive(self, limit: int) -> list[memoryview | bytes]:
        """Take at most ``limit`` bytes of the stream, in order."""
        self._told = False
        rx = self.rx
        if not self.receivable:
            return []
        pieces = rx.read(limit)
        self.receivable = rx.stream.ready_bytes
        if rx.finished:
            self.eof = not self.receivable
            return pieces
        rx.measure(self._now, self._slowest_round_trip())
        if rx.update_due():
            self._update_window()
        return pieces

    def _slowest_round_trip(self) -> float:
        slowest = 0.001
        for subflow in self.subflows:
            if not subflow.stale:
                slowest = max(slowest, subflow.receive_rtt())
        return slowest

    def _update_window(self) -> None:
        # If the window was all but shut, tell on all subflows: one that is lost costs a probe.
        shut = self.rx.edge - self.rx.stream.rcv_nxt < 4096
        last = self._last_rx
        if not shut and last is not None and last.state is _ESTABLISHED and not last.stale:
            last.request_ack()
            return
        for subflow in self.subflows:
            if subflow.fully_established or subflow.initial:
                subflow.request_ack()
