"""A role at run time: its host set-up, its relay and its control, put together."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

from proxy.config import MAX_UPLINKS, GatewayConfig, ProxyConfig
from proxy.control.plane import ControlPlane
from proxy.control.status import gateway_status, proxy_status
from proxy.engine.runtime import Runtime
from proxy.mptcp.config import MptcpConfig
from proxy.net.links import own_addresses
from proxy.net.setup import GatewaySetup, HostSetup
from proxy.relay.gateway import GatewayRelay
from proxy.relay.lan import LanRelay
from proxy.wire.address import Address

Setup = HostSetup | GatewaySetup


class Role(ABC):
    """What differs between the boxes. ``start`` begins to move packets."""

    plane: ControlPlane

    @abstractmethod
    def start(self) -> None:
        """Begin to move packets."""

    @abstractmethod
    def status(self) -> Any:
        """The ``Status``."""

    @abstractmethod
    def refresh(self) -> list[str]:
        """Make routes and rules right; on another thread. The commands that were needed."""

    @abstractmethod
    def follow(self) -> None:
        """Afterwards, on the loop: make the connections right."""

    @abstractmethod
    def ready_line(self) -> str:
        """The line printed when traffic may flow."""


class ProxyRole(Role):
    """The near box."""

    def __init__(self, config: ProxyConfig, runtime: Runtime, setup: HostSetup) -> None:
        self._config = config
        self._runtime = runtime
        self._setup = setup
        now = time.monotonic
        stack = runtime.stack
        self._relay = relay = LanRelay(config, stack, time.time, now())
        self.plane = ControlPlane(
            stack,
            lambda: relay.flows,
            self.status,
            now,
            runtime.turn,
            stack.mptcp_config.path_manager,
            lambda: relay.endpoints,
        )
        relay.tell = self.plane.events.publish

    def start(self) -> None:
        """Begin to move packets."""
        self._relay.follow(self._setup.uplinks, time.monotonic())
        self._runtime.start(self._relay)

    def status(self) -> Any:
        """The ``Status``."""
        return proxy_status(self._relay, time.monotonic(), self._setup.waits_for)

    def refresh(self) -> list[str]:
        """See ``Role``."""
        return self._setup.refresh()

    def follow(self) -> None:
        """See ``Role``."""
        self._relay.follow(self._setup.uplinks, time.monotonic())
        self._runtime.turn()

    def ready_line(self) -> str:
        """The line printed when traffic may flow."""
        config, uplinks = self._config, self._setup.uplinks
        ready = ", ".join(uplink.name for uplink in uplinks if not uplink.waits_for)
        waiting = [f"{uplink.name} ({uplink.waits_for})" for uplink in uplinks if uplink.waits_for]
        waiting += [f"LAN interface {name}" for name in self._setup.waits_for]
        gateway = Address(config.gateway.address, config.gateway.port)
        line = f"ready proxy on {config.tun.name}: uplinks {ready or 'none'}; gateway {gateway}"
        return f"{line}; waits for {', '.join(waiting)}" if waiting else line


class GatewayRole(Role):
    """The far box."""

    def __init__(self, config: GatewayConfig, runtime: Runtime, setup: GatewaySetup) -> None:
        self._config = config
        self._runtime = runtime
        self._setup = setup
        now = time.monotonic
        stack = runtime.stack
        self._relay = relay = GatewayRelay(config, stack, runtime.dial, now, time.time)
        self._own = own_addresses()
        own = dict.fromkeys(config.listen.addresses)
        self.plane = ControlPlane(
            stack,
            lambda: relay.flows,
            self.status,
            now,
            runtime.turn,
            stack.mptcp_config.path_manager,
            lambda: own,
        )

    def start(self) -> None:
        """Begin to move packets."""
        self.follow()
        self._runtime.start(self._relay)

    def status(self) -> Any:
        """The ``Status``."""
        return gateway_status(self._relay, time.monotonic())

    def refresh(self) -> list[str]:
        """See ``Role``."""
        changes = self._setup.refresh()
        self._own = own_addresses()
        return changes

    def follow(self) -> None:
        """See ``Role``."""
        listening = frozenset(self._config.listen.addresses)
        self._relay.policy.own_addresses = self._own | listening

    def ready_line(self) -> str:
        """The line printed when traffic may flow."""
        listen = self._config.listen
        addresses = ", ".join(str(Address(ip, listen.port)) for ip in listen.addresses)
        return f"ready gateway on {self._config.tun.name}: listening on {addresses}"


def make_role(config: ProxyConfig | GatewayConfig, runtime: Runtime, setup: Setup) -> Role:
    """The role that ``config`` describes; ``setup`` is the one of that role."""
    if isinstance(config, ProxyConfig):
        assert isinstance(setup, HostSetup)
        return ProxyRole(config, runtime, setup)
    assert isinstance(setup, GatewaySetup)
    return GatewayRole(config, runtime, setup)


def mptcp_settings(config: ProxyConfig | GatewayConfig) -> MptcpConfig:
    """What the stack shall go by at the MPTCP level."""
    # One subflow per uplink; the gateway takes what a proxy with the most uplinks opens.
    subflows = len(config.uplinks) if isinstance(config, ProxyConfig) else MAX_UPLINKS
    return MptcpConfig(subflows=subflows, **config.mptcp)
