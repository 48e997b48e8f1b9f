"""The host set-up of a program's engine: as a proxy's without a LAN, and ports to listen on."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from proxy.net import nft
from proxy.net.nft import Forwarding, Listener
from proxy.net.routes import Scope
from proxy.net.setup import Numbers, UplinkSetup
from proxy.net.sysctl import STATE_DIRECTORY

if TYPE_CHECKING:
    from collections.abc import Collection

    from proxy.config.sockets import SocketsConfig

__all__ = ["SocketsSetup"]

# The first slot's tables and priorities, behind those of the daemons and of their probe.
_FIRST, _SIZE = 9000, 32


class SocketsSetup(UplinkSetup):
    """One slot of those that programs in this network namespace share.

    ``ports`` are what is listened on: an address of an uplink, or empty for all of a family (4 or
    6), and a port. Several threads may call ``listen`` and ``refresh``.
    """

    def __init__(self, config: SocketsConfig, state_directory: Path = STATE_DIRECTORY) -> None:
        slot = config.slot
        first = _FIRST + _SIZE * slot
        self.role = f"sockets{slot}"
        self.table = f"mptcp_sockets{slot}"
        self.scope = Scope(range(first, first + _SIZE), range(first, first + _SIZE))
        self.numbers = Numbers(first, first + 10, first, first + 10, first + _SIZE - 1)
        self._ports: Collection[tuple[int, bytes, int]] = ()
        self._changing = Lock()
        super().__init__(config, state_directory)
        self._config: SocketsConfig = config

    @property
    def config(self) -> SocketsConfig:
        """What it is set up for."""
        return self._config

    @property
    def left_behind(self) -> bool:
        """Whether a program has the slot, or had it and was killed."""
        return self._state.exists()

    def listen(self, ports: Collection[tuple[int, bytes, int]]) -> None:
        """Send connections to these ``ports`` to the engine, and no others. Raises DeviceError."""
        self._ports = frozenset(ports)
        self.refresh()

    def refresh(self) -> list[str]:
        """See ``Setup``."""
        with self._changing:
            return super().refresh()

    def _nft(self, on: Forwarding) -> str:
        return nft.sockets_table(
            self.table,
            self._tun.name,
            self.uplinks,
            (self._tun.prefix4, self._tun.prefix6),
            self._listeners(),
            on,
        )

    def _listeners(self) -> list[Listener]:
        return [
            Listener(source, engine, port)
            for family, address, port in sorted(self._ports)
            for uplink in self.uplinks
            for source in uplink.sources
            if len(source) == (4 if family == 4 else 16) and address in (b"", source)
            if (engine := uplink.addr4 if family == 4 else uplink.addr6) is not None
        ]
