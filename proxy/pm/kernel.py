"""The in-kernel path manager: endpoints and limits (§3.4 of the kernel's documentation).

Unlike the kernel's it also opens lost subflows again, with back-off, as long as the connection
lives (RFC 8684 §3.9.3 leaves that open; see multipath-tcp/mptcp_net-next issue 440).
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.pm.base import Endpoint, PathConnection, PathManager, PathSubflow, register
from proxy.wire.address import Address

_FIRST_RETRY = 0.1
_MAX_RETRY_BUSY = 1.0  # while data flows
_MAX_RETRY_IDLE = 60.0
_REASON_PROHIBITED = 3


class _Retry:
    """The next attempt for one endpoint."""

    __slots__ = ("at", "pause")

    def __init__(self) -> None:
        self.at: float | None = None
        self.pause = _FIRST_RETRY


class KernelPathManager(PathManager):
    """One subflow per ``subflow`` endpoint to the peer's initial address, and what is announced."""

    __slots__ = (
        "_accepted", "_announced", "_join_at", "_ready", "_refused", "_removed", "_retries",
    )  # fmt: skip
    name = "kernel"

    def __init__(self) -> None:
        self._ready = False
        self._join_at: float | None = None
        # Made when first needed: most connections announce and accept nothing.
        self._announced: set[int] | None = None
        self._accepted: set[int] | None = None
        self._retries: dict[tuple[int, int], _Retry] | None = None
        self._refused: set[tuple[int, int]] | None = None
        self._removed: set[int] | None = None

    # -- events -------------------------------------------------------------------------------

    def on_fully_established(self, conn: PathConnection, now: float) -> None:
        """Announce, and join at once or after the delay."""
        self._ready = True
        if conn.join_delay:
            self._join_at = now + conn.join_delay
        for endpoint in conn.endpoints:
            if endpoint.ip == conn.local.ip and endpoint.backup:
                for subflow in conn.path_subflows:
                    if subflow.local_id == 0 and not subflow.backup:
                        conn.set_backup(subflow, True, now)
        self._work(conn, now)

    def on_subflow_established(
        self, conn: PathConnection, subflow: PathSubflow, now: float
    ) -> None:
        """Forget the failures of its endpoint, go on with the next one."""
        if self._retries is not None:
            self._retries.pop((subflow.local_id, subflow.remote_id), None)
        self._work(conn, now)

    def on_subflow_closed(
        self, conn: PathConnection, subflow: PathSubflow, reason: int, now: float
    ) -> None:
        """Plan another attempt, unless the peer does not want it (JOIN-08)."""
        if not (self._ready and (subflow.active or conn.active)):
            return
        key = (subflow.local_id, subflow.remote_id)
        if self._removed is not None and subflow.local_id in self._removed:
            return
        if reason == _REASON_PROHIBITED and not subflow.reset_transient:
            self._refused = {key} | (self._refused or set())
            return
        if self._retries is None:
            self._retries = {}
        retry = self._retries.setdefault(key, _Retry())
        limit = _MAX_RETRY_BUSY if conn.data_flows else _MAX_RETRY_IDLE
        retry.at = now + min(retry.pause, limit)
        retry.pause = min(retry.pause * 2, _MAX_RETRY_IDLE)

    def on_addr_announced(
        self, conn: PathConnection, address_id: int, address: Address, now: float
    ) -> None:
        """Join it if the limits allow, or if flag C leaves no other way."""
        if self._refused is not None:
            # A fresh announcement allows another try (JOIN-08).
            self._refused = {key for key in self._refused if key[1] != address_id}
        accepted = self._accepted or ()
        if address_id == 0 or address_id in accepted:
            return
        self._ready = True  # nobody but the peer can announce
        if self._elsewhere_only(conn):
            self._accepted = {address_id} | (self._accepted or set())
            self._work(conn, now)
            return
        if len(accepted) >= conn.limits.add_addr_accepted:
            return
        # One laminar endpoint that is not in use yet, if there is any (§3.4 of the kernel's
        # documentation; "fullmesh" wins over it).
        meshed = [e for e in conn.endpoints if e.fullmesh]
        sources = meshed or self._laminar(conn, address)
        opened = False
        for endpoint in sources:
            opened |= self._join(conn, endpoint, address_id, address, now)
        if not sources:
            opened = self._join(conn, None, address_id, address, now)
        if opened:
            self._accepted = {address_id} | (self._accepted or set())

    def on_addr_removed(self, conn: PathConnection, address_id: int, now: float) -> None:
        """Free its place."""
        if self._accepted is not None:
            self._accepted.discard(address_id)
        if self._retries is not None:
            for key in [key for key in self._retries if key[1] == address_id]:
                del self._retries[key]

    def on_announced(self, conn: PathConnection, address_id: int, now: float) -> None:
        """One ADD_ADDR is in flight at a time; the next may go."""
        self._work(conn, now)

    def on_endpoint_added(self, conn: PathConnection, endpoint: Endpoint, now: float) -> None:
        """Use it at once, whatever failed before."""
        address_id = self._wire_id(conn, endpoint)
        if self._removed is not None:
            self._removed.discard(address_id)
        if self._retries is not None:
            for key in [key for key in self._retries if key[0] == address_id]:
                del self._retries[key]
        if self._ready:
            self._work(conn, now)

    def on_endpoint_removed(self, conn: PathConnection, endpoint: Endpoint, now: float) -> None:
        """Withdraw it and close what runs over it (EP-04)."""
        address_id = self._wire_id(conn, endpoint)
        closing = [s for s in conn.path_subflows if s.local_id == address_id]
        if not closing:
            # The endpoint got its id after these were opened.
            closing = [s for s in conn.path_subflows if s.local.ip == endpoint.ip]
            address_id = closing[0].local_id if closing else address_id
        self._removed = {address_id} | (self._removed or set())
        announced = self._announced is not None and endpoint.id in self._announced
        if closing or announced:
            # What is announced has its own id on the wire, even if it is the initial address.
            conn.withdraw(endpoint.id if announced else address_id, now)
        if self._announced is not None:
            self._announced.discard(endpoint.id)
        for subflow in closing:
            conn.close_subflow(subflow, now)
        if self._retries is not None:
            for key in [key for key in self._retries if key[0] == address_id]:
                del self._retries[key]

    def on_endpoint_changed(
        self, conn: PathConnection, old: Endpoint, new: Endpoint, now: float
    ) -> None:
        """MP_PRIO for a new priority; with or without ``fullmesh`` its subflows are new (EP-03)."""
        if not self._ready:
            return
        if old.fullmesh != new.fullmesh:
            self.on_endpoint_removed(conn, old, now)
            self.on_endpoint_added(conn, new, now)
        elif old.backup != new.backup:
            for subflow in conn.path_subflows:
                if subflow.local.ip == new.ip and subflow.backup != new.backup:
                    conn.set_backup(subflow, new.backup, now)

    def accepts_join(self, conn: PathConnection, now: float) -> bool:
        """Additional subflows of both directions count (EP-02)."""
        return self._has_room(conn)

    def announcements(self) -> tuple[int, int]:
        """Both as the limits count them."""
        return len(self._announced or ()), len(self._accepted or ())

    # -- time ---------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """The earliest planned attempt."""
        if not self._retries:
            return self._join_at
        planned = [r.at for r in self._retries.values() if r.at is not None]
        if self._join_at is not None:
            planned.append(self._join_at)
        return min(planned, default=None)

    def on_timer(self, conn: PathConnection, now: float) -> None:
        """Make the attempts that are due."""
        if self._join_at is not None and now >= self._join_at:
            self._join_at = None
            self._work(conn, now)
        if not self._retries:
            return
        for key, retry in list(self._retries.items()):
            if retry.at is None or retry.at > now:
                continue
            retry.at = None
            self._retry(conn, key, now)

    # -- decisions ------------------------------------------------------------------------------

    def _work(self, conn: PathConnection, now: float) -> None:
        if not conn.announcing:
            for endpoint in self._endpoints(conn):
                if not endpoint.signal or self._is_initial(conn, endpoint):
                    continue
                if endpoint.id not in (self._announced or ()):
                    self._announced = {endpoint.id} | (self._announced or set())
                    port = endpoint.port if endpoint.port is not None else conn.local.port
                    conn.announce(Address(endpoint.ip, port), endpoint.id, now)
                    break
        if self._join_at is not None:
            return
        if conn.remote_denies_initial and not self._elsewhere_only(conn):
            return
        for endpoint in self._endpoints(conn):
            if not endpoint.subflow:
                continue
            for remote_id, remote in self._targets(conn, endpoint):
                key = (self._wire_id(conn, endpoint), remote_id)
                retry = None if self._retries is None else self._retries.get(key)
                waiting = retry is not None and retry.at is not None
                if not waiting and not self._taken(conn, endpoint, remote_id):
                    self._join(conn, endpoint, remote_id, remote, now)

    def _endpoints(self, conn: PathConnection) -> Iterable[Endpoint]:
        """Those that the connection announces and joins from."""
        return conn.endpoints

    @staticmethod
    def _elsewhere_only(conn: PathConnection) -> bool:
        """Flag C of the peer (RFC 8684 §3.1), and limits that take no announced address.

        Its endpoints then join what is announced in place of the initial address, as in Linux.
        """
        return conn.remote_denies_initial and conn.limits.add_addr_accepted == 0

    def _targets(self, conn: PathConnection, endpoint: Endpoint) -> list[tuple[int, Address]]:
        """The peer's initial address; for ``fullmesh`` also each other one that is in use."""
        if self._elsewhere_only(conn):
            announced = conn.remote_addresses
            return [(i, announced[i]) for i in sorted(self._accepted or ()) if i in announced]
        targets = [(0, conn.remote)]
        if endpoint.fullmesh:
            for subflow in conn.path_subflows:
                if all(subflow.remote_id != known for known, _ in targets):
                    targets.append((subflow.remote_id, subflow.remote))
        return targets

    @staticmethod
    def _laminar(conn: PathConnection, remote: Address) -> list[Endpoint]:
        used = {subflow.local.ip for subflow in conn.path_subflows}
        for endpoint in conn.endpoints:
            if endpoint.laminar and endpoint.ip not in used and len(endpoint.ip) == len(remote.ip):
                return [endpoint]
        return []

    def _retry(self, conn: PathConnection, key: tuple[int, int], now: float) -> None:
        local_id, remote_id = key
        if remote_id == 0 and conn.remote_denies_initial:
            self._work(conn, now)
            return
        remote = conn.remote if remote_id == 0 else conn.remote_addresses.get(remote_id)
        if remote is None:
            return
        for endpoint in conn.endpoints:
            if self._wire_id(conn, endpoint) == local_id:
                if not self._used(conn, endpoint, remote_id):
                    self._join(conn, endpoint, remote_id, remote, now)
                return
        if local_id == 0:
            # No endpoint of its own: the address that the connection began with.
            self._join(conn, None, remote_id, remote, now)
        else:
            self._work(conn, now)  # its endpoint has another id by now

    def _join(
        self,
        conn: PathConnection,
        endpoint: Endpoint | None,
        remote_id: int,
        remote: Address,
        now: float,
    ) -> bool:
        local_ip = conn.local.ip if endpoint is None else endpoint.ip
        local_id = 0 if endpoint is None else self._wire_id(conn, endpoint)
        refused = self._refused is not None and (local_id, remote_id) in self._refused
        if refused or len(local_ip) != len(remote.ip) or not self._has_room(conn):
            return False
        opened = conn.open_subflow(
            conn.host.open_local_port(local_ip, remote),
            remote,
            now,
            local_id=local_id,
            remote_id=remote_id,
            backup=endpoint is not None and endpoint.backup,
            uplink=None if endpoint is None else endpoint.uplink,
        )
        return opened is not None

    def _has_room(self, conn: PathConnection) -> bool:
        return len(conn.path_subflows) <= conn.limits.subflows

    def _used(self, conn: PathConnection, endpoint: Endpoint, remote_id: int = 0) -> bool:
        ip = endpoint.ip
        return any(s.local.ip == ip and s.remote_id == remote_id for s in conn.path_subflows)

    def _taken(self, conn: PathConnection, endpoint: Endpoint, remote_id: int) -> bool:
        # As in the kernel, an endpoint without ``fullmesh`` is the source of one subflow.
        if endpoint.fullmesh:
            return self._used(conn, endpoint, remote_id)
        return any(subflow.local.ip == endpoint.ip for subflow in conn.path_subflows)

    @staticmethod
    def _is_initial(conn: PathConnection, endpoint: Endpoint) -> bool:
        # What the connection began with needs no announcement (as in the kernel), unless flag C
        # keeps the peer from joining it where it saw it: a balancer may stand there.
        if conn.denies_initial:
            return False
        ip = conn.host.public_addresses.get(conn.local.ip, conn.local.ip)
        return endpoint.ip == ip and endpoint.port in (None, conn.local.port)

    @staticmethod
    def _wire_id(conn: PathConnection, endpoint: Endpoint) -> int:
        # The address of the initial subflow is id 0, whatever its endpoint is called (EP-04).
        return 0 if endpoint.ip == conn.local.ip else endpoint.id


def install() -> None:
    """Enter the registry."""
    register(KernelPathManager.name, KernelPathManager)
