"""What an MPTCP connection needs from the engine beyond what TCP needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from proxy.mptcp.config import MptcpConfig
from proxy.tcp.host import Host

if TYPE_CHECKING:
    from proxy.mptcp.blackhole import Blackhole
    from proxy.mptcp.connection import MptcpConnection
    from proxy.mptcp.keepalive import KeepaliveBudget
    from proxy.mptcp.keys import TokenShare
    from proxy.mptcp.trace import Trace
    from proxy.pm.base import Endpoint, PathManager
    from proxy.seg import Segment
    from proxy.tcp.connection import TcpConnection
    from proxy.tcp.limit import RateLimit
    from proxy.wire.address import Address

__all__ = ["MptcpConfig", "MptcpHost"]


class MptcpHost(Host, Protocol):
    """Implemented by ``engine.stack.Stack`` and by test harnesses."""

    tokens: dict[int, MptcpConnection]
    """Connections by local token; a connection enters and removes itself."""
    token_share: TokenShare
    """Which tokens the connections of this host may have."""
    mptcp_config: MptcpConfig
    keepalives: KeepaliveBudget
    blackhole: Blackhole
    """Which paths swallow SYNs with MP_CAPABLE."""
    local_addresses: Sequence[Endpoint]
    """The endpoints of this host, as in ``ip mptcp endpoint``; may be replaced while running."""
    public_addresses: Mapping[bytes, bytes]
    """By which address the peer knows one of ours, where a NAT of this host stands between."""
    limits: dict[str, RateLimit]
    """By uplink: the rate that all subflows which leave by it share."""
    trace: Trace | None
    """Where decisions are written while somebody traces."""
    path_manager: Callable[[], PathManager]
    """Makes the path manager of one new connection."""

    def register(self, connection: TcpConnection, /) -> None:
        """Enter a subflow into the demux."""

    def reset(self, segment: Segment, now: float, options: bytes = b"", /) -> None:
        """Answer ``segment`` by a RST with padded ``options``; may be rate limited."""

    def open_local_port(self, local_ip: bytes, remote: Address, /) -> Address:
        """``local_ip`` with a port that is free towards ``remote``."""
