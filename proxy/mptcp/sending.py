"""Bytes out: scheduling, DATA_ACKs, reinjection, the data-level retransmission timer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.mptcp.connection_core import INFINITE, ConnectionCore
from proxy.mptcp.notes import Again, Fallback
from proxy.seg import dss_checksum, dss_option
from proxy.tcp.chronograph import Limited
from proxy.tcp.events import Event
from proxy.tcp.states import State

if TYPE_CHECKING:
    from proxy.mptcp.subflow import Subflow

_NO_MAPPING_LIMIT = 1 << 30
_MIN_RTX = 0.2
_MAX_RTX = 120.0
_SEND_FLOOR = 131072
_LOW_WATER = 4096
_PROBES = 5

_ESTABLISHED = State.ESTABLISHED
_CLOSE_WAIT = State.CLOSE_WAIT


class Sending(ConnectionCore):
    """Data out over whatever subflows there are (RFC 8684 §3.3)."""

    __slots__ = ()

    def arm(self) -> None:
        """A deadline of the connection has become earlier."""
        raise NotImplementedError

    def _close_finished(self, now: float) -> None:
        """All data is DATA_ACKed: subflows that were kept for it may close."""
        raise NotImplementedError

    def _data_done(self, now: float) -> None:
        """A DATA_FIN was acknowledged or received in order."""
        raise NotImplementedError

    # -- who may send -------------------------------------------------------------------------

    def usable_subflows(self) -> list[Subflow]:
        """Subflows that may carry new data: proven, not closing, not stale."""
        usable = self._usable
        if usable is None:
            usable = self._usable = [
                s
                for s in self.subflows
                if (s.fully_established or not s.mptcp or (s.initial and s.active))
                and (s.state is _ESTABLISHED or s.state is _CLOSE_WAIT)
                and not (s.closing or s.doomed or s.stale)
            ]
        return usable

    # -- sending ------------------------------------------------------------------------------

    def _pump(self, now: float) -> None:
        """Give data to the subflows that can send it at once: reinjections first."""
        self._pace_at = INFINITE
        tx = self.tx
        if tx.reinject:
            self._pump_again(now)
        if tx.nxt < tx.end:
            self._pump_new(now)
        if tx.nxt == tx.end:
            if tx.una < tx.nxt:
                self._watch_tail(now)
            if tx.fin and not tx.fin_sent:
                self._send_fin(now)
            if tx.limited is not Limited.NOTHING or self._blocked:
                self._time_rest(now)

    def _pump_new(self, now: float) -> None:
        tx = self.tx
        usable = self.usable_subflows()
        if not usable:
            if self.tx.limited is not Limited.NO_SUBFLOW:
                self.tx.turn(Limited.NO_SUBFLOW, now)
            return
        plain = self.fallback is not Fallback.NONE
        self._tail_at = INFINITE
        self.backlogged = (tx.end - tx.una) * 8 >= self._limit * 5
        self.pending = tx.end - tx.nxt
        self.window_left = _NO_MAPPING_LIMIT if plain else tx.edge - tx.nxt
        for subflow in usable:
            subflow.room = subflow.burst(self.pending, self.window_left, now)
        while self.pending > 0 and self.window_left > 0:
            chosen = self.scheduler.get_send(self, usable, now)
            if chosen is None or chosen.room <= 0:
                break
            count = chosen.room
            if count > self.pending:
                count = self.pending
            offset = tx.nxt
            tx.nxt = offset + count
            self._push(chosen, offset, count, now)
            if len(usable) > 1:
                probed = self.scheduler.get_probe(self, usable, now)
                if probed is not None and probed is not chosen and probed.room > 0:
                    self.contiguous = False
                    self._push(probed, offset, min(count, probed.room, probed.mss), now)
                    probed.room = 0
            if self.scheduler.duplicates:
                for other in usable:
                    if other is not chosen and other.room >= count:
                        self.contiguous = False
                        self._push(other, offset, count, now)
            self.pending -= count
            if not plain:
                self.window_left -= count
            left = min(self.pending, self.window_left)
            for subflow in usable:
                # The others' rooms only shrink with what is left for all of them.
                if subflow is chosen or subflow.room > left or self.scheduler.duplicates:
                    subflow.room = subflow.burst(self.pending, self.window_left, now)
        if self.pending > 0:
            self._wait_for_room(usable, now)
            if plain and not usable[0].busy():
                # The window is shut or too small: TCP must have something to probe it for.
                count = min(self.pending, usable[0].mss)
                tx.nxt += count
                self._push(usable[0], tx.nxt - count, count, now)

    def _push(self, subflow: Subflow, offset: int, count: int, now: float) -> None:
        subflow.push(offset, count, self.tx.slice(offset, count), now)
        subflow.due = False
        subflow.poll(now)
        if self._rtx_at == INFINITE and self.fallback is Fallback.NONE:
            self._restart_rtx(now)

    def _wait_for_room(self, usable: list[Subflow], now: float) -> None:
        # Pacing opens by time alone; all else that gives room comes as a segment.
        at = INFINITE
        window = self._window_limit(usable[0])
        limited = Limited.NOTHING
        for subflow in usable:
            pace = subflow.next_release(now)
            if pace < at:
                at = pace
            why = window or subflow.hindrance(now)
            if why is not subflow.limited:
                subflow.turn(why, now)
            if why > limited:
                limited = why
        if limited is not self.tx.limited:
            self.tx.turn(limited, now)
        self._pace_at = at
        if at != INFINITE:
            self.arm()
        elif self.window_left <= 0 and self.fallback is Fallback.NONE:
            self._when_window_blocked(usable, now)

    def _window_limit(self, subflow: Subflow) -> Limited:
        # Of the data level: all subflows tell of the same window.
        if self.window_left >= subflow.mss or self.window_left >= self.pending:
            return Limited.NOTHING
        tx = self.tx
        shrunk = 2 * (tx.edge - tx.una) < subflow.snd_max_wnd
        return Limited.READER if shrunk else Limited.WINDOW

    def _time_rest(self, now: float) -> None:
        # Nothing waits to be sent any more, so that no subflow is limited by what it may send.
        tx = self.tx
        limited = Limited.NOTHING
        if tx.una < tx.nxt:
            if self._blocked:
                limited = Limited.SEND_BUFFER
            if tx.limited is Limited.SILENCE and all(s.rto_count for s in self.usable_subflows()):
                limited = Limited.SILENCE
        if limited is tx.limited:
            return
        tx.turn(limited, now)
        for subflow in self.subflows:
            if subflow.limited is not Limited.SILENCE and subflow.limited is not limited:
                subflow.turn(limited, now)

    def _when_window_blocked(self, usable: list[Subflow], now: float) -> None:
        # Opportunistic reinjection (RTX-02 c): the head of the window waits on a slow subflow
        # while a faster one is idle. Once per mapping.
        tx = self.tx
        if tx.una < tx.nxt and not tx.reinject and len(usable) > 1:
            fast = min(usable, key=_srtt)
            for subflow in self.subflows:
                if subflow is fast or subflow.srtt <= 2.0 * fast.srtt:
                    continue
                head = subflow.mappings.first(tx.una)
                if head is None or head.reinjected or head.offset > tx.una:
                    continue
                if fast.bytes_in_flight < fast.cwnd >> 1:
                    head.reinjected = True
                    end = head.offset + head.length
                    tx.queue_again(head.offset, end, subflow, Again.WINDOW_BLOCKED)
                    self._pump_again(now)
                return
        elif tx.una == tx.nxt and self._rtx_at == INFINITE:
            self._restart_rtx(now)  # zero window: probe by timer (WND-07)

    def _pump_again(self, now: float) -> None:
        """Send what a stalled or dead subflow has carried, on others."""
        tx = self.tx
        usable = self.usable_subflows()
        while True:
            entry = tx.next_again()
            if entry is None:
                return
            size = entry.end - entry.start
            for subflow in usable:
                subflow.room = subflow.burst(size, size, now)
            exclude = entry.exclude
            if exclude is not None and exclude.state is State.CLOSED:
                exclude = None
            chosen = self.scheduler.get_retrans(self, usable, now, exclude)
            if chosen is None:
                self._wait_again(usable, exclude, now)
                return
            count = min(chosen.room, size)
            tx.sent_again(entry.start + count)
            tx.bytes_reinjected += count
            chosen.bytes_reinjected += count
            self.contiguous = False
            self.host.counters.add("MPTcpExtMPTCPRetrans")
            self._push(chosen, entry.start, count, now)

    def _wait_again(self, usable: list[Subflow], exclude: Subflow | None, now: float) -> None:
        for subflow in usable:
            if subflow is not exclude:
                pace = subflow.next_release(now)
                if pace < self._pace_at:
                    self._pace_at = pace
        if self._pace_at != INFINITE:
            self.arm()

    def _watch_tail(self, now: float) -> None:
        # All is sent: what a slow subflow still carries may be sooner there over a fast one that
        # has nothing else to do. At once at the end of the stream, else after a round trip.
        usable = self.usable_subflows()
        if len(usable) < 2 or self.fallback is not Fallback.NONE:
            return
        fast = min(usable, key=_srtt)
        if self.tx.fin:
            if not self.tx.fin_sent:
                self._hasten_tail(fast, now)
        elif self._tail_at == INFINITE and any(s.bytes_in_flight for s in usable if s is not fast):
            self._tail_at = now + max(fast.srtt, 0.005)
            self.arm()

    def _hasten_tail(self, fast: Subflow, now: float) -> None:
        tx = self.tx
        quick = fast.srtt + 4.0 * fast.rttvar
        for subflow in self.subflows:
            if subflow is fast or subflow.srtt <= quick:
                continue
            late = now + quick - subflow.srtt  # what was sent after that gains by it
            for mapping in subflow.mappings.unacked(tx.una):
                if mapping.sent_at > late and not mapping.reinjected:
                    mapping.reinjected = True
                    start, end = max(mapping.offset, tx.una), mapping.offset + mapping.length
                    tx.queue_again(start, end, subflow, Again.TAIL)
        if tx.reinject:
            self._pump_again(now)

    def _on_tail_timeout(self, now: float) -> None:
        self._tail_at = INFINITE
        usable = self.usable_subflows()
        if self.tx.nxt == self.tx.end and self.tx.una < self.tx.nxt and len(usable) > 1:
            self._hasten_tail(min(usable, key=_srtt), now)

    # -- acknowledgements ---------------------------------------------------------------------

    def on_data_ack(
        self, subflow: Subflow, data_ack: int, is64: bool, window: int, now: float
    ) -> None:
        """A DATA_ACK with the window that counts from it (RFC 8684 §3.3.2)."""
        tx = self.tx
        offset = tx.ack_offset(data_ack, is64)
        una = tx.una
        if offset < una or offset > tx.nxt + tx.fin_sent:
            return  # old, or for what was never sent (threat 16)
        edge = offset + window
        if edge > tx.edge:
            tx.edge = edge
            if tx.nxt < tx.end:
                self.host.wake(self)  # a window update alone acknowledges nothing, but opens
        if offset == una:
            return
        if offset > tx.end and tx.fin_sent:
            tx.release(tx.end)
            if not tx.fin_acked:
                tx.fin_acked = True
                self._rtx_at = INFINITE
                self._data_done(now)
            return
        tx.release(offset)
        self._backoff = 0
        if offset == tx.nxt and not tx.fin_sent:
            self._rtx_at = INFINITE
            if offset == tx.end:
                self._close_finished(now)
        else:
            self._restart_rtx(now)
        for other in self.subflows:
            if other.suspect and other is not subflow:
                self._check_suspect(other)
        if self._blocked:
            self._tell_writable()

    def _check_suspect(self, subflow: Subflow) -> None:
        # Another path made a whole round trip with the bytes that this one was probed for, and
        # still nothing came back here: send all of the rest over, without waiting for its RTO.
        head = subflow.mappings.first(self.tx.una)
        if head is None or not head.reinjected:
            self.reinject_all(subflow, Again.SILENT)

    def _tell_writable(self) -> None:
        if self.send_room() > 0 and not self._blocked:
            self.host.event(self, Event.WRITABLE)

    def send_room(self) -> int:
        """Bytes that ``send`` takes now; WRITABLE follows once there is more after a shortage.

        The buffer holds what all paths together carry in two round trips of the slowest (WND-05).
        """
        tx = self.tx
        if tx.fin or self.state is State.CLOSED:
            return 0
        windows = 0
        rate = 0.0
        slowest = 0.0
        for subflow in self.subflows:
            srtt = subflow.srtt
            if srtt:
                windows += subflow.cwnd
                rate += subflow.cwnd / srtt
                if srtt > slowest:
                    slowest = srtt
        limit = _SEND_FLOOR + 2 * max(windows, int(rate * slowest))
        if limit > self.tcp_config.send_buffer_max:
            limit = self.tcp_config.send_buffer_max
        self._limit = limit
        room = limit - (tx.end - tx.una)
        least = min(_LOW_WATER, limit >> 1)  # a tiny buffer must not be too small for ever
        if room < (limit >> 2 if self._blocked else least):
            self._blocked = True
            return room if room >= least else 0
        self._blocked = False
        return room

    # -- sending again ------------------------------------------------------------------------

    def reinject_all(self, subflow: Subflow, reason: Again) -> None:
        """Everything sent on ``subflow`` and not DATA_ACKed goes to the others at once."""
        tx = self.tx
        for mapping in subflow.mappings.unacked(tx.una):
            if not mapping.reinjected:
                mapping.reinjected = True
                start = max(mapping.offset, tx.una)
                tx.queue_again(start, mapping.offset + mapping.length, subflow, reason)
        if tx.reinject:
            self.host.wake(self)

    def on_subflow_loss(self, subflow: Subflow, now: float) -> None:
        """What a slow subflow has lost goes over a fast one too.

        Its own repetition takes a round trip of the slow path at least, and all that time what the
        others bring would wait behind the hole and fill the window.
        """
        usable = [s for s in self.usable_subflows() if not (s.backup or s.peer_backup)]
        fast = min(usable, key=_srtt, default=subflow)
        if fast is subflow or subflow.srtt <= 2.0 * fast.srtt:
            return
        tx = self.tx
        for record in subflow._flight:
            mapping = subflow.mappings.find(record.seq) if record.lost else None
            if mapping is None or mapping.reinjected:
                continue
            end = mapping.offset + mapping.length
            if end > tx.una:
                mapping.reinjected = True
                tx.queue_again(max(mapping.offset, tx.una), end, subflow, Again.LOSS)
        if tx.reinject:
            self.host.wake(self)

    def on_suspect(self, subflow: Subflow, now: float) -> None:
        """A tail loss probe: its oldest bytes go on another subflow as well.

        Two round trips without an ACK cost one super-segment sent twice if the path is alive, and
        save an RTO if it is not.
        """
        head = subflow.mappings.first(self.tx.una)
        if head is None or len(self.usable_subflows()) < 2:
            return
        subflow.suspect = True
        self.trace("tail-probe", subflow, now)
        if not head.reinjected:
            head.reinjected = True
            start, end = max(head.offset, self.tx.una), head.offset + head.length
            self.tx.queue_again(start, end, subflow, Again.TAIL_PROBE)
            self.host.wake(self)

    def _restart_rtx(self, now: float) -> None:
        longest = _MIN_RTX
        # A DATA_FIN alone has no TCP below it that would notice its loss: as a tail loss probe,
        # its first repetition does not wait for a time-out.
        lone = self.tx.fin_sent and self.tx.una == self.tx.end
        tail = lone and not self._backoff
        for subflow in self.subflows:
            if subflow.srtt and not subflow.stale:
                longest = max(longest, subflow.srtt if tail else subflow.rto)
        if not lone or not self._backoff:
            longest *= 2.0
        before = self._rtx_at
        self._rtx_at = at = now + min(longest * (1 << min(self._backoff, 10)), _MAX_RTX)
        if at < before:
            self.arm()  # the back-off is over: what is armed is too late

    def _watch_again(self, now: float) -> None:
        """There was no subflow for a while, and the timer may have run off meanwhile."""
        tx = self.tx
        if self._rtx_at == INFINITE and (tx.una < tx.nxt or tx.fin_sent > tx.fin_acked):
            self._backoff = 0
            self._restart_rtx(now)

    def watch_answer(self, now: float) -> None:
        """A probe is out that the peer must answer."""
        if self._rtx_at == INFINITE:
            self._backoff = 0
            self._restart_rtx(now)

    def _ask_again(self, now: float) -> bool:
        for subflow in list(self.subflows):
            if not subflow.asked:
                continue
            if self._backoff <= _PROBES:
                subflow.probe_window(now)
                return True
            subflow.take_fin(now)
        return False

    def _on_rtx_timeout(self, now: float) -> None:
        """Nothing was DATA_ACKed for a while (RTX-02 b, FIN-02, WND-07)."""
        tx = self.tx
        self._backoff += 1
        self._rtx_at = INFINITE
        if self.fallback is not Fallback.NONE or not self.subflows:
            return
        if tx.una == tx.nxt and tx.fin_sent and not tx.fin_acked:
            for subflow in list(self.subflows):
                bare = self._backoff > 1 and subflow.acks_without_dss
                if bare and self._stripped(subflow, now):
                    if self.fallback is not Fallback.NONE:
                        return
                elif self._backoff > 2:
                    # A peer that has fallen back in silence sees an ACK and has no reason to
                    # answer it; this one it must answer, and how it does tells.
                    subflow.probe_window(now)
            self._offer_fin()
        elif tx.una < tx.nxt:
            self._rescue_head(now)
        elif tx.nxt < tx.end and tx.edge <= tx.nxt:
            self.host.counters.add("MPTcpExtWinProbe")
            for subflow in self.usable_subflows():
                subflow.probe_window(now)
        elif tx.fin and not tx.fin_sent and tx.una == tx.end:
            self._send_fin(now)
            return
        elif not self._ask_again(now):
            return
        self._restart_rtx(now)

    def _rescue_head(self, now: float) -> None:
        """The first bytes are acknowledged by a subflow, but not by the connection."""
        tx = self.tx
        head = None
        for subflow in self.subflows:
            mapping = subflow.mappings.first(tx.una)
            if mapping is None or mapping.offset > tx.una:
                continue
            if not subflow.acknowledged(mapping):
                if not subflow.stale:
                    return  # TCP is still at it
                continue
            head = mapping
            if subflow.acks_without_dss and self._stripped(subflow, now):
                return
            if subflow.bare_last and len(self.subflows) == 1:
                # For a peer that fell back in silence the same bytes once more would be new ones.
                subflow.probe_window(now)
                return
        if tx.reinject:
            self.host.wake(self)
            return
        end = tx.una + 1460 if head is None else head.offset + head.length
        tx.queue_again(tx.una, min(end, tx.nxt), None, Again.NO_DATA_ACK)
        self.host.wake(self)

    def _stripped(self, subflow: Subflow, now: float) -> bool:
        """Options vanished on the way (FB-05, FB-06); True if that was dealt with."""
        raise NotImplementedError

    # -- DATA_FIN -----------------------------------------------------------------------------

    def _send_fin(self, now: float) -> None:
        if self.fallback is not Fallback.NONE:
            for subflow in self.usable_subflows():
                self.tx.fin_sent = True
                if self._closed_by_app:
                    subflow.close(now)  # TCP deals with what comes later
                else:
                    subflow.shutdown_write()
            return
        if not self.fully_established:
            self._ask_for_proof(now)
            return
        self.tx.fin_sent = True
        self._backoff = 0
        self._offer_fin()
        self._restart_rtx(now)

    def _ask_for_proof(self, now: float) -> None:
        # The peer may not have our key yet, and has nothing to say: a probe, which repeats the
        # key, makes it answer, and its DSS (or the lack of it) tells how to finish.
        initial = self.initial
        if self._rtx_at != INFINITE or initial is None or not initial.active:
            return
        if self._backoff:
            initial.request_ack()  # the third ACK again, in the window
        initial.poll(now)  # the third ACK goes first
        initial.probe_window(now)
        self._restart_rtx(now)

    def _offer_fin(self) -> None:
        # On every subflow at once, as Linux does (FIN-02).
        for subflow in self.subflows:
            if subflow.fully_established and not subflow.closing:
                subflow.fin_due = True
                subflow.request_ack()

    def data_fin_option(self, ack: int, ack64: bool) -> bytes:
        """A DSS with our DATA_FIN alone: SSN 0, length 1 (FIN-01)."""
        dsn = self.tx.dsn(self.tx.end)
        checksum = dss_checksum(dsn, 0, 1, ()) if self.checksum else -1
        return dss_option(ack, ack64, dsn, 0, 1, checksum, True)


def _srtt(subflow: Subflow) -> float:
    return subflow.srtt
