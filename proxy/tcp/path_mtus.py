"""What a host has learnt of the packet sizes that its paths carry."""

from __future__ import annotations

MAX_PATHS = 4096
"""Paths remembered; the one learnt first is forgotten for a new one."""


class PathMtus:
    """Path MTUs by ``path`` (local IP + remote IP), in bytes of the IP packet.

    Only those smaller than the interface's are kept, so that the next connection does not run
    into the same black hole.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, float]] = {}

    def get(self, path: bytes) -> tuple[int, float]:
        """The MTU and when it was learnt; (0, 0.0) if nothing is known."""
        return self._known.get(path, (0, 0.0))

    def learn(self, path: bytes, mtu: int, now: float) -> None:
        """``path`` carries ``mtu`` and not what the interface would."""
        known = self._known
        if path not in known and len(known) >= MAX_PATHS:
            del known[next(iter(known))]
        known[path] = (mtu, now)

    def forget(self, path: bytes) -> None:
        """``path`` carries whatever the interface does."""
        self._known.pop(path, None)
