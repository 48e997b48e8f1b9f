"""Uplinks that appear, vanish or change address: what that means for live connections.

A vanished uplink's subflows are reset and their data goes over the others at once; REMOVE_ADDR
tells the gateway, so that downloads do not wait for a time-out either. An uplink that returns, or
that got another address, is joined again (RFC 8684 §3.2: a subflow is its four-tuple; the gateway
would see the old one come from a stranger). An uplink without carrier keeps its subflows, stale:
most such outages are short, and the address stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from proxy.mptcp.connection import MptcpConnection

if TYPE_CHECKING:
    from proxy.engine.stack import Stack
    from proxy.mptcp.subflow import Subflow
    from proxy.pm.base import Endpoint
    from proxy.relay.uplinks import HostUplink, UplinkHealth

Lost = Callable[["UplinkHealth", bytes, float], None]
"""Told that an engine address has no way out (any more), or another one."""


class Hotplug:
    """Keeps endpoints and live connections in step with the uplinks of the host.

    ``lost`` is called for connections that are only being opened. ``endpoints`` of uplinks that
    are away are kept here, as the operator last had them.
    """

    def __init__(self, stack: Stack, order: Callable[[], Sequence[bytes]], lost: Lost) -> None:
        """``order`` gives the engine addresses of all uplinks, in the order of preference."""
        self._stack = stack
        self._order = order
        self._lost = lost
        self._away: dict[bytes, Endpoint] = {}

    def follow(self, health: UplinkHealth, host: HostUplink, now: float) -> bool:
        """``health`` becomes what the host says; True if that changed whether it can be used."""
        was_waiting = health.waits_for
        before, old_sources = health.ways, health.sources
        health.ways = frozenset(ip for ip in (host.addr4, host.addr6) if ip is not None)
        health.sources = frozenset(host.sources)
        health.waits_for = host.waits_for
        for ip in (health.local_ip, health.other_ip):
            if ip in before and ip not in health.ways:
                self._vanished(health, ip, now)
            elif ip in health.ways and ip not in before:
                self._appeared(ip, now)
            elif ip in before and any(
                len(source) == len(ip) for source in old_sources - health.sources
            ):
                self._moved(health, ip, now)
        if health.waits_for and not was_waiting:
            self._stalled(health, now)
        elif was_waiting and not health.waits_for:
            self._returned(health, now)
        return bool(was_waiting) != bool(health.waits_for)

    def expect(self, endpoint: Endpoint) -> None:
        """``endpoint`` is new and gets into use once its uplink can be used."""
        self._away[endpoint.ip] = endpoint

    def forget(self, ip: bytes) -> None:
        """The address is no uplink's any more."""
        self._away.pop(ip, None)

    def change(self, old: Endpoint, new: Endpoint, now: float) -> None:
        """The configuration of an endpoint changed: what differs is taken over.

        The gateway learns a weight from an endpoint's id, so from connections opened afterwards.
        """
        changed = {
            name: getattr(new, name)
            for name in ("id", "backup", "weight")
            if getattr(old, name) != getattr(new, name)
        }
        away = self._away.get(new.ip)
        if away is not None:
            self._away[new.ip] = replace(away, **changed)
            return
        for endpoint in self._stack.local_addresses:
            if endpoint.ip == new.ip:
                self._change(endpoint, replace(endpoint, **changed), now)

    def _change(self, endpoint: Endpoint, changed: Endpoint, now: float) -> None:
        endpoints = self._stack.local_addresses
        if any(other.id == changed.id for other in endpoints if other is not endpoint):
            changed = replace(changed, id=endpoint.id)  # an endpoint of the operator's has it
        self._stack.local_addresses = [changed if e is endpoint else e for e in endpoints]
        for conn, subflows in self._over(changed.ip):
            for subflow in subflows:
                subflow.weight = changed.weight
            conn.path_manager.on_endpoint_changed(conn, endpoint, changed, now)

    # -- one engine address -----------------------------------------------------------------------

    def _vanished(self, health: UplinkHealth, ip: bytes, now: float) -> None:
        for conn, subflows in self._over(ip):
            for subflow in subflows:
                conn.lose_path(subflow, now)
        endpoints = self._stack.local_addresses
        endpoint = next((e for e in endpoints if e.ip == ip), None)
        if endpoint is not None:
            self._away[ip] = endpoint
            self._stack.local_addresses = [e for e in endpoints if e is not endpoint]
            for conn in self._connections():
                conn.path_manager.on_endpoint_removed(conn, endpoint, now)
        self._drop(ip, now)
        self._lost(health, ip, now)

    def _appeared(self, ip: bytes, now: float) -> None:
        endpoint = self._away.pop(ip, None)
        if endpoint is None:
            return
        order = {ip: position for position, ip in enumerate(self._order())}
        self._stack.local_addresses = sorted(
            [*self._stack.local_addresses, endpoint],
            key=lambda other: order.get(other.ip, len(order)),
        )
        for conn in self._connections():
            conn.path_manager.on_endpoint_added(conn, endpoint, now)

    def _moved(self, health: UplinkHealth, ip: bytes, now: float) -> None:
        self._drop(ip, now)
        self._lost(health, ip, now)

    def _drop(self, ip: bytes, now: float) -> None:
        for conn, subflows in self._over(ip):
            for subflow in subflows:
                conn.forsake_subflow(subflow, now)

    # -- carrier --------------------------------------------------------------------------------

    def _stalled(self, health: UplinkHealth, now: float) -> None:
        for ip in health.ways:
            for conn, subflows in self._over(ip):
                for subflow in subflows:
                    if any(s is not subflow for s in conn.usable_subflows()):
                        conn.lose_path(subflow, now)

    def _returned(self, health: UplinkHealth, now: float) -> None:
        health.suspect_until = 0.0
        for ip in health.ways:
            for conn, subflows in self._over(ip):
                for subflow in subflows:
                    # What has data under way probes by itself.
                    if subflow.stale and not subflow.bytes_in_flight:
                        conn.on_recovered(subflow, now)
            for endpoint in self._stack.local_addresses:
                if endpoint.ip == ip:
                    for conn in self._connections():
                        conn.path_manager.on_endpoint_added(conn, endpoint, now)

    # -- connections ----------------------------------------------------------------------------

    def _connections(self) -> Iterator[MptcpConnection]:
        for conn in list(self._stack.tokens.values()):
            if conn.fully_established:
                yield conn

    def _over(self, ip: bytes) -> Iterable[tuple[MptcpConnection, Sequence[Subflow]]]:
        for conn in self._connections():
            subflows = [subflow for subflow in conn.subflows if subflow.local.ip == ip]
            if subflows:
                yield conn, subflows
