"""The uplinks of a program's host: from which a connection leaves, what is announced to peers."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from proxy.net.uplinks import Uplink, uplink_address
from proxy.pm.base import Endpoint
from proxy.pm.kernel import KernelPathManager
from proxy.relay.hotplug import Hotplug
from proxy.relay.uplinks import UplinkHealth, preference

if TYPE_CHECKING:
    from proxy.config.sockets import SocketsConfig
    from proxy.engine.stack import Stack
    from proxy.pm.base import PathConnection

# Ids of endpoints are 1 and up: by kind, and by the uplink's slot in it.
_SLOTS = 8
_SUBFLOW4, _SUBFLOW6, _SIGNAL4, _SIGNAL6 = range(1, 4 * _SLOTS, _SLOTS)


class SocketPathManager(KernelPathManager):
    """Who connects joins from its uplinks; who listens announces them.

    The kernel leaves that to the flags of endpoints, which are those of a host; a program may do
    both, and neither a server's join nor a client's announcement reaches anybody behind a NAT.
    """

    __slots__ = ()

    def _endpoints(self, conn: PathConnection) -> Iterable[Endpoint]:
        return [e for e in conn.endpoints if (e.subflow if conn.active else e.signal)]


class UplinkSet:
    """All uplinks of a host, in step with what becomes of their interfaces."""

    def __init__(self, config: SocketsConfig, stack: Stack) -> None:
        prefix4, prefix6 = config.tun.prefix4, config.tun.prefix6
        self._stack = stack
        self._uplinks = [
            UplinkHealth(
                uplink.name,
                uplink.interface,
                local_ip=(ip4 := uplink_address(prefix4, uplink.slot)),
                other_ip=(ip6 := uplink_address(prefix6, uplink.slot)),
                slot=uplink.slot,
                backup=uplink.backup,
                weight=uplink.weight,
                metered=uplink.metered,
                ways=frozenset((ip4, ip6)),
            )
            for uplink in config.uplinks
        ]
        self._host: Sequence[Uplink] = ()
        self._hotplug = Hotplug(stack, self._order, lambda uplink, ip, now: None)
        stack.local_addresses = [
            Endpoint(
                uplink.ip(length),
                first + uplink.slot,
                uplink.name,
                subflow=True,
                backup=uplink.backup,
                weight=uplink.weight,
            )
            for length, first in ((4, _SUBFLOW4), (16, _SUBFLOW6))
            for uplink in self._uplinks
        ]
        stack.path_manager = SocketPathManager

    def _order(self) -> list[bytes]:
        return [uplink.ip(length) for length in (4, 16) for uplink in self._uplinks]

    def follow(self, host: Sequence[Uplink], now: float) -> None:
        """The host's interfaces, addresses or routes are such now."""
        self._host = host
        for health, state in zip(self._uplinks, host, strict=True):
            self._hotplug.follow(health, state, now)
        stack = self._stack
        stack.public_addresses = {
            engine: source
            for uplink in host
            for engine in (uplink.addr4, uplink.addr6)
            if engine is not None
            if (source := _source(uplink, len(engine)))
        }
        subflows = [endpoint for endpoint in stack.local_addresses if not endpoint.signal]
        stack.local_addresses = [*subflows, *self._announced()]

    def _announced(self) -> Iterable[Endpoint]:
        public = self._stack.public_addresses
        for length, first in ((4, _SIGNAL4), (16, _SIGNAL6)):
            for uplink in self._uplinks:
                address = public.get(uplink.ip(length))
                if address is not None and uplink.usable(length):
                    yield Endpoint(
                        address, first + uplink.slot, uplink.name, signal=True, backup=uplink.backup
                    )

    def pick(self, length: int, source: bytes, now: float) -> UplinkHealth:
        """By which to connect to an address of ``length`` bytes.

        ``source``: an address that it must have, if not empty. OSError: ENETUNREACH.
        """
        usable = (
            uplink
            for uplink in self._uplinks
            if uplink.usable(length) and (not source or source in uplink.sources)
        )
        for uplink in preference(usable, now):
            return uplink
        waits = "; ".join(f"{u.name}: {u.waits_for}" for u in self._uplinks if u.waits_for)
        reason = f" ({waits})" if waits else ""
        raise OSError(errno.ENETUNREACH, f"no uplink leads there{reason}")

    def owns(self, address: bytes) -> bool:
        """Whether an uplink has it."""
        return any(address in uplink.sources for uplink in self._host)

    def engine_address(self, address: bytes) -> bytes:
        """Ours behind an uplink's ``address``; OSError EADDRNOTAVAIL if it is none."""
        for uplink in self._host:
            engine = uplink.addr4 if len(address) == 4 else uplink.addr6
            if address in uplink.sources and engine is not None:
                return engine
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


def _source(uplink: Uplink, length: int) -> bytes:
    return next((source for source in uplink.sources if len(source) == length), b"")
