"""The state of one TCP connection and the hooks by which a subflow differs from plain TCP.

``TcpConnection`` is cut by noun into a chain of classes over this one state: ``core`` (state and
hooks), ``segments`` (build), ``output`` (send), ``rack``, ``scoreboard``, ``path_mtu``,
``recovery``, ``ecn``, ``timeouts`` (acknowledgements and loss), ``receiver`` (incoming data),
``handshake`` (open), ``connection`` (entry points, close, timers).
One object with slots holds everything: a segment costs no indirection, an idle connection a few
kilobytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxy.cc.base import create
from proxy.tcp.buffers import ReceiveQueue, SendQueue
from proxy.tcp.chronograph import Limited, Timed
from proxy.tcp.events import Event, Failure
from proxy.tcp.states import State

if TYPE_CHECKING:
    from proxy.cc.base import CongestionControl
    from proxy.seg import Segment
    from proxy.tcp.buffers import Buffer
    from proxy.tcp.config import TcpConfig
    from proxy.tcp.host import Host
    from proxy.tcp.limit import RateLimit
    from proxy.tcp.reassembly import Reassembly
    from proxy.tcp.transmission import Transmission
    from proxy.wire.address import Address

MASK = 0xFFFFFFFF
INFINITE = float("inf")

# Flags of the TCP header.
FIN = 1
SYN = 2
RST = 4
PSH = 8
ACK = 16
ECE = 64
CWR = 128

ECT_0 = 2
"""The codepoint of the IP header by which a sender says that it understands marks."""

# What ``_loss_at`` stands for: at most one of these runs at a time (RFC 8985 §7.2).
LOSS_TIMER_OFF = 0
LOSS_TIMER_RTO = 1
LOSS_TIMER_TLP = 2
LOSS_TIMER_PERSIST = 3
LOSS_TIMER_SYN = 4

QUICK_ACKS = 16
"""Segments acknowledged one by one at the start and after idle times (Linux: quickack mode)."""

# How the next acknowledgement is due.
ACK_NONE = 0
ACK_DELAYED = 1
ACK_NOW = 2

# Congestion state, with the names of Linux.
CA_OPEN = 0
CA_RECOVERY = 1
CA_LOSS = 2


class ConnectionCore(Timed):
    """State of a connection; sequence numbers are modulo 2**32, times are ``now`` seconds."""

    __slots__ = (  # noqa: RUF023 (grouped by meaning)
        # identity
        "host", "config", "local", "remote", "key", "error", "state", "counters",
        # send sequence space (RFC 9293 §3.3.1)
        "iss", "snd_una", "snd_nxt", "snd_wnd", "snd_max_wnd", "_snd_wl1", "_snd_wl2",
        "snd_wscale",
        # receive sequence space; ``rcv_right`` is the right edge ever advertised
        "irs", "rcv_nxt", "rcv_right", "rcv_wscale",
        # negotiated
        "mss", "_peer_mss", "_effective_mss", "timestamps", "sack_permitted",
        "_ts_offset", "_ts_recent", "_ts_recent_at", "_last_ack_sent",
        # sending
        "_unsent", "_flight", "bytes_in_flight", "_lost_bytes", "_sacked_bytes", "_fin_queued",
        "_fin_sent", "_fin_acked", "_closed_by_app", "_write_blocked", "_limited_until",
        # RTT (RFC 6298)
        "srtt", "rttvar", "min_rtt", "rto", "_min_rtt_at", "_rtt_provisional", "rto_backoff_cap",
        # congestion and recovery
        "congestion", "cwnd", "ssthresh", "_ca_state", "_recovery_point",
        "_prr_delivered", "_prr_out", "_prr_flight", "_undo_marker", "_undo_bytes",
        "_undo_sent", "_blackout_cwnd", "_tlp_end", "_tlp_is_retransmission", "_dup_acks",
        # path MTU (RFC 4821)
        "_mtu", "_mtu_failed", "_mtu_probe", "_mtu_probe_size", "_mtu_search_at", "_mtu_tries",
        # ECN (RFC 3168): ``ecn`` is what new data says in the IP header, 0 if not agreed on
        "ecn", "_ecn_asked", "_ecn_echo", "_cwr_due", "_reduced_at",
        # RACK (RFC 8985)
        "_rack_at", "_rack_end", "_rack_rtt", "_rack_fack", "_rack_reordering", "_rack_mult",
        "_rack_persist", "_rack_round", "_rack_dsack",
        # delivery rate sampling
        "_delivered", "_delivered_at", "_rate_sent_at", "delivery_rate", "_bubble_end",
        "_lost_total", "_lost_told",
        # pacing
        "pacing_rate", "_pace_next", "_paced_period", "limit", "_booked",
        # receiving
        "_received", "_reassembly", "_fin_at", "fin_received", "eof", "receivable",
        "_ack_state", "_ack_options_due", "_unacked_bytes", "_quick_acks", "_rcv_mss", "_dsack",
        "_spoken",
        "_rcv_buffer", "_rcv_reserved", "_read_told", "_drs_at", "_drs_copied", "_drs_space",
        "_drs_rtt", "_copied",
        # handshake
        "syn_payload", "syn_payload_acked", "syn_ack_payload", "_syn_stamp",
        "_peer_scales", "_crossed",
        "_soft_error", "_syn_tries", "_syn_at", "_handshake_ack_due",
        # timers (``INFINITE`` = off)
        "_loss_at", "_loss_kind", "_rto_at", "_reorder_at", "_ack_at", "_pace_at", "_idle_at",
        "_life_at", "_armed_at",
        # abuse limits
        "_challenge_until", "_challenge_left", "_oow_ack_at",
        # liveness and statistics
        "rto_count", "_probe_count", "_keepalive_sent", "last_received", "last_progress",
        "_stalled_since", "_busy_since", "_busy_time", "opening_time",
        "bytes_sent", "bytes_received", "bytes_acked", "bytes_retransmitted",
        "__weakref__",
    )  # fmt: skip

    local: Address
    remote: Address
    error: Failure | None
    congestion: CongestionControl
    _flight: list[Transmission]
    _mtu_probe: Transmission | None
    _reassembly: Reassembly | None
    rto_backoff_cap: float | None
    """Longest pause between two retransmissions by timer; None: ``config.max_rto``."""

    def __init__(
        self, host: Host, local: Address, remote: Address, config: TcpConfig | None = None
    ) -> None:
        self.host: Host = host
        self.counters = host.counters
        self.config: TcpConfig = config if config is not None else host.tcp_config
        self.local = local
        self.remote = remote
        self.key: bytes = (
            remote.ip + local.ip + remote.port.to_bytes(2, "big") + local.port.to_bytes(2, "big")
        )
        self.error = None
        self.state: State = State.CLOSED
        self._init_sequence()
        self._init_sender()
        self._init_recovery()
        self._init_receiver()
        self._init_timers()

    def _init_sequence(self) -> None:
        self.iss = self.snd_una = self.snd_nxt = 0
        self.snd_wnd = self.snd_max_wnd = 0
        self._snd_wl1 = self._snd_wl2 = 0
        self.snd_wscale = self.rcv_wscale = 0
        self.irs = self.rcv_nxt = self.rcv_right = 0
        config = self.config
        v4 = len(self.local.ip) == 4
        self._mtu: int = config.mtu4 if v4 else config.mtu6
        self._mtu_failed = self._mtu_probe_size = self._mtu_tries = 0
        self._mtu_probe = None
        self._mtu_search_at = INFINITE
        self._peer_mss: int = 536 if v4 else 1220  # RFC 9293 §3.7.1: when no option came
        self.mss: int = self._mtu - (40 if v4 else 60)
        self._effective_mss: int = self.mss
        self.timestamps: bool = config.timestamps
        self.sack_permitted: bool = config.sack
        self._ts_offset = 0
        self._ts_recent: int = -1
        self._ts_recent_at = 0.0
        self._last_ack_sent = 0
        self.syn_payload: bytes = b""
        self.syn_payload_acked = 0
        self.syn_ack_payload: bytes = b""
        self._syn_stamp = -1
        self._peer_scales = self._crossed = False
        self._soft_error: Failure | None = None
        self._syn_tries = 0
        self._syn_at = 0.0
        self._handshake_ack_due = False
        self.ecn = self._ecn_echo = 0
        self._ecn_asked = self._cwr_due = False
        self._reduced_at = 0  # `bytes_sent` when the window was last reduced

    def _init_sender(self) -> None:
        self._unsent = SendQueue()
        self._flight = []
        self.bytes_in_flight = self._lost_bytes = self._sacked_bytes = 0
        self._fin_queued = self._fin_sent = self._fin_acked = self._closed_by_app = False
        self._write_blocked = False
        self._limited_until = 0
        self.bytes_sent = self.bytes_received = 0
        self.bytes_acked = self.bytes_retransmitted = 0

    def _init_recovery(self) -> None:
        config = self.config
        self.srtt = self.rttvar = 0.0
        self.min_rtt: float = INFINITE
        self._min_rtt_at = 0.0
        self._rtt_provisional = False
        self.rto: float = config.initial_rto
        self.rto_backoff_cap = None
        self.congestion = create(
            config.congestion_control, self._effective_mss, config.initial_window
        )
        self.cwnd: int = self.congestion.cwnd
        self.ssthresh: int = self.congestion.ssthresh
        self._ca_state = CA_OPEN
        self._recovery_point = 0
        self._prr_delivered = self._prr_out = self._prr_flight = 0
        self._undo_marker = self._undo_bytes = -1
        self._undo_sent = False
        self._blackout_cwnd = 0
        self._tlp_end = -1
        self._tlp_is_retransmission = False
        self._dup_acks = 0
        self._rack_at = 0.0
        self._rack_end = self._rack_fack = self._rack_round = 0
        self._rack_rtt = 0.0
        self._rack_reordering = False
        self._rack_mult = 1
        self._rack_persist = 16
        self._rack_dsack = False
        self._delivered = 0
        self._delivered_at = self._rate_sent_at = 0.0
        self.pacing_rate = 0.0
        self.delivery_rate = 0.0
        self._bubble_end = -1  # what is sent until this much is delivered is app-limited
        self._lost_total = self._lost_told = 0
        self._pace_next = 0.0
        self._paced_period = 0
        self.limit: RateLimit | None = None  # what it shares with all that use the same uplink
        self._booked = 0  # bytes of it that are taken and not yet sent
        self.rto_count = self._probe_count = self._keepalive_sent = 0
        self.last_received = self.last_progress = 0.0
        self._stalled_since: float = INFINITE
        self._busy_since: float = INFINITE
        self._busy_time = self.opening_time = 0.0
        self.start_chronograph()

    def _init_receiver(self) -> None:
        self._received = ReceiveQueue()
        self._reassembly = None
        self._fin_at: int = -1
        self.fin_received: bool = False  # FIN is in order (a hook may keep `eof` back)
        self.eof: bool = False
        self.receivable: int = 0
        self._ack_state: int = ACK_NONE
        self._ack_options_due = False
        self._unacked_bytes = 0
        self._quick_acks = QUICK_ACKS
        self._spoken = 0  # `bytes_sent` at the last data after a silence
        self._rcv_mss = 536
        self._dsack: tuple[int, int] | None = None
        self._rcv_buffer: int = self.config.receive_buffer
        self._rcv_reserved = 0  # bytes of the host's budget
        self._read_told = False
        self._drs_at = 0.0
        self._drs_rtt = 0.0
        self._drs_copied = self._drs_space = self._copied = 0

    def _init_timers(self) -> None:
        self._loss_at: float = INFINITE
        self._loss_kind: int = LOSS_TIMER_OFF
        self._rto_at: float = INFINITE
        self._reorder_at: float = INFINITE
        self._ack_at: float = INFINITE
        self._pace_at: float = INFINITE
        self._idle_at: float = INFINITE
        self._life_at: float = INFINITE
        self._armed_at: float = INFINITE
        self._challenge_until = 0.0
        self._challenge_left = 0
        self._oow_ack_at = 0.0

    def busy_seconds(self, now: float) -> float:
        """How long something was sent and not yet acknowledged (``tcpi_busy_time``)."""
        busy = self._busy_time
        return busy if self._busy_since == INFINITE else busy + now - self._busy_since

    def opening_seconds(self, now: float) -> float:
        """From the first SYN until the handshake was complete, or until now."""
        opening = self.state in (State.LISTEN, State.SYN_SENT, State.SYN_RECEIVED)
        return now - self._stalled_since if opening else self.opening_time

    # -- hooks: a subflow overrides these, the base is plain TCP ------------------------------

    def _syn_options(self) -> bytes:
        """Extra options of our SYN or SYN-ACK, padded to 4 bytes."""
        return b""

    def _on_syn(self, seg: Segment, now: float) -> bool:
        """A SYN or SYN-ACK passed TCP's checks; False: the hook has dealt with it (reset).

        On a SYN-ACK, sequence numbers and negotiated options are set already, the state is not.
        """
        return True

    def _on_syn_payload_unacked(self, rest: bytes, now: float) -> None:
        """The SYN-ACK left the last ``len(rest)`` bytes of our SYN's payload unacknowledged.

        Base: they are sent again as the first bytes of the stream.
        """
        self._unsent.prepend(rest)

    def _handshake_ack_options(self) -> bytes:
        """Extra options of the third ACK (and of its repetition), padded."""
        return b""

    def _data_options(self, seq: int, length: int, fin: bool) -> bytes:
        """Extra options of a (re)transmitted super-segment or FIN, padded.

        At most ``_max_data_options()`` bytes long.
        """
        return b""

    def _ack_options(self) -> bytes:
        """Extra options of a pure ACK, padded; may consume one-shot options."""
        return b""

    def _max_data_options(self) -> int:
        """Upper bound of ``len(_data_options(...))``: sets the effective MSS."""
        return 0

    def _rst_options(self) -> bytes:
        """Extra options of a RST that we send, padded."""
        return b""

    def _segment_limit(self, seq: int) -> int:
        """Bytes from ``seq`` on that may share one segment (the rest of the mapping)."""
        return 1 << 30

    def _on_options(self, seg: Segment, now: float) -> bool:
        """Every acceptable non-SYN segment, before its ACK and data; False: drop the rest."""
        return True

    def _deliver(self, seq: int, payload: Buffer, now: float) -> None:
        """In-order payload that begins at ``seq``; base: append to the receive queue."""
        length = len(payload)
        self._received.append(payload)
        self.receivable += length
        if not self._read_told:
            self._read_told = True
            self.host.event(self, Event.READABLE)

    def _on_fin(self, now: float) -> None:
        """The peer's FIN is in order; base: tell the application.

        ``eof`` turns true when the application has read all that came before.
        """
        self.eof = not self.receivable
        self.host.event(self, Event.EOF)

    def _receive_window(self) -> int:
        """Bytes from ``rcv_nxt`` on that may be advertised; base: free receive buffer.

        The right edge already advertised is kept by the caller whatever this returns.
        """
        free = self._rcv_buffer - self.receivable
        return free if free > 0 else 0

    def _update_send_window(self, seg: Segment) -> None:
        """Take the peer's window from an acceptable ACK (RFC 9293 §3.10.7.4 'fifth').

        Before ``snd_una`` moves. An ACK of something new counts even on a retransmission, whose
        sequence number is old (Linux: tcp_may_update_window), or the old window would be taken
        from the new left edge.
        """
        seq = seg.seq
        ack = seg.ack
        newer = (seq - self._snd_wl1) & MASK
        if (
            0 < (ack - self.snd_una) & MASK < 0x80000000
            or (newer and newer < 0x80000000)
            or (newer == 0 and (ack - self._snd_wl2) & MASK < 0x80000000)
        ):
            window = seg.window << self.snd_wscale
            self.snd_wnd = window
            self._snd_wl1 = seq
            self._snd_wl2 = ack
            if window > self.snd_max_wnd:
                self.snd_max_wnd = window

    def _on_acked(self, now: float) -> None:
        """``snd_una`` has moved; base: raise WRITABLE when there is room again."""
        if self._write_blocked and self.send_room() > 0:
            self.host.event(self, Event.WRITABLE)

    def _on_sent(self, now: float) -> None:
        """All that may leave now has left; base: what limits the rest?"""
        limited = self.hindrance(now) if self._unsent.size else Limited.NOTHING
        if limited is not self.limited:
            self.turn(limited, now)

    def _on_loss(self, now: float) -> None:
        """Something was marked lost because later data arrived."""

    def _on_probe(self, now: float) -> None:
        """A tail loss probe was sent (RFC 8985 §7.3)."""

    def _on_rto(self, now: float) -> None:
        """The retransmission timer fired; ``rto_count`` is already counted up."""

    def _on_established(self, now: float) -> None:
        """The handshake is complete; base: ESTABLISHED event."""
        self.host.event(self, Event.ESTABLISHED)

    def _on_reset(self, seg: Segment | None, now: float) -> None:
        """The connection died: RST (``seg``), time-out or ICMP error (None).

        ``error`` and ``state`` (CLOSED) are set; base: tell the application.
        """
        kind = Event.RESET
        if seg is None and self.error is not None:
            kind = Event.UNREACHABLE if self.error.icmp_type >= 0 else Event.TIMED_OUT
        self.host.event(self, kind)

    def _on_closed(self, now: float) -> None:
        """Both directions are closed and acknowledged; base: CLOSED event."""
        self.host.event(self, Event.CLOSED)

    def _wake(self) -> None:
        """There may be something to send; base: ask the host for a ``poll``."""
        self.host.wake(self)

    # -- parts that other layers define ---------------------------------------------------------

    def hindrance(self, now: float) -> Limited:
        """What keeps new data from leaving."""
        raise NotImplementedError

    def send_room(self) -> int:
        """Bytes that ``send`` takes now."""
        raise NotImplementedError

    def poll(self, now: float) -> None:
        """Send what may be sent."""
        raise NotImplementedError

    def _probe_path(self, now: float) -> bool:
        """Send a segment larger than the path is known to carry, if that is due; True: sent."""
        raise NotImplementedError

    def next_timeout(self) -> float | None:
        """When ``on_timeout`` must be called; None: never."""
        raise NotImplementedError

    def on_timeout(self, now: float) -> None:
        """A deadline may have passed."""
        raise NotImplementedError

    def _die(self, error: Failure, now: float, seg: Any = None) -> None:
        """End the connection at once because of ``error``."""
        raise NotImplementedError
