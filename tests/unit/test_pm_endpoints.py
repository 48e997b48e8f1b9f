"""Endpoint flags of the kernel path manager, and changes of them on a live connection."""

from __future__ import annotations

from dataclasses import replace

from proxy.pm.base import Endpoint, Limits
from proxy.wire.address import Address
from tests.unit.test_pm import FIRST, REMOTE, SECOND, THIRD, Conn, Host, Sub, joined, started

OTHER = Address(bytes((203, 0, 113, 2)), 8803)


def test_a_laminar_endpoint_is_the_source_towards_one_announced_address() -> None:
    laminar = [Endpoint(SECOND, 2, laminar=True), Endpoint(THIRD, 3, laminar=True)]
    conn = Conn(Host(laminar), limits=Limits(4, 4))
    manager = started(conn)
    assert joined(conn) == []
    manager.on_addr_announced(conn, 5, OTHER, 1.0)
    manager.on_addr_announced(conn, 6, Address(bytes((203, 0, 113, 3)), 8803), 1.0)
    assert joined(conn) == [(SECOND, 2, 5), (THIRD, 3, 6)]


def test_fullmesh_wins_over_laminar() -> None:
    both = [Endpoint(SECOND, 2, laminar=True), Endpoint(THIRD, 3, fullmesh=True)]
    conn = Conn(Host(both), limits=Limits(4, 4))
    manager = started(conn)
    manager.on_addr_announced(conn, 5, OTHER, 1.0)
    assert joined(conn) == [(THIRD, 3, 5)]


def test_a_new_fullmesh_endpoint_goes_to_each_address_in_use() -> None:
    conn = Conn(Host([]), limits=Limits(8, 8))
    manager = started(conn)
    conn.path_subflows.append(Sub(conn.local, OTHER, 0, 7))
    mesh = Endpoint(SECOND, 2, subflow=True, fullmesh=True)
    conn.host.local_addresses.append(mesh)
    manager.on_endpoint_added(conn, mesh, 2.0)
    assert joined(conn)[1:] == [(SECOND, 2, 0), (SECOND, 2, 7)]


def test_a_change_to_backup_is_told_the_peer_for_the_subflows_of_that_address() -> None:
    first, second = Endpoint(FIRST, 1, subflow=True), Endpoint(SECOND, 2, subflow=True)
    conn = Conn(Host([first, second]))
    manager = started(conn)
    changed = replace(second, backup=True)
    conn.host.local_addresses[1] = changed
    manager.on_endpoint_changed(conn, second, changed, 2.0)
    assert [s.backup for s in conn.path_subflows] == [False, True]


def test_a_change_to_fullmesh_makes_the_subflows_anew() -> None:
    endpoint = Endpoint(SECOND, 2, subflow=True)
    conn = Conn(Host([endpoint]), limits=Limits(8, 8))
    manager = started(conn)
    conn.path_subflows.append(Sub(conn.local, OTHER, 0, 7))
    changed = replace(endpoint, fullmesh=True)
    conn.host.local_addresses[0] = changed
    manager.on_endpoint_changed(conn, endpoint, changed, 2.0)
    assert conn.withdrawn == [2]
    assert {s[2] for s in joined(conn) if s[0] == SECOND} == {0, 7}


def test_before_the_connection_is_fully_established_a_change_does_nothing() -> None:
    conn = Conn(Host([]))
    from proxy.pm.kernel import KernelPathManager

    manager = KernelPathManager()
    endpoint = Endpoint(FIRST, 1, subflow=True)
    manager.on_endpoint_changed(conn, endpoint, replace(endpoint, backup=True), 2.0)
    assert [(s.remote, s.backup) for s in conn.path_subflows] == [(REMOTE, False)]
