"""Asks a running daemon, without an event loop."""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from proxy.control.schema import MAX_LINE, VERSION
from proxy.errors import MptcpProxyError

MAX_REPLY = 256 * 1024 * 1024


class ControlError(MptcpProxyError):
    """The daemon cannot be reached, or said no.

    ``errno_name`` is what the kernel would have answered to a refused command (``EINVAL``), else
    empty.
    """

    def __init__(self, message: str, errno_name: str = "") -> None:
        super().__init__(message)
        self.errno_name = errno_name


class NoDaemonError(ControlError):
    """Nobody listens on the socket."""


class ControlClient:
    """A connection to the control socket ``path``; a context manager.

    ``timeout``: seconds to wait for the daemon, per operation. Everything raises ControlError.
    """

    def __init__(self, path: Path, timeout: float = 5.0) -> None:
        self._path = path
        self._timeout = timeout
        self._number = 0
        self._waiting: deque[dict[str, Any]] = deque()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            self._socket.close()
            raise NoDaemonError(f"no daemon listens on {path}") from error
        except OSError as error:
            self._socket.close()
            raise ControlError(f"{path}: {error.strerror or error}") from error
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()

    def request(self, command: str, /, **arguments: object) -> Any:
        """The ``result`` of ``command``; in names of arguments ``_`` stands for ``-``.

        Events that come before the reply are kept for ``events``.
        """
        self._number += 1
        line = encode(self._number, command, arguments)
        try:
            self._socket.settimeout(self._timeout)
            self._socket.sendall(line)
        except OSError as error:
            raise ControlError(f"{self._path}: {error.strerror or error}") from error
        while "event" in (message := self._read()):
            self._waiting.append(message)
        return result_of(message, self._path)

    def status(self) -> dict[str, Any]:
        """What the daemon is doing (``schema.Status``)."""
        result = self.request("status")
        if not isinstance(result, dict):
            raise ControlError(f"{self._path}: the status is not an object")
        return result

    def events(self, *names: str) -> Iterator[dict[str, Any]]:
        """Subscribe to ``names``, or to all events, and give each as it comes, without end."""
        self.request("subscribe", **({"events": list(names)} if names else {}))
        return self.follow()

    def follow(self) -> Iterator[dict[str, Any]]:
        """What comes by itself, each as it comes, without end."""
        while True:
            self._socket.settimeout(None)
            if self._waiting:
                yield self._waiting.popleft()
            else:
                yield self._read()

    def _read(self) -> dict[str, Any]:
        try:
            answer = self._lines.readline(MAX_REPLY)
        except TimeoutError as error:
            raise ControlError(f"{self._path}: the daemon does not answer") from error
        except OSError as error:
            raise ControlError(f"{self._path}: {error.strerror or error}") from error
        return decode(answer, self._path)


def encode(number: int, command: str, arguments: Mapping[str, object]) -> bytes:
    """The line of a request; ControlError if it is too long."""
    fields = {name.replace("_", "-"): value for name, value in arguments.items()}
    request = {"version": VERSION, "id": number, "command": command, **fields}
    line = json.dumps(request).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise ControlError("the request is too long")
    return line


def decode(line: bytes, path: Path) -> dict[str, Any]:
    """A reply or an event; ControlError if it is none."""
    if not line.endswith(b"\n"):
        raise ControlError(f"{path}: the daemon hung up")
    try:
        message = json.loads(line)
    except ValueError as error:
        raise ControlError(f"{path}: the answer is not JSON") from error
    if not isinstance(message, dict) or message.get("version") != VERSION:
        raise ControlError(f"{path}: the daemon speaks another version")
    return message


def result_of(reply: Mapping[str, Any], path: Path) -> Any:
    """The result in ``reply``; ControlError if the daemon said no."""
    error = reply.get("error")
    if error is not None:
        text = str(error.get("message", "refused"))
        errno_name = str(error.get("errno", ""))
        # What was wrong with a request is the asker's affair, wherever the daemon listens.
        raise ControlError(text if errno_name else f"{path}: {text}", errno_name)
    return reply.get("result")
