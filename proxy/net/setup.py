"""What each role sets up on its host, and how that is taken back, whatever happens."""

from __future__ import annotations

import logging
import socket
from abc import ABC, abstractmethod
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pyroute2.netlink.exceptions import NetlinkError

from proxy.errors import ConfigError, DeviceError
from proxy.net import bypass, forwarding, nft
from proxy.net.annex import annexes, far_addresses
from proxy.net.links import FAMILIES, Host, look
from proxy.net.netlink import outside_loop, session
from proxy.net.nft import Forwarding, Listener
from proxy.net.routes import MAIN, MARK, PROTOCOL, Route, Rule, Scope, present, reconcile
from proxy.net.sysctl import STATE_DIRECTORY, StateFile, Sysctls, read_sysctl, write_sysctl
from proxy.net.uplinks import FIRST_TABLE, Uplink, UplinkSettings, resolve, uplink_address

if TYPE_CHECKING:
    from proxy.config import GatewayConfig, LanConfig, ProxyConfig, TunConfig, UplinkConfig
    from proxy.toml_table import IpNetwork

__all__ = ["GatewaySetup", "HostSetup", "Numbers", "ProbeSetup", "Setup", "UplinkSetup"]

log = logging.getLogger(__name__)

_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
_LAST_METRIC: dict[int, int] = {socket.AF_INET: 0xFFFFFFFF, socket.AF_INET6: 0x7FFFFFFF}
_METRIC6 = 1024  # IP6_RT_PRIO_USER, what the kernel takes when none is given


