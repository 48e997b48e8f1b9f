"""The path manager that leaves every decision to a program behind the control socket.

Nothing happens on its own. Joins are taken and announcements echoed only while somebody listens
to the events, as the kernel's does (net/mptcp/pm_userspace.c).
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.pm.base import Observer, PathConnection, PathManager, PathSubflow, register
from proxy.wire.address import Address


class PathError(Exception):
    """What was asked for cannot be done; ``errno_name`` and text are the kernel's."""

    def __init__(self, errno_name: str, message: str) -> None:
        super().__init__(message)
        self.errno_name = errno_name


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address in use on one connection."""

    id: int
    ip: bytes
    port: int = 0
    signal: bool = False
    backup: bool = False


class UserspacePathManager(PathManager):
    """``addresses``: what was announced or used on this connection, by address id."""

    __slots__ = ("_observer", "addresses")
    name = "userspace"

    def __init__(self) -> None:
        self._observer: Observer | None = None
        self.addresses: dict[int, LocalAddress] = {}

    def attach(self, observer: Observer) -> None:
        """Remember who may be listening."""
        self._observer = observer

    def takes_announcements(self) -> bool:
        """Only while somebody can act on them."""
        return self._observer is not None and self._observer.listening

    def accepts_join(self, conn: PathConnection, now: float) -> bool:
        """Only while somebody listens; limits are his affair."""
        return self._observer is not None and self._observer.listening

    def announcements(self) -> tuple[int, int]:
        """What a program accepts are its subflows, so that is not counted."""
        return sum(entry.signal for entry in self.addresses.values()), 0

    # -- commands -------------------------------------------------------------------------------

    def announce(self, conn: PathConnection, wanted: LocalAddress, now: float) -> None:
        """ADD_ADDR; PathError for id 0 or an id that belongs to another address."""
        if wanted.id == 0:
            raise PathError("EINVAL", "invalid addr id")
        if not wanted.signal:
            raise PathError("EINVAL", "invalid addr flags")
        self._enter(wanted, "did not match address and id")
        conn.announce(Address(wanted.ip, wanted.port or conn.local.port), wanted.id, now)

    def remove(self, conn: PathConnection, address_id: int, now: float) -> None:
        """REMOVE_ADDR; the peer closes the subflows to it. PathError if it is not known."""
        if address_id == 0:
            if all(subflow.local_id != 0 for subflow in conn.path_subflows):
                raise PathError("EINVAL", "address with id 0 not found")
        elif self.addresses.pop(address_id, None) is None:
            raise PathError("EINVAL", f"address with id {address_id} not found")
        conn.withdraw(address_id, now)

    def create_subflow(
        self,
        conn: PathConnection,
        source: LocalAddress,
        remote: Address,
        now: float,
        uplink: str | None = None,
    ) -> PathSubflow:
        """MP_JOIN from ``source`` (port 0: any) to ``remote``; PathError if that cannot be."""
        if source.signal:
            raise PathError("EINVAL", "invalid addr flags")
        if len(source.ip) != len(remote.ip):
            raise PathError("EINVAL", "families mismatch")
        if not remote.port:
            raise PathError("EINVAL", "missing remote port")
        known = source.id in self.addresses
        self._enter(source, "did not match address and id")
        local = Address(source.ip, source.port)
        if not source.port:
            local = conn.host.open_local_port(source.ip, remote)
        elif any(s.local == local and s.remote == remote for s in conn.path_subflows):
            raise PathError("EADDRINUSE", "there is a subflow with these addresses and ports")
        opened = conn.open_subflow(
            local,
            remote,
            now,
            local_id=source.id,
            remote_id=_remote_id(conn, remote),
            backup=source.backup,
            uplink=uplink,
        )
        if opened is None:
            if not known:
                self.addresses.pop(source.id, None)
            raise PathError("ENOTCONN", "the connection takes no more subflows")
        return opened

    def destroy_subflow(
        self, conn: PathConnection, local: Address, remote: Address, now: float
    ) -> None:
        """Close one subflow; PathError ESRCH if there is none between these addresses."""
        if not local.port:
            raise PathError("EINVAL", "missing local port")
        if not remote.port:
            raise PathError("EINVAL", "missing remote port")
        for subflow in conn.path_subflows:
            if subflow.local == local and subflow.remote == remote:
                conn.close_subflow(subflow, now)
                entry = self.addresses.get(subflow.local_id)
                others = any(
                    s.local_id == subflow.local_id for s in conn.path_subflows if s is not subflow
                )
                if entry is not None and not entry.signal and not others:
                    del self.addresses[subflow.local_id]
                return
        raise PathError("ESRCH", "subflow not found")

    def set_flags(
        self, conn: PathConnection, local: Address, remote: Address, backup: bool, now: float
    ) -> None:
        """MP_PRIO on the subflows between two addresses (port 0: any)."""
        found = [
            subflow
            for subflow in conn.path_subflows
            if _matches(subflow.local, local) and _matches(subflow.remote, remote)
        ]
        if not found:
            raise PathError("EINVAL", "subflow not found")
        for subflow in found:
            conn.set_backup(subflow, backup, now)

    def _enter(self, wanted: LocalAddress, complaint: str) -> None:
        for known in self.addresses.values():
            same_id = known.id == wanted.id
            same_address = known.ip == wanted.ip and known.port == wanted.port
            if same_id and same_address:
                break
            if same_id or same_address:
                raise PathError("EINVAL", complaint)
        self.addresses[wanted.id] = wanted


def _matches(address: Address, wanted: Address) -> bool:
    return address.ip == wanted.ip and wanted.port in (0, address.port)


def _remote_id(conn: PathConnection, remote: Address) -> int:
    if remote.ip == conn.remote.ip:
        return 0
    for address_id, address in conn.remote_addresses.items():
        if address.ip == remote.ip:
            return address_id
    return 0


def install() -> None:
    """Enter the registry."""
    register(UserspacePathManager.name, UserspacePathManager)
