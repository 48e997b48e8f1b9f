"""Both ends of one cell of the matrix: bytes out up to a gate, bytes in, and how it ended.

A cell's connection carries ``size`` bytes each way. An end sends until the gate, and the rest once
it is released, which is after the cell has made its trouble: so trouble always comes in
mid-transfer, however slow the machine is, and nobody sleeps. ``allow`` opens the gate a bit more.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.lab.namespaces import LabError, Namespace

ROOT = Path(__file__).resolve().parents[2]
COALESCED_MTU = 9000
"""Of the TUN: segments that a box has joined must get through it."""
_CHUNK = 32768


@cache
def stream(name: str) -> bytes:
    """The bytes that an end of that name sends, at least as many as any cell needs."""
    return random.Random(name).randbytes(2 << 20)


def say(**values: object) -> None:
    """One line to whoever reads our stdout."""
    print(json.dumps(values), flush=True)


class Progress:
    """What one end has sent and received.

    ``mine`` and ``theirs`` name the streams. The end *reaches* once it has received a quarter.
    """

    def __init__(self, size: int, gate: int, mine: str, theirs: str) -> None:
        self.size = size
        self.gate = gate
        self.released = False
        self.eof = False
        self.received = bytearray()
        self._mine = memoryview(stream(mine))
        self._theirs = stream(theirs)
        self._sent = 0
        self._finished = self._reached = False

    def next_chunk(self, room: int) -> memoryview | None:
        """What may be sent now; it counts as sent."""
        limit = self.size if self.released else self.gate
        count = min(limit - self._sent, room, _CHUNK)
        if count <= 0:
            return None
        start, self._sent = self._sent, self._sent + count
        return self._mine[start : self._sent]

    def may_finish(self) -> bool:
        """True once, after the last byte."""
        if self._finished or not self.released or self._sent < self.size:
            return False
        self._finished = True
        return True

    def take(self, data: bytes) -> None:
        """Bytes that were received."""
        self.received += data

    def has_reached(self) -> bool:
        """True once, at a quarter."""
        if self._reached or len(self.received) * 4 < self.size:
            return False
        self._reached = True
        return True

    def report(self) -> dict[str, Any]:
        """``wrong``: bytes that differ from what was sent; ``first``: the first of these."""
        sent = self._theirs[: len(self.received)]
        wrong = [
            at
            for at in range(len(sent) if sent != self.received else 0)
            if sent[at] != self.received[at]
        ]
        return {
            "sent": self._sent,
            "received": len(self.received),
            "wrong": len(wrong),
            "first": wrong[0] if wrong else -1,
            "eof": self.eof,
        }


@dataclass
class Outcome:
    """How one end fared. ``end``: closed, reset, timed-out, unreachable, aborted; ``fallback``
    and ``reason`` are the engine's."""

    end: str = "unfinished"
    sent: int = 0
    received: int = 0
    wrong: int = 0
    first: int = -1
    eof: bool = False
    fallback: str = ""
    reason: str = ""


@dataclass
class End:
    """What both kinds of end share: signals for the cell, and the outcome."""

    reached: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome = field(default_factory=Outcome)

    def finish(self, **values: Any) -> None:
        """The end has come."""
        self.outcome = Outcome(**values)
        self.reached.set()
        self.ended.set()