class Setup(ABC):
    """The host set-up of one role. Its methods may be called from inside an event loop.

    ``clean_stale`` before the TUN device is opened, ``apply`` after, ``undo`` before it is closed.
    ``refresh`` while running, whenever links, addresses or routes of the host have changed.
    """

    role: str
    table: str
    scope: Scope

    def __init__(self, config: Any, state_directory: Path) -> None:
        self._config = config
        self._tun: TunConfig = config.tun
        self._state = StateFile(self.role, state_directory)
        self._sysctls = Sysctls(self._state)
        self._loaded = ""

    def plan(self) -> list[str]:
        """What ``apply`` would do on this host, as commands. Raises ConfigError, DeviceError."""
        return outside_loop(self._plan)

    def apply(self) -> None:
        """Do it all. Idempotent. Raises ConfigError or DeviceError; then all of it is undone."""
        outside_loop(self._apply)

    def undo(self) -> None:
        """Take it all back. Idempotent. Raises DeviceError when some of it could not be."""
        outside_loop(self._undo)

    def clean_stale(self) -> None:
        """Remove what an earlier process of this role left that could not undo it.

        Raises DeviceError while such a process still runs in this network namespace.
        """
        outside_loop(self._clean_stale)

    def missing(self) -> list[str]:
        """The routes and rules that ``apply`` set up and that are not there now, as commands."""
        return outside_loop(self._missing)

    def refresh(self) -> list[str]:
        """Follow changes of the host (a new default route, an interface that returned).

        Returns the commands that were needed; none when all was as it should be.
        """
        return outside_loop(self._refresh)

    def reconfigure(self, config: Any) -> list[str]:
        """As ``refresh``, by another configuration of the same role and TUN.

        Raises DeviceError; then the set-up is that of the old configuration.
        """
        return outside_loop(self._reconfigure, config)

    def _reconfigure(self, config: Any) -> list[str]:
        old, self._config = self._config, config
        try:
            return self._refresh()
        except BaseException:
            self._config = old
            self._refresh()
            raise

    def _plan(self) -> list[str]:
        with session() as ipr:
            host = look(ipr, PROTOCOL)
        self._resolve(host)
        routes, rules = self._wanted(host)
        name = self._tun.name
        lines = [f"ip link set {name} up mtu {self._tun.mtu} addrgenmode none"]
        lines.extend(str(route) for route in routes)
        lines.extend(str(rule) for rule in rules)
        lines.extend(forwarding.wanted(self.forwarders(host)))
        if read_sysctl(_LIBERAL) != "1":
            lines.append(f"sysctl -w {_LIBERAL}=1")
        script = self._nft(Forwarding()).splitlines()
        return lines + [f"nft: {line.expandtabs(4)}" for line in script]

    def _apply(self) -> None:
        self._state.lock()
        try:
            with session() as ipr:
                host = look(ipr, PROTOCOL)
                self._resolve(host)
                self._check_prefixes(host)
                self._prepare_tun(ipr)
                routes, rules = self._wanted(look(ipr, PROTOCOL))
                # First the table that drops what must not pass, then what lets packets pass.
                self._load(Forwarding())
                self._relax_conntrack()
                reconcile(ipr, self.scope, routes, rules)
                self._enable_forwarding(host)
        except BaseException:
            try:
                self._undo()
            except DeviceError as error:
                log.warning("after a failed set-up: %s", error)
            raise

    def _refresh(self) -> list[str]:
        with session() as ipr:
            host = look(ipr, PROTOCOL)
            self._resolve(host)
            routes, rules = self._wanted(host)
            changes = reconcile(ipr, self.scope, routes, rules)
            self._enable_forwarding(host)
        return changes

    def _missing(self) -> list[str]:
        with session() as ipr:
            host = look(ipr, PROTOCOL)
            self._resolve(host)
            wanted_routes, wanted_rules = self._wanted(host)
            routes, rules = present(ipr, self.scope)
        lost = [route for route in wanted_routes if route not in routes]
        return [*map(str, lost), *(str(rule) for rule in wanted_rules if rule not in rules)]

    def _relax_conntrack(self) -> None:
        """Let conntrack translate what is out of its idea of the window.

        A subflow's window is that of the whole connection, as announced on any subflow (RFC 8684
        §3.3.1), so conntrack, which sees one of them, can be wrong; and what it calls invalid is
        not translated. Rare enough to go on without where the sysctl is out of reach.
        """
        try:
            self._sysctls.set(_LIBERAL, "1")
        except DeviceError as error:
            log.warning("%s", error)

    def _enable_forwarding(self, host: Host) -> None:
        everyone = [link.name for link in host.links.values() if link.name != self._tun.name]
        on = forwarding.enable(self._sysctls, self.forwarders(host), everyone)
        self._load(on)

    def _load(self, on: Forwarding) -> None:
        script = self._nft(on)
        if script != self._loaded:
            self._before_load()
            nft.load(script)
            self._loaded = script

    def _before_load(self) -> None:
        """The table is about to be replaced, and its counters with it."""
        log.debug("%s: the table is replaced", self.table)

    def _clean_stale(self) -> None:
        self._state.lock()
        self._sysctls.recover()
        self._remove()

    def _undo(self) -> None:
        self._state.lock()
        try:
            self._remove()
        finally:
            self._state.unlock()

    def _remove(self) -> None:
        errors: list[str] = []
        for step in (self._remove_routes, self._remove_table, self._sysctls.restore):
            try:
                step()
            except DeviceError as error:
                errors.append(str(error))
        if errors:
            raise DeviceError("; ".join(errors))

    def _remove_routes(self) -> None:
        with session() as ipr:
            reconcile(ipr, self.scope, (), ())

    def _remove_table(self) -> None:
        self._loaded = ""
        nft.delete(self.table)

    def _check_prefixes(self, host: Host) -> None:
        """Refuse prefixes that the host routes elsewhere: their packets would be taken from it."""
        own = host.links.get(self._tun.name)
        for key, prefix in (("prefix4", self._tun.prefix4), ("prefix6", self._tun.prefix6)):
            for network in host.routed:
                if network.version == prefix.version and network.overlaps(prefix):
                    if own and (own.index, network) in host.connected:
                        continue
                    message = f"{prefix} is in use on this host (there is a route to {network})"
                    raise ConfigError(f"tun.{key}", message)

    def _prepare_tun(self, ipr: Any) -> None:
        name = self._tun.name
        indices = ipr.link_lookup(ifname=name)
        if not indices:
            raise DeviceError(f"{name}: the TUN device is not open")
        index = indices[0]
        # src_valid_mark: the engine sends with the addresses of far servers. A reverse path filter
        # asks for the route of the opposite packet, coming in where this one goes out; with the
        # mark on it, as nft puts it there, the answer is "to the TUN" (fib_validate_source()), so
        # that the strictest filter is content. Loose (2) would not do: it refuses an interface
        # without addresses, and any source when the main table has no default route.
        settings = [("ipv4", "forwarding", "1"), ("ipv4", "src_valid_mark", "1")]
        if forwarding.has_ipv6(name):
            # No link-local address: nothing of the kernel's own shall be sent into the device.
            settings += [("ipv6", "addr_gen_mode", "1"), ("ipv6", "accept_ra", "0")]
            if read_sysctl(f"net/ipv6/conf/{name}/force_forwarding") is not None:
                settings.append(("ipv6", "force_forwarding", "1"))
        for family, key, value in settings:
            write_sysctl(f"net/{family}/conf/{name}/{key}", value)
        try:
            # The ring is the queue and does not push back, so a qdisc before it only costs.
            ipr.tc("replace", kind="noqueue", index=index, handle=0, parent=0xFFFFFFFF)
            ipr.link("set", index=index, mtu=self._tun.mtu, state="up")
        except NetlinkError as error:
            raise DeviceError(f"{name}: cannot bring it up: {error.args[-1]}") from error

    @abstractmethod
    def _resolve(self, host: Host) -> None:
        """Find what the configuration names. Raises ConfigError."""

    @abstractmethod
    def _wanted(self, host: Host) -> tuple[list[Route], list[Rule]]:
        """The routes and rules that this role needs."""

    @abstractmethod
    def forwarders(self, host: Host) -> list[str]:
        """The interfaces on which packets of ours come in, except the TUN."""

    @abstractmethod
    def _nft(self, on: Forwarding) -> str:
        """The script that replaces this role's table."""

    def _tun_route(self, host: Host, family: int, table: int, destination: str) -> Route:
        link = host.links.get(self._tun.name)
        metric = _METRIC6 if family == socket.AF_INET6 else 0
        index = link.index if link else 0
        return Route(family, table, destination, self._tun.name, index, metric=metric)

    def _prefix(self, family: int) -> IpNetwork:
        return self._tun.prefix4 if family == socket.AF_INET else self._tun.prefix6

    def _families(self) -> tuple[int, ...]:
        return FAMILIES if forwarding.has_ipv6() else (socket.AF_INET,)


