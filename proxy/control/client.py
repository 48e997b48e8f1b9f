"""Asks a running daemon, without an event loop."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from proxy.control.schema import MAX_LINE, VERSION
from proxy.errors import MptcpProxyError

MAX_REPLY = 256 * 1024 * 1024


class ControlError(MptcpProxyError):
    """The daemon cannot be reached, or said no."""


class NoDaemonError(ControlError):
    """Nobody listens on the socket."""


class ControlClient:
    """A connection to the control socket ``path``; a context manager.

    ``timeout``: seconds to wait for the daemon, per operation. Everything raises ControlError.
    """

    def __init__(self, path: Path, timeout: float = 5.0) -> None:
        self._path = path
        self._number = 0
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

    def request(self, command: str, **arguments: object) -> Any:
        """The ``result`` of ``command``."""
        self._number += 1
        request = {"version": VERSION, "id": self._number, "command": command, **arguments}
        line = json.dumps(request).encode() + b"\n"
        if len(line) > MAX_LINE:
            raise ControlError("the request is too long")
        try:
            self._socket.sendall(line)
            answer = self._lines.readline(MAX_REPLY)
        except TimeoutError as error:
            raise ControlError(f"{self._path}: the daemon does not answer") from error
        except OSError as error:
            raise ControlError(f"{self._path}: {error.strerror or error}") from error
        return self._result(answer)

    def status(self) -> dict[str, Any]:
        """What the daemon is doing (``schema.Status``)."""
        result = self.request("status")
        if not isinstance(result, dict):
            raise ControlError(f"{self._path}: the status is not an object")
        return result

    def _result(self, answer: bytes) -> Any:
        if not answer.endswith(b"\n"):
            raise ControlError(f"{self._path}: the daemon hung up")
        try:
            reply = json.loads(answer)
        except ValueError as error:
            raise ControlError(f"{self._path}: the answer is not JSON") from error
        if not isinstance(reply, dict) or reply.get("version") != VERSION:
            raise ControlError(f"{self._path}: the daemon speaks another version")
        if "error" in reply:
            raise ControlError(f"{self._path}: {reply['error'].get('message', 'refused')}")
        return reply.get("result")
