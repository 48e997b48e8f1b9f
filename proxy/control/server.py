"""The control socket of a running daemon."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from proxy.control.fields import CommandError
from proxy.control.schema import (
    EVENTS,
    MAX_LINE,
    VERSION,
    ErrorName,
    Reply,
    ReplyError,
    StatusSource,
)
from proxy.errors import DeviceError

if TYPE_CHECKING:
    from proxy.control.events import EventHub

log = logging.getLogger(__name__)

Command = Callable[[Mapping[str, object]], object]
"""Takes the request, returns what JSON can hold, or an awaitable of it; what it raises becomes an
error reply."""

MAX_PEERS = 32
IDLE_TIMEOUT = 300.0  # seconds that a peer may keep the connection without a request
WRITE_TIMEOUT = 10.0  # seconds that a peer may take to read a reply
MAX_BACKLOG = 4 * 1024 * 1024  # bytes that a subscriber may leave unread before events are lost
_SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h; Python has no name for it


class Feed:
    """Lines for a peer that come by themselves, in between its replies."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._transport = writer.transport

    def write(self, line: bytes) -> bool:
        """False: the peer does not read, and the line is lost."""
        if self._transport.is_closing():
            return True  # nobody misses it
        if self._transport.get_write_buffer_size() > MAX_BACKLOG:
            return False
        self._transport.write(line)
        return True


class Subscriber:
    """A peer that may ask for events."""

    def __init__(self, feed: Feed, hub: EventHub) -> None:
        self._feed = feed
        self._hub = hub
        self._names: frozenset[str] = frozenset()
        self._lost = 0

    @property
    def active(self) -> bool:
        """Whether it asked for any event."""
        return bool(self._names)

    def commands(self) -> dict[str, Command]:
        """By name."""
        return {"subscribe": self.subscribe, "unsubscribe": self.unsubscribe}

    async def subscribe(self, request: Mapping[str, object]) -> object:
        """The ``subscribe`` command: ``events`` names what is wanted, all by default."""
        wanted = request.get("events", list(EVENTS))
        if not isinstance(wanted, list) or not wanted or not set(map(str, wanted)) <= set(EVENTS):
            raise CommandError("EINVAL", f"events must be a list of {', '.join(EVENTS)}")
        self._names = frozenset(wanted)
        self._hub.subscribe(self._deliver)
        await self._hub.ready()
        return {"events": [name for name in EVENTS if name in self._names]}

    def unsubscribe(self, request: Mapping[str, object]) -> object:
        """The ``unsubscribe`` command: no more events."""
        self.stop()
        return None

    def stop(self) -> None:
        """No more events."""
        self._names = frozenset()
        self._hub.unsubscribe(self._deliver)

    def _deliver(self, name: str, line: bytes) -> None:
        wanted = name in self._names or name == "overrun"
        if not wanted:
            return
        if self._lost:
            # As ENOBUFS of a netlink socket: what the subscriber knows is out of date.
            lost = {"version": VERSION, "event": "overrun", "lost": self._lost}
            if self._feed.write(json.dumps(lost).encode() + b"\n"):
                self._lost = 0
        if not self._feed.write(line):
            self._lost += 1


class PeerCommands(Protocol):
    """Commands that belong to one peer, as long as it is connected."""

    @property
    def active(self) -> bool:
        """Whether it waits for lines that come by themselves."""

    def commands(self) -> dict[str, Command]:
        """By name."""

    def stop(self) -> None:
        """It has gone."""


