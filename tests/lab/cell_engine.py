"""One end of the cells of the matrix: the engine in a process of its own, cell after cell.

Run inside a namespace that routes the engine's addresses to the TUN::

    python -m tests.lab.cell_engine t0

One JSON object a line. In: ``open`` (begins a cell with a new stack; see ``CellEngine.open``),
``allow``, ``release``, ``abort``, ``subflows``, ``shut`` (ends the cell). Out: their answers,
``reached`` and ``ended``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from typing import Any

import uvloop

from proxy.engine.runtime import Runtime
from proxy.engine.stack import Application, Stack
from proxy.mptcp.config import MptcpConfig
from proxy.pm.base import Endpoint
from proxy.pm.base import factory as path_manager_factory
from proxy.seg import Segment
from proxy.tcp.config import TcpConfig
from proxy.tcp.events import Event
from proxy.tun.device import TunDevice
from proxy.wire.address import Address, parse_ip
from tests.lab.cells import COALESCED_MTU, Progress, say

_ENDS = (Event.CLOSED, Event.RESET, Event.TIMED_OUT, Event.UNREACHABLE)


class CellEngine:
    """The application and the relay of one stack."""

    def __init__(self, loop: asyncio.AbstractEventLoop, device: TunDevice) -> None:
        self._loop = loop
        self._device = device
        self.stopped = asyncio.Event()
        self._stream: Application | None = None
        self._progress = Progress(0, 0, "", "")
        self._port = 0
        self._start(MptcpConfig())

    def _start(self, config: MptcpConfig) -> None:
        self.stack = Stack(random.SystemRandom(), TcpConfig(), config)
        self.stack.listener = self
        self.stack.path_manager = path_manager_factory("kernel")
        self.runtime = Runtime(self._loop, self._device, self.stack)
        self.runtime.start(self)

    # -- commands -------------------------------------------------------------------------------

    def open(
        self, *, locals: list[str], role: str, port: int, remote: str, checksum: bool,
        endpoints: str, size: int, gate: int, mine: str, theirs: str,
    ) -> None:  # fmt: skip
        """``role`` connect or listen; ``endpoints``: what the second address is for (subflow,
        signal or nothing); the rest is as in ``Progress``."""
        self.runtime.stop()
        self._start(
            MptcpConfig(
                checksum_enabled=checksum, subflows=8, add_addr_accepted=8, close_timeout=2.0,
                syn_retrans_before_tcp_fallback=0, blackhole_timeout=0.0,
            )
        )  # fmt: skip
        addresses = [parse_ip(text) for text in locals]
        self.stack.local_addresses = [
            Endpoint(
                ip, index + 1, uplink=f"u{index}",
                subflow=index > 0 and endpoints == "subflow",
                signal=index > 0 and endpoints == "signal",
            )
            for index, ip in enumerate(addresses)
        ][: 2 if endpoints else 1]  # fmt: skip
        self._stream = None
        self._progress = Progress(size, gate, mine, theirs)
        self._port = port
        if role == "connect":
            target = Address.parse(f"[{remote}]:{port}" if ":" in remote else f"{remote}:{port}")
            now = time.monotonic()
            self._stream = self.stack.connect_mptcp(addresses[0], target, now, b"", "u0")
            self.runtime.turn()
        say(event="ready")

    def allow(self, gate: int) -> None:
        """Send up to another gate."""
        self._progress.gate = gate
        if self._stream is not None:
            self._send(self._stream)
            self.runtime.turn()

    def release(self) -> None:
        """Send what the gate held back."""
        self._progress.released = True
        if self._stream is not None:
            self._send(self._stream)
            self.runtime.turn()

    def abort(self) -> None:
        """What an application does that gives up."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.abort(time.monotonic())
            self.runtime.turn()
            self._report(stream, "aborted")

    def subflows(self) -> None:
        """Whether an additional subflow is fully established."""
        subflows = getattr(self._stream, "subflows", ())
        say(event="subflows", joined=any(s.fully_established and not s.initial for s in subflows))

    def shut(self) -> None:
        """The end of the cell: what it left is reset, and strays are answered by RSTs."""
        self.runtime.stop()
        counters = dict(self.stack.counters)
        self._stream = None
        self._port = 0
        self._start(MptcpConfig())
        say(event="shut", counters=counters)

    # -- the stack's listener and relay -----------------------------------------------------------

    def on_syn(self, syn: Segment, now: float) -> None:
        """The cell's connection."""
        if syn.dport == self._port and self._stream is None:
            connection = self.stack.open_passive(syn, now, mptcp=True)
            self._stream = connection
            connection.accept(now)

    def on_stray(self, segment: Segment, now: float) -> bool:
        """Left over from an earlier cell."""
        return True

    def on_event(self, stream: Application, kind: Event, now: float) -> None:
        """Moves bytes and reports."""
        if stream is not self._stream:
            return
        if kind in (Event.ESTABLISHED, Event.WRITABLE):
            self._send(stream)
        if kind in (Event.READABLE, Event.EOF, *_ENDS):
            self._receive(stream)
        if kind in _ENDS:
            self._stream = None
            self._report(stream, kind.value)

    def close(self, now: float) -> None:
        """The relay's end."""
        if self._stream is not None:
            self._stream.abort(now)

    def _send(self, stream: Application) -> None:
        progress = self._progress
        while (chunk := progress.next_chunk(stream.send_room())) is not None:
            stream.send(chunk)
        if progress.may_finish():
            stream.shutdown_write()

    def _receive(self, stream: Application) -> None:
        while chunks := stream.receive(1 << 20):
            for chunk in chunks:
                self._progress.take(bytes(chunk))
        if stream.eof:
            self._progress.eof = True
        if self._progress.has_reached():
            say(event="reached")

    def _report(self, stream: Application, end: str) -> None:
        fallback = getattr(stream, "fallback", None)
        say(
            event="ended",
            end=end,
            fallback=getattr(fallback, "name", "TCP"),
            reason=getattr(stream, "fallback_reason", ""),
            **self._progress.report(),
        )


async def serve(name: str) -> None:
    """Obeys until the end of stdin."""
    loop = asyncio.get_running_loop()
    device = TunDevice.open(name, mtu=COALESCED_MTU)
    engine = CellEngine(loop, device)
    waiting = b""

    def on_command() -> None:
        nonlocal waiting
        got = os.read(0, 65536)
        if not got:
            loop.remove_reader(0)
            engine.stopped.set()
            return
        *lines, waiting = (waiting + got).split(b"\n")
        for line in lines:
            command: dict[str, Any] = json.loads(line)
            getattr(engine, command.pop("do"))(**command)

    loop.add_reader(0, on_command)
    say(event="ready")
    await engine.stopped.wait()
    engine.runtime.stop()
    device.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(serve(sys.argv[1]))