class UplinkHost(Protocol):
    """The configuration of a host whose engine leaves by uplinks."""

    @property
    def tun(self) -> TunConfig: ...
    @property
    def lan(self) -> LanConfig: ...
    @property
    def uplinks(self) -> tuple[UplinkConfig, ...]: ...


@dataclass(frozen=True, slots=True)
class Numbers:
    """Routing tables, and priorities of rules: ``near`` and ``far`` are those of a LAN."""

    table: int
    first_uplink_table: int
    to_engine: int
    first_uplink: int
    from_tun: int
    near: int = 0
    far: int = 0


class UplinkSetup(Setup):
    """A host whose engine's packets leave by the uplink that their source address names."""

    numbers: Numbers

    def __init__(self, config: UplinkHost, state_directory: Path = STATE_DIRECTORY) -> None:
        super().__init__(config, state_directory)
        self._config: UplinkHost = config
        self.uplinks: tuple[Uplink, ...] = ()
        self.waits_for: tuple[str, ...] = ()  # LAN interfaces that are not there

    def _resolve(self, host: Host) -> None:
        settings: tuple[UplinkSettings, ...] = self._config.uplinks
        names = self._config.lan.interfaces
        self.waits_for = tuple(name for name in names if name not in host.links)
        self.uplinks = resolve(
            host,
            settings,
            self._tun.prefix4,
            self._tun.prefix6,
            self.numbers.first_uplink_table,
        )

    def _wanted(self, host: Host) -> tuple[list[Route], list[Rule]]:
        numbers = self.numbers
        routes: list[Route] = []
        rules: list[Rule] = []
        for family in self._families():
            routes.append(self._tun_route(host, family, numbers.table, "default"))
            prefix = str(self._prefix(family))
            rules.append(Rule(family, numbers.to_engine, numbers.table, destination=prefix))
            rules.append(Rule(family, numbers.from_tun, MAIN, iif=self._tun.name, specific=True))
            for name in self._inside():
                rules.append(Rule(family, numbers.near, MAIN, iif=name, mark=MARK, specific=True))
                rules.append(Rule(family, numbers.far, numbers.table, iif=name, mark=MARK))
            for uplink in self.uplinks:
                address = uplink_address(self._prefix(family), uplink.slot)
                source = str(ip_network(address))
                priority = numbers.first_uplink + uplink.slot
                rules.append(Rule(family, priority, uplink.table, source=source))
                routes.extend(_uplink_routes(host, family, uplink))
        return routes, rules

    def forwarders(self, host: Host) -> list[str]:
        names = [*self._inside(), *(uplink.dev for uplink in self.uplinks)]
        return [name for name in dict.fromkeys(names) if name in host.links]

    def _inside(self) -> tuple[str, ...]:
        """The interfaces whose TCP is taken."""
        return self._config.lan.interfaces


