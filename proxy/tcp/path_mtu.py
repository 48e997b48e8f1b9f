"""The size of packets on the path: by ICMP, and by probing where ICMP is filtered.

Packetization Layer Path MTU Discovery as in RFC 4821 and RFC 8899, started like Linux' with
``tcp_mtu_probing`` 1: only once full-sized segments seem to vanish.
"""

from __future__ import annotations

from proxy.tcp.core import CA_LOSS, CA_OPEN, INFINITE, MASK
from proxy.tcp.scoreboard import Scoreboard
from proxy.tcp.states import State

HALF = 0x80000000
TS_OPTION = 12
BASES4 = (1280, 1024, 576)
BASES6 = (1280,)
"""What to retreat to, one after the other; IPv6 guarantees the last (RFC 8200 §5)."""
CLOSE_ENOUGH = 8
"""The search ends this close to what failed (Linux: tcp_probe_threshold)."""
RAISE_AFTER = 600.0
"""Seconds after which a larger size is tried again (RFC 4821 §7.7, Linux: tcp_probe_interval)."""
TRIES = 2
"""Probes of one size that must get lost: one may have met a full queue."""
MIN_WINDOW = 5
"""Segments that the congestion window holds at least when a probe is sent."""


class PathMtu(Scoreboard):
    """``_mtu`` is the size in use. A probe is one larger segment of new data.

    ``_mtu_failed`` is the smallest size known to be lost (0: none), ``_mtu_search_at`` when the
    next probe may go (``INFINITE``: there is nothing to search).
    """

    __slots__ = ()

    def _headers(self) -> int:
        return 40 if len(self.local.ip) == 4 else 60

    def _set_mss(self) -> None:
        """``mss`` by the path and the peer; the effective one less options of every segment."""
        self.mss = max(min(self._peer_mss, self._mtu - self._headers()), 64)
        options = (TS_OPTION if self.timestamps else 0) + self._max_data_options()
        self._effective_mss = max(self.mss - options, 16)
        self.congestion.set_mss(
            self._effective_mss, self.config.initial_window * self._effective_mss
        )

    def _recall_path(self, now: float) -> None:
        """Begin with what an earlier connection learnt; the SYN tells the peer of it too."""
        mtu, learnt_at = self.host.path_mtus.get(self.local.ip + self.remote.ip)
        if 0 < mtu < self._mtu:
            self._mtu = mtu
            self.mss = mtu - self._headers()
            self._mtu_search_at = max(learnt_at + RAISE_AFTER, now)

    @property
    def path_mtu(self) -> int:
        """The largest IP packet sent, in bytes."""
        return self._mtu

    @property
    def path_mtu_goal(self) -> int:
        """The largest that our configuration and the peer allow."""
        return self._goal()

    def seeks_path_mtu(self, now: float) -> bool:
        """Whether a size larger than ``path_mtu`` is being tried."""
        return self._mtu_probe is not None or self._mtu_search_at <= now

    def _goal(self) -> int:
        """The largest size that interface and peer allow."""
        headers = self._headers()
        config = self.config
        return min(config.mtu4 if headers == 40 else config.mtu6, self._peer_mss + headers)

    # -- ICMP -----------------------------------------------------------------------------------

    def _on_packet_too_big(self, mtu: int, now: float) -> None:
        """Lower the path MTU (RFC 1191, RFC 8201), never below what every path carries."""
        v4 = len(self.local.ip) == 4
        if mtu == 0 and v4:
            mtu = 576  # a router from before RFC 1191
        if mtu < (576 if v4 else 1280):
            self.counters.add("TCPMTUForged")  # no path has less: nobody's router said this
            return
        if mtu >= self._mtu or self.state in (State.SYN_SENT, State.SYN_RECEIVED, State.CLOSED):
            return
        self._mtu = mtu
        self._mtu_failed = 0
        self._mtu_search_at = now + RAISE_AFTER
        self.host.path_mtus.learn(self.local.ip + self.remote.ip, mtu, now)
        self._set_mss()
        self.counters.add("TCPMTUReduced")
        # What was too big is gone: send it again at the new size, without blaming congestion.
        for tx in self._flight:
            if not tx.sacked and not tx.lost and (tx.end - tx.seq) & MASK > self._effective_mss:
                self._mark_lost(tx)
        if self._lost_bytes:
            self._resend_without_blame()
            self._wake()

    def _resend_without_blame(self) -> None:
        """Lost records are to be sent again though nothing speaks of congestion."""
        if self._ca_state == CA_OPEN:
            self._ca_state = CA_LOSS
            self._recovery_point = self.snd_nxt
            self._undo_marker = self._tlp_end = -1

    # -- black holes ----------------------------------------------------------------------------

    def _suspect_black_hole(self, now: float) -> None:
        """The retransmission timer has fired for a large segment: is it its size?

        Certain if smaller ones pass, likely after two in a row. It may as well be a path that is
        dead; then the former size is the first to be tried when data flows again.
        """
        mtu = min(self._mtu, self._peer_mss + self._headers())
        bases = BASES4 if len(self.local.ip) == 4 else BASES6
        head = self._flight[0]
        full = self._effective_mss
        length = (head.end - head.seq) & MASK
        # What it would not fit into: a lone segment of 800 bytes says nothing about 1280.
        smaller = [base for base in bases if base < mtu and length > full - (mtu - base)]
        if not smaller:
            return
        base = smaller[0]
        patience = 2 + bases.index(base)
        if self._sacked_bytes:
            large = any(tx.sacked and (tx.end - tx.seq) & MASK >= full for tx in self._flight)
            patience += 1 if large else -1
        if self.rto_count < patience:
            return
        self._mtu = base
        self._mtu_failed = self._mtu_tries = 0
        self._mtu_search_at = now
        self._set_mss()
        self.counters.add("TCPMTUBlackHole")

    # -- probing --------------------------------------------------------------------------------

    def _probe_path(self, now: float) -> bool:
        """Send a probe if nothing speaks against it (Linux: tcp_mtu_probe); True: sent."""
        if (
            self._mtu_probe is not None
            or self._ca_state != CA_OPEN
            or self.rto_count
            or not self.sack_permitted
            or self._reassembly is not None
            or self._dsack is not None
            or self._unsent.size <= self._effective_mss
        ):
            return False
        goal = self._goal()
        size = (self._mtu + self._mtu_failed) // 2 if self._mtu_failed else goal
        if size <= self._mtu:
            self._mtu_search_at = INFINITE
            return False
        seq = self.snd_nxt
        headers = self._headers()
        options = TS_OPTION if self.timestamps else 0
        length = size - headers - options
        length -= len(self._data_options(seq, length, False))
        window = self.snd_wnd - ((seq - self.snd_una) & MASK)
        if (
            self._unsent.size <= length
            or self._segment_limit(seq) < length
            or window < length
            or self.cwnd - self.bytes_in_flight < length
            or self.cwnd < MIN_WINDOW * self._effective_mss
        ):
            return False
        mss = self.mss
        self.mss = size - headers  # one segment on the wire, not two
        self._send_one(length, now)
        self.mss = mss
        self._mtu_probe = self._flight[-1]
        self._mtu_probe_size = size
        return True

    def _judge_probe(self, now: float) -> None:
        """An ACK or a timer changed the scoreboard while a probe is out."""
        probe = self._mtu_probe
        assert probe is not None
        if probe.lost:
            alone = self._lost_bytes == (probe.end - probe.seq) & MASK
            self._probe_failed(now)
            if alone:
                self._resend_without_blame()
        elif probe.retransmitted:
            self._mtu_probe = None  # by a tail loss probe: nobody can tell which one arrives
        elif probe.sacked or (self.snd_una - probe.end) & MASK < HALF:
            self._probe_passed(now)

    def _probe_passed(self, now: float) -> None:
        self._mtu_probe = None
        self._mtu = size = self._mtu_probe_size
        self._mtu_tries = 0
        self._set_mss()
        self.counters.add("TCPMTUPSuccess")
        path = self.local.ip + self.remote.ip
        if size >= self._goal():
            self._mtu_search_at = INFINITE
            self._mtu_failed = 0
            self.host.path_mtus.forget(path)
        else:
            self.host.path_mtus.learn(path, size, now)
            self._narrow(now)

    def _probe_failed(self, now: float) -> None:
        self._mtu_probe = None
        self._mtu_tries += 1
        self.counters.add("TCPMTUPFail")
        if self._mtu_tries >= TRIES:
            self._mtu_tries = 0
            self._mtu_failed = self._mtu_probe_size
            self.host.path_mtus.learn(self.local.ip + self.remote.ip, self._mtu, now)
            self._narrow(now)

    def _narrow(self, now: float) -> None:
        if self._mtu_failed and self._mtu_failed - self._mtu <= CLOSE_ENOUGH:
            self._mtu_failed = 0
            self._mtu_search_at = now + RAISE_AFTER
