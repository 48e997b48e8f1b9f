"""Connections in the detail of ``ss -Mi`` and ``ss -ti``, and what can be done with one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from proxy.cc import base as cc
from proxy.control.fields import CommandError, Request, number, token, word
from proxy.control.status import state_name
from proxy.control.why import explain, token_of
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.info import mptcp_fields
from proxy.mptcp.notes import Fallback
from proxy.mptcp.subflow import Subflow
from proxy.sched import base as sched
from proxy.tcp.connection import TcpConnection

if TYPE_CHECKING:
    from proxy.relay.flow import Flow

_MAX_ID = (1 << 63) - 1


class SocketCommands:
    """Acts on the conversations of a relay.

    ``flows`` gives them all, ``status`` the daemon's ``Status``.
    """

    def __init__(
        self,
        flows: Callable[[], Iterable[Flow]],
        status: Callable[[], Mapping[str, object]],
        clock: Callable[[], float],
    ) -> None:
        self._flows = flows
        self._status = status
        self._clock = clock

    def sockets(self, request: Request) -> object:
        """``sockets``: every conversation, its MPTCP connection and the subflows."""
        return [describe(flow) for flow in self._flows()]

    def connection(self, request: Request) -> object:
        """``connection``: ``conn`` (its id), ``action`` (show, close, scheduler, cc), ``name``."""
        flow = self._find(number(request, "conn", 0, _MAX_ID))
        action = word(request, "action")
        if action == "close":
            flow.abort(self._clock())
            return None
        if action == "scheduler":
            _set_scheduler(_mptcp(flow), word(request, "name"))
        elif action == "cc":
            _set_congestion_control(_stream(flow), word(request, "name"), self._clock())
        elif action != "show":
            raise CommandError("EINVAL", f"no action {action}: show, close, scheduler, cc")
        return self._show(flow)

    def why(self, request: Request) -> object:
        """``why``: where the time of one went; ``conn`` (its id) or ``token``."""
        if "token" not in request:
            return explain(self._find(number(request, "conn", 0, _MAX_ID)), self._clock())
        wanted = token(request)
        for flow in self._flows():
            if token_of(flow) == wanted:
                return explain(flow, self._clock())
        raise CommandError("ENOENT", f"no connection has token {wanted:08x} (ss -i shows them)")

    def _find(self, wanted: int) -> Flow:
        for flow in self._flows():
            if flow.id == wanted:
                return flow
        raise CommandError("ENOENT", f"no connection has id {wanted} (status shows those open)")

    def _show(self, flow: Flow) -> dict[str, object]:
        entries = self._status().get("connections")
        assert isinstance(entries, list)
        entry = next(entry for entry in entries if entry["id"] == flow.id)
        return {**entry, **describe(flow)}


def describe(flow: Flow) -> dict[str, object]:
    """One conversation: its side towards the other box."""
    stream = _stream(flow)
    fields: dict[str, object] = {
        "id": flow.id,
        "state": state_name(stream.state),
        "local": str(stream.local),
        "remote": str(stream.remote),
    }
    if isinstance(stream, MptcpConnection):
        fields["recv-q"] = stream.receivable
        fields["send-q"] = stream.tx.end - stream.tx.una
        fields["scheduler"] = stream.scheduler.name
        fields["info"] = mptcp_info(stream)
        fields["subflows"] = [subflow_info(subflow) for subflow in stream.subflows]
    else:
        fields["recv-q"] = stream.receivable
        fields["send-q"] = stream.bytes_in_flight
        fields["subflows"] = [subflow_info(stream)]
    return fields


def mptcp_info(conn: MptcpConnection) -> dict[str, object]:
    """The fields of the kernel's ``struct mptcp_info``; flags by name, the token as text."""
    fields: dict[str, object] = dict(mptcp_fields(conn))
    del fields["flags"]
    fields["fallback"] = conn.fallback is not Fallback.NONE
    fields["remote_key"] = bool(conn.remote_key)
    fields["token"] = f"{conn.local_key.token:08x}"
    return fields


def subflow_info(subflow: TcpConnection) -> dict[str, object]:
    """One TCP connection: times in seconds, windows in bytes, rates in bytes per second."""
    fields: dict[str, object] = {
        "state": state_name(subflow.state),
        "local": str(subflow.local),
        "remote": str(subflow.remote),
        "cc": subflow.congestion.name,
        "rto": subflow.rto,
        "srtt": subflow.srtt or None,
        "rttvar": subflow.rttvar or None,
        "min_rtt": None if math.isinf(subflow.min_rtt) else subflow.min_rtt,
        "mss": subflow.mss,
        "cwnd": subflow.cwnd,
        "ssthresh": None if subflow.ssthresh >= 1 << 30 else subflow.ssthresh,
        "in_flight": subflow.bytes_in_flight,
        "snd_wnd": subflow.snd_wnd,
        "backoff": subflow.rto_count,
        "bytes_sent": subflow.bytes_sent,
        "bytes_retrans": subflow.bytes_retransmitted,
        "bytes_acked": subflow.bytes_acked,
        "bytes_received": subflow.bytes_received,
        "delivery_rate": subflow.delivery_rate or None,
    }
    if isinstance(subflow, Subflow):
        fields["uplink"] = subflow.uplink
        fields["loc-id"] = subflow.local_id
        fields["rem-id"] = subflow.remote_id
        fields["flags"] = ulp_flags(subflow)
        fields["stale"] = subflow.stale
        fields["reinjected"] = subflow.bytes_reinjected
    return fields


def ulp_flags(subflow: Subflow) -> str:
    """The letters of ``tcp-ulp-mptcp flags:`` in ``ss -ti`` (3.8 of the diag attributes).

    M/m MP_CAPABLE of the remote/local side, J/j MP_JOIN, B/b backup asked for by the remote/local
    side, e fully established, c connected.
    """
    if not subflow.mptcp:
        return ""
    kind = ("M", "m") if subflow.initial else ("J", "j")
    answered = subflow.conn.remote_key and subflow.srtt
    letters = (
        (kind[0], answered),
        (kind[1], True),
        ("B", subflow.peer_backup),
        ("b", subflow.backup),
        ("e", subflow.fully_established),
        ("c", state_name(subflow.state) == "ESTAB"),
    )
    return "".join(letter for letter, present in letters if present)


def _stream(flow: Flow) -> MptcpConnection | TcpConnection:
    for side in (flow.far, flow.near):
        if isinstance(side, MptcpConnection):
            return side
    for side in (flow.near, flow.far):
        if isinstance(side, TcpConnection):
            return side
    raise CommandError("EINVAL", f"connection {flow.id} has no side in this engine")


def _mptcp(flow: Flow) -> MptcpConnection:
    stream = _stream(flow)
    if not isinstance(stream, MptcpConnection):
        raise CommandError("EOPNOTSUPP", f"connection {flow.id} is plain TCP: nothing to schedule")
    return stream


def _set_scheduler(conn: MptcpConnection, name: str) -> None:
    if name not in sched.names():
        names = ", ".join(sched.names())
        raise CommandError("ENOENT", f"no scheduler {name}: there are {names}")
    conn.set_scheduler(name)


def _set_congestion_control(stream: MptcpConnection | TcpConnection, name: str, now: float) -> None:
    if name not in cc.names():
        names = ", ".join(cc.names())
        raise CommandError("ENOENT", f"no congestion control {name}: there are {names}")
    if isinstance(stream, MptcpConnection):
        stream.set_congestion_control(name)
    else:
        stream.set_congestion_control(name, now)