class HostSetup(UplinkSetup):
    """The proxy's host: TCP from the LAN to the TUN, each uplink's packets out of that uplink."""

    role = "proxy"
    table = "mptcp_proxy"
    scope = Scope(range(8803, 8860), range(8800, 8860))
    numbers = Numbers(8803, FIRST_TABLE, 8800, 8810, 8850, near=8851, far=8852)

    def __init__(self, config: ProxyConfig, state_directory: Path = STATE_DIRECTORY) -> None:
        super().__init__(config, state_directory)
        self._config: ProxyConfig = config
        self.lan: dict[str, int] = {}  # the interfaces whose TCP is taken by now, with index
        self._annexes: tuple[str, ...] = ()
        self._bypassed: dict[str, int] = {}

    def bypassed(self) -> dict[str, int]:
        """How many connections each rule has bypassed."""
        now = bypass.hits(self.table)
        return {
            name: self._bypassed.get(name, 0) + now.get(name, 0) for name in {*self._bypassed, *now}
        }

    def _before_load(self) -> None:
        if self._loaded:
            self._bypassed = self.bypassed()

    def _resolve(self, host: Host) -> None:
        self._annexes = self._find_annexes(host)
        super()._resolve(host)

    def annex_hosts(self) -> frozenset[tuple[int, bytes]]:
        """Interface index and address of each host behind an annex's interface."""
        return frozenset(
            (self.lan[name], address)
            for name in self._annexes
            if name in self.lan
            for address in far_addresses(name)
        )

    def _find_annexes(self, host: Host) -> tuple[str, ...]:
        """The interfaces that are to be taken as a LAN's without being configured."""
        return annexes(host.links)

    def _inside(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*super()._inside(), *self._annexes)))

    def _enable_forwarding(self, host: Host) -> None:
        super()._enable_forwarding(host)
        # The last step of a set-up: from now on it is true.
        names = [name for name in self._inside() if name in host.links]
        self.lan = {name: host.links[name].index for name in names}

    def _nft(self, on: Forwarding) -> str:
        return nft.proxy_table(
            self.table,
            self._tun.name,
            self._config.lan.interfaces,
            self.uplinks,
            (self._tun.prefix4, self._tun.prefix6),
            (self._config.gateway.address, self._config.gateway.port),
            on,
            self._config.rules,
            self._annexes,
        )


