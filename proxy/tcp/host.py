"""What a TCP connection needs from the engine that holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from proxy.tcp.config import TcpConfig
    from proxy.tcp.events import Event
    from proxy.tcp.memory import MemoryBudget
    from proxy.tcp.paced_senders import PacedSenders
    from proxy.tcp.path_mtus import PathMtus

Packet = list[Any]
"""An iovec of ``bytes | memoryview``: header first, then payload buffers."""


class Rng(Protocol):
    """The part of ``random.Random`` that the engine uses (a ``SystemRandom`` in production)."""

    def randbytes(self, n: int, /) -> bytes: ...
    def getrandbits(self, k: int, /) -> int: ...
    def random(self) -> float: ...


class Counters(Protocol):
    """Counts by kernel name (``TCPTimeouts``, ``MPTcpExtMPJoinSynTx``, ...)."""

    def add(self, name: str, count: int = 1, /) -> None: ...


class Pollable(Protocol):
    """What a host calls back."""

    def poll(self, now: float) -> None: ...
    def next_timeout(self) -> float | None: ...
    def on_timeout(self, now: float) -> None: ...


class IcmpError(Protocol):
    """An ICMP or ICMPv6 error that quotes a segment of ours (``proxy.wire.icmp``)."""

    @property
    def type(self) -> int: ...
    @property
    def code(self) -> int: ...
    @property
    def mtu(self) -> int: ...
    @property
    def seq(self) -> int: ...


class Host(Protocol):
    """Implemented by ``engine.stack.Stack`` and by test harnesses."""

    tcp_config: TcpConfig
    secret: bytes
    """16 random bytes drawn once per host: key of ISNs and timestamp offsets (RFC 6528)."""
    memory: MemoryBudget
    """What the receive buffers of all connections may take together."""
    header_prediction: bool
    """Whether what is expected is taken by the extension: always, but in tests that compare."""
    path_mtus: PathMtus
    """What was learnt of paths that carry less than the interface."""
    paced_senders: PacedSenders
    """How many connections send at a pace."""

    @property
    def rng(self) -> Rng: ...
    @property
    def counters(self) -> Counters: ...

    def transmit(self, packet: Packet) -> None:
        """Queue ``packet`` for the device."""

    def wake(self, obj: Pollable) -> None:
        """Call ``obj.poll(now)`` at the next ``poll_transmit`` (idempotent, cheap)."""

    def arm(self, obj: Pollable) -> None:
        """``obj.next_timeout()`` has become earlier.

        A host may keep a deadline that has since moved later: it then reads ``next_timeout()``
        again before (or after) it calls ``on_timeout``, which ignores early calls.
        """

    def event(self, obj: Any, kind: Event) -> None:
        """Tell the application of ``obj``."""

    def forget(self, obj: Any) -> None:
        """``obj`` is gone for good: the demux drops it."""
