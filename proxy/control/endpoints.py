"""Endpoints and limits while running: the commands of the in-kernel path manager.

Names, attributes, checks and errors are those of net/mptcp/pm_kernel.c in Linux 6.18.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from proxy.control.events import EventHub
from proxy.control.fields import AddressNest, CommandError, Request, family, ip_fields, nest, number
from proxy.engine.stack import Stack
from proxy.mptcp.connection import MptcpConnection
from proxy.pm.base import Endpoint, Limits
from proxy.wire.address import format_ip

MAX_ENDPOINTS = 8  # MPTCP_PM_ADDR_MAX
MAX_LIMIT = 8  # the same
_SOURCES = frozenset(("subflow", "fullmesh", "laminar"))

Own = Callable[[], Mapping[bytes, Endpoint | None]]
"""Addresses that packets may leave from, with the endpoint of the configuration behind each."""


class EndpointCommands:
    """The endpoints of ``stack``; every change reaches its live connections at once."""

    def __init__(self, stack: Stack, hub: EventHub, clock: Callable[[], float], own: Own) -> None:
        self._stack = stack
        self._hub = hub
        self._clock = clock
        self._own = own
        self._next_id: int = 1

    # -- commands -------------------------------------------------------------------------------

    def add(self, request: Request) -> object:
        """``add-addr``; answers with the endpoint, whose id may be new."""
        wanted = self._resolve(nest(request))
        endpoint = self._make(wanted, self._own())
        for known in self._stack.local_addresses:
            same_port = not (known.port or endpoint.port) or known.port == endpoint.port
            if wanted.id and known.id == wanted.id:
                raise CommandError(
                    "EBUSY", f"too many addresses or duplicate one: id {known.id} is in use"
                )
            if known.ip == endpoint.ip and same_port:
                raise CommandError(
                    "EEXIST",
                    f"too many addresses or duplicate one: {format_ip(known.ip)} is endpoint "
                    f"{known.id} (change or delete that)",
                )
        self._replace([*self._stack.local_addresses, endpoint])
        self._next_id = max(self._next_id, endpoint.id)
        if endpoint.port is not None:
            self._hub.listener("listener-created", endpoint)
        now = self._clock()
        for conn in self._connections():
            conn.path_manager.on_endpoint_added(conn, endpoint, now)
        return {"addr": endpoint_fields(endpoint)}

    def delete(self, request: Request) -> object:
        """``del-addr``: by id; id 0 needs the address (the initial one of connections)."""
        wanted = self._resolve(nest(request))
        if not wanted.id:
            if not wanted.ip:
                raise CommandError("EINVAL", "address is needed for deleting id 0 address")
            self._delete_initial(wanted.ip)
            return None
        endpoint = self._find(wanted.id)
        self._remove(endpoint)
        return None

    def flush(self, request: Request) -> object:
        """``flush-addrs``: all of them."""
        for endpoint in list(self._stack.local_addresses):
            self._remove(endpoint)
        self._next_id = 1
        return None

    def get(self, request: Request) -> object:
        """``get-addr``: one by its id, or all."""
        if request.get("addr") is None:
            return [{"addr": endpoint_fields(e)} for e in self._stack.local_addresses]
        return {"addr": endpoint_fields(self._find(nest(request).id))}

    def set_flags(self, request: Request) -> object:
        """``set-flags``: backup and fullmesh become as ``flags`` says (EP-03)."""
        wanted = self._resolve(nest(request))
        if not wanted.id and not wanted.ip:
            raise CommandError("EINVAL", "missing address ID")
        old = self._find(wanted.id) if wanted.id else self._find_ip(wanted.ip, wanted.port)
        new = replace(
            old,
            backup="backup" in wanted.flags,
            fullmesh="fullmesh" in wanted.flags and not old.signal,
        )
        if "fullmesh" in wanted.flags and old.signal:
            raise CommandError("EINVAL", "invalid addr flags: signal and fullmesh exclude another")
        if new == old:
            return None
        self._replace([new if e is old else e for e in self._stack.local_addresses])
        now = self._clock()
        for conn in self._connections():
            conn.path_manager.on_endpoint_changed(conn, old, new, now)
        return None

    def set_limits(self, request: Request) -> object:
        """``set-limits``: for new and live connections; what is open stays open."""
        config = self._stack.mptcp_config
        accepted = self._limit(request, "rcv-add-addrs", config.add_addr_accepted)
        subflows = self._limit(request, "subflows", config.subflows)
        self._stack.mptcp_config = replace(config, add_addr_accepted=accepted, subflows=subflows)
        limits = Limits(subflows, accepted)
        for conn in self._stack.tokens.values():
            conn.limits = limits
        return None

    def get_limits(self, request: Request) -> object:
        """``get-limits``."""
        config = self._stack.mptcp_config
        return {"rcv-add-addrs": config.add_addr_accepted, "subflows": config.subflows}

    # -- private --------------------------------------------------------------------------------

    def _connections(self) -> Iterator[MptcpConnection]:
        for conn in list(self._stack.tokens.values()):
            if conn.fully_established:
                yield conn

    def _replace(self, endpoints: list[Endpoint]) -> None:
        self._stack.local_addresses = endpoints

    def _resolve(self, wanted: AddressNest) -> AddressNest:
        """``dev`` stands for the address of that uplink, if no address is given."""
        if wanted.dev is None or wanted.ip:
            return wanted
        for ip, endpoint in self._own().items():
            if endpoint is not None and endpoint.uplink == wanted.dev:
                return replace(wanted, ip=ip)
        raise CommandError("ENODEV", f"there is no uplink {wanted.dev} (see mptcp-proxy status)")

    def _make(self, wanted: AddressNest, own: Mapping[bytes, Endpoint | None]) -> Endpoint:
        flags = wanted.flags
        if not wanted.ip:
            raise CommandError("EINVAL", "missing address")
        if wanted.port and ("signal" not in flags or "subflow" in flags):
            raise CommandError("EINVAL", "flags must have signal and not subflow when using port")
        if {"signal", "fullmesh"} <= flags:
            raise CommandError("EINVAL", "flags mustn't have both signal and fullmesh")
        if flags & _SOURCES and wanted.ip not in own:
            known = ", ".join(map(format_ip, own)) or "none"
            raise CommandError(
                "EADDRNOTAVAIL",
                f"{format_ip(wanted.ip)} is no address of this engine (it has: {known})",
            )
        if len(self._stack.local_addresses) >= MAX_ENDPOINTS:
            raise CommandError(
                "ERANGE", f"too many addresses: {MAX_ENDPOINTS} is the most (delete one first)"
            )
        model = own.get(wanted.ip)
        return Endpoint(
            wanted.ip,
            wanted.id or self._free_id(model),
            None if model is None else model.uplink,
            wanted.port or None,
            weight=1 if model is None else model.weight,
            **dict.fromkeys(flags, True),
        )

    def _free_id(self, model: Endpoint | None) -> int:
        used = {endpoint.id for endpoint in self._stack.local_addresses}
        if model is not None and model.id not in used:
            return model.id  # by which the other side knows this uplink
        # As the kernel: after the highest that was ever given, for ids should not soon come back.
        candidates: list[int] = [*range(self._next_id, 256), *range(1, self._next_id)]
        return next(address_id for address_id in candidates if address_id not in used)

    def _find(self, address_id: int) -> Endpoint:
        for endpoint in self._stack.local_addresses:
            if endpoint.id == address_id:
                return endpoint
        raise CommandError("EINVAL", f"address not found: no endpoint has id {address_id}")

    def _find_ip(self, ip: bytes, port: int) -> Endpoint:
        for endpoint in self._stack.local_addresses:
            if endpoint.ip == ip and port in (0, endpoint.port):
                return endpoint
        raise CommandError("EINVAL", f"address not found: no endpoint has {format_ip(ip)}")

    def _remove(self, endpoint: Endpoint) -> None:
        self._replace([e for e in self._stack.local_addresses if e is not endpoint])
        if endpoint.port is not None:
            self._hub.listener("listener-closed", endpoint)
        now = self._clock()
        for conn in self._connections():
            conn.path_manager.on_endpoint_removed(conn, endpoint, now)

    def _delete_initial(self, ip: bytes) -> None:
        """Id 0 is no endpoint: the address that a connection began with."""
        now = self._clock()
        pretended = Endpoint(ip, self._free_id(None))
        for conn in self._connections():
            if conn.local.ip == ip:
                conn.path_manager.on_endpoint_removed(conn, pretended, now)

    @staticmethod
    def _limit(request: Request, name: str, default: int) -> int:
        value = number(request, name, 0, 0xFFFFFFFF, default)
        if value > MAX_LIMIT and value != default:
            raise CommandError("EINVAL", f"limit greater than maximum ({MAX_LIMIT})")
        return value


def endpoint_fields(endpoint: Endpoint) -> dict[str, object]:
    """An endpoint as the attribute nest ``addr``."""
    fields: dict[str, object] = {
        "id": endpoint.id,
        "family": family(endpoint.ip),
        **ip_fields(endpoint.ip),
        "flags": [
            flag
            for flag in ("signal", "subflow", "backup", "fullmesh", "laminar")
            if getattr(endpoint, flag)
        ],
    }
    if endpoint.port is not None:
        fields["port"] = endpoint.port
    if endpoint.uplink is not None:
        fields["dev"] = endpoint.uplink
    return fields
