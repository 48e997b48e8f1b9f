"""Subflows of a connection: joining, failing, recovering, and the path manager's calls."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from proxy.cc.coupling import Coupling
from proxy.mptcp import keys
from proxy.mptcp.connection_core import INFINITE, congestion_config
from proxy.mptcp.notes import Again, Fallback, Note
from proxy.mptcp.receiving import Receiving
from proxy.mptcp.signals import Signals
from proxy.mptcp.subflow import Subflow
from proxy.pm.base import of_uplink_id
from proxy.tcp.chronograph import Limited
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.address import Address
from proxy.wire.mptcp_options import (
    REASON_MIDDLEBOX,
    REASON_MPTCP,
    REASON_PERFORMANCE,
    REASON_PROHIBITED,
    REASON_RESOURCES,
    AddAddr,
    MpJoinSyn,
    MptcpOption,
    MpTcprst,
    parse_option,
)

if TYPE_CHECKING:
    from proxy.mptcp.connection import MptcpConnection
    from proxy.mptcp.subflow_core import SubflowCore
    from proxy.pm.base import Endpoint
    from proxy.seg import Segment

_OPENING = (State.LISTEN, State.SYN_SENT, State.SYN_RECEIVED)


class Paths(Receiving):
    """Everything that opens, watches and closes subflows."""

    __slots__ = ()

    def _fail(self, subflow: Subflow, now: float) -> None:
        """The connection cannot live on."""
        raise NotImplementedError

    def _released(self) -> None:
        """The connection is closed and its last subflow is gone."""
        raise NotImplementedError

    @property
    def signals(self) -> Signals:
        """Addresses and priorities; made when first needed."""
        if self._signals is None:
            self._signals = Signals(self)
        return self._signals

    def note(self, note: Note) -> None:
        """Queue the details of an event, and raise it."""
        self.notes.append(note)
        self.host.event(self, note.kind)

    # -- opening --------------------------------------------------------------------------------

    def _new_subflow(
        self, local: Address, remote: Address, *, active: bool, initial: bool
    ) -> Subflow:
        subflow = Subflow(
            cast("MptcpConnection", self),
            local,
            remote,
            active=active,
            initial=initial,
            config=self.tcp_config,
        )
        self._rank(subflow)
        self.subflows.append(subflow)
        self._usable = None
        self._couple(subflow)
        self.host.register(subflow)
        return subflow

    def _rank(self, subflow: Subflow) -> None:
        # What the schedulers go by. The side that has no uplinks knows the order of joining only.
        subflow.priority = len(self.subflows)
        if subflow.active:
            for index, endpoint in enumerate(self.host.local_addresses):
                if endpoint.ip == subflow.local.ip:
                    subflow.weight = endpoint.weight
                    subflow.priority = index
                    return

    def _rank_joined(self, subflow: Subflow) -> None:
        if not subflow.remote_id:
            return  # the initial subflow's address once more
        subflow.priority, subflow.weight = of_uplink_id(subflow.remote_id)
        initial = self.initial
        if initial is not None and not initial.active:
            # It came as id 0: its uplink is the first that is none of the others.
            taken = {s.priority for s in self.subflows if s is not initial}
            initial.priority = next(p for p in range(len(taken) + 1) if p not in taken)

    def _couple(self, subflow: Subflow) -> None:
        # CC-01: the congestion controls of one connection may look at each other.
        if subflow.congestion.coupled:
            if self.coupling is None:
                self.coupling = Coupling()
            subflow.congestion.couple(self.coupling)

    def set_congestion_control(self, name: str) -> None:
        """Change the congestion control of all subflows, also of those to come.

        KeyError for an unknown name; nothing is changed then.
        """
        self.tcp_config = congestion_config(self.tcp_config, name)
        for subflow in self.subflows:
            self.set_subflow_congestion(subflow, name)

    def set_subflow_congestion(self, subflow: Subflow, name: str | None) -> None:
        """Change that of one subflow alone; None: to that of all. KeyError as above."""
        before = subflow.congestion
        subflow.set_congestion_control(name or self.tcp_config.congestion_control, self._now)
        if subflow.congestion is not before:
            self._couple(subflow)

    def open_subflow(
        self,
        local: Address,
        remote: Address,
        now: float,
        local_id: int = 0,
        remote_id: int = 0,
        backup: bool = False,
        uplink: str | None = None,
    ) -> Subflow | None:
        """Join from ``local`` to ``remote``; None if the connection takes no more subflows."""
        if not self._joinable():
            return None
        subflow = self._new_subflow(local, remote, active=True, initial=False)
        subflow.local_id = local_id
        subflow.remote_id = remote_id
        subflow.backup = backup
        subflow.leave_by(uplink)
        subflow.local_nonce = keys.nonce(self.host.rng)
        self.host.counters.add("MPTcpExtMPJoinSynTx")
        self.trace("subflow-opening", subflow, now)
        subflow.connect(now)
        return subflow

    def _joinable(self) -> bool:
        # CAP-08, JOIN-11
        return (
            self.fully_established
            and self.fallback is Fallback.NONE
            and self.state is not State.CLOSED
            and not (self.tx.fin_acked and self.rx.finished)
            and len(self.subflows) <= 16
        )

    def on_join(self, syn: Segment, now: float) -> None:
        """A SYN with MP_JOIN and our token (RFC 8684 §3.2); answered or reset."""
        join = _join_of(syn)
        if join is None:
            return
        if join.backup:
            self.host.counters.add("MPTcpExtMPJoinSynBackupRx")
        if syn.dport != self.local.port:
            self.host.counters.add("MPTcpExtMPJoinPortSynRx")
        if not self._joinable():
            self.host.reset(syn, now, MpTcprst(REASON_MPTCP).build())
            return
        half_open = sum(1 for s in self.subflows if not s.active and s.state in _OPENING)
        if half_open >= self.config.max_half_open_joins:
            # Before any HMAC is computed (RFC 7430 §4.1); a later try may find room.
            self.host.counters.add("MPTcpExtMPJoinRejected")
            self.host.reset(syn, now, MpTcprst(REASON_RESOURCES, transient=True).build())
            return
        if not self.may_join(now, None) and self._replaceable(join.address_id, None) is None:
            self.host.counters.add("MPTcpExtMPJoinRejected")
            self.host.reset(syn, now, MpTcprst(REASON_PROHIBITED, transient=True).build())
            return
        if self.initial_denied(join, syn):
            self.host.reset(syn, now, MpTcprst(REASON_PROHIBITED).build())
            return
        if self._crossed(join, syn, now):
            self.host.reset(syn, now, MpTcprst(REASON_PROHIBITED, transient=True).build())
            return
        subflow = self._new_subflow(
            Address(syn.dst, syn.dport), Address(syn.src, syn.sport), active=False, initial=False
        )
        subflow.remote_id = join.address_id
        self._rank_joined(subflow)
        subflow.remote_nonce = join.nonce
        subflow.peer_backup = join.backup
        subflow.local_id = self._local_id(syn.dst)
        subflow.local_nonce = keys.nonce(self.host.rng)
        subflow.open_passive(syn, now)
        subflow.accept(now)

    def _crossed(self, join: MpJoinSyn, syn: Segment, now: float) -> bool:
        """JOIN-07: whether a join of ours between the same addresses, not answered yet, stays.

        It does if we began the connection; else ours ends, and the peer's is the one.
        """
        for subflow in self.subflows:
            ours = subflow.active and subflow.state is State.SYN_SENT and not subflow.initial
            if ours and subflow.local.ip == syn.dst and subflow.remote_id == join.address_id:
                if self.active:
                    return True
                self.drop_subflow(subflow, now)
                return False
        return False

    def initial_denied(self, join: MpJoinSyn, syn: Segment) -> bool:
        """We set flag C, and this join is to our initial address, which we did not announce."""
        if not self.denies_initial or (syn.dst, syn.dport) != (self.local.ip, self.local.port):
            return False
        ip = self.host.public_addresses.get(syn.dst, syn.dst)
        return not any(e.signal and e.ip == ip for e in self.host.local_addresses)

    def _local_id(self, ip: bytes) -> int:
        if ip == self.local.ip:
            return 0
        ip = self.host.public_addresses.get(ip, ip)
        for endpoint in self.host.local_addresses:
            if endpoint.ip == ip:
                return endpoint.id
        return 0

    def may_join(self, now: float, joining: Subflow | None) -> bool:
        """Whether the path manager takes one more subflow (``joining`` counts already)."""
        if not self._joinable():
            return False
        if joining is None:
            return self.path_manager.accepts_join(self, now)
        return True

    # -- established ----------------------------------------------------------------------------

    def on_join_complete(self, subflow: Subflow, now: float) -> None:
        """Both HMACs are right and the handshake of a join is over."""
        if self._held is not None:
            # MP_FAIL waits for an answer on the subflow that was the only one: it is no more.
            for other in self.subflows:
                if other is not subflow:
                    other.doom(REASON_MIDDLEBOX)
            self.stop_holding()
        if not subflow.active:
            self._make_room(subflow)
        subflow.fully_established = True
        if not self._closed_by_app:
            self._life_at = INFINITE
        self.contiguous = False
        self._usable = None
        self.trace("subflow-established", subflow, now)
        self.note(Note(Event.SUBFLOW_ESTABLISHED, subflow.local, subflow.remote, subflow.remote_id))
        if self.tx.fin_sent and not self.tx.fin_acked:
            subflow.fin_due = True
            subflow.request_ack()
        self._watch_again(now)
        self.path_manager.on_subflow_established(self, subflow, now)
        self._relieve(subflow, now)
        self.host.wake(self)

    def _replaceable(self, remote_id: int, joining: Subflow | None) -> Subflow | None:
        # A peer whose paths broke comes back before we have noticed that they did: the subflow
        # that makes no progress, or else that of the same address of his, is the old one.
        same = None
        for subflow in self.subflows:
            if subflow is joining or subflow.active or subflow.closing or subflow.doomed:
                continue
            if subflow.stale or subflow.rto_count > 1:
                return subflow
            if subflow.remote_id == remote_id and subflow.fully_established:
                same = subflow
        return same

    def _make_room(self, joining: Subflow) -> None:
        # Only now that the HMAC is right, or a stranger could end subflows.
        if len(self.path_subflows) > self.limits.subflows + 1:
            old = self._replaceable(joining.remote_id, joining)
            if old is not None:
                old.doom(REASON_PERFORMANCE)

    # -- trouble --------------------------------------------------------------------------------

    def on_subflow_timeout(self, subflow: Subflow, now: float) -> None:
        """An RTO: its data goes to others, and it only probes until it answers (STALE-01)."""
        if not subflow.fully_established or subflow.state in _OPENING:
            return
        self._usable = None
        self.trace("timeout", subflow, now, count=subflow.rto_count)
        others = [s for s in self.usable_subflows() if s is not subflow and not s.rto_count]
        if not others:
            if self.tx.limited is not Limited.SILENCE:
                self.tx.turn(Limited.SILENCE, now)
            return
        self.reinject_all(subflow, Again.TIMEOUT)
        limit = self.config.stale_loss_cnt
        if not subflow.stale and 0 < limit <= max(subflow.rto_count, 1):
            subflow.stale = True
            subflow.rto_backoff_cap = self.config.rto_backoff_cap
            subflow.probe_soon(now)
            self._usable = None
            self.host.counters.add("MPTcpExtSubflowStale")
            self.trace("subflow-stale", subflow, now, reason=Again.TIMEOUT.value)

    def lose_path(self, subflow: Subflow, now: float) -> None:
        """The link or the address behind ``subflow`` is gone: its data goes over others at once."""
        if self.fallback is Fallback.NONE and not subflow.stale:
            self.reinject_all(subflow, Again.PATH_LOST)
            self.trace("subflow-stale", subflow, now, reason=Again.PATH_LOST.value)
            subflow.stale = True
            subflow.turn(Limited.SILENCE, now)
            subflow.rto_backoff_cap = self.config.rto_backoff_cap
            self._usable = None
            self.host.wake(self)

    def on_recovered(self, subflow: Subflow, now: float) -> None:
        """Any ACK of a stale subflow: it is used again."""
        subflow.stale = False
        subflow.turn(Limited.NOTHING, now)
        subflow.rto_backoff_cap = None
        self._usable = None
        self.trace("subflow-recovered", subflow, now)
        self.host.counters.add("MPTcpExtSubflowRecover")
        self._relieve(subflow, now)
        self.host.wake(self)

    def _relieve(self, subflow: Subflow, now: float) -> None:
        # It works, so what others have waited for in vain since their time-outs goes over it.
        for other in self.subflows:
            if other is not subflow and other.rto_count and not other.stale:
                self.on_subflow_timeout(other, now)

    def _all_stale(self) -> None:
        # The last usable one is gone: what is stale is better than nothing.
        self._usable = None
        if not self.usable_subflows():
            for subflow in self.subflows:
                if subflow.stale and not subflow.closing and not subflow.doomed:
                    subflow.stale = False
            self._usable = None

    # -- closing ------------------------------------------------------------------------------

    def may_close(self, subflow: Subflow) -> bool:
        """FIN-05: never the last subflow while data is not DATA_ACKed."""
        if self.tx.una >= self.tx.end and not (self.tx.fin and not self.tx.fin_acked):
            return True
        return any(s is not subflow for s in self.usable_subflows())

    def close_subflow(self, subflow: Subflow, now: float) -> None:
        """Close one subflow at our own wish; what it has not delivered goes over others."""
        if not (subflow.closing or subflow.doomed):
            self.host.counters.add("MPTcpExtRmSubflow")
            self.finish_subflow(subflow, now)

    def finish_subflow(self, subflow: Subflow, now: float) -> None:
        """Close one subflow, whoever wants it."""
        if subflow.closing or subflow.doomed:
            return
        self.reinject_all(subflow, Again.CLOSING)
        subflow.closing = True
        self._usable = None
        if subflow.stale or not subflow.fully_established or subflow.state in _OPENING:
            self.reset_subflow(subflow, REASON_PERFORMANCE, now)
        elif self._fin_misleads(subflow):
            subflow.flush_options(now)  # a REMOVE_ADDR has no other way
            self.reset_subflow(subflow, REASON_PERFORMANCE, now)
        else:
            subflow.close(now)

    def _fin_misleads(self, subflow: Subflow) -> bool:
        """Whether the peer may take a FIN of the subflow for the end of our stream."""
        raise NotImplementedError

    def reset_subflow(self, subflow: SubflowCore, reason: int, now: float) -> None:
        """RST with MP_TCPRST ``reason`` (RFC 8684 §3.6)."""
        subflow.reset_reason = reason
        subflow.abort(now)
        self.drop_subflow(cast("Subflow", subflow), now)

    def forsake_subflow(self, subflow: Subflow, now: float) -> None:
        """End a subflow whose path is gone without asking its other end.

        After a fall-back it is the only one: nothing is done then.
        """
        if self.fallback is Fallback.NONE and self.fully_established:
            self.reset_subflow(subflow, REASON_PERFORMANCE, now)

    def drop_subflow(self, subflow: Subflow, now: float) -> None:
        """A subflow that we ended ourselves: forget it, and tell the path manager."""
        if subflow.state is not State.CLOSED:
            subflow.discard(now)
        self.reinject_all(subflow, Again.GONE)
        self.on_subflow_gone(subflow, now, failed=True)

    def on_subflow_fin(self, subflow: Subflow, now: float) -> None:
        """The peer closed a subflow (FIN-04); after fall-back that is the end of the stream."""
        if not subflow.mptcp:
            if not self.rx.finished:
                self._finish_receiving(now)
            return
        if self._held is not None:
            return  # until the peer has answered MP_FAIL it may mean the end of the stream
        if self.state is State.CLOSED or subflow.closing:
            subflow.close(now)
        elif self.rx.fin_at < 0 and self.may_close(subflow):
            self.finish_subflow(subflow, now)
        else:
            # Nothing else is left: keep it for sending until the data is through. Or the peer has
            # said its DATA_FIN and closes its half of all subflows: we may still have to send.
            self._usable = None

    def _close_finished(self, now: float) -> None:
        if self.rx.fin_at >= 0:
            return
        for subflow in list(self.subflows):
            if subflow.fin_received and not subflow.stale and not subflow.closing:
                self.finish_subflow(subflow, now)

    def on_subflow_gone(self, subflow: Subflow, now: float, failed: bool) -> None:
        """A subflow is closed for good or in TIME-WAIT."""
        if subflow not in self.subflows:
            return
        self.subflows.remove(subflow)
        self.trace("subflow-gone", subflow, now, **_end_of(subflow, failed))
        subflow.congestion.release()
        subflow.detached = True
        if subflow.due and subflow.state is not State.CLOSED:
            self.host.wake(subflow)
        self._usable = None
        if subflow.fully_established:
            self.stop_holding()
        if self._last_rx is subflow:
            self._last_rx = None
        if self.state is State.CLOSED:
            if not self.subflows:
                self._released()
            return
        if self.fallback is not Fallback.NONE and subflow.mptcp:
            return  # a join that the fall-back ended
        if self.fallback is not Fallback.NONE or (subflow.initial and not self.fully_established):
            self._fail(subflow, now)
            return
        self.note(
            Note(
                Event.SUBFLOW_CLOSED,
                subflow.local,
                subflow.remote,
                subflow.remote_id,
                subflow.reset_reason,
            )
        )
        self._all_stale()
        if self._unknown_to_peer(subflow):
            self._fail(subflow, now)
            return
        if self._life_at == INFINITE and not any(s.fully_established for s in self.subflows):
            self._life_at = now + self.config.close_timeout
        self.path_manager.on_subflow_closed(self, subflow, subflow.reset_reason, now)
        self.arm()
        self.host.wake(self)

    def stop_holding(self) -> None:
        """Forget bytes after a bad checksum: not DATA_ACKed, so the peer sends them again."""
        self._held = None
        self._fail_at = INFINITE

    def _unknown_to_peer(self, subflow: Subflow) -> bool:
        # A join answered by "unknown token", and no subflow that says otherwise: the peer has
        # lost the connection (it was restarted, say).
        return (
            subflow.active
            and not subflow.initial
            and not subflow.fully_established
            and subflow.reset_by_peer
            and subflow.reset_reason == REASON_MPTCP
            and not self.subflows
        )

    # -- the path manager's view ------------------------------------------------------------------

    @property
    def path_subflows(self) -> Sequence[Subflow]:
        """All subflows that are not closing."""
        return [s for s in self.subflows if not s.closing]

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """Those of the host's endpoints that it may use (``use_uplinks``)."""
        endpoints = self.host.local_addresses
        if self._uplinks is None:
            return endpoints
        return [endpoint for endpoint in endpoints if endpoint.uplink in self._uplinks]

    def use_uplinks(self, names: frozenset[str]) -> None:
        """Open no subflow on an uplink that is none of ``names``."""
        self._uplinks = names

    @property
    def denies_initial(self) -> bool:
        """We set flag C of MP_CAPABLE (RFC 8684 §3.1)."""
        return not self.config.allow_join_initial_addr_port

    @property
    def remote_addresses(self) -> dict[int, Address]:
        """What the peer announced, by address id."""
        return {} if self._signals is None else self._signals.remote

    @property
    def announcing(self) -> bool:
        """Whether an ADD_ADDR of ours waits for its echo."""
        return self._signals is not None and self._signals.announcing

    @property
    def join_delay(self) -> float:
        """``MptcpConfig.join_delay``; none where it takes several subflows to begin with."""
        return 0.0 if self.scheduler.duplicates else self.config.join_delay

    @property
    def data_flows(self) -> bool:
        """Whether bytes are under way or were seen a moment ago."""
        if self.tx.una < self.tx.end:
            return True
        return any(self._now - s.last_received < 5.0 for s in self.subflows)

    def announce(self, address: Address, address_id: int, now: float) -> None:
        """ADD_ADDR (RFC 8684 §3.4.1)."""
        if self.fallback is Fallback.NONE:
            self.signals.announce(address, address_id, now)

    def withdraw(self, address_id: int, now: float) -> None:
        """REMOVE_ADDR (RFC 8684 §3.4.2)."""
        if self.fallback is Fallback.NONE:
            self.signals.withdraw(address_id, now)

    def set_backup(self, subflow: Subflow, backup: bool, now: float) -> None:
        """MP_PRIO (RFC 8684 §3.3.8)."""
        if self.fallback is Fallback.NONE:
            self.signals.set_backup(subflow, backup)
            self.trace("priority", subflow, now, backup=backup)
            self.host.wake(self)

    def valid_add_addr(self, options: tuple[MptcpOption, ...]) -> bool:
        """Whether there is an ADD_ADDR with the right HMAC among ``options``."""
        return any(
            isinstance(option, AddAddr) and not option.echo and self.signals.valid(option)
            for option in options
        )


def _end_of(subflow: Subflow, failed: bool) -> dict[str, object]:
    """What a trace says of it."""
    error = None if subflow.error is None else errno.errorcode.get(subflow.error.errno)
    return {
        "failed": failed,
        "error": error,
        "reset-reason": subflow.reset_reason if subflow.reset_reason >= 0 else None,
        "by-peer": subflow.reset_by_peer,
    }


def _join_of(syn: Segment) -> MpJoinSyn | None:
    for raw in syn.mptcp:
        option = parse_option(raw, True, False)
        if isinstance(option, MpJoinSyn):
            return option
    return None
