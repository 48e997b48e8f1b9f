"""What a path manager is told and may do, endpoints and limits, and the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from proxy.errors import ConfigError

if TYPE_CHECKING:
    from proxy.wire.address import Address

ENTRY_POINTS = "mptcp_proxy.path_managers"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A local address with flags, as in ``ip mptcp endpoint`` (EP-01).

    ``id`` is 1..255 and unique; ``uplink`` names the WAN interface behind it. ``signal``: announce
    it; ``subflow``: open subflows from it; ``backup``: these get the B bit; ``fullmesh``: to each
    address of the peer; ``laminar``: the source of one subflow to an announced address. ``port``
    only goes with ``signal``. ``weight``: what schedulers that know
    weights go by, 1 or more; others go by the order of the endpoints.
    """

    ip: bytes
    id: int
    uplink: str | None = None
    port: int | None = None
    signal: bool = False
    subflow: bool = False
    backup: bool = False
    fullmesh: bool = False
    laminar: bool = False
    weight: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.id <= 255:
            raise ValueError(f"endpoint id {self.id} is not 1..255")
        if self.signal and self.fullmesh:
            raise ValueError("signal and fullmesh exclude each other")
        if self.port is not None and (not self.signal or self.subflow):
            raise ValueError("only a signal endpoint has a port")
        if self.weight < 1:
            raise ValueError(f"weight {self.weight} is less than 1")


@dataclass(frozen=True, slots=True)
class Limits:
    """As ``ip mptcp limits``: additional subflows, and announced addresses that may be joined."""

    subflows: int = 2
    add_addr_accepted: int = 0


def uplink_id(position: int, weight: int) -> int:
    """The address id by which a proxy tells the gateway which of its uplinks joins.

    Ids are the sender's to choose (RFC 8684 §3.4.1). ``position`` is 0..7, ``weight`` 1..31.
    """
    return (weight - 1 << 3 | position) + 1


def of_uplink_id(address_id: int) -> tuple[int, int]:
    """Position and weight of ``uplink_id``; of other peers' ids 1 to 8 the weight is 1."""
    return (address_id - 1) & 7, (address_id - 1 >> 3) + 1


class PathSubflow(Protocol):
    """What a path manager sees of a subflow."""

    local: Address
    remote: Address
    local_id: int
    remote_id: int
    uplink: str | None
    backup: bool
    active: bool
    fully_established: bool
    reset_transient: bool
    """It was refused, but a later try may succeed (flag T of MP_TCPRST)."""


class PathHost(Protocol):
    """What a path manager sees of the engine."""

    @property
    def local_addresses(self) -> Sequence[Endpoint]:
        """All endpoints, in order of preference."""
        ...

    @property
    def public_addresses(self) -> Mapping[bytes, bytes]:
        """By which address the peer knows one of ours, if not by that itself."""
        ...

    def open_local_port(self, local_ip: bytes, remote: Address, /) -> Address:
        """``local_ip`` with a free port."""
        ...


class PathConnection(Protocol):
    """What a path manager may see and do on one connection.

    ``subflows`` holds all subflows, also those that are opening; ``remote_addresses`` what the
    peer announced, by address id. ``active``: we sent the MP_CAPABLE SYN.
    ``remote_denies_initial``: the peer set flag C, so its initial address must not be joined.
    """

    local: Address
    remote: Address
    active: bool
    remote_denies_initial: bool
    limits: Limits

    @property
    def host(self) -> PathHost: ...
    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """Those of the host's endpoints that it may use."""
        ...

    @property
    def join_delay(self) -> float:
        """Seconds that it shall do with its initial subflow (RFC 8684 §3.9.2: most are short)."""
        ...

    @property
    def denies_initial(self) -> bool:
        """We set flag C: the peer must not join where it began."""
        ...

    @property
    def remote_addresses(self) -> dict[int, Address]: ...
    @property
    def path_subflows(self) -> Sequence[PathSubflow]: ...
    @property
    def data_flows(self) -> bool: ...
    @property
    def announcing(self) -> bool: ...

    def open_subflow(
        self,
        local: Address,
        remote: Address,
        now: float,
        local_id: int = 0,
        remote_id: int = 0,
        backup: bool = False,
        uplink: str | None = None,
    ) -> PathSubflow | None: ...
    def close_subflow(self, subflow: Any, now: float) -> None: ...
    def set_backup(self, subflow: Any, backup: bool, now: float) -> None: ...
    def announce(self, address: Address, address_id: int, now: float) -> None: ...
    def withdraw(self, address_id: int, now: float) -> None: ...


