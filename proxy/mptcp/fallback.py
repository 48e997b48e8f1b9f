"""Falling back to plain TCP, and what a bad checksum leads to (RFC 8684 §3.7)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from proxy.mptcp.connection_core import INFINITE
from proxy.mptcp.notes import Fallback, Note
from proxy.mptcp.paths import Paths
from proxy.seg import dss_option
from proxy.tcp.events import Event, Failure
from proxy.tcp.states import State
from proxy.wire.mptcp_options import REASON_MIDDLEBOX, MpFail

if TYPE_CHECKING:
    from proxy.mptcp.mapping import RxMapping
    from proxy.mptcp.subflow import Subflow
    from proxy.mptcp.subflow_core import SubflowCore
    from proxy.seg import Segment

_FAIL_TIMEOUT = 120.0
_FAIL_PAUSE = 0.2
_GAP_PAUSE = 10.0


class FallingBack(Paths):
    """After it there is one subflow, no MPTCP option ever, and FIN ends the stream."""

    __slots__ = ()

    def may_fall_back(self, subflow: Subflow) -> bool:
        """Only with one subflow, and nothing sent or received out of order (DSS-11, FB-11).

        Joins that are still opening do not count: they end with the fall-back. But one whose
        third ACK we have sent may carry the peer's data already.
        """
        return (
            self.fallback is Fallback.NONE
            and subflow.initial
            and self.contiguous
            and not any(
                s.fully_established or (s.active and s.state is not State.SYN_SENT)
                for s in self.subflows
                if s is not subflow
            )
            and self.rx.stream.fragments == 0
        )

    def _fin_misleads(self, subflow: Subflow) -> bool:
        # DEVIATION: Linux sends a FIN. As long as either side may fall back, a FIN whose options a
        # box has taken away ends the stream, and we have not ended it. A RST ends this subflow
        # alone where MPTCP goes on, and is an error where it does not. But who has sent a FIN of
        # its own knows what ours means.
        open_ended = not (self.tx.fin_sent or subflow.fin_received)
        return open_ended and self.may_fall_back(subflow)

    def fall_back_at_handshake(self, subflow: Subflow, reason: str, now: float) -> None:
        """The peer or the path does not take part in MPTCP."""
        self._become_plain(subflow, Fallback.AT_HANDSHAKE, reason, now)
        self.on_plain_acked(subflow, now)  # TCP's ACK counts from now on, also what it said before
        self._take_earlier_fin(subflow, now)

    def fall_back(self, subflow: Subflow, reason: str, now: float) -> None:
        """MPTCP ends in the middle of the stream; nothing is lost."""
        self._become_plain(subflow, Fallback.INFINITE_MAPPING, reason, now)
        held, self._held = self._held, None
        self._fail_at = INFINITE if held is None else now + _GAP_PAUSE
        # Without a checksum to wait for, what was collected of a mapping counts as it is.
        for chunk in held or subflow.discard_held():
            self.on_plain_data(chunk, now)
        self.on_plain_acked(subflow, now)
        self._take_earlier_fin(subflow, now)
        self.arm()

    def _take_earlier_fin(self, subflow: Subflow, now: float) -> None:
        # A FIN that came while it only ended the subflow ends the stream now.
        if subflow.fin_received and not self.rx.finished:
            self._finish_receiving(now)

    def _become_plain(self, subflow: Subflow, kind: Fallback, reason: str, now: float) -> None:
        if self.fallback is not Fallback.NONE:
            return
        self.fallback = kind
        self.fallback_reason = reason
        subflow.mptcp = False
        self._usable = None
        self._rtx_at = INFINITE
        self.tx.reinject.clear()
        self.tx.fin_sent = False  # a DATA_FIN under way becomes a FIN
        self._signals = None
        subflow.forget_addresses()
        for other in self.subflows:
            if other is not subflow:
                other.doom(REASON_MIDDLEBOX)
        self._forget_token()
        self.trace("fallback", subflow, now, reason=reason)
        self.note(Note(Event.FALLBACK, subflow.local, subflow.remote, text=reason))
        self.host.wake(self)

    def on_infinite_mapping(self, subflow: Subflow, offset: int, seg: Segment, now: float) -> None:
        """The peer ends MPTCP: all that follows continues the stream (DSS-11)."""
        self.host.counters.add("MPTcpExtInfiniteMapRx")
        if self.may_fall_back(subflow) or self.failing:
            self.fall_back(subflow, "infinite mapping", now)
        else:
            self.host.counters.add("MPTcpExtFallbackFailed")
            subflow.doom(REASON_MIDDLEBOX)

    def _stripped(self, subflow: Subflow, now: float) -> bool:
        """FB-05, FB-06: data is acknowledged without DATA_ACK and without any option."""
        if not self.may_fall_back(subflow):
            if len(self.subflows) > 1 or not subflow.initial:
                subflow.doom(REASON_MIDDLEBOX)
                return True
            return False
        self._end_mptcp(subflow, "no DATA_ACK for acknowledged data", now)
        return True

    def _end_mptcp(self, subflow: Subflow, reason: str, now: float) -> None:
        # One infinite mapping goes out on the next new data, then none any more.
        self.infinite_seq = subflow.snd_nxt
        self.host.counters.add("MPTcpExtInfiniteMapTx")
        self.fall_back(subflow, reason, now)

    def infinite_mapping(self, subflow: SubflowCore, seq: int) -> bytes:
        """The DSS of an infinite mapping for the data at ``seq``; its checksum is 0 (P08)."""
        ssn = (seq - subflow.tx_base) & 0xFFFFFFFF
        dsn = self.tx.dsn(ssn - 1)
        return dss_option(-1, True, dsn, ssn, 0, 0 if self.checksum else -1, False)

    def on_bad_checksum(self, subflow: Subflow, mapping: RxMapping, now: float) -> None:
        """The bytes of a mapping were changed on the way (FB-07 to FB-10)."""
        chunks = mapping.chunks or []
        single = self.may_fall_back(subflow)
        if single and not self.checksum_seen:
            # FB-09: nothing was ever right, so a middlebox changes this path's data.
            self.host.counters.add("MPTcpExtDssFallback")
            self.fall_back(subflow, "bad checksum on the first mapping", now)
            for chunk in chunks:
                self.on_plain_data(chunk, now)
            return
        self.fail_dsn = self.rx.dsn(mapping.offset)
        self.host.counters.add("MPTcpExtMPFailTx")
        if not single:
            subflow.failed = True
            subflow.doom(REASON_MIDDLEBOX)
            return
        # FB-08: the peer will declare the infinite mapping from here on; keep its bytes.
        self._held = list(chunks)
        self._held_bytes = mapping.length
        self._fail_at = now + _FAIL_TIMEOUT
        self._fail_again_at = now + _FAIL_PAUSE
        subflow.send_option(self.fail_option())
        self.arm()

    def _on_fail_timeout(self, now: float) -> None:
        """MP_FAIL had no answer, or after it a gap in the stream is not filled."""
        self._fail_at = INFINITE
        initial = self.initial
        if self.fallback is not Fallback.NONE and initial is not None:
            # DEVIATION: TCP would wait for as long as the peer answers. Linux makes full-sized
            # segments that an infinite mapping is then too much for: they never leave it, and it
            # repeats the end of such a burst for ever. Not while the path is silent: that may pass.
            heard = initial.last_received > now - _GAP_PAUSE
            gap = initial.rcv_nxt if initial.has_gap and heard else -1
            if gap < 0 or gap != self._gap:
                self._gap = gap
                self._fail_at = now + _GAP_PAUSE
                return
            initial.error = Failure(errno.ETIMEDOUT)
        for subflow in self.subflows:
            subflow.doom(REASON_MIDDLEBOX)

    @property
    def failing(self) -> bool:
        """Whether a bad checksum waits for the peer's answer."""
        return self._held is not None

    def hold(self, subflow: Subflow, payload: memoryview, now: float) -> bool:
        """Keep bytes until the peer has answered MP_FAIL; False beyond the receive buffer."""
        if now >= self._fail_again_at:
            self._fail_again_at = now + max(_FAIL_PAUSE, 2.0 * subflow.receive_rtt())
            if subflow.send_option(self.fail_option()):  # the first one may have been lost
                self.host.counters.add("MPTcpExtMPFailTx")
        held = self._held
        self._held_bytes += len(payload)
        if held is None or self._held_bytes > self.rx.buffer + 65536:
            return False
        held.append(payload)
        return True

    def fail_option(self) -> bytes:
        """MP_FAIL for what ``fail_dsn`` names."""
        return MpFail(self.fail_dsn).build()

    def on_fail(self, subflow: Subflow, dsn: int, now: float) -> None:
        """The peer found a bad checksum: end MPTCP, or this subflow (§3.7)."""
        self.host.counters.add("MPTcpExtMPFailRx")
        if self.fallback is not Fallback.NONE:
            return
        if self._held is not None:
            # The peer's answer, or one of its own that crossed ours: then it waits for an infinite
            # mapping too, and to a peer that has answered it says nothing new.
            self._end_mptcp(subflow, "bad checksum, and the peer agreed to go on without", now)
            return
        if not self.may_fall_back(subflow):
            subflow.doom(REASON_MIDDLEBOX)
            return
        self.fail_dsn = self.rx.dsn(self.rx.stream.rcv_nxt)
        subflow.send_option(self.fail_option())
        self.host.counters.add("MPTcpExtMPFailTx")
        self._end_mptcp(subflow, "the peer found a bad checksum", now)

    def on_plain_acked(self, subflow: Subflow, now: float) -> None:
        """After fall-back, TCP's ACK is all that frees the send buffer."""
        tx = self.tx
        if not tx.nxt:
            return
        ahead = (subflow.snd_una - subflow.tx_base - 1 - tx.una) & 0xFFFFFFFF
        if ahead < 0x80000000:
            tx.release(min(tx.una + ahead, tx.nxt))
        if self._blocked:
            self._tell_writable()

    def _forget_token(self) -> None:
        tokens = self.host.tokens
        if tokens.get(self.local_key.token) is self:
            del tokens[self.local_key.token]
            self.path_manager.on_closed(self, self._now)