class KernelEnd(End):
    """A kernel socket; one thread moves its bytes."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._wake = os.eventfd(0)
        self._aborted = False
        self._listener: socket.socket | None = None

    def run(self, sock: socket.socket) -> None:
        """Converses in a thread of its own."""
        sock.setblocking(False)
        threading.Thread(target=self._converse, args=(sock,), daemon=True).start()

    def accept(self, listener: socket.socket) -> None:
        """Takes one connection from ``listener``, which joins need until ``shut``."""
        self._listener = listener

        def take() -> None:
            with contextlib.suppress(OSError):
                self.run(listener.accept()[0])

        threading.Thread(target=take, daemon=True).start()

    def allow(self, gate: int) -> None:
        """Send up to another gate."""
        self._progress.gate = gate
        os.eventfd_write(self._wake, 1)

    def release(self) -> None:
        """Send what the gate held back."""
        self._progress.released = True
        os.eventfd_write(self._wake, 1)

    def abort(self) -> None:
        """What an application does that gives up: the kernel makes MP_FASTCLOSE of it."""
        self._aborted = True
        os.eventfd_write(self._wake, 1)

    def shut(self) -> None:
        """Ends the cell."""
        self.abort()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _converse(self, sock: socket.socket) -> None:
        end = "closed"
        try:
            self._move(sock)
        except TimeoutError:
            end = "timed-out"
        except OSError:
            end = "reset"
        if self._aborted:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end = "aborted"
        sock.close()
        self.finish(end=end, **self._progress.report())

    def _move(self, sock: socket.socket) -> None:
        progress = self._progress
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        chunk: memoryview | None = None
        finished = False
        while not (finished and progress.eof):
            if not chunk:
                chunk = progress.next_chunk(_CHUNK)
            if not chunk and progress.may_finish():
                sock.shutdown(socket.SHUT_WR)
                finished = True
                continue
            wanted = (0 if progress.eof else select.POLLIN) | (select.POLLOUT if chunk else 0)
            poll.register(sock, wanted)
            happened = dict(poll.poll())
            if self._wake in happened:
                os.eventfd_read(self._wake)
            if self._aborted:
                return
            events = happened.get(sock.fileno(), 0)
            if chunk and events & (select.POLLOUT | select.POLLERR | select.POLLHUP):
                with contextlib.suppress(BlockingIOError):
                    chunk = chunk[sock.send(chunk) :]
            if not progress.eof and events & ~select.POLLOUT:
                self._take(sock)

    def _take(self, sock: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            part = sock.recv(1 << 18)
            self._progress.take(part)
            self._progress.eof = not part
            if self._progress.has_reached():
                self.reached.set()


class EngineEnd(End):
    """The engine of one lane, for one cell."""

    def __init__(self, engine: EngineProcess, words: dict[str, Any]) -> None:
        super().__init__()
        self._engine = engine
        engine.adopt(self)
        engine.tell("open", **words)
        engine.wait("ready")

    def allow(self, gate: int) -> None:
        """Send up to another gate."""
        self._engine.tell("allow", gate=gate)

    def release(self) -> None:
        """Send what the gate held back."""
        self._engine.tell("release")

    def abort(self) -> None:
        """What an application does that gives up."""
        self._engine.tell("abort")

    def joined(self) -> bool:
        """Whether both sides may send on an additional subflow."""
        self._engine.tell("subflows")
        return bool(self._engine.wait("subflows")["joined"])

    def shut(self) -> dict[str, int]:
        """Ends the cell; the engine's counters."""
        self._engine.tell("shut")
        return dict(self._engine.wait("shut")["counters"])


class EngineProcess:
    """``cell_engine`` in a namespace."""

    def __init__(self, namespace: Namespace, tun: str, log: Path) -> None:
        self._log = log
        self._end: End | None = None
        self._answers: dict[str, dict[str, Any]] = {}
        self._news = threading.Condition()
        with log.open("ab") as errors:
            self._process = namespace.start(
                sys.executable, "-m", "tests.lab.cell_engine", tun,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT,
            )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()
        self.wait("ready")

    def adopt(self, end: End) -> None:
        """Whom reports are for from now on."""
        self._end = end

    def tell(self, do: str, **words: Any) -> None:
        """A command."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **words}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise LabError(f"the engine is gone\n{self._log.read_text()[-3000:]}") from error

    def wait(self, event: str, within: float = 15.0) -> dict[str, Any]:
        """The engine's answer."""
        with self._news:
            if not self._news.wait_for(lambda: event in self._answers, within):
                raise LabError(f"no {event!r} of the engine\n{self._log.read_text()[-3000:]}")
            return self._answers.pop(event)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            report = json.loads(line)
            event = report.pop("event")
            end = self._end
            if event == "reached" and end is not None:
                end.reached.set()
            elif event == "ended" and end is not None:
                end.finish(**report)
            else:
                with self._news:
                    self._answers[event] = report
                    self._news.notify_all()
