"""``why``: where the time of a connection went, from the chronographs of its sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from proxy.control.fields import CommandError
from proxy.control.schema import Spell, SubflowSpell, Why
from proxy.control.status import state_name
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import Fallback
from proxy.mptcp.subflow import Subflow
from proxy.tcp.chronograph import Limited, Timed
from proxy.tcp.connection import TcpConnection
from proxy.tcp.states import State

if TYPE_CHECKING:
    from proxy.relay.flow import ByteStream, Flow

_SENDING = {
    Limited.SCHEDULER: "scheduler",
    Limited.SILENCE: "silent-path",
    Limited.CONGESTION: "congestion-window",
    Limited.PACING: "pacing",
    Limited.RATE_LIMIT: "rate-limit",
    Limited.WINDOW: "peer-window",
    Limited.READER: "peer-reader",
    Limited.SEND_BUFFER: "send-buffer",
    Limited.NO_SUBFLOW: "no-subflow",
}
_RECEIVING = {Limited.GAP: "gap", Limited.READER: "reader"}


def explain(flow: Flow, now: float) -> Why:
    """The ``why`` of a conversation; CommandError if none of its sides is in this engine."""
    stream, local = _ends(flow)
    age = now - flow.started
    opening = _opening(stream, now)
    if isinstance(stream, MptcpConnection):
        sender: Timed = stream.tx
        receiving = _spell(stream.rx, _RECEIVING, "peer", age, now)
        sent, received = stream.tx.nxt, stream.rx.stream.rcv_nxt
        subflows = [_subflow(subflow, now) for subflow in stream.subflows]
    else:
        sender = stream
        receiving = {"now": "peer", "seconds": {"peer": age}}
        sent, received = stream.bytes_sent, stream.bytes_received
        subflows = [_subflow(stream, now)]
    sending = _spell(sender, _SENDING, "application", age, now)
    sending["seconds"]["opening"] = opening
    why: Why = {
        "role": "proxy" if stream is flow.far else "gateway",
        "id": flow.id,
        "token": None,
        "peer-token": None,
        "age": age,
        "bytes-sent": sent,
        "bytes-received": received,
        "sending": sending,
        "receiving": receiving,
        "local": None,
        "subflows": subflows,
    }
    if isinstance(stream, MptcpConnection) and stream.fallback is Fallback.NONE:
        why["token"] = f"{stream.local_key.token:08x}"
        why["peer-token"] = f"{stream.remote_token:08x}"
    if isinstance(local, TcpConnection):
        why["local"] = _spell(local, _SENDING, "application", age, now)
    return why


def token_of(flow: Flow) -> int | None:
    """By which ``why`` finds a conversation, too; None if it is plain TCP."""
    for side in (flow.far, flow.near):
        if isinstance(side, MptcpConnection) and side.fallback is Fallback.NONE:
            return side.local_key.token
    return None


def _ends(flow: Flow) -> tuple[MptcpConnection | TcpConnection, ByteStream]:
    """The side towards the other box, and that of the program here."""
    for side, other in ((flow.far, flow.near), (flow.near, flow.far)):
        if isinstance(side, MptcpConnection | TcpConnection):
            return side, other
    raise CommandError("EINVAL", f"connection {flow.id} has no side in this engine")


def _opening(stream: MptcpConnection | TcpConnection, now: float) -> float:
    first = stream.initial if isinstance(stream, MptcpConnection) else stream
    return 0.0 if first is None else first.opening_seconds(now)


def _spell(
    timed: Timed, names: Mapping[Limited, str], otherwise: str, age: float, now: float
) -> Spell:
    spent = timed.spent(now)
    seconds = {name: spent[limited] for limited, name in names.items()}
    return {
        "now": names.get(timed.limited, otherwise),
        "seconds": {otherwise: max(age - sum(seconds.values()), 0.0), **seconds},
    }


def _subflow(subflow: TcpConnection, now: float) -> SubflowSpell:
    spent = subflow.spent(now)
    seconds = {name: spent[limited] for limited, name in _SENDING.items()}
    opening = subflow.state in (State.SYN_SENT, State.SYN_RECEIVED)
    return {
        "local": str(subflow.local),
        "remote": str(subflow.remote),
        "uplink": subflow.uplink if isinstance(subflow, Subflow) else None,
        "state": state_name(subflow.state),
        "now": "opening" if opening else _SENDING.get(subflow.limited, "application"),
        "busy": subflow.busy_seconds(now),
        "awaited": spent[Limited.GAP] + _awaited_now(subflow, now),
        "seconds": {**seconds, "opening": subflow.opening_seconds(now)},
    }


def _awaited_now(subflow: TcpConnection, now: float) -> float:
    """Seconds that a gap has been open for which it is to blame as far as is known."""
    if not isinstance(subflow, Subflow):
        return 0.0
    conn = subflow.conn
    rx = conn.rx
    if rx.limited is not Limited.GAP or rx.chronograph is None:
        return 0.0
    late = conn.late_subflow(rx.stream.rcv_nxt, None)
    return now - rx.chronograph.since if late is subflow else 0.0
