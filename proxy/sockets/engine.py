"""The engine's side of all sockets of a host: what its one thread does."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from proxy.engine.syncookies import SynCookies
from proxy.mptcp.connection import MptcpConnection
from proxy.sockets.connection import Connection
from proxy.sockets.listener import Listener, Place
from proxy.sockets.options import Options, refuse
from proxy.sockets.uplinks import UplinkSet
from proxy.tcp.connection import TcpConnection
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.address import Address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.config.sockets import SocketsConfig
    from proxy.engine.runtime import Runtime
    from proxy.engine.stack import Application
    from proxy.net.uplinks import Uplink
    from proxy.relay.uplinks import UplinkHealth
    from proxy.seg import Segment

_NOBODY = Address(b"\0\0\0\0", 0)


class _Owner(Protocol):
    def on_event(self, stream: object, kind: Event, now: float) -> None: ...


class Engine:
    """All connections and listeners: the relay of the runtime, the listener of the stack."""

    def __init__(self, config: SocketsConfig, runtime: Runtime) -> None:
        self.stack = runtime.stack
        self.cookies = SynCookies(self.stack)
        self.uplinks = UplinkSet(config, self.stack)
        self._runtime = runtime
        self._owners: dict[object, _Owner] = {}
        self._listeners: dict[Place, Listener] = {}
        self._openers: dict[Application, UplinkHealth] = {}
        self.stack.listener = self

    # -- what sockets ask -------------------------------------------------------------------------

    def connect(
        self,
        end: socket.socket,
        plug: int,
        source: Address,
        remote: Address,
        mptcp: bool,
        options: Options,
    ) -> Connection:
        """Open a connection; ``source``: what is bound, its address or port perhaps empty.

        OSError: ENETUNREACH, EADDRINUSE, EADDRNOTAVAIL.
        """
        now = time.monotonic()
        with self.configured(options):
            stream, uplink = self._open(source, remote, mptcp, now)
        adopted = self._runtime.adopt(end, remote)
        connection = Connection(self, stream, adopted, options, plug)
        self._openers[stream] = uplink
        self.own(stream, connection)
        self.own(adopted, connection)
        return connection

    def _open(
        self, source: Address, remote: Address, mptcp: bool, now: float
    ) -> tuple[Application, UplinkHealth]:
        stack = self.stack
        length = len(remote.ip)
        uplink = self.uplinks.pick(length, source.ip, now)
        ip = uplink.ip(length)
        try:
            local = Address(ip, source.port) if source.port else stack.open_local_port(ip, remote)
        except OSError:
            raise refuse(errno.EADDRNOTAVAIL) from None
        if stack.demux.taken(local, remote):
            raise refuse(errno.EADDRINUSE)
        if mptcp:
            return MptcpConnection.connect(stack, local, remote, now, uplink=uplink.name), uplink
        stream = TcpConnection(stack, local, remote, stack.tcp_config)
        stack.register(stream)
        stream.connect(now)
        return stream, uplink

    def reserve(self, family: int, ip: bytes, port: int) -> socket.socket:
        """Keep a port from the kernel's own sockets: one of those, bound.

        OSError: EADDRINUSE, EADDRNOTAVAIL if ``ip`` (empty: any) is no uplink's.
        """
        if ip and not self.uplinks.owns(ip):
            raise refuse(errno.EADDRNOTAVAIL)
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        kept = socket.socket(kind, socket.SOCK_STREAM)
        try:
            if family == 6:
                kept.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            kept.bind((socket.inet_ntop(kind, ip) if ip else "", port))
        except BaseException:
            kept.close()
            raise
        return kept

    def listen(
        self, end: socket.socket, source: Place, mptcp: bool, options: Options, backlog: int
    ) -> Listener:
        """Take connections to ``source``, whose ``ip`` is an uplink's address or empty."""
        ip = self.uplinks.engine_address(source.ip) if source.ip else b""
        place = Place(source.family, ip, source.port)
        if place in self._listeners:
            raise refuse(errno.EADDRINUSE)
        adopted = self._runtime.adopt(end, _NOBODY)
        listener = Listener(self, adopted, place, mptcp, options)
        listener.set_backlog(backlog)
        self._listeners[place] = listener
        self.own(adopted, listener)
        return listener

    def accept(self, listener: Listener, end: socket.socket) -> Connection:
        """The next connection that waits; OSError EAGAIN if there is none."""
        stream = listener.take()
        if stream is None:
            raise refuse(errno.EAGAIN)
        adopted = self._runtime.adopt(end, stream.remote)
        connection = Connection(self, stream, adopted, listener.options.copy(), 0)
        self.own(stream, connection)
        self.own(adopted, connection)
        connection.open(time.monotonic())
        return connection

    def public(self, address: Address) -> Address:
        """By which address the peer knows one of ours."""
        return Address(self.stack.public_addresses.get(address.ip, address.ip), address.port)

    def hang_up(self) -> None:
        """Close all sockets, as the kernel does when a program ends."""
        for owner in dict.fromkeys(self._owners.values()):
            if isinstance(owner, Listener):
                owner.close(time.monotonic())
            elif isinstance(owner, Connection):
                owner.hang_up()
        self._runtime.turn()

    @property
    def busy(self) -> bool:
        """Whether something that was sent is still under way."""
        connections = [owner for owner in self._owners.values() if isinstance(owner, Connection)]
        if connections:
            return not all(connection.delivered for connection in connections)
        return any(
            stream.state not in (State.FIN_WAIT_2, State.TIME_WAIT, State.CLOSED)
            for stream in self.stack.demux
        )

    # -- for connections and listeners ------------------------------------------------------------

    @contextmanager
    def configured(self, options: Options) -> Iterator[None]:
        """What is opened in the block has these options."""
        stack = self.stack
        before = stack.tcp_config
        stack.tcp_config = options.apply(before)
        try:
            yield
        finally:
            stack.tcp_config = before

    def own(self, stream: object, owner: _Owner) -> None:
        """Events of ``stream`` are for ``owner``."""
        self._owners[stream] = owner

    def disown(self, stream: object) -> None:
        """No event of ``stream`` is of interest any more."""
        self._owners.pop(stream, None)

    def leave(self, connection: Connection, *streams: object) -> None:
        """A connection is over."""
        self._openers.pop(connection.stream, None)
        self.stack.forget(connection)
        for stream in streams:
            self.disown(stream)

    def forget_listener(self, listener: Listener, end: object) -> None:
        """Nothing is listened on there any more."""
        if self._listeners.get(listener.place) is listener:
            del self._listeners[listener.place]
        self.disown(end)

    def answered(self, stream: Application, now: float) -> None:
        """A connection that we opened is established."""
        uplink = self._openers.pop(stream, None)
        if uplink is not None:
            first = stream.initial if isinstance(stream, MptcpConnection) else stream
            uplink.answered(first.srtt if first is not None else 0.0)

    def unanswered(self, stream: Application, kind: Event, now: float) -> None:
        """A connection that we opened never was."""
        uplink = self._openers.pop(stream, None)
        if uplink is not None and kind is Event.TIMED_OUT:
            uplink.unanswered(now)

    # -- Relay, Listener --------------------------------------------------------------------------

    def follow(self, host: Sequence[Uplink]) -> None:
        """The host's interfaces, addresses or routes are such now."""
        self.uplinks.follow(host, time.monotonic())
        self._runtime.turn()

    def on_event(self, stream: Application, kind: Event, now: float) -> None:
        """Something happened to a connection, or to the program's end of one."""
        owner = self._owners.get(stream)
        if owner is not None:
            owner.on_event(stream, kind, now)

    def on_syn(self, syn: Segment, now: float) -> None:
        """Somebody connects to us."""
        listener = self._listener(syn)
        if listener is None:
            self.stack.reset(syn, now)
        else:
            listener.on_syn(syn, now)

    def on_stray(self, segment: Segment, now: float) -> bool:
        """A segment of no connection: the answer to a cookie, or a RST for it."""
        listener = self._listener(segment)
        return listener is None or not listener.on_stray(segment, now)

    def _listener(self, segment: Segment) -> Listener | None:
        family = 4 if len(segment.dst) == 4 else 6
        listeners = self._listeners
        return listeners.get(Place(family, segment.dst, segment.dport)) or listeners.get(
            Place(family, b"", segment.dport)
        )

    def close(self, now: float) -> None:
        """Reset everything that is open; who has all of our bytes shall find no reset behind."""
        for owner in dict.fromkeys(self._owners.values()):
            if isinstance(owner, Listener):
                owner.close(now)
            elif isinstance(owner, Connection) and not owner.delivered:
                owner.abort(now)
