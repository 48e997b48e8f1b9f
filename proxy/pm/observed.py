"""Tells an observer what a path manager is told: the events of the kernel's ``mptcp_pm_events``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from proxy.pm.base import Endpoint, Observer, PathConnection, PathManager, PathSubflow
from proxy.wire.address import Address


class Audience(Observer, Protocol):
    """Takes events; the names are those of the kernel's netlink specification."""

    def event(
        self,
        name: str,
        conn: PathConnection,
        subflow: PathSubflow | None = None,
        *,
        address_id: int = -1,
        address: Address | None = None,
        reason: int = -1,
    ) -> None:
        """``name`` happened to ``conn``."""
        ...


class ObservedPathManager(PathManager):
    """Passes every call on to ``inner``, and each event to the audience if anybody listens.

    A connection that was never told as "created" is not told as "closed".
    """

    __slots__ = ("_audience", "_created", "_established", "inner")

    def __init__(self, inner: PathManager, audience: Audience) -> None:
        self.inner = inner
        self._audience = audience
        self._created = False
        self._established = False
        inner.attach(audience)

    def on_established(self, conn: PathConnection, now: float) -> None:
        """Event "created"."""
        self._created = True
        self._audience.event("created", conn)
        self.inner.on_established(conn, now)

    def on_fully_established(self, conn: PathConnection, now: float) -> None:
        """Event "established"."""
        if not self._created:
            self._created = True
            self._audience.event("created", conn)
        if not self._established:
            self._established = True
            self._audience.event("established", conn)
        self.inner.on_fully_established(conn, now)

    def on_closed(self, conn: PathConnection, now: float) -> None:
        """Event "closed"."""
        if self._created:
            self._created = False
            self._audience.event("closed", conn)
        self.inner.on_closed(conn, now)

    def on_subflow_established(
        self, conn: PathConnection, subflow: PathSubflow, now: float
    ) -> None:
        """Event "sub-established"."""
        self._audience.event("sub-established", conn, subflow)
        self.inner.on_subflow_established(conn, subflow, now)

    def on_subflow_closed(
        self, conn: PathConnection, subflow: PathSubflow, reason: int, now: float
    ) -> None:
        """Event "sub-closed"."""
        self._audience.event("sub-closed", conn, subflow, reason=reason)
        self.inner.on_subflow_closed(conn, subflow, reason, now)

    def on_priority(self, conn: PathConnection, subflow: PathSubflow, now: float) -> None:
        """Event "sub-priority"."""
        self._audience.event("sub-priority", conn, subflow)
        self.inner.on_priority(conn, subflow, now)

    def on_addr_announced(
        self, conn: PathConnection, address_id: int, address: Address, now: float
    ) -> None:
        """Event "announced"."""
        self._audience.event("announced", conn, address_id=address_id, address=address)
        self.inner.on_addr_announced(conn, address_id, address, now)

    def on_addr_removed(self, conn: PathConnection, address_id: int, now: float) -> None:
        """Event "removed"."""
        self._audience.event("removed", conn, address_id=address_id)
        self.inner.on_addr_removed(conn, address_id, now)

    # -- no events ------------------------------------------------------------------------------

    def takes_announcements(self) -> bool:
        """As ``inner``."""
        return self.inner.takes_announcements()

    def on_announced(self, conn: PathConnection, address_id: int, now: float) -> None:
        """As ``inner``."""
        self.inner.on_announced(conn, address_id, now)

    def on_endpoint_added(self, conn: PathConnection, endpoint: Endpoint, now: float) -> None:
        """As ``inner``."""
        self.inner.on_endpoint_added(conn, endpoint, now)

    def on_endpoint_removed(self, conn: PathConnection, endpoint: Endpoint, now: float) -> None:
        """As ``inner``."""
        self.inner.on_endpoint_removed(conn, endpoint, now)

    def on_endpoint_changed(
        self, conn: PathConnection, old: Endpoint, new: Endpoint, now: float
    ) -> None:
        """As ``inner``."""
        self.inner.on_endpoint_changed(conn, old, new, now)

    def accepts_join(self, conn: PathConnection, now: float) -> bool:
        """As ``inner``."""
        return self.inner.accepts_join(conn, now)

    def announcements(self) -> tuple[int, int]:
        """As ``inner``."""
        return self.inner.announcements()

    def next_timeout(self) -> float | None:
        """As ``inner``."""
        return self.inner.next_timeout()

    def on_timer(self, conn: PathConnection, now: float) -> None:
        """As ``inner``."""
        self.inner.on_timer(conn, now)


def observed(
    factory: Callable[[], PathManager], audience: Audience
) -> Callable[[], ObservedPathManager]:
    """What makes path managers of ``factory`` that ``audience`` follows."""
    return lambda: ObservedPathManager(factory(), audience)


def innermost(manager: Any) -> Any:
    """The path manager that decides."""
    return manager.inner if isinstance(manager, ObservedPathManager) else manager
