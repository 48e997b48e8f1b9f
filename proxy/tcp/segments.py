"""Segments as they leave: data, ACKs and RSTs with their options and the window they promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.seg import build_header, timestamps_option
from proxy.tcp.core import (
    ACK,
    ACK_NONE,
    ACK_NOW,
    CWR,
    FIN,
    INFINITE,
    MASK,
    PSH,
    RST,
    ConnectionCore,
)
from proxy.tcp.paced_senders import MIN_BURST
from proxy.wire.tcp_options import sack_option

if TYPE_CHECKING:
    from proxy.tcp.transmission import Transmission

HALF = 0x80000000
PACKET_OVERHEAD = 80
"""Bytes of a data packet before its payload: IPv4 and TCP with timestamps and a DSS."""
PACE_SLACK = 0.004
"""How much unused sending time may be made up for: timers of the loop are late by about 1 ms."""


class Segments(ConnectionCore):
    """Builds segments and hands them to the host; decides nothing."""

    __slots__ = ()

    def _transmit(self, tx: Transmission, length: int, now: float) -> None:
        """Build and hand over one (re)transmission."""
        seq = tx.seq
        fin = tx.fin
        options = self._data_options(seq, length, fin)
        if self.timestamps:
            options = (
                timestamps_option(
                    (int(now * 1000.0) + self._ts_offset) & MASK,
                    self._ts_recent if self._ts_recent >= 0 else 0,
                )
                + options
            )
        full_ack = True
        reassembly = self._reassembly
        if (reassembly is not None and reassembly.ranges) or self._dsack is not None:
            sack = self._sack_blocks(40 - len(options))
            full_ack = bool(sack)
            options += sack
        flags = ACK | self._ecn_echo
        tos = 0
        if self.ecn and length and not tx.retransmitted:
            tos = self.ecn  # RFC 3168 §6.1.5: new data only
            if self._cwr_due:
                self._cwr_due = False
                flags |= CWR
        if fin:
            flags |= FIN | PSH
        elif not self._unsent.size:
            flags |= PSH
        local_ip, local_port = self.local
        remote_ip, remote_port = self.remote
        header = build_header(
            local_ip, remote_ip, local_port, remote_port, seq, self.rcv_nxt, flags,
            self._advertised_window() >> self.rcv_wscale, options, length, self.mss - len(options),
            tos,
        )  # fmt: skip
        self.host.transmit([header, *tx.chunks])
        rate = self.pacing_rate
        if rate:
            senders = self.host.paced_senders
            if self._paced_period != senders.period or now >= senders.ends:
                self._paced_period = senders.add(now)
            slack = self._burst_time()
            earliest = now - (slack if slack > PACE_SLACK else PACE_SLACK)
            start = self._pace_next
            self._pace_next = (earliest if start < earliest else start) + length / rate
        limit = self.limit
        if limit is not None and limit.rate:
            # Headers count: the options are full ones, since it is data that fills a line.
            size = length + (max(length - 1, 0) // self._effective_mss + 1) * PACKET_OVERHEAD
            limit.book(size - self._booked, now)
            self._booked = 0
        self._quick_acks = 0  # data flows our way too: ACKs may ride on it (Linux: pingpong)
        if full_ack:
            self._ack_was_sent()

    def _burst_time(self) -> float:
        """Seconds of the pacing rate that may leave back to back.

        An eighth of a round trip at most, also where there are many senders: of a queue as long
        as the path's round trip a sender's burst is no more than that.
        """
        time = self.host.paced_senders.burst
        most = self.srtt * 0.125
        if time > most:
            time = most
        return time if time > MIN_BURST else MIN_BURST

    def _advertised_window(self) -> int:
        """Bytes from ``rcv_nxt`` on that this segment promises, a multiple of the window scale.

        Moves ``rcv_right``, never to the left (RFC 9293 §3.8.6.2.2).
        """
        rcv_nxt = self.rcv_nxt
        current = (self.rcv_right - rcv_nxt) & MASK
        if current >= HALF:
            current = 0
        window = self._receive_window()
        shift = self.rcv_wscale
        if window < current + self._rcv_mss and (
            window <= current or 2 * (window - current) < self._rcv_buffer
        ):
            # No silly increase, and rounding must not take back what was promised; but rounding
            # up again and again must not creep beyond the buffer either.
            edge = (current + (1 << shift) - 1) >> shift << shift
            # (beyond what is reserved for it, where the buffer was made smaller since).
            if edge - window > 65536 and edge - self._reserved_window() > 65536:
                edge = current >> shift << shift
        else:
            edge = window >> shift << shift
        if edge > 65535 << shift:
            edge = 65535 << shift
        if edge > current:
            self.rcv_right = (rcv_nxt + edge) & MASK
        return edge

    def _reserved_window(self) -> int:
        return self.config.receive_buffer + self._rcv_reserved - self.receivable

    def _ack_was_sent(self) -> None:
        self._ack_state = ACK_NONE
        self._ack_at = INFINITE
        self._unacked_bytes = 0
        self._last_ack_sent = self.rcv_nxt
        self._dsack = None

    def _sack_blocks(self, room: int) -> bytes:
        if not self.sack_permitted or room < 12:
            return b""
        reassembly = self._reassembly
        blocks = reassembly.blocks() if reassembly is not None else []
        if self._dsack is not None:
            blocks.insert(0, self._dsack)  # RFC 2883 §4: the first block
        return sack_option(blocks, room)

    def _ts_option(self, now: float) -> bytes:
        if not self.timestamps:
            return b""
        return timestamps_option(
            (int(now * 1000.0) + self._ts_offset) & MASK,
            self._ts_recent if self._ts_recent >= 0 else 0,
        )

    def _send_ack(self, now: float) -> None:
        """One pure ACK, with SACK blocks and what the subclass adds."""
        self._ack_options_due = False
        self._emit(self.snd_nxt, ACK, self._ts_option(now) + self._ack_options())
        if self._quick_acks:
            self._quick_acks -= 1

    def _send_handshake_ack(self, now: float) -> None:
        self._handshake_ack_due = False
        self._emit(self.snd_nxt, ACK, self._ts_option(now) + self._handshake_ack_options())

    def _emit(self, seq: int, flags: int, options: bytes) -> None:
        """Send a segment without payload that acknowledges ``rcv_nxt``."""
        if self._dsack is not None or (self._reassembly is not None and self._reassembly.ranges):
            options += self._sack_blocks(40 - len(options))
        self._send_bare(
            seq, self.rcv_nxt, flags | self._ecn_echo,
            self._advertised_window() >> self.rcv_wscale, options,
        )  # fmt: skip
        self._ack_was_sent()

    def _send_bare(self, seq: int, ack: int, flags: int, window: int, options: bytes) -> None:
        local_ip, local_port = self.local
        remote_ip, remote_port = self.remote
        header = build_header(
            local_ip, remote_ip, local_port, remote_port, seq, ack, flags, window, options, 0, 0
        )
        self.host.transmit([header])

    def _send_probe_ack(self, now: float) -> None:
        """A segment just left of the window: the peer must answer it (keepalive, zero window)."""
        self._emit((self.snd_una - 1) & MASK, ACK, self._ts_option(now) + self._ack_options())

    def _send_reset(self, now: float) -> None:
        """RST of a synchronized connection, acknowledging what was received."""
        options = self._ts_option(now) + self._rst_options()
        self._send_bare(self.snd_nxt, self.rcv_nxt, RST | ACK, 0, options)
        self.counters.add("TcpOutRsts")

    def _challenge_ack(self, now: float) -> None:
        """RFC 5961 §3.2: an ACK that lets a genuine peer correct itself; limited per connection.

        The limit is random, so that nobody can count it from outside (CVE-2016-5696).
        """
        if now >= self._challenge_until:
            self._challenge_until = now + 1.0
            self._challenge_left = 5 + self.host.rng.getrandbits(3)
        if self._challenge_left <= 0:
            self.counters.add("TCPACKSkippedChallenge")
            return
        self._challenge_left -= 1
        self.counters.add("TCPChallengeACK")
        self._emit(self.snd_nxt, ACK, self._ts_option(now) + self._ack_options())

    def _reject(self, now: float, has_data: bool) -> None:
        """Answer a segment outside the window by an ACK.

        Without data at most every 500 ms: two confused ends would play ping-pong for ever
        (Linux: tcp_invalid_ratelimit).
        """
        if has_data:
            self._ack_state = ACK_NOW
            self._wake()
        elif now >= self._oow_ack_at:
            self._oow_ack_at = now + 0.5
            self._ack_state = ACK_NOW
            self._wake()
