"""The path managers against a hand-made connection."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from proxy.errors import ConfigError
from proxy.pm.base import Endpoint, Limits, PathManager, factory, names
from proxy.wire.address import Address

FIRST, SECOND, THIRD = (bytes((10, n, 0, 1)) for n in (1, 2, 3))
REMOTE = Address(bytes((203, 0, 113, 1)), 8803)


@dataclass(eq=False)
class Sub:
    local: Address
    remote: Address
    local_id: int = 0
    remote_id: int = 0
    backup: bool = False
    uplink: str | None = None
    active: bool = True
    fully_established: bool = True
    reset_transient: bool = False


@dataclass
class Host:
    local_addresses: list[Endpoint]
    public_addresses: dict[bytes, bytes] = field(default_factory=dict)

    def open_local_port(self, local_ip: bytes, remote: Address) -> Address:
        return Address(local_ip, 50000)


@dataclass
class Conn:
    host: Host
    local: Address = field(default_factory=lambda: Address(FIRST, 40000))
    remote: Address = REMOTE
    active: bool = True
    join_delay: float = 0.0
    denies_initial: bool = False
    remote_denies_initial: bool = False
    limits: Limits = field(default_factory=lambda: Limits(2, 0))
    remote_addresses: dict[int, Address] = field(default_factory=dict)
    data_flows: bool = True
    announcing: bool = False
    announced: list[int] = field(default_factory=list)
    withdrawn: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.path_subflows = [Sub(self.local, self.remote)]

    @property
    def endpoints(self) -> list[Endpoint]:
        return self.host.local_addresses

    def open_subflow(
        self,
        local: Address,
        remote: Address,
        now: float,
        local_id: int = 0,
        remote_id: int = 0,
        backup: bool = False,
        uplink: str | None = None,
    ) -> Sub | None:
        sub = Sub(local, remote, local_id, remote_id, backup, uplink)
        self.path_subflows.append(sub)
        return sub

    def close_subflow(self, subflow: Sub, now: float) -> None:
        self.path_subflows.remove(subflow)

    def set_backup(self, subflow: Sub, backup: bool, now: float) -> None:
        subflow.backup = backup

    def announce(self, address: Address, address_id: int, now: float) -> None:
        self.announcing = True
        self.announced.append(address_id)

    def withdraw(self, address_id: int, now: float) -> None:
        self.withdrawn.append(address_id)


def endpoints(count: int = 3) -> list[Endpoint]:
    ips = (FIRST, SECOND, THIRD)
    return [Endpoint(ips[n], n + 1, uplink=f"u{n}", subflow=True) for n in range(count)]


def started(conn: Conn) -> PathManager:
    manager = factory("kernel")()
    manager.on_fully_established(conn, 1.0)
    return manager


def joined(conn: Conn) -> list[tuple[bytes, int, int]]:
    return [(s.local.ip, s.local_id, s.remote_id) for s in conn.path_subflows[1:]]


def test_names_and_unknown_names() -> None:
    assert names() == ["kernel", "none", "passive", "userspace"]
    with pytest.raises(ConfigError, match="is none of"):
        factory("userland")


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": 0},
        {"id": 256},
        {"id": 1, "signal": True, "fullmesh": True},
        {"id": 1, "subflow": True, "port": 5},
        {"id": 1, "signal": True, "subflow": True, "port": 5},
    ],
)
def test_endpoints_are_held_to_the_rules_of_ip_mptcp(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"endpoint|exclude|port"):
        Endpoint(FIRST, **wrong)  # type: ignore[arg-type]


def test_one_subflow_per_endpoint_with_the_initial_address_as_id_0() -> None:
    conn = Conn(Host(endpoints()))
    started(conn)
    assert joined(conn) == [(SECOND, 2, 0), (THIRD, 3, 0)]
    assert [s.uplink for s in conn.path_subflows[1:]] == ["u1", "u2"]


def test_joins_wait_for_the_delay() -> None:
    conn = Conn(Host(endpoints()), join_delay=0.1)
    manager = started(conn)
    assert joined(conn) == []
    due = manager.next_timeout()
    assert due is not None
    manager.on_endpoint_added(conn, conn.endpoints[1], due - 0.01)
    manager.on_timer(conn, due - 0.01)
    assert joined(conn) == []
    manager.on_timer(conn, due)
    assert joined(conn) == [(SECOND, 2, 0), (THIRD, 3, 0)]
    assert manager.next_timeout() is None


def test_announcements_do_not_wait_for_the_delay_of_joins() -> None:
    own = Endpoint(SECOND, 2, signal=True)
    conn = Conn(Host([own]), join_delay=0.1)
    started(conn)
    assert conn.announced == [2]


def test_the_limit_counts_additional_subflows() -> None:
    conn = Conn(Host(endpoints()), limits=Limits(1, 0))
    manager = started(conn)
    assert joined(conn) == [(SECOND, 2, 0)]
    assert not manager.accepts_join(conn, 1.0)


def test_addresses_of_the_other_family_are_left_alone() -> None:
    conn = Conn(Host([*endpoints(1), Endpoint(bytes(15) + b"\x01", 9, subflow=True)]))
    started(conn)
    assert joined(conn) == []


def test_flag_c_of_the_peer_forbids_joins_to_its_initial_address() -> None:
    conn = Conn(Host(endpoints()), remote_denies_initial=True)
    manager = started(conn)
    assert joined(conn) == []
    announce_other(conn, manager)
    assert joined(conn) == [(SECOND, 2, 4), (THIRD, 3, 4)]


def announce_other(conn: Conn, manager: PathManager) -> None:
    other = Address(bytes((203, 0, 113, 2)), 8803)
    conn.remote_addresses[4] = other
    manager.on_addr_announced(conn, 4, other, 1.0)


def test_with_flag_c_a_lost_initial_subflow_is_followed_by_one_to_the_announced_address() -> None:
    conn = Conn(Host(endpoints(2)), remote_denies_initial=True)
    manager = started(conn)
    announce_other(conn, manager)
    lose(conn, manager, 0, 10.0)
    manager.on_timer(conn, 11.0)
    assert [(s.local.ip, s.remote_id) for s in conn.path_subflows] == [(SECOND, 4), (FIRST, 4)]


def test_with_flag_c_an_endpoint_that_appears_joins_the_announced_address() -> None:
    conn = Conn(Host(endpoints(1)), remote_denies_initial=True)
    manager = started(conn)
    announce_other(conn, manager)
    assert joined(conn) == []
    conn.host.local_addresses.append(endpoints()[1])
    manager.on_endpoint_added(conn, endpoints()[1], 2.0)
    assert joined(conn) == [(SECOND, 2, 4)]


def test_with_flag_c_of_ours_the_initial_address_is_announced_as_well() -> None:
    conn = Conn(Host([Endpoint(FIRST, 1, signal=True)]), denies_initial=True)
    started(conn)
    assert conn.announced == [1]


def test_announcements_go_one_at_a_time() -> None:
    both = [Endpoint(SECOND, 1, signal=True), Endpoint(THIRD, 2, signal=True)]
    conn = Conn(Host(both))
    manager = started(conn)
    assert conn.announced == [1]
    conn.announcing = False
    manager.on_announced(conn, 1, 2.0)
    assert conn.announced == [1, 2]


def test_the_initial_address_is_not_announced_whatever_a_nat_of_ours_calls_it() -> None:
    public = bytes((203, 0, 113, 9))
    endpoints = [
        Endpoint(FIRST, 1, signal=True),
        Endpoint(public, 2, signal=True),
        Endpoint(public, 3, port=81, signal=True),
    ]
    conn = Conn(Host(endpoints[:1]))
    started(conn)
    assert conn.announced == []
    conn = Conn(Host(endpoints[1:], {FIRST: public}))
    started(conn)
    assert conn.announced == [3]


def test_announced_addresses_are_joined_only_within_the_limit() -> None:
    conn = Conn(Host(endpoints(1)), limits=Limits(8, 1))
    manager = started(conn)
    for number in (4, 5, 6):
        manager.on_addr_announced(conn, number, Address(bytes((9, 9, 9, number)), 1), 1.0)
    assert joined(conn) == [(FIRST, 0, 4)]
    manager.on_addr_removed(conn, 4, 2.0)
    manager.on_addr_announced(conn, 5, Address(bytes((9, 9, 9, 5)), 1), 2.0)
    assert joined(conn)[-1] == (FIRST, 0, 5)


def test_fullmesh_joins_from_every_such_endpoint() -> None:
    mesh = [Endpoint(ip, n, fullmesh=True) for n, ip in ((1, FIRST), (2, SECOND))]
    conn = Conn(Host(mesh), limits=Limits(8, 2))
    manager = started(conn)
    manager.on_addr_announced(conn, 4, Address(bytes((9, 9, 9, 4)), 1), 1.0)
    assert joined(conn) == [(FIRST, 0, 4), (SECOND, 2, 4)]


def lose(conn: Conn, manager: PathManager, index: int, now: float, reason: int = -1) -> None:
    subflow = conn.path_subflows.pop(index)
    manager.on_subflow_closed(conn, subflow, reason, now)


def test_a_lost_subflow_is_tried_again_with_growing_pauses() -> None:
    conn = Conn(Host(endpoints(2)))
    manager = started(conn)
    now = 10.0
    pauses = []
    for _ in range(7):
        lose(conn, manager, 1, now)
        due = manager.next_timeout()
        assert due is not None
        pauses.append(round(due - now, 3))
        now = due
        manager.on_timer(conn, now)
        assert joined(conn) == [(SECOND, 2, 0)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    manager.on_subflow_established(conn, conn.path_subflows[1], now)
    assert manager.next_timeout() is None


def test_pauses_grow_further_while_nothing_flows() -> None:
    conn = Conn(Host(endpoints(2)), data_flows=False)
    manager = started(conn)
    now = 10.0
    for _ in range(14):
        lose(conn, manager, 1, now)
        due = manager.next_timeout()
        assert due is not None
        last, now = due - now, due
        manager.on_timer(conn, now)
    assert last == pytest.approx(60.0)


def test_a_lost_initial_subflow_is_joined_again_from_id_0() -> None:
    conn = Conn(Host(endpoints(2)))
    manager = started(conn)
    lose(conn, manager, 0, 10.0)
    manager.on_timer(conn, 11.0)
    assert (FIRST, 0, 0) in [(s.local.ip, s.local_id, s.remote_id) for s in conn.path_subflows]


def test_a_refused_join_is_not_repeated() -> None:
    conn = Conn(Host(endpoints(2)))
    manager = started(conn)
    lose(conn, manager, 1, 10.0, reason=3)
    assert manager.next_timeout() is None
    manager.on_announced(conn, 9, 20.0)
    assert joined(conn) == []


def test_a_join_refused_for_the_time_being_is_repeated() -> None:
    conn = Conn(Host(endpoints(2)))
    manager = started(conn)
    conn.path_subflows[1].reset_transient = True
    lose(conn, manager, 1, 10.0, reason=3)
    assert manager.next_timeout() is not None


def test_a_removed_endpoint_is_closed_withdrawn_and_not_retried() -> None:
    conn = Conn(Host(endpoints(2)))
    manager = started(conn)
    subflow = conn.path_subflows[1]
    gone = conn.host.local_addresses.pop()
    manager.on_endpoint_removed(conn, gone, 5.0)
    assert conn.withdrawn == [2]
    assert joined(conn) == []
    manager.on_subflow_closed(conn, subflow, -1, 5.0)
    assert manager.next_timeout() is None
    conn.host.local_addresses.append(gone)
    manager.on_endpoint_added(conn, gone, 6.0)
    assert joined(conn) == [(SECOND, 2, 0)]


def test_a_backup_endpoint_behind_the_initial_subflow_is_told_by_mp_prio() -> None:
    conn = Conn(Host([Endpoint(FIRST, 1, subflow=True, backup=True)]))
    started(conn)
    assert conn.path_subflows[0].backup


def test_the_passive_ones_open_nothing() -> None:
    for name, accepts in (("none", False), ("passive", True)):
        conn = Conn(Host(endpoints()))
        manager = factory(name)()
        manager.on_fully_established(conn, 1.0)
        assert joined(conn) == []
        assert manager.accepts_join(conn, 1.0) is accepts
