"""What a running box tells about itself, in the form of ``control/schema.py``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from proxy.control.schema import ConnectionStatus, Status, SubflowStatus, UplinkStatus
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import Fallback
from proxy.mptcp.subflow import Subflow
from proxy.tcp.connection import TcpConnection
from proxy.tcp.states import State
from proxy.wire.address import Address, format_ip

if TYPE_CHECKING:
    from proxy.relay.flow import ByteStream, Flow
    from proxy.relay.gateway import GatewayRelay
    from proxy.relay.lan import LanRelay
    from proxy.relay.treatment import Treatment
    from proxy.relay.uplinks import UplinkHealth

_STATE_NAMES = {
    State.ESTABLISHED: "ESTAB",
    State.SYN_RECEIVED: "SYN-RECV",
    State.CLOSED: "UNCONN",
}


def proxy_status(relay: LanRelay, now: float, waits_for: Sequence[str] = ()) -> Status:
    """The status of the home role; ``waits_for`` are LAN interfaces that are not there."""
    status = proxy_summary(relay, now, waits_for)
    status["connections"] = [
        _on_its_way(
            _connection(flow, flow.far, relay_source(flow.near), relay_target(flow.near), now),
            treatment,
        )
        for flow, treatment in relay.flows.items()
    ]
    return status


def proxy_summary(relay: LanRelay, now: float, waits_for: Sequence[str] = ()) -> Status:
    """As ``proxy_status``, without its connections."""
    subflows = [subflow for subflow in relay.stack.demux if isinstance(subflow, Subflow)]
    status: Status = {
        "role": "proxy",
        "pid": os.getpid(),
        "uptime": now - relay.started,
        "gateway": str(relay.gateway),
        "uplinks": [_uplink(relay, uplink, subflows, now) for uplink in relay.uplinks],
        "connections": [],
        "gateway_reachable": relay.watch.reachable,
        "counters": dict(relay.stack.counters),
    }
    if waits_for:
        status["waits_for"] = list(waits_for)
    return status


def _on_its_way(status: ConnectionStatus, treatment: Treatment) -> ConnectionStatus:
    status["via"] = treatment.via
    if treatment.rule is not None:
        status["rule"] = treatment.rule.name
    return status


def gateway_status(relay: GatewayRelay, now: float) -> Status:
    """The status of the far role."""
    status = gateway_summary(relay, now)
    for flow, client in relay.flows.items():
        source = relay_target(flow.near, remote=True)
        connection = _connection(flow, flow.near, source, str(flow.far.peer), now)  # type: ignore[attr-defined]
        connection["client"] = client
        status["connections"].append(connection)
    return status


def gateway_summary(relay: GatewayRelay, now: float) -> Status:
    """As ``gateway_status``, without its connections."""
    return {
        "role": "gateway",
        "pid": os.getpid(),
        "uptime": now - relay.started,
        "uplinks": [],
        "connections": [],
        "counters": dict(relay.stack.counters),
    }


def relay_source(stream: ByteStream) -> str:
    """The LAN client behind the near side of a proxy's flow."""
    return _text(getattr(stream, "remote", None))


def relay_target(stream: ByteStream, remote: bool = False) -> str:
    """The address that the near side of a flow was opened to (or ``remote``: came from)."""
    return _text(getattr(stream, "remote" if remote else "local", None))


def _text(address: Address | None) -> str:
    return "" if address is None else str(address)


def _connection(
    flow: Flow, stream: ByteStream, source: str, destination: str, now: float
) -> ConnectionStatus:
    token: str | None = None
    fallback: str | None = None
    subflows: Iterable[TcpConnection] = ()
    state = "UNCONN"
    if isinstance(stream, MptcpConnection):
        subflows = stream.subflows
        state = state_name(stream.state)
        if stream.fallback is Fallback.NONE:
            token = f"{stream.local_key.token:08x}"
        else:
            fallback = stream.fallback_reason or stream.fallback.value
    elif isinstance(stream, TcpConnection):
        subflows = (stream,)
        state = state_name(stream.state)
        fallback = "plain TCP"
    return {
        "id": flow.id,
        "token": token,
        "state": state,
        "source": source,
        "destination": destination,
        "fallback": fallback,
        "bytes_sent": flow.bytes_out,
        "bytes_received": flow.bytes_in,
        "age": now - flow.started,
        "subflows": [_subflow(subflow) for subflow in subflows],
    }


def _subflow(subflow: TcpConnection) -> SubflowStatus:
    return {
        "local": str(subflow.local),
        "remote": str(subflow.remote),
        "uplink": subflow.uplink if isinstance(subflow, Subflow) else None,
        "state": state_name(subflow.state),
        "backup": isinstance(subflow, Subflow) and (subflow.backup or subflow.peer_backup),
        "stale": isinstance(subflow, Subflow) and subflow.stale,
        "srtt": subflow.srtt or None,
        "cwnd": subflow.cwnd,
        "bytes_sent": subflow.bytes_sent,
        "bytes_received": subflow.bytes_received,
        "retransmitted": subflow.bytes_retransmitted,
        "reinjected": subflow.bytes_reinjected if isinstance(subflow, Subflow) else 0,
    }


def _uplink(
    relay: LanRelay, uplink: UplinkHealth, subflows: list[Subflow], now: float
) -> UplinkStatus:
    mine = [subflow for subflow in subflows if subflow.uplink == uplink.name]
    sent, received = relay.stack.retired.get(uplink.name, (0, 0))
    settled = [subflow for subflow in mine if subflow.fully_established]
    alive = [subflow for subflow in settled if not subflow.stale]
    status: UplinkStatus = {
        "name": uplink.name,
        "interface": uplink.interface,
        "address": format_ip(uplink.local_ip),
        "backup": uplink.backup,
        "up": not uplink.waits_for
        and (bool(alive) or (not settled and uplink.suspect_until <= now)),
        "subflows": len(mine),
        "bytes_sent": sent + sum(subflow.bytes_sent for subflow in mine),
        "bytes_received": received + sum(subflow.bytes_received for subflow in mine),
        "srtt": min((s.srtt for s in alive if s.srtt), default=0.0) or uplink.srtt or None,
    }
    status["gateway"] = relay.watch.state(uplink)
    if uplink.waits_for:
        status["waits_for"] = uplink.waits_for
    return status


def state_name(state: State) -> str:
    """As ``ss`` writes it."""
    return _STATE_NAMES.get(state) or state.name.replace("_", "-")