class ProbeSetup(HostSetup):
    """As ``HostSetup`` without a LAN, beside it or without it: an engine that asks questions."""

    role = "probe"
    table = "mptcp_probe"
    scope = Scope(range(8900, 8960), range(8900, 8960))
    numbers = Numbers(8900, 8910, 8900, 8910, 8950)

    def _find_annexes(self, host: Host) -> tuple[str, ...]:
        """None: they are the proxy's."""
        return ()

    def _nft(self, on: Forwarding) -> str:
        return nft.probe_table(
            self.table,
            self._tun.name,
            self.uplinks,
            (self._tun.prefix4, self._tun.prefix6),
            (self._config.gateway.address, self._config.gateway.port),
            on,
        )


class GatewaySetup(Setup):
    """The gateway's host: TCP to the listening addresses goes to the engine behind the TUN."""

    role = "gateway"
    table = "mptcp_gateway"
    scope = Scope(range(8860, 8900), range(8860, 8900))

    _TABLE = 8860
    _TO_ENGINE, _FIRST_LISTENER = 8860, 8870
    _FIRST_HOST = 2

    def __init__(self, config: GatewayConfig, state_directory: Path = STATE_DIRECTORY) -> None:
        super().__init__(config, state_directory)
        self._config: GatewayConfig = config
        self.listeners = tuple(
            Listener(address, engine, config.listen.port)
            for address, engine in config.engine_addresses.items()
        )

    def _resolve(self, host: Host) -> None:
        """Nothing to find: packets to the listening addresses come in wherever they come in."""

    def _wanted(self, host: Host) -> tuple[list[Route], list[Rule]]:
        routes: list[Route] = []
        rules: list[Rule] = []
        for family in self._families():
            prefix = str(self._prefix(family))
            routes.append(self._tun_route(host, family, self._TABLE, prefix))
            rules.append(Rule(family, self._TO_ENGINE, self._TABLE, destination=prefix))
        for position, listener in enumerate(self.listeners):
            rules.extend(self._mirrored(host, listener, self._FIRST_LISTENER + position))
        return routes, rules

    def _mirrored(self, host: Host, listener: Listener, priority: int) -> list[Rule]:
        """The operator's `from ADDRESS lookup TABLE` for the engine's address too.

        Our packets are routed before their source becomes the listening address.
        """
        address = ip_address(listener.address)
        return [
            Rule(rule.family, priority, rule.table, source=str(ip_network(listener.engine)))
            for rule in host.source_rules
            if rule.source.prefixlen and rule.source.version == address.version
            if address in rule.source and rule.table != MAIN
        ][:1]

    def forwarders(self, host: Host) -> list[str]:
        """All interfaces: the host takes packets to its addresses on any of them."""
        own = (self._tun.name,)
        return [
            link.name for link in host.links.values() if not link.loopback and link.name not in own
        ]

    def _nft(self, on: Forwarding) -> str:
        prefixes = (self._tun.prefix4, self._tun.prefix6)
        return nft.gateway_table(self.table, self._tun.name, self.listeners, prefixes, on)


def _uplink_routes(host: Host, family: int, uplink: Uplink) -> list[Route]:
    """The uplink's table: its networks, its router, and no way out when that is gone.

    Without the last one, packets would fall through to the main table and leave by another
    uplink; with it the engine is told by ICMP that there is no route.
    """
    metric = _METRIC6 if family == socket.AF_INET6 else 0
    found = [Route(family, uplink.table, "default", metric=_LAST_METRIC[family])]
    link = host.links.get(uplink.dev)
    if link is None or not link.up or uplink.addr(family) is None:
        return found
    for network in host.connected_networks(family, uplink.index):
        found.append(
            Route(family, uplink.table, str(network), uplink.dev, uplink.index, metric=metric)
        )
    hop = uplink.next_hop(family)
    gateway = str(ip_address(hop)) if hop else ""
    found.append(Route(family, uplink.table, "default", uplink.dev, uplink.index, gateway, metric))
    return found
