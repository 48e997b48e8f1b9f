"""The commands of a program that decides per connection: net/mptcp/pm_userspace.c of Linux 6.18."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from proxy.control.endpoints import Own
from proxy.control.fields import (
    AddressNest,
    CommandError,
    Request,
    family,
    ip_fields,
    nest,
    number,
    token,
)
from proxy.engine.stack import Stack
from proxy.mptcp.connection import MptcpConnection
from proxy.pm.observed import innermost
from proxy.pm.userspace import LocalAddress, PathError, UserspacePathManager
from proxy.wire.address import format_ip


class UserspaceCommands:
    """Acts on those connections of ``stack`` that the ``userspace`` path manager leaves to us."""

    def __init__(self, stack: Stack, clock: Callable[[], float], own: Own) -> None:
        self._stack = stack
        self._clock = clock
        self._own = own

    def announce(self, request: Request) -> object:
        """``announce``: token, addr with id and flag signal."""
        conn, manager = self._connection(request)
        with _refusing():
            manager.announce(conn, _local(_address(request)), self._clock())
        return None

    def remove(self, request: Request) -> object:
        """``remove``: token, loc-id."""
        conn, manager = self._connection(request)
        with _refusing():
            manager.remove(conn, number(request, "loc-id", 0, 255), self._clock())
        return None

    def create_subflow(self, request: Request) -> object:
        """``subflow-create``: token, addr, addr-remote; answers with the addresses."""
        conn, manager = self._connection(request)
        source = _address(request)
        own = self._own()
        if source.ip not in own:
            known = ", ".join(map(format_ip, own)) or "none"
            raise CommandError(
                "EADDRNOTAVAIL",
                f"{format_ip(source.ip)} is no address of this engine (it has: {known})",
            )
        model = own[source.ip]
        remote = _address(request, "addr-remote").address
        with _refusing():
            made = manager.create_subflow(
                conn, _local(source), remote, self._clock(), None if model is None else model.uplink
            )
        return {
            "addr": {"id": made.local_id, **ip_fields(made.local.ip), "port": made.local.port},
            "addr-remote": {**ip_fields(made.remote.ip), "port": made.remote.port},
        }

    def destroy_subflow(self, request: Request) -> object:
        """``subflow-destroy``: token, addr and addr-remote with their ports."""
        conn, manager = self._connection(request)
        local = _address(request).address
        with _refusing():
            remote = _address(request, "addr-remote").address
            manager.destroy_subflow(conn, local, remote, self._clock())
        return None

    def set_flags(self, request: Request) -> object:
        """``set-flags`` with a token: MP_PRIO on the subflows between addr and addr-remote."""
        conn, manager = self._connection(request)
        wanted = _address(request)
        remote = _address(request, "addr-remote").address
        with _refusing():
            manager.set_flags(conn, wanted.address, remote, "backup" in wanted.flags, self._clock())
        return None

    def get(self, request: Request) -> object:
        """``get-addr`` with a token: what was announced or used."""
        _, manager = self._connection(request)
        return [
            {
                "addr": {
                    "id": entry.id,
                    "family": family(entry.ip),
                    **ip_fields(entry.ip),
                    "port": entry.port,
                    "flags": [
                        "signal" if entry.signal else "subflow",
                        *(["backup"] if entry.backup else []),
                    ],
                }
            }
            for entry in manager.addresses.values()
        ]

    def _connection(self, request: Request) -> tuple[MptcpConnection, UserspacePathManager]:
        number_ = token(request)
        conn = self._stack.tokens.get(number_)
        if conn is None:
            raise CommandError(
                "EINVAL", f"invalid token: no MPTCP connection has {number_:08x} (see ss)"
            )
        manager = innermost(conn.path_manager)
        if not isinstance(manager, UserspacePathManager):
            raise CommandError(
                "EINVAL",
                "userspace PM not selected: net.mptcp.path_manager = userspace makes it so for "
                "connections that are opened afterwards",
            )
        return conn, manager


def _address(request: Request, name: str = "addr") -> AddressNest:
    found = nest(request, name)
    if not found.ip:
        raise CommandError("EINVAL", f"missing address in {name}")
    return found


def _local(found: AddressNest) -> LocalAddress:
    return LocalAddress(
        found.id, found.ip, found.port, "signal" in found.flags, "backup" in found.flags
    )


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except PathError as error:
        raise CommandError(error.errno_name, str(error)) from error
    except OSError as error:
        raise CommandError("EADDRNOTAVAIL", str(error)) from error