class ControlServer:
    """Answers requests (see ``schema``) on the UNIX socket ``path``.

    ``status`` is called for each ``status`` request; ``commands`` adds others; ``events`` is where
    ``subscribe`` gets its events from; ``of_peer`` gives further
    commands to each peer. The socket has mode 0660, its directory, if it has to be
    made, 0750; root, our user and our group may talk.
    """

    def __init__(
        self,
        path: Path,
        status: StatusSource,
        commands: Mapping[str, Command] | None = None,
        events: EventHub | None = None,
        of_peer: Callable[[Feed], PeerCommands] | None = None,
    ) -> None:
        self._path = path
        self._of_peer = of_peer
        self._events = events
        self._commands: dict[str, Command] = {"status": lambda request: status()}
        self._commands.update(commands or {})
        self._server: asyncio.Server | None = None
        self._inode = 0
        self._peers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises DeviceError if the socket cannot be made or another daemon has it."""
        try:
            listener = self._bind()
        except OSError as error:
            reason = error.strerror or error
            raise DeviceError(f"control socket {self._path}: {reason}") from error
        self._inode = self._path.stat().st_ino
        self._server = await asyncio.start_unix_server(self._on_peer, sock=listener, limit=MAX_LINE)

    async def serve(self, connected: socket.socket) -> None:
        """Answer one peer that is connected already, until it hangs up, however long that is."""
        reader, writer = await asyncio.open_unix_connection(sock=connected, limit=MAX_LINE)
        try:
            await self._serve(reader, writer, patient=True)
        except OSError:
            pass  # it went away
        finally:
            writer.close()

    async def stop(self) -> None:
        """Stop listening, drop the peers and remove the socket if it is still ours."""
        if self._server is None:
            return
        self._server.close()
        peers = list(self._peers)
        for peer in peers:
            peer.cancel()
        await asyncio.gather(*peers, return_exceptions=True)
        self._server = None
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _bind(self) -> socket.socket:
        parent = self._path.parent
        if not parent.is_dir():
            parent.mkdir(mode=0o750, parents=True)
            parent.chmod(0o750)  # whatever the umask
        self._remove_stale()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Of no use to anybody until listen(): the mode is right before it can be connected to.
        try:
            listener.bind(str(self._path))
            self._path.chmod(0o660)
            listener.listen(MAX_PEERS)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        return listener

    def _remove_stale(self) -> None:
        """Remove a socket on which nobody listens any more; anything else stays."""
        try:
            if not stat.S_ISSOCK(self._path.lstat().st_mode):
                raise DeviceError(f"control socket {self._path}: there is something else")
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            code = probe.connect_ex(str(self._path))
        if code not in (errno.ECONNREFUSED, errno.ENOENT):
            raise DeviceError(f"control socket {self._path}: another daemon is running on it")
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    async def _on_peer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._peers.add(task)
        try:
            if not _may_talk(writer.get_extra_info("socket")):
                return
            if len(self._peers) > MAX_PEERS:
                await _send(writer, _failure(None, "busy", "too many connections"))
                return
            await self._serve(reader, writer)
        except (OSError, TimeoutError):
            pass  # it went away, or does not read
        finally:
            self._peers.discard(task)
            if task.cancelling():
                writer.transport.abort()
            else:
                writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patient: bool = False
    ) -> None:
        feed = Feed(writer)
        own: list[PeerCommands] = []
        if self._events is not None:
            own.append(Subscriber(feed, self._events))
        if self._of_peer is not None:
            own.append(self._of_peer(feed))
        try:
            await self._serve_requests(reader, writer, own, patient)
        finally:
            for commands in own:
                commands.stop()

    async def _serve_requests(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        own: Sequence[PeerCommands],
        patient: bool,
    ) -> None:
        while True:
            waiting = patient or any(commands.active for commands in own)
            try:
                async with asyncio.timeout(None if waiting else IDLE_TIMEOUT):
                    line = await reader.readline()
            except ValueError:
                message = f"a request may have {MAX_LINE} bytes"
                await _send(writer, _failure(None, "too-long", message))
                return
            if not line.endswith(b"\n"):
                return
            await _send(writer, await self.answer(line, own))

    async def answer(self, line: bytes, own: Iterable[PeerCommands] = ()) -> Reply:
        """The reply to one request."""
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _failure(None, "bad-request", "not JSON")
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            return _failure(None, "bad-request", 'not an object with a "command"')
        number = request.get("id")
        if request.get("version", VERSION) != VERSION:
            return _failure(number, "bad-request", f"only version {VERSION} is spoken here")
        commands = dict(self._commands)
        for peer in own:
            commands |= peer.commands()
        command = commands.get(request["command"])
        if command is None:
            known = ", ".join(sorted(commands))
            return _failure(number, "unknown-command", f"known commands: {known}")
        try:
            result = command(request)
            if inspect.isawaitable(result):
                result = await result
            return {"version": VERSION, "id": number, "result": result}
        except CommandError as error:
            reply = _failure(number, "refused", str(error))
            reply["error"]["errno"] = error.errno_name
            return reply
        except Exception as error:  # a command must not take the daemon down
            log.exception("control command %s failed", request["command"])
            return _failure(number, "failed", f"{type(error).__name__}: {error}")


def _failure(number: object, code: ErrorName, message: str) -> Reply:
    error: ReplyError = {"code": code, "message": message}
    return {"version": VERSION, "id": number, "error": error}


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> None:
    try:
        text = json.dumps(reply, separators=(",", ":"))
    except (TypeError, ValueError):
        log.exception("control reply is not JSON")
        failure = _failure(reply["id"], "failed", "the answer cannot be written as JSON")
        text = json.dumps(failure)
    writer.write(text.encode() + b"\n")
    async with asyncio.timeout(WRITE_TIMEOUT):  # wait_for() of 3.11 can lose a cancellation
        await writer.drain()


def _may_talk(peer: socket.socket) -> bool:
    """Root, our own user, and members of our group; the socket's mode says the same."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, gid = struct.unpack("3i", credentials)
    if uid in (0, os.geteuid()) or gid == os.getegid():
        return True
    try:
        groups = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * 1024)
    except OSError:
        return False
    return os.getegid() in struct.unpack(f"{len(groups) // 4}I", groups)
