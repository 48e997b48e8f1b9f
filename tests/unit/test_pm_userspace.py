"""The path manager that obeys a program, and the events that the program sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from proxy.mptcp.connection import MptcpConnection
from proxy.pm.base import PathConnection, PathSubflow, factory
from proxy.pm.kernel import KernelPathManager
from proxy.pm.observed import innermost, observed
from proxy.pm.userspace import LocalAddress, PathError, UserspacePathManager
from proxy.wire.address import Address
from tests.pair import mptcp_harness
from tests.pair.harness import App
from tests.pair.mptcp_harness import SERVER, SERVER_2, MptcpPair, client_ip, path, payload
from tests.unit.test_pm import FIRST, REMOTE, SECOND, Conn, Host

OTHER = Address(bytes((203, 0, 113, 2)), 8803)


class Audience:
    """Keeps the names of events."""

    def __init__(self, listening: bool = True) -> None:
        self.listening = listening
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(
        self,
        name: str,
        conn: PathConnection,
        subflow: PathSubflow | None = None,
        **more: Any,
    ) -> None:
        self.events.append((name, {"subflow": subflow, **more}))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


def obeying(audience: Audience | None = None) -> tuple[UserspacePathManager, Conn]:
    manager = UserspacePathManager()
    manager.attach(audience or Audience())
    conn = Conn(Host([]))
    manager.on_fully_established(conn, 1.0)
    return manager, conn


@contextmanager
def refused_with(errno_name: str, text: str) -> Iterator[None]:
    with pytest.raises(PathError, match=text) as caught:
        yield
    assert caught.value.errno_name == errno_name


def test_nothing_happens_by_itself() -> None:
    manager, conn = obeying()
    manager.on_addr_announced(conn, 3, OTHER, 1.0)
    assert (len(conn.path_subflows), conn.announced) == (1, [])


@pytest.mark.parametrize("listening", [False, True])
def test_joins_and_announcements_are_taken_only_while_somebody_listens(listening: bool) -> None:
    audience = Audience(listening=False)
    manager, conn = obeying(audience)
    audience.listening = listening
    assert manager.accepts_join(conn, 1.0) is listening
    assert manager.takes_announcements() is listening


def test_announce_and_remove() -> None:
    manager, conn = obeying()
    manager.announce(conn, LocalAddress(5, SECOND, signal=True), 1.0)
    manager.announce(conn, LocalAddress(5, SECOND, signal=True), 1.0)
    assert conn.announced == [5, 5]
    manager.remove(conn, 5, 1.0)
    manager.remove(conn, 0, 1.0)
    assert conn.withdrawn == [5, 0]
    with refused_with("EINVAL", "address with id 5 not found"):
        manager.remove(conn, 5, 1.0)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        (LocalAddress(0, SECOND, signal=True), "invalid addr id"),
        (LocalAddress(6, SECOND), "invalid addr flags"),
        (LocalAddress(6, SECOND, signal=True), "did not match"),
        (LocalAddress(5, FIRST, signal=True), "did not match"),
    ],
)
def test_announcements_that_the_kernel_refuses(wanted: LocalAddress, text: str) -> None:
    manager, conn = obeying()
    manager.announce(conn, LocalAddress(5, SECOND, signal=True), 1.0)
    with refused_with("EINVAL", text):
        manager.announce(conn, wanted, 1.0)
    assert conn.announced == [5]


def test_subflows_are_created_changed_and_destroyed() -> None:
    manager, conn = obeying()
    created = manager.create_subflow(conn, LocalAddress(2, SECOND), REMOTE, 1.0, "lte")
    assert (created.local, created.local_id, created.uplink) == (Address(SECOND, 50000), 2, "lte")
    manager.set_flags(conn, Address(SECOND, 0), Address(REMOTE.ip, 0), True, 1.0)
    assert [s.backup for s in conn.path_subflows] == [False, True]
    with refused_with("EINVAL", "not found"):
        manager.set_flags(conn, Address(SECOND, 0), OTHER, True, 1.0)
    with refused_with("ESRCH", "subflow not found"):
        manager.destroy_subflow(conn, Address(SECOND, 50001), REMOTE, 1.0)
    manager.destroy_subflow(conn, created.local, created.remote, 1.0)
    assert len(conn.path_subflows) == 1
    assert manager.addresses == {}


@pytest.mark.parametrize(
    ("source", "remote", "text"),
    [
        (LocalAddress(2, SECOND, signal=True), REMOTE, "flags"),
        (LocalAddress(2, bytes(16)), REMOTE, "families"),
        (LocalAddress(2, SECOND), Address(REMOTE.ip, 0), "remote port"),
    ],
)
def test_subflows_that_the_kernel_refuses(source: LocalAddress, remote: Address, text: str) -> None:
    manager, conn = obeying()
    with refused_with("EINVAL", text):
        manager.create_subflow(conn, source, remote, 1.0)
    assert len(conn.path_subflows) == 1


def test_subflows_to_an_announced_address_have_its_id() -> None:
    manager, conn = obeying()
    conn.remote_addresses[7] = OTHER
    assert manager.create_subflow(conn, LocalAddress(2, SECOND), OTHER, 1.0).remote_id == 7


def test_an_observed_manager_decides_as_before_and_is_told_about() -> None:
    audience = Audience()
    manager = observed(KernelPathManager, audience)()
    assert isinstance(innermost(manager), KernelPathManager)
    conn = Conn(Host([]))
    manager.on_closed(conn, 1.0)
    assert audience.names == []  # never told as created
    manager.on_established(conn, 1.0)
    manager.on_fully_established(conn, 1.0)
    manager.on_fully_established(conn, 1.0)
    manager.on_addr_announced(conn, 4, OTHER, 1.0)
    manager.on_addr_removed(conn, 4, 1.0)
    manager.on_closed(conn, 2.0)
    manager.on_closed(conn, 2.0)
    assert audience.names == ["created", "established", "announced", "removed", "closed"]
    assert manager.next_timeout() is None
    assert manager.accepts_join(conn, 1.0)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[MptcpPair, Audience, Audience]:
    """Both hosts obey programs that listen, on an open connection over two paths."""
    client, server = Audience(), Audience()
    audiences = iter((client, server))
    monkeypatch.setattr(
        mptcp_harness, "factory", lambda name: observed(factory(name), next(audiences))
    )
    pair = MptcpPair(
        lambda rng: [path(rng), path(rng)],
        App(payload(10), close=False),
        App(payload(10), close=False),
        client_manager="userspace",
        server_manager="userspace",
    )
    pair.run_for(1.0)
    return pair, client, server


def go_on(pair: MptcpPair, seconds: float) -> None:
    """Let what was asked for be sent, and time pass."""
    pair._settle()
    pair.run_for(seconds)


def test_a_program_runs_a_live_connection(watched: tuple[MptcpPair, Audience, Audience]) -> None:
    pair, seen, seen_by_server = watched
    assert seen.names == seen_by_server.names == ["created", "established"]
    server = pair.server
    assert isinstance(server, MptcpConnection)
    innermost(server.path_manager).announce(
        server, LocalAddress(9, SERVER_2, signal=True), pair.now
    )
    go_on(pair, 1.0)
    assert seen.names[2:] == ["announced"]
    assert seen.events[2][1]["address"] == Address(SERVER_2, 8803)

    manager, client = innermost(pair.client.path_manager), pair.client
    created = manager.create_subflow(client, LocalAddress(2, client_ip(1)), SERVER, pair.now)
    go_on(pair, 1.0)
    assert seen.names[3:] == seen_by_server.names[2:] == ["sub-established"]

    manager.set_flags(client, created.local, created.remote, True, pair.now)
    go_on(pair, 1.0)
    assert seen_by_server.names[3:] == ["sub-priority"]
    assert server.subflows[1].peer_backup

    manager.destroy_subflow(client, created.local, created.remote, pair.now)
    go_on(pair, 1.0)
    assert seen.names[4:] == seen_by_server.names[4:] == ["sub-closed"]

    innermost(server.path_manager).remove(server, 9, pair.now)
    go_on(pair, 1.0)
    assert seen.names[5:] == ["removed"]
    pair.client.abort(pair.now)
    go_on(pair, 1.0)
    assert seen.names[-1] == seen_by_server.names[-1] == "closed"


def test_without_a_listener_a_live_connection_takes_nothing(
    watched: tuple[MptcpPair, Audience, Audience],
) -> None:
    pair, seen, seen_by_server = watched
    seen.listening = seen_by_server.listening = False
    server = pair.server
    assert isinstance(server, MptcpConnection)
    manager = innermost(pair.client.path_manager)
    manager.create_subflow(pair.client, LocalAddress(2, client_ip(1)), SERVER, pair.now)
    innermost(server.path_manager).announce(
        server, LocalAddress(9, SERVER_2, signal=True), pair.now
    )
    go_on(pair, 0.5)
    assert pair.server_counters["MPTcpExtMPJoinRejected"] == 1
    assert pair.counters["MPTcpExtAddAddrDrop"] >= 1
    assert pair.counters["MPTcpExtEchoAddTx"] == 0
    assert pair.client.remote_addresses == {}
    assert len(server.subflows) == 1
