"""Incoming data: order, reassembly, FIN, when to acknowledge, the receive window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.tcp.core import ACK_DELAYED, ACK_NOW, FIN, INFINITE, MASK, QUICK_ACKS
from proxy.tcp.reassembly import Reassembly
from proxy.tcp.states import State
from proxy.tcp.timeouts import Timeouts

if TYPE_CHECKING:
    from proxy.seg import Segment
    from proxy.tcp.buffers import Buffer

HALF = 0x80000000
DRS_MIN_RTT = 0.001


class Receiver(Timeouts):
    """The receive side of a synchronized connection."""

    __slots__ = ()

    def _process_data(self, seg: Segment, now: float) -> None:
        """Payload and FIN of an acceptable segment (RFC 9293 §3.10.7.4 'seventh', 'eighth')."""
        rcv_nxt = self.rcv_nxt
        seq = seg.seq
        length: int = seg.length
        payload = seg.payload
        if self.fin_received:  # nothing can follow FIN but repetitions
            if length:
                self._duplicate(seq, (seq + length) & MASK)
            self._ack_state = ACK_NOW
            return
        if seg.flags & FIN and self._fin_at < 0:
            self._fin_at = (seq + length) & MASK
        room = (self.rcv_right - rcv_nxt) & MASK
        if room >= HALF:
            room = 0
        ahead = (seq - rcv_nxt) & MASK
        if ahead >= HALF:  # begins with what is known already
            known = (rcv_nxt - seq) & MASK
            if known >= length:
                if length:
                    self._duplicate(seq, (seq + length) & MASK)
                self._ack_state = ACK_NOW
                self._check_fin(now)
                return
            self._duplicate(seq, rcv_nxt)
            payload = payload[known:]
            length -= known
            seq = rcv_nxt
            ahead = 0
        if ahead + length > room:  # beyond what was promised
            self._ack_state = ACK_NOW
            self.counters.add("TCPRcvQDrop")
            length = room - ahead
            if length <= 0:
                return
            payload = payload[:length]
        if ahead:
            self._out_of_order(seq, payload, now)
            return
        if length:
            self._accept(seq, payload, length, now)
        if self._reassembly is not None and self._reassembly.ranges:
            self._drain(now)
        self._check_fin(now)

    def _after_silence(self) -> None:
        """Data after an idle time: its sender starts slowly again, and needs an ACK for each.

        Not in a dialogue, where ACKs ride on the answers (Linux: tcp_event_data_recv, pingpong).
        """
        if self.bytes_sent == self._spoken:
            self._quick_acks = QUICK_ACKS
        self._spoken = self.bytes_sent

    def _accept(self, seq: int, payload: Buffer, length: int, now: float) -> None:
        """In-order bytes; decides when they are acknowledged (RFC 9293 §3.8.6.3)."""
        self.rcv_nxt = (seq + length) & MASK
        self.bytes_received += length
        self._unacked_bytes = unacked = self._unacked_bytes + length
        if self._ack_state != ACK_NOW:
            mss = self._rcv_mss
            if unacked >= 2 * mss or self._quick_acks:
                self._ack_state = ACK_NOW
            elif not self._ack_state:
                self._ack_state = ACK_DELAYED
                self._ack_at = now + self.config.delayed_ack
        self._deliver(seq, payload, now)

    def _out_of_order(self, seq: int, payload: memoryview, now: float) -> None:
        self._ack_state = ACK_NOW
        if not len(payload):
            return
        reassembly = self._reassembly
        if reassembly is None:
            reassembly = self._reassembly = Reassembly(self.config.max_out_of_order)
        self.counters.add("TCPOFOQueue")
        if not reassembly.insert(seq, payload, self.rcv_nxt):
            self._duplicate(seq, (seq + len(payload)) & MASK)

    @property
    def has_gap(self) -> bool:
        """Whether bytes wait behind some that did not arrive."""
        return self._reassembly is not None

    def _drain(self, now: float) -> None:
        """Hand over what has become contiguous."""
        reassembly = self._reassembly
        assert reassembly is not None
        self._ack_state = ACK_NOW  # RFC 5681 §4.2: when a gap is filled
        while True:
            ready = reassembly.pop_ready(self.rcv_nxt)
            if ready is None:
                break
            start = ready.start
            for chunk in ready.chunks:
                size = len(chunk)
                known = (self.rcv_nxt - start) & MASK
                start = (start + size) & MASK
                if known >= size:
                    continue
                view = memoryview(chunk)[known:]
                self._accept(self.rcv_nxt, view, size - known, now)
                if self._reassembly is None:  # a hook ended the connection
                    return
        if not reassembly.ranges:
            self._reassembly = None

    def _duplicate(self, left: int, right: int) -> None:
        """Report the first duplicate since the last ACK (RFC 2883)."""
        if self.sack_permitted and self._dsack is None:
            self._dsack = (left, right)
            self.counters.add("TCPDSACKOldSent")
        self._ack_state = ACK_NOW

    def _check_fin(self, now: float) -> None:
        if (
            self._fin_at == self.rcv_nxt
            and not self.fin_received
            and self.state is not State.CLOSED
        ):
            self.rcv_nxt = (self.rcv_nxt + 1) & MASK
            self._reassembly = None
            self._ack_state = ACK_NOW
            self.fin_received = True
            self._peer_finished(now)
            self._on_fin(now)
            if self.state is State.TIME_WAIT:
                self._on_closed(now)  # the application hears of the end of the stream first

    def _peer_finished(self, now: float) -> None:
        """The state change that the peer's FIN causes."""
        raise NotImplementedError

    # -- the application's side -----------------------------------------------------------------

    def receive(self, limit: int) -> list[Buffer]:
        """Take at most ``limit`` bytes of the stream, in order."""
        self._read_told = False
        if not self.receivable:
            return []
        taken = self._received.take(limit)
        count = 0
        for chunk in taken:
            count += len(chunk)
        self.receivable -= count
        self._copied += count
        if self.fin_received and not self.receivable:
            self.eof = True
            return taken
        self._window_update()
        return taken

    def _window_update(self) -> None:
        """Tell the peer when reading has opened the window a good deal (Linux: cleanup_rbuf)."""
        current = (self.rcv_right - self.rcv_nxt) & MASK
        if current >= HALF:
            current = 0
        gain = self._receive_window() - current
        half = self._rcv_buffer // 2
        if gain >= min(2 * self._rcv_mss, half) and (gain >= current or gain >= half):
            self._ack_state = ACK_NOW
            self._wake()

    # -- receive buffer auto-tuning ---------------------------------------------------------------

    def _tune_receive_buffer(self, now: float) -> None:
        """Dynamic right-sizing: the buffer holds twice what was read in the last round trip.

        As Linux' tcp_rcv_space_adjust: while the sender is in slow start, what arrives doubles
        per round trip, so room for twice as much again is added.
        """
        rtt = self._drs_rtt
        if rtt < DRS_MIN_RTT:
            rtt = DRS_MIN_RTT
        if now - self._drs_at < rtt:
            return
        copied = self._copied - self._drs_copied
        self._drs_copied = self._copied
        self._drs_at = now
        memory = self.host.memory
        if copied <= self._drs_space:
            if memory.tight:
                self._shrink_receive_buffer(copied)
            return
        wanted = 2 * copied + 16 * self._rcv_mss
        if self._drs_space:
            wanted += 2 * wanted * (copied - self._drs_space) // self._drs_space
        wanted = min(wanted, self.config.receive_buffer_max)
        if wanted > self._rcv_buffer and not self._grow_receive_buffer(wanted):
            return  # asks again while the rate is as high
        self._drs_space = copied

    def _grow_receive_buffer(self, wanted: int) -> bool:
        """False: not all of it was to be had."""
        least = self.config.receive_buffer
        more = wanted - least - self._rcv_reserved
        granted = self.host.memory.take(more) if more > 0 else more
        self._rcv_reserved += max(granted, 0)
        self._rcv_buffer = max(self._rcv_buffer, min(wanted, least + self._rcv_reserved))
        return granted >= more

    def _shrink_receive_buffer(self, copied: int) -> None:
        """Others are short of what this one does not need.

        What was promised stays promised, and is given back as the peer uses it up.
        """
        least = self.config.receive_buffer
        enough = max(2 * copied + 16 * self._rcv_mss, least)
        if 2 * enough < self._rcv_buffer:
            self._rcv_buffer = enough
            self._drs_space = copied
        promised = (self.rcv_right - self.rcv_nxt) & MASK
        held = self.receivable + (promised if promised < HALF else 0)
        unused = self._rcv_reserved + least - max(self._rcv_buffer, held)
        if unused > 0:
            unused = min(unused, self._rcv_reserved)
            self._rcv_reserved -= unused
            self.host.memory.give_back(unused)

    def _drop_receive_buffer(self) -> None:
        """Nothing more will be received."""
        if self._rcv_reserved:
            self.host.memory.give_back(self._rcv_reserved)
            self._rcv_reserved = 0

    def _sample_receiver_rtt(self, seg: Segment, now: float) -> None:
        """The receiver's view of the RTT: the echo of our last ACK's timestamp (RFC 7323 §4)."""
        delta = ((int(now * 1000.0) + self._ts_offset) - seg.ts_ecr) & MASK
        if delta > 60_000:
            return
        rtt = delta / 1000.0
        old = self._drs_rtt
        if not old or rtt < old:
            self._drs_rtt = rtt
        else:
            self._drs_rtt = old + (rtt - old) / 8.0

    def _no_timers(self) -> None:
        self._loss_at = self._reorder_at = self._ack_at = INFINITE
        self._rto_at = self._pace_at = self._idle_at = INFINITE