class Observer(Protocol):
    """Who follows what happens to connections, as those who listen to the kernel's events."""

    @property
    def listening(self) -> bool:
        """Whether anybody is there."""
        ...


class PathManager:
    """One object per connection; the base does nothing on its own and refuses joins.

    Every method may open and close subflows through ``conn``. ``next_timeout`` asks for
    ``on_timer``.
    """

    __slots__ = ()
    name: ClassVar[str] = ""

    def attach(self, observer: Observer) -> None:
        """Told before everything else: who may decide in our stead."""

    def takes_announcements(self) -> bool:
        """Whether an ADD_ADDR of the peer is echoed; the others are dropped and counted."""
        return True

    def on_established(self, conn: PathConnection, now: float) -> None:
        """The initial subflow is established."""

    def on_fully_established(self, conn: PathConnection, now: float) -> None:
        """The peer proved that it speaks MPTCP: joins are allowed (CAP-08)."""

    def on_subflow_established(
        self, conn: PathConnection, subflow: PathSubflow, now: float
    ) -> None:
        """An additional subflow carries data now."""

    def on_subflow_closed(
        self, conn: PathConnection, subflow: PathSubflow, reason: int, now: float
    ) -> None:
        """A subflow is gone while the connection lives; MP_TCPRST ``reason``, -1 for none."""

    def on_addr_announced(
        self, conn: PathConnection, address_id: int, address: Address, now: float
    ) -> None:
        """The peer announced an address, with a valid HMAC."""

    def on_addr_removed(self, conn: PathConnection, address_id: int, now: float) -> None:
        """The peer withdrew an address; the subflows to it are closed by the connection."""

    def on_announced(self, conn: PathConnection, address_id: int, now: float) -> None:
        """Our announcement was echoed, or is not repeated any more."""

    def on_priority(self, conn: PathConnection, subflow: PathSubflow, now: float) -> None:
        """The peer sent MP_PRIO for ``subflow``: its ``peer_backup`` is new."""

    def on_closed(self, conn: PathConnection, now: float) -> None:
        """The connection is no MPTCP connection any more: closed, or fallen back."""

    def on_endpoint_added(self, conn: PathConnection, endpoint: Endpoint, now: float) -> None:
        """``endpoint`` has just become one of ``conn.host.local_addresses``."""

    def on_endpoint_removed(self, conn: PathConnection, endpoint: Endpoint, now: float) -> None:
        """``endpoint`` is no longer one of ``conn.host.local_addresses``."""

    def on_endpoint_changed(
        self, conn: PathConnection, old: Endpoint, new: Endpoint, now: float
    ) -> None:
        """The flags of an endpoint changed; it is ``new`` in ``conn.host.local_addresses``."""

    def accepts_join(self, conn: PathConnection, now: float) -> bool:
        """Whether the peer may add one more subflow."""
        return False

    def announcements(self) -> tuple[int, int]:
        """How many addresses we announced, and how many of the peer's were accepted."""
        return 0, 0

    def next_timeout(self) -> float | None:
        """When ``on_timer`` is due; None: never."""
        return None

    def on_timer(self, conn: PathConnection, now: float) -> None:
        """The time asked for has come."""


_registry: dict[str, Callable[[], PathManager]] = {}


def register(name: str, factory: Callable[[], PathManager]) -> None:
    """Make a path manager known under ``name``."""
    _registry[name] = factory


def names() -> list[str]:
    """All known names, as in ``net.mptcp.available_path_managers``."""
    _load_builtin()
    return sorted(set(_registry) | {entry.name for entry in entry_points(group=ENTRY_POINTS)})


def factory(name: str) -> Callable[[], PathManager]:
    """What makes the path managers called ``name``; ConfigError for an unknown name."""
    _load_builtin()
    found = _registry.get(name)
    if found is None:
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            found = entry.load()
            register(name, found)
    if found is None:
        raise ConfigError("mptcp.path_manager", f"{name!r} is none of {', '.join(names())}")
    return found


def _load_builtin() -> None:
    # Late, since they import this module.
    from proxy.pm import kernel, passive, userspace

    for module in (kernel, passive, userspace):
        module.install()
