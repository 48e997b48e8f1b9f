"""A subflow: what it makes of the segments that arrive (RFC 8684 §3)."""

from __future__ import annotations

import errno

from proxy.errors import CodecError
from proxy.mptcp import keys
from proxy.mptcp.mapping import MASK, MAX_PENDING, RxMapping, insert_pending
from proxy.mptcp.notes import Again
from proxy.mptcp.subflow_core import SubflowCore
from proxy.seg import DSS_ACK, DSS_FIN, DSS_MAP, Segment, dss_checksum, predict_subflow
from proxy.tcp.chronograph import Limited
from proxy.tcp.events import Failure
from proxy.tcp.states import State
from proxy.wire.mptcp_options import (
    REASON_MIDDLEBOX,
    REASON_MPTCP,
    REASON_UNSPECIFIED,
    AddAddr,
    MpCapable,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSynAck,
    MpPrio,
    MptcpOption,
    MpTcprst,
    RemoveAddr,
    parse_option,
    parse_options,
)

_HALF = 0x80000000
_INFINITE = float("inf")
_FIRST_JOIN_TIMEOUT = 1.0
_JOIN_ACK_TRIES = 6
_BARE_ANSWERS = 3
_Bytes = bytes | memoryview


class Subflow(SubflowCore):
    """See ``SubflowCore`` for the attributes; this class overrides the hooks of TCP."""

    __slots__ = ()
    _predict = predict_subflow

    # -- handshake ------------------------------------------------------------------------------

    def _on_syn(self, seg: Segment, now: float) -> bool:
        if not self.active:
            return True
        try:
            options = parse_options(seg.mptcp, syn=True, ack=True, dss_count=seg.dss_count)
        except CodecError:
            options = ()
        if self.initial:
            return self._on_capable_syn_ack(options, seg, now)
        return self._on_join_syn_ack(options, seg, now)

    def _on_capable_syn_ack(
        self, options: tuple[MptcpOption, ...], seg: Segment, now: float
    ) -> bool:
        conn = self.conn
        for option in options:
            if isinstance(option, MpCapable) and self.mptcp:
                self.counters.add("MPTcpExtMPCapableSYNACKRX")
                conn.on_peer_key(option, now)
                conn.host.blackhole.works(conn.local.ip, conn.remote.ip)
                return True
        if not self.mptcp:
            return True
        # CAP-06: TCP for life, whoever removed the option.
        reason = "SYN-ACK without MP_CAPABLE"
        if not seg.flags & 16:
            reason = "both ends opened at once"
            self.counters.add("MPTcpExtSimultConnectFallback")
        elif self.offers_dropped():
            reason = "SYNs with MP_CAPABLE get no answer"
            began = self.last_progress
            conn.host.blackhole.fell_in(conn.local.ip, conn.remote.ip, began, now)
        else:
            self.counters.add("MPTcpExtMPCapableFallbackSYNACK")
        conn.fall_back_at_handshake(self, reason, now)
        return True

    def _on_join_syn_ack(self, options: tuple[MptcpOption, ...], seg: Segment, now: float) -> bool:
        conn = self.conn
        for option in options:
            if not isinstance(option, MpJoinSynAck):
                continue
            self.counters.add("MPTcpExtMPJoinSynAckRx")
            self.remote_nonce = option.nonce
            digest = keys.join_hmac(
                conn.remote_key, conn.local_key.key, option.nonce, self.local_nonce
            )
            if not keys.same(digest[: keys.JOIN_SYN_ACK_HMAC], option.hmac):
                self.counters.add("MPTcpExtMPJoinSynAckHMacFailure")
                break
            if option.backup:
                self.counters.add("MPTcpExtMPJoinSynAckBackupRx")
                self.peer_backup = True
            if self.remote.port != conn.remote.port:
                self.counters.add("MPTcpExtMPJoinPortSynAckRx")
            conn.host.blackhole.works(self.local.ip, self.remote.ip)
            return True
        # JOIN-03; the reset is sent here since TCP keeps no state of a SYN that failed.
        self.counters.add("MPTcpExtMPRstTx")
        self.reply_reset(seg, REASON_MPTCP, now)
        self.reset_reason = REASON_MPTCP
        conn.drop_subflow(self, now)
        return False

    def _on_syn_payload_unacked(self, rest: bytes, now: float) -> None:
        # RFC 8684 App. B.2: outside the DSN space only if acknowledged; else it comes first.
        self.conn.tx.prepend(rest)

    def _on_established(self, now: float) -> None:
        self.conn.on_handshake(self, now)
        if self.active and not self.initial:
            self._arm_join_ack(now)

    def _longest_syn_pause(self) -> float:
        # A lost uplink is wanted back as soon as it works, while there is something to carry.
        if self.active and not self.initial and self.conn.data_flows:
            return self.config.initial_rto
        return super()._longest_syn_pause()

    def _arm_join_ack(self, now: float) -> None:
        # JOIN-04: until any ACK comes back, at 2 SRTT.
        pause = 2.0 * self.srtt if self.srtt else _FIRST_JOIN_TIMEOUT
        self._join_ack_at = now + max(pause, 0.01)
        self.host.arm(self)

    def next_timeout(self) -> float | None:
        """TCP's, or when the third ACK of a join is to be repeated."""
        earliest = super().next_timeout()
        if self._join_ack_at == _INFINITE:
            return earliest
        return self._join_ack_at if earliest is None else min(earliest, self._join_ack_at)

    def on_timeout(self, now: float) -> None:
        """See ``next_timeout``."""
        if now >= self._join_ack_at:
            self._repeat_join_ack(now)
        super().on_timeout(now)

    def _repeat_join_ack(self, now: float) -> None:
        self._join_ack_tries += 1
        if self._join_ack_tries > _JOIN_ACK_TRIES:
            self._join_ack_at = _INFINITE
            self.doom(REASON_UNSPECIFIED)
            return
        pause = 2.0 * self.srtt if self.srtt else _FIRST_JOIN_TIMEOUT
        self._join_ack_at = now + max(pause, 0.2) * (1 << (self._join_ack_tries - 1))
        self.request_ack()

    def _keepalive_idle(self) -> float:
        # Who did not open it waits for the other's question (``mptcp.keepalive``).
        idle = self.config.keepalive_idle
        return idle if self.active or not self.conn.config.subflow_keepalive else 2.0 * idle

    def _may_ask(self, now: float) -> bool:
        return not self.conn.config.subflow_keepalive or self.conn.host.keepalives.take(now)

    def _on_idle_timeout(self, now: float) -> None:
        if self._keepalive_sent > 1 and now - self.last_received >= self._keepalive_idle():
            self.conn.host.keepalives.alarm(now)
        super()._on_idle_timeout(now)

    # -- options of segments ------------------------------------------------------------------

    def _on_options(self, seg: Segment, now: float) -> bool:
        if self.detached:
            return True
        conn = self.conn
        conn.host.wake(conn)
        self.due = True
        if not self.mptcp:
            return True
        unusual = seg.mptcp or seg.dss_count != 1 or not self.fully_established or self.doomed
        if unusual and (self.doomed or not self._on_other_options(seg, now)):
            return False
        flags = seg.dss_flags
        if flags < 0:
            return True
        self.acks_without_dss = self.bare_last = False
        if self.asked:
            self.take_fin(now)
        if flags & DSS_ACK:
            conn.on_data_ack(self, seg.data_ack, seg.data_ack64, seg.window << self.snd_wscale, now)
        if flags & DSS_MAP:
            return self._on_mapping(seg, now)
        return True

    def _on_other_options(self, seg: Segment, now: float) -> bool:
        # Anything but a lone DSS on an established subflow.
        if self._rx_base < 0:
            # Nothing beyond the handshake was received yet: the next byte has SSN 1.
            self._rx_base = (self.rcv_nxt - 1) & MASK
        options: tuple[MptcpOption, ...] = ()
        try:
            if seg.dss_count > 1:
                raise CodecError("two DSS options")
            options = parse_options(
                seg.mptcp, syn=False, ack=seg.flags & 16 != 0, dss_count=seg.dss_count
            )
        except CodecError:
            # P11: none of a forbidden combination is acted on.
            self.counters.add("MptcpOptionConflicts")
            seg.dss_flags = -1
        proven = self.fully_established
        if not proven and not self._prove(options, seg, now):
            return False
        if not self.mptcp:
            return True
        if not options and seg.dss_flags < 0:
            self._on_bare(seg, now)
        for option in options:
            self._on_option(option, seg, now)
        if self.initial and self.active and self.fully_established and not proven:
            # After the announcement that may have proved it: as in Linux, that is joined first.
            self.conn.path_manager.on_fully_established(self.conn, now)
            self.conn.arm()
        return not self.doomed

    def _is_mapped(self, seq: int) -> bool:
        if (seq - self._map_seq) & MASK < self._map_length:
            return True
        return any((seq - m.seq) & MASK < m.length for m in self._pending_maps or ())

    def _on_bare(self, seg: Segment, now: float) -> None:
        plain = seg.flags & 1 or (seg.length and not self._is_mapped(seg.seq))
        if plain and self.conn.failing:
            # The peer's own MP_FAIL was lost, but it sends as one who has fallen back.
            self.conn.fall_back(self, "bad checksum, and the peer goes on without", now)
            return
        if self.asked and not seg.flags & 1 and self.conn.may_fall_back(self):
            self.asked = False
            self.counters.add("MPTcpExtDssFallback")
            self.conn.fall_back(self, "FIN without MPTCP options", now)
            return
        # FB-05: an ACK for mapped data without a DATA_ACK may mean that options are stripped; not
        # if it has SACK blocks, for which an engine may have left the DSS out (SPC-01).
        self.bare_last = True
        tx = self.conn.tx
        if not seg.sack and (len(self.mappings) or tx.fin_sent != tx.fin_acked):
            self.acks_without_dss = True

    def _prove(self, options: tuple[MptcpOption, ...], seg: Segment, now: float) -> bool:
        if self.initial:
            if self.active:
                return self._prove_initial_active(options, seg, now)
            return self._prove_initial_passive(options, seg, now)
        if self.active:
            return self._prove_join_active(options, seg, now)
        return self._prove_join_passive(options, seg, now)

    def _prove_initial_active(
        self, options: tuple[MptcpOption, ...], seg: Segment, now: float
    ) -> bool:
        conn = self.conn
        if seg.dss_flags >= 0 and seg.dss_flags & DSS_ACK:
            conn.on_fully_established(self, now)
        elif any(isinstance(option, AddAddr) and not option.echo for option in options):
            if conn.valid_add_addr(options):
                conn.on_fully_established(self, now)
        elif not seg.has_mptcp and seg.seq == self.rcv_nxt and not seg.sack:
            # FB-03, FB-04: the first packet after the handshake has no MPTCP at all, and not
            # because SACK blocks took its place.
            if self._says_nothing(seg):
                return True
            self.counters.add("MPTcpExtMPCapableDataFallback")
            conn.fall_back_at_handshake(self, "first segment without MPTCP options", now)
        return True

    def _says_nothing(self, seg: Segment) -> bool:
        # A bare ACK of what was acknowledged before: perhaps our third ACK did not arrive yet and
        # the peer's half-open socket has answered a probe. It would be MPTCP in the end, we not.
        if seg.length or seg.flags & 1 or seg.ack != self.snd_una:
            return False
        if self.tx_base >= 0 and self.snd_una != (self.tx_base + 1) & MASK:
            return False  # it has acknowledged data: it is not half-open
        self._bare_answers += 1
        return self._bare_answers < _BARE_ANSWERS

    def _prove_initial_passive(
        self, options: tuple[MptcpOption, ...], seg: Segment, now: float
    ) -> bool:
        conn = self.conn
        for option in options:
            if not isinstance(option, MpCapable):
                continue
            if not keys.same(option.receiver_key, conn.local_key.key):
                break
            self.counters.add("MPTcpExtMPCapableACKRX")
            conn.on_peer_key(option, now)
            conn.on_fully_established(self, now)
            return True
        if seg.seq != self.rcv_nxt:
            # Out of order: the segment with the keys is still to come, TCP brings this one again.
            return False
        self.counters.add("MPTcpExtMPCapableFallbackACK")
        conn.fall_back_at_handshake(self, "third ACK without MP_CAPABLE", now)
        return True

    def _prove_join_active(
        self, options: tuple[MptcpOption, ...], seg: Segment, now: float
    ) -> bool:
        # P24: the echo of an ADD_ADDR may come before the first DATA_ACK.
        if seg.has_mptcp and (seg.dss_flags >= 0 or options):
            self._join_ack_at = _INFINITE
            self.conn.on_join_complete(self, now)
            return True
        if seg.flags & 16 and seg.seq == self.rcv_nxt:
            self.doom(REASON_MIDDLEBOX)  # P25, P31
        return False

    def _prove_join_passive(
        self, options: tuple[MptcpOption, ...], seg: Segment, now: float
    ) -> bool:
        conn = self.conn
        for option in options:
            if not isinstance(option, MpJoinAck):
                continue
            digest = keys.join_hmac(
                conn.remote_key, conn.local_key.key, self.remote_nonce, self.local_nonce
            )
            if keys.same(digest[: keys.JOIN_ACK_HMAC], option.hmac):
                if conn.failing:
                    # We wait for the answer to MP_FAIL, and a peer that knows of one subflow only
                    # falls back. It cannot have sent anything here yet, and may come again.
                    self.doom(REASON_UNSPECIFIED)
                    return False
                if not conn.may_join(now, self):
                    self.counters.add("MPTcpExtMPJoinRejected")
                    self.doom(3)
                    return False
                self.counters.add("MPTcpExtMPJoinAckRx")
                if self.local.port != conn.local.port:
                    self.counters.add("MPTcpExtMPJoinPortAckRx")
                conn.on_join_complete(self, now)
                self.request_ack()  # the fourth ACK, at once (JOIN-04)
                return True
            self.counters.add("MPTcpExtMPJoinAckHMacFailure")
            self.doom(REASON_MPTCP)
            return False
        if seg.seq == self.rcv_nxt:
            self.doom(REASON_MPTCP)
        return False

    def _on_option(self, option: MptcpOption, seg: Segment, now: float) -> None:
        conn = self.conn
        if isinstance(option, MpCapable):
            if option.data_length is not None and not self.active:
                self._on_capable_data(option, seg)
        elif isinstance(option, MpJoinAck):
            # A repeated third ACK asks for the fourth again.
            if not self.active and not self.initial:
                self.request_ack()
        elif isinstance(option, AddAddr):
            conn.signals.on_add_addr(self, option, now)
        elif isinstance(option, RemoveAddr):
            conn.signals.on_remove_addr(self, option, now)
        elif isinstance(option, MpPrio):
            self.counters.add("MPTcpExtMPPrioRx")
            self.peer_backup = option.backup
            conn.trace("peer-priority", self, now, backup=option.backup)
            conn.path_manager.on_priority(conn, self, now)
        elif isinstance(option, MpFail):
            conn.on_fail(self, option.dsn, now)
        elif isinstance(option, MpFastclose):
            conn.on_fastclose(option, now)

    # -- mappings -----------------------------------------------------------------------------

    def _on_mapping(self, seg: Segment, now: float) -> bool:
        conn = self.conn
        length = seg.data_length
        flags = seg.dss_flags
        if seg.dsn64:
            self.ack64 = True  # DSS-04
        offset = conn.rx.offset(seg.dsn, seg.dsn64)
        if flags & DSS_FIN:
            if length == 0:
                return True
            length -= 1
            conn.on_data_fin(offset + length, now)
            if length == 0:
                return True
        elif length == 0:
            conn.on_infinite_mapping(self, offset, seg, now)
            return True
        if not seg.length:
            return True  # DSS-13
        if (seg.dss_checksum >= 0) != conn.checksum:
            self.doom(REASON_MPTCP)  # FB-13
            return False
        start = (self._rx_base + seg.ssn) & MASK
        if conn.failing and start != self._map_seq and offset <= conn.rx.stream.rcv_nxt:
            conn.stop_holding()  # it has not heard of MP_FAIL and sends the same bytes once more
        return self._add_mapping(seg, start, offset, length, seg.dss_checksum, seg.data_length)

    def _on_capable_data(self, option: MpCapable, seg: Segment) -> None:
        # CAP-02: stands for a DSS with the first DSN and SSN 1.
        length = option.data_length or 0
        if not length or not seg.length:
            return
        if (option.checksum is not None) != self.conn.checksum:
            self.doom(REASON_MPTCP)
            return
        checksum = -1 if option.checksum is None else option.checksum
        start = (self._rx_base + 1) & MASK
        self._add_mapping(seg, start, 0, length, checksum, length)

    def _add_mapping(
        self, seg: Segment, start: int, offset: int, length: int, checksum: int, wire_length: int
    ) -> bool:
        if start == self._map_seq and length == self._map_length:
            if offset != self._map_offset:
                self.counters.add("MPTcpExtDSSNotMatching")
            return True  # the same once more, as on each slice of a super-segment
        ahead = (seg.seq - start) & MASK
        if ahead >= length and (start - seg.seq) & MASK >= seg.length:
            # DSS-02: it does not touch the segment that carries it.
            self.counters.add("MPTcpExtDSSNoMatchTCP")
            return True
        rcv_nxt = self.rcv_nxt
        remaining = (start + length - rcv_nxt) & MASK
        if remaining >= _HALF or remaining == 0:
            return True  # all of it was received
        pending = self._pending_maps
        used_up = (rcv_nxt - self._map_seq) & MASK >= self._map_length
        if not pending and used_up and (rcv_nxt - start) & MASK < length and checksum < 0:
            self._map_seq = start
            self._map_length = length
            self._map_offset = offset
            return True
        if pending is None:
            pending = self._pending_maps = []
        if len(pending) >= MAX_PENDING and seg.seq != rcv_nxt:
            return False
        mapping = RxMapping(start, offset, length, checksum)
        if checksum >= 0 and wire_length != length:
            mapping.fin = True
        if not insert_pending(pending, mapping):
            self.counters.add("MPTcpExtDSSNotMatching")
        return True

    def _next_mapping(self, seq: int) -> bool:
        # Make the mapping that covers ``seq`` the current one.
        pending = self._pending_maps
        while pending:
            mapping = pending[0]
            ahead = (seq - mapping.seq) & MASK
            if ahead >= _HALF:
                return False
            del pending[0]
            if ahead < mapping.length:
                self._map_seq = mapping.seq
                self._map_length = mapping.length
                self._map_offset = mapping.offset
                self._map = mapping if mapping.checksum >= 0 else None
                if not pending:
                    self._pending_maps = None
                return True
        return False

    def _deliver(self, seq: int, payload: _Bytes, now: float) -> None:
        conn = self.conn
        if not self.mptcp:
            conn.on_plain_data(memoryview(payload), now)
            return
        if self.doomed:
            return
        if conn.failing:
            if not conn.hold(self, memoryview(payload), now):
                self.doom(REASON_MIDDLEBOX)
            return
        position = 0
        count = len(payload)
        while position < count:
            at = (seq + position) & MASK
            ahead = (at - self._map_seq) & MASK
            if ahead >= self._map_length:
                if not self._next_mapping(at):
                    self._on_unmapped(memoryview(payload)[position:], position > 0, now)
                    return
                ahead = (at - self._map_seq) & MASK
            size = min(count - position, self._map_length - ahead)
            piece = memoryview(payload)
            if size != count:
                piece = piece[position : position + size]
            position += size
            if self._map is not None:
                self._collect(self._map, piece, ahead + size, now)
            else:
                conn.on_data(self, self._map_offset + ahead, piece, now)
            if not self.mptcp:
                if position < count:
                    conn.on_plain_data(memoryview(payload)[position:], now)
                return
            if conn.failing:
                if position < count and not conn.hold(self, memoryview(payload)[position:], now):
                    self.doom(REASON_MIDDLEBOX)
                return

    def _collect(self, mapping: RxMapping, piece: memoryview, have: int, now: float) -> None:
        # DSS-06: the whole mapping is verified before any of it is delivered.
        chunks = mapping.chunks
        if chunks is None:
            return
        chunks.append(piece)
        if have < mapping.length:
            return
        conn = self.conn
        self._map = None
        ssn = (mapping.seq - self._rx_base) & MASK
        wire_length = mapping.length + mapping.fin
        if sum(map(len, chunks)) == mapping.length:
            found = dss_checksum(conn.rx.dsn(mapping.offset), ssn, wire_length, chunks)
            if found != mapping.checksum:
                self.counters.add("MPTcpExtDataCsumErr")
                conn.on_bad_checksum(self, mapping, now)
                return
        conn.checksum_seen = True
        offset = mapping.offset
        for chunk in chunks:
            conn.on_data(self, offset, chunk, now)
            offset += len(chunk)

    def _on_unmapped(self, payload: memoryview, torn: bool, now: float) -> None:
        # ``torn``: the segment is longer than its mapping (FB-15), else it has none (FB-11).
        conn = self.conn
        if conn.may_fall_back(self):
            self.counters.add("MPTcpExtDSSCorruptionFallback" if torn else "MPTcpExtDssFallback")
            conn.fall_back(
                self, "data beyond its mapping" if torn else "data without a mapping", now
            )
            conn.on_plain_data(payload, now)
            return
        self.counters.add("MPTcpExtDSSCorruptionReset" if torn else "MPTcpExtFallbackFailed")
        self.doom(REASON_MIDDLEBOX)

    def _process_ack(self, seg: Segment, now: float) -> bool:
        una = self.snd_una
        if not super()._process_ack(seg, now):
            return False
        # A DATA_FIN fills the options of a peer's ACKs, so that no SACK block fits (SPC-01), and
        # Linux repeats it in each. All that is left then is to count them (RFC 6582).
        starved = seg.dss_flags >= 0 and seg.dss_flags & DSS_MAP and not seg.length
        if starved and self.sack_permitted and self._flight and not self._sacked_bytes:
            self._newreno((self.snd_una - una) & MASK, False, now)
        return True

    # -- what TCP reports ---------------------------------------------------------------------

    def _on_acked(self, now: float) -> None:
        if not self.mptcp:
            self.conn.on_plain_acked(self, now)
            return
        self.mappings.prune(self.snd_una, self.conn.tx.una)
        if self.suspect:
            self.suspect = False
        if self.stale:
            self.conn.on_recovered(self, now)

    def _on_fin(self, now: float) -> None:
        conn = self.conn
        open_ended = conn.state is not State.CLOSED and conn.rx.fin_at < 0 and not self.closing
        if self.mptcp and self.bare_last and open_ended and conn.may_fall_back(self):
            # Who speaks MPTCP acknowledges data on a FIN as well. One who has fallen back in
            # silence ends the stream with it, and would take ours for the end of our stream. Or
            # it is none of the peer's: what answers a probe tells.
            self.asked = True
            self.probe_window(now)
            conn.watch_answer(now)
            return
        conn.on_subflow_fin(self, now)

    def take_fin(self, now: float) -> None:
        """A FIN without options was the end of the subflow after all."""
        self.asked = False
        if self.state is State.CLOSE_WAIT:
            self.conn.on_subflow_fin(self, now)

    def _on_loss(self, now: float) -> None:
        if self.mptcp:
            self.conn.on_subflow_loss(self, now)

    def _on_probe(self, now: float) -> None:
        if self.mptcp:
            self.conn.on_suspect(self, now)

    def _on_rto(self, now: float) -> None:
        if self.mptcp:
            self.conn.on_subflow_timeout(self, now)
            return
        tx = self.conn.tx
        if tx.una < tx.nxt and tx.limited is not Limited.SILENCE:
            tx.turn(Limited.SILENCE, now)

    def _on_rst(self, seg: Segment, now: float) -> None:
        # A RST inside the window that does not fit exactly is only challenged, and the answer to
        # that brings no option any more. But who knows our key is the peer, whatever was lost.
        room = (self.rcv_right - self.rcv_nxt) & MASK
        inside = (seg.seq - self.rcv_nxt) & MASK <= room < _HALF
        if inside and self.mptcp and seg.mptcp and self.state is not State.TIME_WAIT:
            for raw in seg.mptcp:
                option = parse_option(raw, False, seg.flags & 16 != 0)
                if isinstance(option, MpFastclose) and keys.same(
                    option.receiver_key, self.conn.local_key.key
                ):
                    self._die(Failure(errno.ECONNRESET), now, seg)
                    return
        super()._on_rst(seg, now)

    def _on_reset(self, seg: Segment | None, now: float) -> None:
        if seg is not None and self.mptcp:
            try:
                options = parse_options(
                    seg.mptcp,
                    syn=False,
                    ack=seg.flags & 16 != 0,
                    rst=True,
                    dss_count=seg.dss_count,
                )
            except CodecError:
                options = ()
            for option in options:
                if isinstance(option, MpTcprst):
                    self.counters.add("MPTcpExtMPRstRx")
                    self.reset_by_peer = True
                    self.reset_reason = option.reason
                    self.reset_transient = option.transient
                elif isinstance(option, MpFastclose):
                    self.conn.on_fastclose(option, now)
                elif isinstance(option, MpFail):
                    self.counters.add("MPTcpExtMPFailRx")
        self._mappings_to_others(now)
        self.conn.on_subflow_gone(self, now, failed=True)

    def _on_closed(self, now: float) -> None:
        self._mappings_to_others(now)
        self.conn.on_subflow_gone(self, now, failed=False)

    def _mappings_to_others(self, now: float) -> None:
        if self.mptcp:
            self.conn.reinject_all(self, Again.GONE)

    # -- for the connection -------------------------------------------------------------------

    def discard_held(self) -> list[memoryview]:
        """Payload whose checksum was not verified yet; it is no longer held."""
        mapping, self._map = self._map, None
        return mapping.chunks or [] if mapping is not None else []
