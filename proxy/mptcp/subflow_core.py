"""The state of a subflow and the options it sends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.mptcp import keys
from proxy.mptcp.mapping import MASK, RxMapping, TxMapping, TxMappings
from proxy.seg import Segment, dss_checksum, dss_option
from proxy.tcp.chronograph import Limited
from proxy.tcp.connection import TcpConnection
from proxy.tcp.limit import RateLimit
from proxy.tcp.states import State
from proxy.wire.mptcp_options import (
    MP_FAIL,
    REASON_UNSPECIFIED,
    MpCapable,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpTcprst,
    pad,
)

if TYPE_CHECKING:
    from proxy.mptcp.connection import MptcpConnection
    from proxy.tcp.config import TcpConfig
    from proxy.wire.address import Address

_MAX_OPTIONS = 28  # a DSS of 64 bit numbers, with or without checksum, padded
_ALL_OPTIONS = 40
_TIMESTAMPS = 12
_DSS_ACK = 12
_FIRST_DSS_ACKS = 5
_INFINITE = float("inf")


class SubflowCore(TcpConnection):
    """One TCP connection of an MPTCP connection: state, and what it puts on segments.

    ``id`` counts the subflows of a connection from 1. ``active``: we sent its SYN. ``initial``: it
    began the connection (MP_CAPABLE), else it joined (MP_JOIN). ``mptcp`` becomes False when the
    connection falls back: no option is sent or read any more. ``fully_established``: the peer has
    proved itself on this subflow, data may flow. ``stale``: RTOs without progress, so it gets no
    new data; ``suspect``: a tail loss probe is out. ``asked``: a FIN had no options, is it the end
    of the stream? ``failed``: a checksum was wrong, its RST says so. ``room`` is the scheduler's
    input, in bytes; ``weight`` and ``priority`` (0 goes first) are its uplink's. ``ahead``: the end
    of what it brought of the stream before bytes in front of it were there.
    """

    __slots__ = (
        "_bare_answers",
        "_join_ack_at",
        "_join_ack_tries",
        "_last_data_ack",
        "_map",
        "_map_length",
        "_map_offset",
        "_map_seq",
        "_one_shots",
        "_pending_maps",
        "_rx_base",
        "_sack_turn",
        "_syns",
        "ack64",
        "acks_without_dss",
        "active",
        "ahead",
        "asked",
        "backup",
        "bare_last",
        "bytes_reinjected",
        "closing",
        "conn",
        "detached",
        "doomed",
        "due",
        "failed",
        "fastclose",
        "fin_due",
        "fully_established",
        "id",
        "initial",
        "local_id",
        "local_nonce",
        "mappings",
        "mptcp",
        "peer_backup",
        "priority",
        "remote_id",
        "remote_nonce",
        "reset_by_peer",
        "reset_reason",
        "reset_transient",
        "room",
        "stale",
        "suspect",
        "tx_base",
        "uplink",
        "weight",
    )

    def __init__(
        self,
        conn: MptcpConnection,
        local: Address,
        remote: Address,
        *,
        active: bool,
        initial: bool,
        config: TcpConfig,
    ) -> None:
        super().__init__(conn.host, local, remote, config)
        self.conn = conn
        self.id = conn.next_subflow_id()
        self.active = active
        self.initial = initial
        self.mptcp = True
        self.fully_established = False
        self.uplink: str | None = None
        self.weight = 1
        self.priority = 0
        self.local_id = 0
        self.remote_id = 0
        self.backup = False
        self.peer_backup = False
        self.stale = False
        self.suspect = False
        self.closing = False
        self.doomed = False
        self.detached = False
        self.due = False
        self.failed = False
        self.asked = False
        self.fin_due = False
        self.fastclose = False
        self.room = 0
        self.ahead = 0
        self.reset_reason = -1
        self.reset_transient = False
        self.reset_by_peer = False
        self.local_nonce = b""
        self.remote_nonce = b""
        self.ack64 = False
        self.acks_without_dss = False
        self.bare_last = False
        self.tx_base = -1
        self.bytes_reinjected = 0
        self._rx_base = -1
        self.mappings: TxMappings = TxMappings()
        self._map_seq = 0
        self._map_length = 0
        self._map_offset = 0
        self._map: RxMapping | None = None
        self._pending_maps: list[RxMapping] | None = None
        self._one_shots: list[bytes] | None = None
        self._last_data_ack = -1
        self._sack_turn = _FIRST_DSS_ACKS
        self._join_ack_at = _INFINITE
        self._join_ack_tries = 0
        self._bare_answers = 0
        self._syns = 0

    # -- life ---------------------------------------------------------------------------------

    def _wake(self) -> None:
        self.due = True
        # In TIME-WAIT it is no longer one of the connection's, and still answers.
        self.host.wake(self if self.detached else self.conn)

    def doom(self, reason: int) -> None:
        """Reset this subflow as soon as the current segment is dealt with (RFC 8684 §3.6).

        Deferred, since TCP's receive path must not find its own state gone underneath it.
        """
        if not self.doomed:
            self.doomed = True
            self.reset_reason = reason
            self.conn.doomed.append(self)
            self.host.wake(self.conn)

    def leave_by(self, uplink: str | None) -> None:
        """Use this uplink, and share its rate with all that do."""
        self.uplink = uplink
        if uplink is not None:
            limits = self.conn.host.limits
            if uplink not in limits:
                limits[uplink] = RateLimit()
            self.limit = limits[uplink]

    # -- what the scheduler asks -------------------------------------------------------------

    def burst(self, pending: int, window_left: int, now: float) -> int:
        """Bytes of new data that would leave as one super-segment at once."""
        if self._unsent.size or self.closing:
            return 0
        in_flight = (self.snd_nxt - self.snd_una) & MASK
        # One window for all subflows: what the connection may send, any subflow may (WND-04).
        window = in_flight + window_left
        if self.mptcp and self.snd_wnd < window:
            self.snd_wnd = window
            self.counters.add("MPTcpExtSndWndShared")
        if not self.send_capacity(now):
            return 0
        size = pending if pending < window_left else window_left
        return self._sendable(size, self.cwnd - self.bytes_in_flight, self.snd_wnd - in_flight, now)

    def push(self, offset: int, length: int, views: list[memoryview], now: float) -> None:
        """Queue ``length`` bytes of the stream from ``offset`` under one new mapping."""
        conn = self.conn
        seq = self.snd_nxt
        if self.tx_base < 0:
            # Nothing was sent since the handshake: this byte has SSN 1 (DSS-01, TFO-01).
            self.tx_base = (seq - 1) & MASK
        if self.mptcp:
            checksum = -1
            if conn.checksum:
                ssn = (seq - self.tx_base) & MASK
                checksum = dss_checksum(conn.tx.dsn(offset), ssn, length, views)
            self.mappings.add(TxMapping(seq, offset, length, checksum, now))
        for view in views:
            self.send(view)

    def next_release(self, now: float) -> float:
        """When pacing lets new data go, if nothing else is in the way; else infinite."""
        at = self._pace_next
        if at <= now or self._lost_bytes:
            return _INFINITE
        if self.cwnd - self.bytes_in_flight < self._effective_mss and self.bytes_in_flight:
            return _INFINITE
        return at

    def hindrance(self, now: float) -> Limited:
        """See ``TcpConnection``; it may also be that the scheduler chose another one."""
        return Limited.SCHEDULER if self.room > 0 else super().hindrance(now)

    def _on_sent(self, now: float) -> None:
        """What more there is the connection knows, which is the one to tell."""

    def acknowledged(self, mapping: TxMapping) -> bool:
        """Whether the peer's TCP acknowledged all bytes of a mapping."""
        return (self.snd_una - mapping.seq - mapping.length) & MASK < 0x80000000

    def probe_window(self, now: float) -> None:
        """Make the peer say what its window is."""
        if self.state is State.ESTABLISHED or self.state is State.CLOSE_WAIT:
            self._send_probe_ack(now)

    def busy(self) -> bool:
        """Whether bytes wait for TCP, or it for an answer."""
        return bool(self._unsent.size or self._flight)

    def probe_soon(self, now: float) -> None:
        """The limit of the RTO's back-off has become smaller: do not wait out the old one."""
        at = now + self._current_rto()
        if self._flight and at < self._rto_at:
            self._rto_at = at
            self._schedule_loss_timer(now)
            self._arm(now)

    def receive_rtt(self) -> float:
        """Round trip in seconds as a receiver or a sender sees it, the longer one."""
        return max(self.srtt, self._drs_rtt)

    # -- TCP's questions: options --------------------------------------------------------------

    def _syn_options(self) -> bytes:
        conn = self.conn
        self._syns += 1
        if not self.mptcp:
            return b""
        if not self.initial:
            return self._join_syn_options()
        key = conn.local_key.key
        if self.active:
            if self.offers_dropped():
                # CAP-07: perhaps the path drops SYNs with MP_CAPABLE.
                if self._syns == 2 + conn.config.syn_retrans_before_tcp_fallback:
                    self.counters.add("MPTcpExtMPCapableSYNTXDrop")
                return b""
            key = b""
        return MpCapable(
            sender_key=key,
            checksum_required=conn.config.checksum_enabled,
            no_subflows_here=not conn.config.allow_join_initial_addr_port,
        ).build()

    def offers_dropped(self) -> bool:
        """Whether our newest SYN asked for MPTCP no more, since those before got no answer."""
        return self._syns > 1 + self.conn.config.syn_retrans_before_tcp_fallback

    def _join_syn_options(self) -> bytes:
        conn = self.conn
        if self.active:
            token = conn.remote_token
            return MpJoinSyn(self.backup, self.local_id, token, self.local_nonce).build()
        digest = keys.join_hmac(
            conn.local_key.key, conn.remote_key, self.local_nonce, self.remote_nonce
        )
        left = digest[: keys.JOIN_SYN_ACK_HMAC]
        return MpJoinSynAck(self.backup, self.local_id, left, self.local_nonce).build()

    def _handshake_ack_options(self) -> bytes:
        conn = self.conn
        if not self.mptcp or not self.active:
            return b""
        if self.initial:
            return MpCapable(
                sender_key=conn.local_key.key,
                receiver_key=conn.remote_key,
                checksum_required=conn.checksum,
                no_subflows_here=not conn.config.allow_join_initial_addr_port,
            ).build()
        digest = keys.join_hmac(
            conn.local_key.key, conn.remote_key, self.local_nonce, self.remote_nonce
        )
        return MpJoinAck(digest[: keys.JOIN_ACK_HMAC]).build()

    def _max_data_options(self) -> int:
        return _MAX_OPTIONS if self.mptcp else 0

    def _segment_limit(self, seq: int) -> int:
        mapping = self.mappings.find(seq) if self.mptcp else None
        return 1 << 30 if mapping is None else mapping.length - ((seq - mapping.seq) & MASK)

    def _data_options(self, seq: int, length: int, fin: bool) -> bytes:
        conn = self.conn
        if not self.mptcp:
            if length and seq == conn.infinite_seq:
                return conn.infinite_mapping(self, seq)
            return b""
        ack = conn.rx.data_ack()
        self._last_data_ack = ack
        mapping = self.mappings.find(seq) if length else None
        if mapping is None:
            return dss_option(ack, self.ack64, -1, 0, 0, -1, False)
        if mapping.offset == 0 and not self.fully_established:
            # The keys once more, instead of the DSS, until the peer is known to have them.
            return pad(
                MpCapable(
                    sender_key=conn.local_key.key,
                    receiver_key=conn.remote_key,
                    checksum_required=conn.checksum,
                    no_subflows_here=not conn.config.allow_join_initial_addr_port,
                    data_length=mapping.length,
                    checksum=mapping.checksum if conn.checksum else None,
                ).build()
            )
        return dss_option(
            ack,
            self.ack64,
            conn.tx.dsn(mapping.offset),
            (mapping.seq - self.tx_base) & MASK,
            mapping.length,
            mapping.checksum,
            False,
        )

    def _ack_options(self) -> bytes:
        if not self.mptcp:
            return pad(self._one_shots.pop(0)) if self._one_shots else b""
        if not self.fully_established:
            return self._handshake_ack_options()
        conn = self.conn
        ack = conn.rx.data_ack()
        if self._one_shots:
            return self._one_shot(ack)
        if self.fin_due:
            self.fin_due = False
            return conn.data_fin_option(ack, self.ack64)
        reassembly = self._reassembly
        blocks = (self._dsack is not None) + (0 if reassembly is None else len(reassembly.ranges))
        if blocks > 1 and self.sack_permitted:
            # SPC-01: a DATA_ACK would leave room for one SACK block only. Do without it in every
            # other ACK; but not in the first ones, by which the peer judges whether we speak
            # MPTCP at all (FB-03), nor twice in a row: the ACK that said it may have been lost.
            if self._sack_turn > 1:
                self._sack_turn -= 1
            else:
                self._sack_turn ^= 1
                if self._sack_turn:
                    if ack != self._last_data_ack:
                        self.request_ack()  # perhaps there is nothing else to answer
                    return b""
        self._last_data_ack = ack
        return dss_option(ack, self.ack64, -1, 0, 0, -1, False)

    def _one_shot(self, ack: int) -> bytes:
        shots = self._one_shots or []
        option = pad(shots[0])
        room = _ALL_OPTIONS - (_TIMESTAMPS if self.timestamps else 0)
        fits = len(option) + _DSS_ACK <= room
        if not fits and self._last_data_ack < 0:
            # The first DSS proves that we speak MPTCP (FB-03); a box may take this option away.
            self.request_ack()
            self._last_data_ack = ack
            return dss_option(ack, self.ack64, -1, 0, 0, -1, False)
        del shots[0]
        if shots:
            self.request_ack()
        else:
            self._one_shots = None
        if fits:
            self._last_data_ack = ack
            return dss_option(ack, self.ack64, -1, 0, 0, -1, False) + option
        return option

    def send_option(self, option: bytes) -> bool:
        """Send ``option`` once, on a pure ACK; False if too many wait already."""
        if self._one_shots is None:
            self._one_shots = []
        if len(self._one_shots) >= 8:
            return False
        self._one_shots.append(option)
        self.request_ack()
        return True

    def flush_options(self, now: float) -> None:
        """Send at once what waits after ``send_option``; the subflow is fully established."""
        while self._one_shots:
            self._send_ack(now)

    def forget_addresses(self) -> None:
        """After fall-back nothing but MP_FAIL may still be sent."""
        if self._one_shots is not None:
            self._one_shots = [shot for shot in self._one_shots if shot[2] >> 4 == MP_FAIL]

    def _rst_options(self) -> bytes:
        if not self.mptcp:
            return b""
        options = b""
        if self.fastclose and self.conn.remote_key:
            options = MpFastclose(self.conn.remote_key).build()
            self.counters.add("MPTcpExtMPFastcloseTx")
        elif self.failed:
            options = self.conn.fail_option()
        self.counters.add("MPTcpExtMPRstTx")
        reason = self.reset_reason if self.reset_reason >= 0 else REASON_UNSPECIFIED
        return options + MpTcprst(reason).build()

    # -- TCP's questions: windows ------------------------------------------------------------

    def _receive_window(self) -> int:
        return self.conn.rx.window()

    def _advertised_window(self) -> int:
        # The field counts from the DATA_ACK, and its right edge is that of the connection: on
        # one subflow it may well move left when others bring data (RFC 8684 §3.3.1).
        shift = self.rcv_wscale
        window = (self._receive_window() + (1 << shift) - 1) >> shift << shift
        if window > 65535 << shift:
            window = 65535 << shift
        edge = (self.rcv_nxt + window) & MASK
        if (edge - self.rcv_right) & MASK < 0x80000000:
            self.rcv_right = edge
        return window

    # -- identity ------------------------------------------------------------------------------

    def describe(self) -> str:
        """``local -> remote`` for logs."""
        return f"{self.local} -> {self.remote}"

    def reply_reset(self, seg: Segment, reason: int, now: float) -> None:
        """Answer ``seg`` by a RST with MP_TCPRST ``reason``, without state of TCP."""
        self.conn.host.reset(seg, now, MpTcprst(reason).build())
