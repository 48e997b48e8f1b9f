"""An MPTCP connection: opening, falling back, closing, timers, and the application's methods."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from proxy.errors import LocalProtocolError
from proxy.mptcp import keys
from proxy.mptcp.connection_core import INFINITE
from proxy.mptcp.fallback import FallingBack
from proxy.mptcp.notes import Fallback
from proxy.tcp.chronograph import Limited
from proxy.tcp.events import Event, Failure
from proxy.tcp.states import State
from proxy.wire.address import Address
from proxy.wire.mptcp_options import (
    REASON_UNSPECIFIED,
    MpCapable,
    MpFastclose,
    parse_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.mptcp.host import MptcpHost
    from proxy.mptcp.subflow import Subflow
    from proxy.seg import Segment

# How long subflows may take to close once the data level is closed: a path may be dead.
_LINGER = 10.0


class MptcpConnection(FallingBack):
    """The same methods as ``TcpConnection`` for the application, over any number of subflows.

    ``state`` is that of the data level: FIN stands for DATA_FIN. ``eof`` is true once the peer
    has finished and the application has received every byte.
    """

    __slots__ = ()

    # -- opening --------------------------------------------------------------------------------

    @classmethod
    def connect(
        cls,
        host: MptcpHost,
        local: Address,
        remote: Address,
        now: float,
        syn_payload: bytes = b"",
        uplink: str | None = None,
        stamp: Callable[[int], int] | None = None,
    ) -> MptcpConnection:
        """Open a connection whose initial subflow goes from ``local`` to ``remote``.

        ``syn_payload`` travels in the SYN, outside the data sequence space (RFC 8684 App. B.2);
        what the SYN-ACK leaves unacknowledged of it becomes the first bytes of the stream.
        ``stamp``: see ``TcpConnection.connect``.
        """
        key = keys.generate(host.rng, host.tokens, host.token_share)
        avoided = host.blackhole.active(local.ip, remote.ip, now)
        mptcp = key is not None and host.mptcp_config.enabled and not avoided
        if avoided:
            host.counters.add("MPTcpExtMPCapableSYNTXDisabled")
        if key is None:
            host.counters.add("MPTcpExtMPFallbackTokenInit")
            key = keys.derive(bytes(8))
        self = cls(host, local, remote, key, active=True)
        self.syn_payload = syn_payload
        self.state = State.SYN_SENT
        subflow = self._new_subflow(local, remote, active=True, initial=True)
        subflow.leave_by(uplink)
        self.initial = subflow
        if mptcp:
            host.tokens[key.token] = self
            host.counters.add("MPTcpExtMPCapableSYNTX")
        else:
            subflow.mptcp = False
            self.fallback = Fallback.AT_HANDSHAKE
            self.fallback_reason = (
                "this path swallows SYNs with MP_CAPABLE"
                if avoided
                else "MPTCP is off or there is no unique token"
            )
        subflow.connect(now, syn_payload, stamp)
        return self

    @classmethod
    def open_passive(
        cls,
        host: MptcpHost,
        syn: Segment,
        now: float,
        isn: int | None = None,
        local_key: bytes | None = None,
    ) -> MptcpConnection:
        """A connection for a SYN with MP_CAPABLE, kept waiting until ``accept`` or ``refuse``.

        ``isn`` and ``local_key`` replace what would be drawn (stateless handshakes).
        """
        key = (
            keys.derive(local_key)
            if local_key
            else keys.generate(host.rng, host.tokens, host.token_share)
        )
        offer = _capable_of(syn)
        if offer is not None:
            host.counters.add("MPTcpExtMPCapableSYNRX")
        mptcp = key is not None and offer is not None and key.token not in host.tokens
        if key is None or not mptcp:
            host.counters.add("MPTcpExtMPFallbackTokenInit")
        if key is None:
            key = keys.derive(bytes(8))
        local = Address(syn.dst, syn.dport)
        remote = Address(syn.src, syn.sport)
        self = cls(host, local, remote, key, active=False)
        self.state = State.LISTEN
        subflow = self._new_subflow(local, remote, active=False, initial=True)
        self.initial = subflow
        if mptcp and offer is not None:
            host.tokens[key.token] = self
            self.checksum = offer.checksum_required or self.config.checksum_enabled
            self.remote_denies_initial = offer.no_subflows_here
        else:
            subflow.mptcp = False
            self.fallback = Fallback.AT_HANDSHAKE
            self.fallback_reason = "no unique token"
        subflow.open_passive(syn, now, isn)
        self.syn_payload = subflow.syn_payload
        return self

    def accept(self, now: float, take_syn_payload: bool = False, payload: bytes = b"") -> None:
        """Send the SYN-ACK, as ``TcpConnection.accept``."""
        if self.initial is not None and self.state is State.LISTEN:
            self.state = State.SYN_RECEIVED
            self.initial.accept(now, take_syn_payload, payload)

    def refuse(self, now: float) -> None:
        """Answer the SYN by RST and forget the connection."""
        if self.initial is not None and self.state is State.LISTEN:
            self._end()
            self.initial.mptcp = False  # a RST to a SYN carries no reason (as in Linux)
            self.subflows.clear()
            self.initial.refuse(now)
            self._released()

    def discard(self, now: float) -> None:
        """Forget the connection in silence."""
        if self.initial is not None and self.state is State.LISTEN:
            self._end()
            self.subflows.clear()
            self.initial.discard(now)
            self._released()

    @property
    def syn_payload_acked(self) -> int:
        """How much of our SYN's payload the SYN-ACK acknowledged."""
        return 0 if self.initial is None else self.initial.syn_payload_acked

    @property
    def syn_ack_payload(self) -> bytes:
        """What came in the SYN-ACK: before the stream, never part of ``receive``."""
        return b"" if self.initial is None else self.initial.syn_ack_payload

    # -- the handshake of the initial subflow -------------------------------------------------

    def on_peer_key(self, option: MpCapable, now: float) -> None:
        """MP_CAPABLE with the peer's key: of a SYN-ACK, or of the third ACK (§3.1)."""
        derived = keys.derive(option.sender_key)
        self.remote_key = option.sender_key
        self.remote_token = derived.token
        self.rx.start(derived.idsn)
        # CAP-04: checksums are used if either side asks for them.
        self.checksum = self.checksum or option.checksum_required or self.config.checksum_enabled
        self.remote_denies_initial = self.remote_denies_initial or option.no_subflows_here

    def on_handshake(self, subflow: Subflow, now: float) -> None:
        """The TCP handshake of ``subflow`` is complete."""
        self._now = now
        self._usable = None
        if not subflow.initial:
            if subflow.fully_established:
                self._relieve(subflow, now)
            return
        self._enter(State.ESTABLISHED)
        tx = self.tx
        tx.edge = max(tx.edge, tx.una + subflow.snd_wnd)
        self.rx.edge = max(self.rx.edge, self.rx.stream.rcv_nxt + self.rx.buffer)
        self.host.event(self, Event.ESTABLISHED)
        if self.fallback is Fallback.NONE:
            self.path_manager.on_established(self, now)
            if self.fully_established:
                self.path_manager.on_fully_established(self, now)
                self.arm()
        if self.eof or self.tx.fin:
            self._data_done(now)
        self.host.wake(self)

    def on_fully_established(self, subflow: Subflow, now: float) -> None:
        """The peer has proved that it speaks MPTCP (CAP-08)."""
        subflow.fully_established = True
        self.fully_established = True
        self._usable = None
        if not subflow.active and self.config.early_confirm:
            subflow.request_ack()  # so that the peer may join before there is any data
        if not subflow.active and self.state is not State.SYN_RECEIVED:
            # Else once TCP is established, too, or the whole segment is dealt with.
            self.path_manager.on_fully_established(self, now)
        self.arm()
        self.host.wake(self)

    # -- application ----------------------------------------------------------------------------

    def send(self, chunk: bytes | memoryview) -> None:
        """Queue all of ``chunk``, which must not change any more; see ``send_room``.

        LocalProtocolError after ``shutdown_write``; ignored once the connection is closed.
        """
        if self.tx.fin:
            raise LocalProtocolError("send after shutdown_write")
        if self.state is not State.CLOSED:
            self.tx.append(chunk)
            self.host.wake(self)

    def shutdown_write(self) -> None:
        """DATA_FIN after what is queued (half-close)."""
        if not self.tx.fin:
            self.tx.fin = True
            self._follow_fins()
            self.host.wake(self)

    def close(self, now: float) -> None:
        """``shutdown_write``, and nothing will be received any more.

        Data that comes later ends the connection by MP_FASTCLOSE (RFC 1122 §4.2.2.13); for a peer
        that does not finish in its turn we wait ``fin_timeout``.
        """
        if self.state in (State.CLOSED, State.LISTEN, State.SYN_SENT):
            self.abort(now)
            return
        self._now = now
        self._closed_by_app = True
        self.receive(self.receivable)
        self.shutdown_write()
        self._await_peer(now)

    def _await_peer(self, now: float) -> None:
        # FIN_WAIT_2 is bounded once nobody reads any more.
        if self._closed_by_app and self.tx.fin_acked and not self.rx.finished:
            self._life_at = now + self.tcp_config.fin_timeout
            self.arm()

    def abort(self, now: float) -> None:
        """MP_FASTCLOSE on every subflow (RST form, as Linux; FC-02); no event follows."""
        if self.state is State.CLOSED and not self.subflows:
            return
        self._end()
        for subflow in list(self.subflows):
            subflow.fastclose = self.fallback is Fallback.NONE
            subflow.abort(now)
        self.subflows.clear()
        self._released()

    def set_scheduler(self, name: str) -> None:
        """Replace the packet scheduler; ConfigError for an unknown name."""
        self.use_scheduler(name)
        self.host.wake(self)

    # -- closing (§3.3.3) -----------------------------------------------------------------------

    def _follow_fins(self) -> None:
        # FIN-03: the states of TCP, for DATA_FINs.
        if self.state is State.CLOSED or not self._open():
            return
        tx, rx = self.tx, self.rx
        if rx.finished and tx.fin:
            if self.state is State.ESTABLISHED or self.state is State.CLOSE_WAIT:
                self._enter(State.LAST_ACK)
            elif self.state is State.FIN_WAIT_1:
                self._enter(State.CLOSING)
        elif rx.finished:
            self._enter(State.CLOSE_WAIT)
        elif tx.fin:
            self._enter(State.FIN_WAIT_2 if tx.fin_acked else State.FIN_WAIT_1)

    def _enter(self, state: State) -> None:
        # The gauge covers connections that may still send, as the kernel's does.
        counted = (State.ESTABLISHED, State.CLOSE_WAIT)
        change = (state in counted) - (self.state in counted)
        if change:
            self.host.counters.add("MPTcpExtMPCurrEstab", change)
        self.state = state

    def _open(self) -> bool:
        return self.state not in (State.LISTEN, State.SYN_SENT, State.SYN_RECEIVED)

    def _data_done(self, now: float) -> None:
        self._follow_fins()
        self._await_peer(now)
        if not (self.tx.fin_acked and self.rx.finished) or self.state is State.CLOSED:
            return
        # Both DATA_FINs are acknowledged: the subflows close by themselves (App. D).
        self._end()
        for subflow in list(self.subflows):
            subflow.closing = True
            self._close_after_end(subflow, now)
        self._life_at = now + _LINGER
        self.arm()
        self.host.event(self, Event.CLOSED)
        self.host.wake(self)
        if not self.subflows:
            self._released()

    def _close_after_end(self, subflow: Subflow, now: float) -> None:
        if subflow.stale or subflow.state in (State.SYN_SENT, State.SYN_RECEIVED):
            subflow.doom(REASON_UNSPECIFIED)  # FIN-06
        else:
            subflow.shutdown_write()

    def on_plain_closed(self) -> None:
        """After fall-back both FINs are acknowledged."""
        if self.state is not State.CLOSED:
            self._end()
            self.host.event(self, Event.CLOSED)

    def on_fastclose(self, option: MpFastclose, now: float) -> None:
        """The peer aborts the connection (FC-01); a wrong key is ignored."""
        if not keys.same(option.receiver_key, self.local_key.key):
            return
        self.host.counters.add("MPTcpExtMPFastcloseRx")
        if self.state is State.CLOSED:
            return
        self.error = Failure(errno.ECONNRESET)
        self._end()
        for subflow in self.subflows:
            subflow.doom(REASON_UNSPECIFIED)
        self.host.event(self, Event.RESET)

    def _fail(self, subflow: Subflow, now: float) -> None:
        """The connection dies with ``subflow``: tell the application as TCP would."""
        if self.state is State.CLOSED:
            return
        if self.fallback is not Fallback.NONE and subflow.error is None:
            self.on_plain_closed()
        else:
            self.error = subflow.error or Failure(errno.ECONNRESET)
            kind = Event.RESET
            if self.error.icmp_type >= 0:
                kind = Event.UNREACHABLE
            elif self.error.errno == errno.ETIMEDOUT:
                kind = Event.TIMED_OUT
            self._end()
            self.host.event(self, kind)
        for other in self.subflows:
            other.doom(REASON_UNSPECIFIED)
        if not self.subflows:
            self._released()

    def _end(self) -> None:
        self._enter(State.CLOSED)
        self._rtx_at = self._life_at = self._fail_at = INFINITE
        self._pace_at = self._tail_at = INFINITE
        self._held = None
        self.tx.reinject.clear()
        self.rx.release()
        self._forget_token()

    def _released(self) -> None:
        self.host.forget(self)
        # Subflows refer to us: without this only the garbage collector would free either, and it
        # seldom gets as far as what has lived for some seconds.
        self.doomed.clear()
        self.initial = self._last_rx = self._usable = self._signals = None
        if self.coupling is not None:
            self.coupling.dissolve()

    # -- engine ---------------------------------------------------------------------------------

    def poll(self, now: float) -> None:
        """Send what may be sent, on all subflows."""
        self._now = now
        while self.doomed:
            subflow = self.doomed.pop()
            if subflow.state is not State.CLOSED:
                self.reset_subflow(subflow, subflow.reset_reason, now)
        if self._late_data and self.state is not State.CLOSED:
            self.host.counters.add("TCPAbortOnData")
            self.host.event(self, Event.CLOSED)
            self.abort(now)
            return
        if self.state is not State.CLOSED:
            self._pump(now)
        for subflow in list(self.subflows):
            if subflow.due:
                subflow.due = False
                subflow.poll(now)
        rx = self.rx
        if self.receivable or rx.stream.waiting_bytes or rx.limited is not Limited.NOTHING:
            self._time_reading(now)

    def arm(self) -> None:
        """A deadline of the connection has become earlier."""
        self.host.arm(self)

    def next_timeout(self) -> float | None:
        """When ``on_timeout`` must be called; None: never. Subflows have their own."""
        earliest = min(self._rtx_at, self._life_at, self._fail_at, self._pace_at, self._tail_at)
        if self.state is not State.CLOSED:
            if self._signals is not None and self._signals.repeat_at < earliest:
                earliest = self._signals.repeat_at
            due = self.path_manager.next_timeout()
            if due is not None and due < earliest:
                earliest = due
        return None if earliest == INFINITE else earliest

    def on_timeout(self, now: float) -> None:
        """A deadline may have passed; early calls do nothing."""
        self._now = now
        if now >= self._pace_at:
            self._pace_at = INFINITE
            self.host.wake(self)
        if now >= self._life_at:
            self._on_abandoned(now)
            return
        if now >= self._fail_at:
            self._on_fail_timeout(now)
        if now >= self._tail_at:
            self._on_tail_timeout(now)
        if now >= self._rtx_at:
            self._on_rtx_timeout(now)
        if self.state is State.CLOSED:
            return
        if self._signals is not None:
            self._signals.on_timer(now)
        due = self.path_manager.next_timeout()
        if due is not None and now >= due:
            self.path_manager.on_timer(self, now)

    def _on_abandoned(self, now: float) -> None:
        """No subflow for ``close_timeout`` (FIN-04), or subflows that do not get closed."""
        self._life_at = INFINITE
        if self.state is not State.CLOSED:
            mute = self._closed_by_app and self.tx.fin_acked
            if not mute and any(subflow.fully_established for subflow in self.subflows):
                return
            if mute:
                self.host.event(self, Event.CLOSED)
                self.abort(now)
                return
            self.error = Failure(errno.ETIMEDOUT)
            self._end()
            self.host.event(self, Event.TIMED_OUT)
        for subflow in list(self.subflows):
            subflow.abort(now)
        self.subflows.clear()
        self._released()


def _capable_of(syn: Segment) -> MpCapable | None:
    for raw in syn.mptcp:
        option = parse_option(raw, True, False)
        if isinstance(option, MpCapable):
            return option
    return None
