"""Bytes in: mapped data of all subflows, the peer's DATA_FIN, window updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.mptcp.sending import Sending
from proxy.tcp.chronograph import Limited
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
                subflow.acknowledge()

    # -- receiving ----------------------------------------------------------------------------

    def on_data(self, subflow: Subflow, offset: int, payload: memoryview, now: float) -> None:
        """Mapped payload of a subflow, in the order of the subflow."""
        rx = self.rx
        self._now = now
        self._last_rx = subflow
        stream = rx.stream
        grown = rx.insert(offset, payload)
        if not grown:
            subflow.ahead = max(subflow.ahead, offset + len(payload))
            self._count_disorder()
            return
        if rx.limited is Limited.GAP:
            self._charge_gap(stream.rcv_nxt - grown, subflow, now)
        self.receivable = stream.ready_bytes
        if self._closed_by_app:
            self._late_data = True  # acted on by ``poll``: TCP's receive path must find its state
        elif not self._told:
            self._told = True
            self.host.event(self, Event.READABLE)
        if stream.rcv_nxt == rx.fin_at and not rx.finished:
            self._finish_receiving(now)

    # -- what holds up whoever reads ----------------------------------------------------------

    def _time_reading(self, now: float) -> None:
        """At the end of a turn, when the application had its chance to read."""
        rx = self.rx
        limited = Limited.NOTHING
        if self.receivable:
            limited = Limited.READER
        elif rx.stream.waiting_bytes:
            limited = Limited.GAP
        if limited is not rx.limited:
            rx.turn(limited, now)

    def _charge_gap(self, gap: int, bringer: Subflow | None, now: float) -> None:
        # The wait for the bytes at offset ``gap`` is over. If it was shorter than a round trip of
        # the fastest subflow, it is what several paths always do to the order of data.
        trips = (s.receive_rtt() for s in self.subflows if s.fully_established)
        waited = self.rx.lap(min(trips, default=0.0), now)
        late = self.late_subflow(gap, bringer) if waited else None
        if late is not None:
            late.charge(Limited.GAP, waited, now)

    def late_subflow(self, gap: int, bringer: Subflow | None) -> Subflow | None:
        """The subflow that the bytes at offset ``gap`` were first sent on, as far as we can know.

        A subflow brings the stream in order, so who has brought what comes later was not it, even
        if it brings these bytes in the end: they were sent again, in place of another one that
        has been silent for longer.
        """
        if bringer is not None and bringer.ahead <= gap:
            return bringer
        behind = [s for s in self.subflows if s.ahead <= gap and s.fully_established]
        return min(behind, key=_last_received, default=bringer)

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
        if rx.limited is Limited.READER and not self.receivable:
            self.host.wake(self)  # it has caught up
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
            last.acknowledge()
            return
        for subflow in self.subflows:
            if subflow.fully_established or subflow.initial:
                subflow.acknowledge()


def _last_received(subflow: Subflow) -> float:
    return subflow.last_received
