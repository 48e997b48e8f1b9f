"""The uplinks of a proxy with their endpoints, as the configuration and the host have them now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.pm.base import Endpoint, uplink_id
from proxy.relay.hotplug import Hotplug, Lost
from proxy.relay.uplinks import HostUplink, UplinkHealth, preference

if TYPE_CHECKING:
    from proxy.config import ProxyConfig
    from proxy.engine.stack import Stack

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Removed:
    """What the host says of an uplink that is none any more."""

    name: str
    waits_for: str = "it is not configured any more"
    addr4: bytes | None = None
    addr6: bytes | None = None
    sources: tuple[bytes, ...] = ()


class UplinkTable:
    """All uplinks; ``endpoints`` by engine address, as the configuration has them.

    ``lost``: see ``Hotplug``. ``tell`` takes events and their attributes.
    """

    def __init__(self, config: ProxyConfig, stack: Stack, lost: Lost) -> None:
        self._stack = stack
        self.uplinks = uplinks_of(config)
        self.endpoints = {uplink.local_ip: endpoint_of(uplink) for uplink in self.uplinks}
        self.tell: Callable[[str, dict[str, object]], None] = lambda name, attributes: None
        self._hotplug = Hotplug(stack, lambda: list(self.endpoints), lost)
        stack.local_addresses = list(self.endpoints.values())

    def usable(self, length: int, now: float, names: Collection[str] = ()) -> list[UplinkHealth]:
        """Those by which addresses of ``length`` bytes can be reached, the best one first.

        ``names``: only these, if there are any.
        """
        usable = (
            uplink
            for uplink in self.uplinks
            if uplink.usable(length) and (not names or uplink.name in names)
        )
        return preference(usable, now)

    def metered(self) -> list[str]:
        """Names of the uplinks to spare: the metered ones, as long as another can be used."""
        spare = [uplink for uplink in self.uplinks if uplink.metered]
        others = any(not uplink.metered and not uplink.waits_for for uplink in self.uplinks)
        return [uplink.name for uplink in spare] if others else []

    def follow(self, host: Sequence[HostUplink], now: float) -> None:
        """The host's interfaces, addresses or routes changed."""
        for uplink in self.uplinks:
            for state in host:
                if state.name == uplink.name and self._hotplug.follow(uplink, state, now):
                    self._tell(uplink)

    def reconfigure(self, config: ProxyConfig, now: float) -> None:
        """The uplinks become those of ``config``; new ones wait for ``follow``."""
        wanted = {uplink.name: uplink for uplink in uplinks_of(config)}
        known = {uplink.name: uplink for uplink in self.uplinks}
        for name, uplink in known.items():
            if name not in wanted:
                self._remove(uplink, now)
        before = self.endpoints
        self.endpoints = {uplink.local_ip: endpoint_of(uplink) for uplink in wanted.values()}
        self.uplinks = [known.get(name, uplink) for name, uplink in wanted.items()]
        for uplink in self.uplinks:
            new = wanted[uplink.name]
            uplink.interface, uplink.backup, uplink.weight = new.interface, new.backup, new.weight
            uplink.metered = new.metered
            endpoint = self.endpoints[uplink.local_ip]
            if uplink.name not in known:
                uplink.ways, uplink.waits_for = frozenset(), "it was just configured"
                self._hotplug.expect(endpoint)
            elif endpoint != before[uplink.local_ip]:
                self._hotplug.change(before[uplink.local_ip], endpoint, now)

    def _remove(self, uplink: UplinkHealth, now: float) -> None:
        if self._hotplug.follow(uplink, _Removed(uplink.name), now):
            self._tell(uplink)
        self._hotplug.forget(uplink.local_ip)

    def _tell(self, uplink: UplinkHealth) -> None:
        attributes: dict[str, object] = {"uplink": uplink.name, "interface": uplink.interface}
        if uplink.waits_for:
            log.warning("uplink %s: %s", uplink.name, uplink.waits_for)
            self.tell("uplink-down", {**attributes, "waits-for": uplink.waits_for})
        else:
            log.info("uplink %s: %s can be used", uplink.name, uplink.interface)
            self.tell("uplink-up", attributes)


def uplinks_of(config: ProxyConfig) -> list[UplinkHealth]:
    """With their engine addresses; all have a way out until told otherwise."""
    v6 = len(config.gateway.address) == 16
    prefixes = (config.tun.prefix4, config.tun.prefix6)
    found = []
    for uplink in config.uplinks:
        ips = [prefix[10 + uplink.slot].packed for prefix in prefixes]
        found.append(
            UplinkHealth(
                uplink.name,
                uplink.interface,
                local_ip=ips[v6],
                other_ip=ips[not v6],
                slot=uplink.slot,
                backup=uplink.backup,
                weight=uplink.weight,
                metered=uplink.metered,
                ways=frozenset(ips),
            )
        )
    return found


def endpoint_of(uplink: UplinkHealth) -> Endpoint:
    """From which an uplink's subflows are opened."""
    return Endpoint(
        uplink.local_ip,
        uplink_id(uplink.slot, uplink.weight),
        uplink.name,
        subflow=True,
        backup=uplink.backup,
        weight=uplink.weight,
    )
