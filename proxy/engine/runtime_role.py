"""A role at run time: its host set-up, its relay and its control, put together."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from proxy.config import MAX_UPLINKS, Changes, Config, GatewayConfig, ProxyConfig, Settings
from proxy.control.capture import LAN_INTERFACE, StackCapture
from proxy.control.metrics import Reading
from proxy.control.plane import ControlPlane
from proxy.control.rules import RuleCommands
from proxy.control.server import Command
from proxy.control.status import gateway_status, gateway_summary, proxy_status, proxy_summary
from proxy.engine.runtime import Runtime
from proxy.engine.stack import Stack
from proxy.mptcp.config import MptcpConfig
from proxy.net.links import own_addresses
from proxy.net.uplinks import Uplink
from proxy.pm.base import Endpoint
from proxy.relay.flow import Flow
from proxy.relay.gateway import GatewayRelay
from proxy.relay.lan import LanRelay
from proxy.relay.usage import Meters
from proxy.tcp.config import TcpConfig
from proxy.wire.address import Address

if TYPE_CHECKING:
    from proxy.net.setup import GatewaySetup, HostSetup

    Setup = HostSetup | GatewaySetup

PROXY_MPTCP = MptcpConfig(join_delay=0.1)
"""What a proxy goes by unless its file says otherwise: what is over in a moment need not trouble
all uplinks (RFC 8684 §3.9.2)."""


@dataclass(frozen=True, slots=True)
class HostState:
    """What a role has to know of its host; ``own`` are the host's addresses, ``annexes`` the
    hosts (interface index, address) that live and die with their interface."""

    uplinks: tuple[Uplink, ...] = ()
    waits_for: tuple[str, ...] = ()
    own: frozenset[bytes] = frozenset()
    annexes: frozenset[tuple[int, bytes]] = frozenset()

    @classmethod
    def of(cls, setup: Setup) -> HostState:
        """As ``setup`` found it last."""
        from proxy.net.setup import HostSetup  # late: workers need none of it

        if isinstance(setup, HostSetup):
            return cls(setup.uplinks, tuple(setup.waits_for), annexes=setup.annex_hosts())
        return cls(own=own_addresses())


class HostWatch:
    """Keeps routes and rules right; ``changed`` is told how the host is then."""

    def __init__(self, setup: Setup, changed: Callable[[HostState], None]) -> None:
        self._setup = setup
        self._changed = changed
        self._state = HostState()

    def refresh(self) -> list[str]:
        """Make routes and rules right; on another thread. The commands that were needed."""
        changes = self._setup.refresh()
        self._state = HostState.of(self._setup)
        return changes

    def follow(self) -> None:
        """Afterwards, on the loop: make the connections right."""
        self._changed(self._state)


class Role(ABC):
    """What differs between the boxes. ``start`` begins to move packets."""

    plane: ControlPlane

    def __init__(self, runtime: Runtime, host: HostState) -> None:
        self._runtime = runtime
        self._host = host

    def _control(
        self,
        flows: Callable[[], Iterable[Flow]],
        own: Callable[[], Mapping[bytes, Endpoint | None]],
    ) -> ControlPlane:
        runtime = self._runtime
        manager = runtime.stack.mptcp_config.path_manager
        return ControlPlane(
            runtime.stack, flows, self.status, time.monotonic, runtime.turn, manager, own
        )

    def commands(self) -> dict[str, Command]:
        """By name, for ``ControlServer``."""
        return self.plane.commands()

    def capture(self) -> StackCapture:
        """For the command of that name."""
        runtime = self._runtime
        return StackCapture(runtime.stack, runtime.tap, self._interfaces, self._other_interface)

    def reading(self) -> Reading:
        """What this process has counted, for whoever asks."""
        return Reading(self._meters, self._summary, time.monotonic)

    @property
    @abstractmethod
    def _meters(self) -> Meters:
        """Those of the relay."""

    @abstractmethod
    def _summary(self) -> Any:
        """The ``Status`` without connections."""

    @property
    @abstractmethod
    def _other_interface(self) -> str:
        """What packets pass that pass no uplink, in words."""

    def _interfaces(self) -> dict[bytes, str]:
        """The uplink of each engine address."""
        return {}

    @abstractmethod
    def start(self) -> None:
        """Begin to move packets."""

    @abstractmethod
    def status(self) -> Any:
        """The ``Status``."""

    @abstractmethod
    def follow(self, host: HostState) -> None:
        """The host has changed: make the connections right."""

    @abstractmethod
    def reconfigure(self, config: Any, host: HostState) -> None:
        """Go by ``config``, of the same role, on a host that is set up for it.

        What is open stays open.
        """


class ProxyRole(Role):
    """The near box."""

    def __init__(self, config: ProxyConfig, runtime: Runtime, host: HostState) -> None:
        super().__init__(runtime, host)
        self._config = config
        self._relay = relay = LanRelay(config, runtime.stack, time.time, time.monotonic())
        self.plane = self._control(lambda: relay.flows, lambda: relay.table.endpoints)
        relay.table.tell = self.plane.events.publish

    def commands(self) -> dict[str, Command]:
        """By name, for ``ControlServer``."""
        rules = RuleCommands(self._relay.rules)
        return {**self.plane.commands(), "rules": rules.rules, "rule-test": rules.test}

    @property
    def _other_interface(self) -> str:
        return LAN_INTERFACE

    def _interfaces(self) -> dict[bytes, str]:
        uplinks = self._relay.uplinks
        return {ip: uplink.name for uplink in uplinks for ip in (uplink.local_ip, uplink.other_ip)}

    def start(self) -> None:
        """Begin to move packets."""
        self._relay.follow(self._host.uplinks, time.monotonic())
        self._runtime.start(self._relay)

    def status(self) -> Any:
        """The ``Status``."""
        return proxy_status(self._relay, time.monotonic(), self._host.waits_for)

    @property
    def _meters(self) -> Meters:
        return self._relay.meters

    def _summary(self) -> Any:
        return proxy_summary(self._relay, time.monotonic(), self._host.waits_for)

    def follow(self, host: HostState) -> None:
        """See ``Role``."""
        now = time.monotonic()
        for _, address in self._host.annexes - host.annexes:
            self._relay.lose_host(address, now)
        self._host = host
        self._relay.follow(host.uplinks, now)
        self._runtime.turn()

    def reconfigure(self, config: ProxyConfig, host: HostState) -> None:
        """See ``Role``."""
        old, self._config = self._config, config
        stack = self._runtime.stack
        retune(stack, self.plane, old, config)
        if stack.mptcp_config.subflows == len(old.uplinks):
            set_limit(stack, len(config.uplinks))
        self._relay.reconfigure(config, time.monotonic())
        self.follow(host)


class GatewayRole(Role):
    """The far box."""

    def __init__(self, config: GatewayConfig, runtime: Runtime, host: HostState) -> None:
        super().__init__(runtime, host)
        self._config = config
        self._relay = relay = GatewayRelay(
            config, runtime.stack, runtime.dial, time.monotonic, time.time
        )
        own = dict.fromkeys(config.listen.addresses)
        self.plane = self._control(lambda: relay.flows, lambda: own)

    @property
    def _other_interface(self) -> str:
        return self._config.tun.name

    def start(self) -> None:
        """Begin to move packets."""
        self.follow(self._host)
        self._runtime.start(self._relay)

    def status(self) -> Any:
        """The ``Status``."""
        return gateway_status(self._relay, time.monotonic())

    @property
    def _meters(self) -> Meters:
        return self._relay.meters

    def _summary(self) -> Any:
        return gateway_summary(self._relay, time.monotonic())

    def follow(self, host: HostState) -> None:
        """See ``Role``."""
        self._host = host
        listening = frozenset(self._config.listen.addresses)
        self._relay.policy.own_addresses = host.own | listening

    def reconfigure(self, config: GatewayConfig, host: HostState) -> None:
        """See ``Role``."""
        old, self._config = self._config, config
        retune(self._runtime.stack, self.plane, old, config)
        self._relay.reconfigure(config, time.monotonic())
        self.follow(host)
        self._runtime.turn()


def make_role(config: ProxyConfig | GatewayConfig, runtime: Runtime, host: HostState) -> Role:
    """The role that ``config`` describes, on a host that is as ``host`` says."""
    if isinstance(config, ProxyConfig):
        return ProxyRole(config, runtime, host)
    return GatewayRole(config, runtime, host)


def ready_line(config: ProxyConfig | GatewayConfig, host: HostState) -> str:
    """The line printed when traffic may flow."""
    name = config.tun.name
    if isinstance(config, GatewayConfig):
        listen = config.listen
        addresses = ", ".join(str(Address(ip, listen.port)) for ip in listen.addresses)
        return f"ready gateway on {name}: listening on {addresses}"
    ready = ", ".join(uplink.name for uplink in host.uplinks if not uplink.waits_for)
    waiting = [f"{uplink.name} ({uplink.waits_for})" for uplink in host.uplinks if uplink.waits_for]
    waiting += [f"LAN interface {interface}" for interface in host.waits_for]
    gateway = Address(config.gateway.address, config.gateway.port)
    line = f"ready proxy on {name}: uplinks {ready or 'none'}; gateway {gateway}"
    return f"{line}; waits for {', '.join(waiting)}" if waiting else line


def mptcp_settings(config: ProxyConfig | GatewayConfig) -> MptcpConfig:
    """What the stack shall go by at the MPTCP level."""
    # One subflow per uplink; the gateway takes what a proxy with the most uplinks opens.
    subflows = len(config.uplinks) if isinstance(config, ProxyConfig) else MAX_UPLINKS
    return replace(_mptcp_defaults(config), subflows=subflows, **config.mptcp)


def _mptcp_defaults(config: Config) -> MptcpConfig:
    return PROXY_MPTCP if isinstance(config, ProxyConfig) else MptcpConfig()


def retune(stack: Stack, plane: ControlPlane, old: Config, new: Config) -> None:
    """Take over what differs in ``[tcp]`` and ``[mptcp]``, for connections opened afterwards.

    What was set by ``sysctl`` meanwhile stays, unless the file changed just that.
    """
    changes = _differing(old.tcp, new.tcp, TcpConfig())
    if "memory" in changes:
        changes["memory"] = stack.memory.limit = stack.token_share.part(changes["memory"])
    stack.tcp_config = replace(stack.tcp_config, **changes)
    changes = _differing(old.mptcp, new.mptcp, _mptcp_defaults(new))
    stack.mptcp_config = replace(stack.mptcp_config, **changes)
    if "blackhole_timeout" in changes:
        stack.blackhole.reset(changes["blackhole_timeout"])
    if "path_manager" in changes:
        plane.use_manager(changes["path_manager"])


def _differing(old: Settings, new: Settings, defaults: object) -> dict[str, Any]:
    return {
        key: new.get(key, getattr(defaults, key))
        for key in {*old, *new}
        if old.get(key, getattr(defaults, key)) != new.get(key, getattr(defaults, key))
    }


def set_limit(stack: Stack, subflows: int) -> None:
    """As many additional subflows for all connections, also those that are open."""
    stack.mptcp_config = replace(stack.mptcp_config, subflows=subflows)
    for conn in stack.tokens.values():
        conn.limits = replace(conn.limits, subflows=subflows)


def set_log_level(changes: Changes) -> None:
    """Take over ``log.level``, if that has changed."""
    if "log.level" in changes.changed:
        logging.getLogger().setLevel(changes.config.log.level.upper())
