"""``Socket``: the program's end. Like ``socket.socket``, with a descriptor of the kernel."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Any, TypeAlias

from proxy.sockets.connection import Phase
from proxy.sockets.listener import Place
from proxy.sockets.optioned import OptionedSocket
from proxy.sockets.options import IPPROTO_MPTCP, Options, refuse
from proxy.wire.address import Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.sockets.connection import Connection
    from proxy.sockets.host import Host
    from proxy.sockets.listener import Listener

_Address: TypeAlias = "tuple[Any, ...]"

# What a connecting descriptor is filled with, so that it is not writable.
_PLUG = bytes(65536)
_IPPROTO_MAX = IPPROTO_MPTCP + 1


class Socket(OptionedSocket):
    """A socket of a ``Host``. What is not described here is as in ``socket.socket``.

    Errors are OSError with the errno of the kernel's sockets. Not for use after ``os.fork``.
    """

    def __init__(
        self,
        host: Host,
        family: int,
        proto: int,
        end: socket.socket,
        options: Options | None = None,
        connection: Connection | None = None,
    ) -> None:
        """Use ``Host.socket``. ``end`` becomes the descriptor."""
        self._host = host
        self._options = options or Options()
        self._connection = connection
        self._source = Address(b"", 0)
        self._kept: socket.socket | None = None
        self._listener: Listener | None = None
        self._peer_end: socket.socket | None = None
        self._read_shut = False
        self._told = connection is not None
        super().__init__(family, socket.SOCK_STREAM, proto, fileno=end.detach())

    @classmethod
    def create(cls, host: Host, family: int, kind: int, proto: int) -> Socket:
        """See ``Host.socket``."""
        if family not in (socket.AF_INET, socket.AF_INET6):
            raise refuse(errno.EAFNOSUPPORT)
        if not 0 <= proto < _IPPROTO_MAX:
            raise refuse(errno.EINVAL)
        blocking = not kind & socket.SOCK_NONBLOCK
        kind &= ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        if kind not in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            raise refuse(errno.ESOCKTNOSUPPORT)
        if kind != socket.SOCK_STREAM or proto not in (0, socket.IPPROTO_TCP, IPPROTO_MPTCP):
            raise refuse(errno.EPROTONOSUPPORT)
        if proto == IPPROTO_MPTCP and not host.mptcp_enabled:
            raise OSError(errno.ENOPROTOOPT, "mptcp.enabled is false on this host")
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        sock = cls(host, family, proto, mine)
        sock._peer_end = other
        sock.setblocking(blocking)
        return sock

    # -- connecting -------------------------------------------------------------------------------

    def connect(self, address: _Address) -> None:  # type: ignore[override]
        """Connect; falls back to plain TCP where the peer or the path does not take part.

        OSError: ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ENETUNREACH (no uplink leads there), ...
        """
        if self._is_connected_now():
            return
        self._begin_connect(address)
        if self.gettimeout() == 0.0:
            raise refuse(errno.EINPROGRESS)
        if not self._poll(select.POLLOUT, self.gettimeout()):
            raise TimeoutError("timed out")
        self._told = True
        self._raise_error()

    def connect_ex(self, address: _Address) -> int:  # type: ignore[override]
        """As ``connect``, the errno as the result."""
        try:
            self.connect(address)
        except TimeoutError as error:
            return error.errno or errno.EAGAIN
        except OSError as error:
            if error.errno is None:
                raise
            return error.errno
        return 0

    def _begin_connect(self, address: _Address) -> None:
        remote = _resolve(self.family, address)
        end = self._peer_end
        if end is None:  # after an attempt that failed
            mine, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            with mine:
                os.dup2(mine.fileno(), self.fileno(), inheritable=False)
            self.settimeout(self.gettimeout())  # also a matter of what the number refers to
        plug = self._fill()
        mptcp = self.proto == IPPROTO_MPTCP
        engine = self._host.engine
        self._peer_end = None
        self._connection = self._host.call(
            engine.connect, end, plug, self._source, remote, mptcp, self._options
        )

    def _is_connected_now(self) -> bool:
        """Whether an attempt that did not wait has come to its end; errors as connect(2)."""
        connection = self._connection
        if self._listener is not None:
            raise refuse(errno.EISCONN)
        if connection is None:
            return False
        if connection.phase is Phase.OPENING:
            raise refuse(errno.EALREADY)
        if connection.phase is Phase.OPEN:
            if self._told:
                raise refuse(errno.EISCONN)
            self._told = True
            return True
        self._raise_error()
        self._connection = None
        return False

    def _fill(self) -> int:
        """Fill our end until it is not writable; how many bytes that took."""
        filled = 0
        while self._poll(select.POLLOUT, 0.0):
            filled += super().send(_PLUG, socket.MSG_DONTWAIT)
        return filled

    def _poll(self, events: int, timeout: float | None) -> bool:
        """Whether one of ``events`` comes within so many seconds; None: waits for it."""
        poll = select.poll()
        poll.register(self.fileno(), events)
        return bool(poll.poll(None if timeout is None else timeout * 1000))

    # -- listening --------------------------------------------------------------------------------

    def bind(self, address: _Address) -> None:  # type: ignore[override]
        """An uplink's address, or an empty one for all of them; port 0 chooses one.

        OSError: EADDRNOTAVAIL if no uplink has it, EADDRINUSE, EINVAL if it is bound.
        """
        if self._kept is not None or self._connection is not None:
            raise refuse(errno.EINVAL)
        source = _resolve(self.family, address, passive=True)
        ip = source.ip if any(source.ip) else b""
        version = 6 if self.family == socket.AF_INET6 else 4
        self._kept = self._host.call(self._host.engine.reserve, version, ip, source.port)
        self._source = Address(ip, self._kept.getsockname()[1])

    def listen(self, backlog: int = 128) -> None:
        """Take connections on the uplinks; who does not speak MPTCP is served by plain TCP.

        ``backlog``: connections that may wait for ``accept``, at most 4096.
        """
        if self._connection is not None:
            raise refuse(errno.EINVAL)
        if self._listener is not None:
            self._listener.set_backlog(backlog)
            return
        if self._kept is None:
            self.bind(("", 0))
        end, self._peer_end = self._peer_end, None
        assert end is not None
        engine, mptcp = self._host.engine, self.proto == IPPROTO_MPTCP
        place = self._place()
        self._listener = self._host.listen(
            place, lambda: engine.listen(end, place, mptcp, self._options, backlog)
        )

    def _place(self) -> Place:
        version = 6 if self.family == socket.AF_INET6 else 4
        return Place(version, self._source.ip, self._source.port)

    def accept(self) -> tuple[Socket, _Address]:
        """The next connection and its peer's address."""
        if self._listener is None or not super().recv(1):
            raise refuse(errno.EINVAL)
        mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection = self._host.call(self._host.engine.accept, self._listener, other)
        except BaseException:
            mine.close()
            other.close()
            raise
        accepted = Socket(self._host, self.family, self.proto, mine, connection.options, connection)
        return accepted, _name(self.family, connection.remote)

    # -- bytes ------------------------------------------------------------------------------------

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """See ``socket.socket``."""
        return bytes(self._receive(super().recv, b"", bufsize, flags))

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """See ``socket.socket``."""
        return int(self._receive(super().recv_into, 0, buffer, nbytes, flags))

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, None]:
        """See ``socket.socket``; as of any stream, without an address."""
        return self.recv(bufsize, flags), None

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[Any], int, None]:
        """See ``socket.socket``; there is no ancillary data."""
        return self.recv(bufsize, flags), [], 0, None

    def _receive(self, receive: Callable[..., Any], nothing: Any, *args: Any) -> Any:
        if self._connection is None:
            raise refuse(errno.ENOTCONN)
        if self._read_shut and not self._poll(select.POLLIN, 0.0):
            return nothing
        try:
            received = receive(*args)
        except ConnectionResetError:
            self._raise_error()
            raise
        if not received:
            self._raise_error()
        return received

    def send(self, data: Any, flags: int = 0, /) -> int:
        """See ``socket.socket``."""
        return int(self._send(super().send, data, flags))

    def sendall(self, data: Any, flags: int = 0, /) -> None:
        """See ``socket.socket``."""
        self._send(super().sendall, data, flags)

    def sendmsg(self, buffers: Any, *args: Any) -> int:
        """See ``socket.socket``; no ancillary data."""
        return int(self._send(super().sendmsg, buffers, *args))

    def _send(self, send: Callable[..., Any], *args: Any) -> Any:
        if self._connection is None:
            raise refuse(errno.EPIPE)
        try:
            return send(*args)
        except (BrokenPipeError, ConnectionResetError):
            self._raise_error()
            raise refuse(errno.EPIPE) from None

    def _raise_error(self) -> None:
        """Raise what the program has not been told of, once."""
        connection = self._connection
        if connection is not None and connection.error:
            code, connection.error = connection.error, 0
            raise refuse(code)

    def shutdown(self, how: int, /) -> None:
        """See ``socket.socket``; SHUT_WR ends our direction with a DATA_FIN."""
        if self._listener is None and self._connection is None:
            raise refuse(errno.ENOTCONN)
        if how == socket.SHUT_RD and self._listener is None:
            self._read_shut = True  # what still comes is taken from the peer, as by the kernel
            return
        super().shutdown(how)

    # -- names ------------------------------------------------------------------------------------

    def getsockname(self) -> _Address:
        """The address that the peer sees."""
        connection = self._connection
        return _name(self.family, self._source if connection is None else connection.local)

    def getpeername(self) -> _Address:
        """See ``socket.socket``."""
        connection = self._connection
        if connection is None or connection.phase is not Phase.OPEN:
            raise refuse(errno.ENOTCONN)
        return _name(self.family, connection.remote)

    # -- the end ----------------------------------------------------------------------------------

    def dup(self) -> Socket:
        """Another descriptor of the same connection; OSError EOPNOTSUPP if it is none."""
        if self._connection is None:
            raise refuse(errno.EOPNOTSUPP)
        end = socket.socket(fileno=os.dup(self.fileno()))
        other = Socket(self._host, self.family, self.proto, end, self._options, self._connection)
        other.settimeout(self.gettimeout())
        return other

    def _real_close(self, *args: Any) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            self._host.unlisten(self._place(), listener)
        for other in (self._kept, self._peer_end):
            if other is not None:
                other.close()
        super()._real_close(*args)  # type: ignore[misc]


def _resolve(family: int, address: _Address, passive: bool = False) -> Address:
    """The address of a name or number, as the kernel's sockets take it."""
    flags = socket.AI_PASSIVE if passive else 0
    host, port = address[0], address[1]
    found = socket.getaddrinfo(host or None, port, family, socket.SOCK_STREAM, flags=flags)
    ip, number = found[0][4][:2]
    return Address(socket.inet_pton(family, str(ip)), int(number))


def _name(family: int, address: Address) -> _Address:
    ip = address.ip or bytes(16 if family == socket.AF_INET6 else 4)
    text = socket.inet_ntop(family, ip)
    return (text, address.port, 0, 0) if family == socket.AF_INET6 else (text, address.port)
