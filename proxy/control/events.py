"""The event stream: what happens to connections, in the words of ``mptcp_pm_events``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import cast

from proxy.control.fields import family, ip_fields
from proxy.control.schema import EVENTS, VERSION
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.subflow import Subflow
from proxy.pm.base import Endpoint, PathConnection, PathSubflow
from proxy.wire.address import Address

Deliver = Callable[[str, bytes], None]
"""Takes the name of an event and the line to write."""


class EventHub:
    """Hands each event to all who listen; without anybody it costs nothing.

    It is the ``Audience`` of the path managers.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._listeners: dict[Deliver, None] = {}

    @property
    def listening(self) -> bool:
        """Whether anybody is there."""
        return bool(self._listeners)

    def subscribe(self, deliver: Deliver) -> None:
        """``deliver`` gets each event from now on; it must neither block nor raise."""
        self._listeners[deliver] = None

    def unsubscribe(self, deliver: Deliver) -> None:
        """No more events; harmless if there never were any."""
        self._listeners.pop(deliver, None)

    async def ready(self) -> None:
        """Returns when those who subscribed will miss nothing that happens from now on."""

    def relay(self, name: str, line: bytes) -> None:
        """Hand on an event as another process wrote it."""
        for deliver in list(self._listeners):
            deliver(name, line)

    def publish(self, name: str, attributes: dict[str, object]) -> None:
        """Tell everybody that ``name`` happened."""
        assert name in EVENTS, name
        event = {"version": VERSION, "event": name, "time": self._clock(), **attributes}
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        for deliver in list(self._listeners):
            deliver(name, line)

    def event(
        self,
        name: str,
        conn: PathConnection,
        subflow: PathSubflow | None = None,
        *,
        address_id: int = -1,
        address: Address | None = None,
        reason: int = -1,
    ) -> None:
        """See ``pm.observed.Audience``."""
        if not self._listeners:
            return
        connection = cast("MptcpConnection", conn)
        attributes: dict[str, object] = {"token": f"{connection.local_key.token:08x}"}
        if name in ("created", "established"):
            attributes |= _opened(connection)
        elif isinstance(subflow, Subflow):
            attributes |= _subflow(subflow, name, reason)
        elif address_id >= 0:
            attributes["rem-id"] = address_id
            if address is not None:
                attributes["family"] = family(address.ip)
                attributes |= ip_fields(address.ip, "daddr")
                attributes["dport"] = address.port
        self.publish(name, attributes)

    def listener(self, name: str, endpoint: Endpoint) -> None:
        """``listener-created`` or ``listener-closed`` for an endpoint with a port."""
        if self._listeners:
            attributes: dict[str, object] = {"family": family(endpoint.ip)}
            self.publish(
                name, attributes | ip_fields(endpoint.ip, "saddr") | {"sport": endpoint.port}
            )


def _opened(conn: MptcpConnection) -> dict[str, object]:
    flags = []
    if conn.remote_denies_initial:
        flags.append("deny-join-id0")
    if not conn.active:
        flags.append("server-side")
    return {
        "server-side": int(not conn.active),
        "flags": flags,
        **_ends(conn.local, conn.remote),
    }


def _subflow(subflow: Subflow, name: str, reason: int) -> dict[str, object]:
    fields: dict[str, object] = {
        "loc-id": subflow.local_id,
        "rem-id": subflow.remote_id,
        **_ends(subflow.local, subflow.remote),
        # The kernel's attribute: what the peer asked for, by flag B or by MP_PRIO.
        "backup": int(subflow.peer_backup),
    }
    if subflow.uplink is not None:
        fields["uplink"] = subflow.uplink
    if name == "sub-closed":
        if subflow.error is not None:
            fields["error"] = subflow.error.errno
        if reason >= 0:
            fields["reset-reason"] = reason
            fields["reset-flags"] = int(subflow.reset_transient)
    return fields


def _ends(local: Address, remote: Address) -> dict[str, object]:
    return {
        "family": family(local.ip),
        **ip_fields(local.ip, "saddr"),
        **ip_fields(remote.ip, "daddr"),
        "sport": local.port,
        "dport": remote.port,
    }
