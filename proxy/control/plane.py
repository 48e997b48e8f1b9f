"""Everything that the control socket of a daemon can do, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from proxy.control.endpoints import EndpointCommands
from proxy.control.events import EventHub
from proxy.control.fields import Request
from proxy.control.server import Command
from proxy.control.sockets import SocketCommands
from proxy.control.sysctls import Sysctls
from proxy.control.trace import TraceCommands
from proxy.control.uplinks import UplinkCommands
from proxy.control.userspace import UserspaceCommands
from proxy.pm.base import Endpoint
from proxy.pm.base import factory as path_manager
from proxy.pm.observed import observed

if TYPE_CHECKING:
    from proxy.engine.stack import Stack
    from proxy.relay.flow import Flow


class ControlPlane:
    """The commands and events of one daemon.

    ``flows`` gives the conversations of its relay, ``status`` its ``Status``; ``own`` the engine's
    addresses that may be the source of subflows, with the configured endpoint of each.
    ``turn`` is called after each command: it sends what the command caused.
    """

    def __init__(
        self,
        stack: Stack,
        flows: Callable[[], Iterable[Flow]],
        status: Callable[[], Mapping[str, object]],
        clock: Callable[[], float],
        turn: Callable[[], None],
        manager: str = "kernel",
        own: Callable[[], Mapping[bytes, Endpoint | None]] = dict,
    ) -> None:
        self.events = EventHub()
        self._stack = stack
        self._turn = turn
        self._use(manager)
        self._endpoints = EndpointCommands(stack, self.events, clock, own)
        self._userspace = UserspaceCommands(stack, clock, own)
        self._sockets = SocketCommands(flows, status, clock)
        self._uplinks = UplinkCommands(stack)
        self._trace = TraceCommands(stack, flows, clock)
        self._sysctls = Sysctls(stack, manager, self._use)

    def use_manager(self, name: str) -> None:
        """As ``sysctl net.mptcp.path_manager=NAME``; ConfigError if there is none."""
        self._sysctls.set_manager(name)

    def commands(self) -> dict[str, Command]:
        """By name, for ``ControlServer``."""
        kernel, program = self._endpoints, self._userspace
        table: dict[str, Command] = {
            "add-addr": kernel.add,
            "del-addr": kernel.delete,
            "flush-addrs": kernel.flush,
            "get-addr": lambda r: (program if "token" in r else kernel).get(r),
            "set-limits": kernel.set_limits,
            "get-limits": kernel.get_limits,
            "set-flags": lambda r: (program if "token" in r else kernel).set_flags(r),
            "announce": program.announce,
            "remove": program.remove,
            "subflow-create": program.create_subflow,
            "subflow-destroy": program.destroy_subflow,
            "sysctl": self._sysctls.command,
            "uplink-limit": self._uplinks.limit,
            "counters": lambda r: dict(self._stack.counters),
            "sockets": self._sockets.sockets,
            "connection": self._sockets.connection,
            "why": self._sockets.why,
            "trace-start": self._trace.start,
            "trace-stop": self._trace.stop,
            "trace-dump": self._trace.dump,
        }
        return {name: self._turning(command) for name, command in table.items()}

    def _use(self, name: str) -> None:
        """New connections get the path manager ``name``; ConfigError if there is none."""
        self._stack.path_manager = observed(path_manager(name), self.events)

    def _turning(self, command: Command) -> Command:
        def run(request: Request) -> object:
            try:
                return command(request)
            finally:
                self._turn()

        return run
