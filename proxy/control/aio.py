"""Asks a running daemon from an asyncio program, and follows its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from proxy.control.client import (
    MAX_REPLY,
    ControlError,
    NoDaemonError,
    decode,
    encode,
    result_of,
)


class AsyncControlClient:
    """A connection to the control socket ``path``; an asynchronous context manager.

    Requests of several tasks may be under way at once, and events come in between. ``timeout``:
    seconds to wait for a reply. Everything raises ControlError.
    """

    def __init__(self, path: Path, timeout: float = 5.0) -> None:
        self._path = path
        self._timeout = timeout
        self._number = 0
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    async def __aenter__(self) -> AsyncControlClient:
        await self.connect()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Dial; NoDaemonError if nobody listens."""
        try:
            reader, self._writer = await asyncio.open_unix_connection(
                str(self._path), limit=MAX_REPLY
            )
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NoDaemonError(f"no daemon listens on {self._path}") from error
        except OSError as error:
            raise ControlError(f"{self._path}: {error.strerror or error}") from error
        self._reading = asyncio.create_task(self._read(reader))

    async def close(self) -> None:
        """Hang up; requests under way end with ControlError."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()

    async def request(self, command: str, /, **arguments: object) -> Any:
        """The ``result`` of ``command``; in names of arguments ``_`` stands for ``-``."""
        if self._writer is None or self._reading is None or self._reading.done():
            raise ControlError(f"{self._path}: the daemon hung up")
        self._number += 1
        number = self._number
        line = encode(number, command, arguments)
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        try:
            async with asyncio.timeout(self._timeout):
                self._writer.write(line)
                await self._writer.drain()
                return result_of(await reply, self._path)
        except TimeoutError as error:
            raise ControlError(f"{self._path}: the daemon does not answer") from error
        except OSError as error:
            raise ControlError(f"{self._path}: {error.strerror or error}") from error
        finally:
            del self._replies[number]

    async def status(self) -> dict[str, Any]:
        """What the daemon is doing (``schema.Status``)."""
        result = await self.request("status")
        if not isinstance(result, dict):
            raise ControlError(f"{self._path}: the status is not an object")
        return result

    async def subscribe(self, *names: str) -> None:
        """From now on ``events`` has ``names``, or all events."""
        await self.request("subscribe", **({"events": list(names)} if names else {}))

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Each event as it comes, after ``subscribe``; ControlError when the daemon hangs up."""
        while (event := await self._events.get()) is not None:
            yield event
        self._events.put_nowait(None)
        raise ControlError(f"{self._path}: the daemon hung up")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        failure = ControlError(f"{self._path}: the daemon hung up")
        try:
            while True:
                message = decode(await reader.readline(), self._path)
                if "event" in message:
                    self._events.put_nowait(message)
                    continue
                reply = self._replies.get(message.get("id", 0))
                if reply is not None and not reply.done():
                    reply.set_result(message)
        except ControlError as error:
            failure = error
        except (OSError, ValueError) as error:
            failure = ControlError(f"{self._path}: {error}")
        finally:
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_exception(failure)
            self._events.put_nowait(None)
