"""The engine alone, as initiator or listener, for interop with a peer that is not ours.

Run inside a namespace that routes the engine's addresses to the TUN named here::

    python -m tests.lab.engine_peer connect --tun t0 --local 10.9.1.2 --local 10.9.2.2 \\
        --remote 10.8.0.1:5000 --send 1000000
    python -m tests.lab.engine_peer listen --tun t0 --local 10.9.1.2 --port 5000 --send 1000000

Both send that many bytes of a fixed pattern, finish, read until the peer finishes, and print one
JSON line per connection: bytes and SHA-256 of what was received, fallback, subflows, counters.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
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

CHUNK = 65536


def pattern(length: int) -> bytes:
    """``length`` bytes that differ at every offset an error could confuse."""
    block = random.Random(8684).randbytes(1 << 20)
    return (block * (length // len(block) + 1))[:length]


class Peer:
    """Sends a pattern on each connection and digests what comes back."""

    def __init__(
        self, stack: Stack, size: int, connections: int, done: asyncio.Event, hold: bool
    ) -> None:
        self.stack = stack
        self.hold = hold
        self.data = memoryview(pattern(size))
        self.left = connections
        self.done = done
        self.port = 0
        self._states: dict[Application, dict[str, Any]] = {}
        stack.listener = self

    def on_syn(self, syn: Segment, now: float) -> None:
        if syn.dport != self.port:
            return
        connection = self.stack.open_passive(syn, now, mptcp=True)
        self.adopt(connection)
        connection.accept(now)

    def on_stray(self, segment: Segment, now: float) -> bool:
        return True

    def adopt(self, connection: Application) -> None:
        self._states[connection] = {"sent": 0, "digest": hashlib.sha256(), "received": 0}

    def on_event(self, stream: Application, kind: Event, now: float) -> None:
        state = self._states.get(stream)
        if state is None:
            return
        if kind in (Event.ESTABLISHED, Event.WRITABLE):
            self._send(stream, state)
        if kind in (Event.READABLE, Event.EOF):
            self._receive(stream, state)
        if kind in (Event.CLOSED, Event.RESET, Event.TIMED_OUT, Event.UNREACHABLE):
            self._receive(stream, state)
            self._report(stream, state, kind)

    def _send(self, stream: Application, state: dict[str, Any]) -> None:
        while (start := state["sent"]) < len(self.data):
            room = min(stream.send_room(), CHUNK)
            if room <= 0:
                return
            chunk = self.data[start : start + room]
            stream.send(chunk)
            state["sent"] = start + len(chunk)
        if not (self.hold or state.get("finished")):
            state["finished"] = True
            stream.shutdown_write()

    def _receive(self, stream: Application, state: dict[str, Any]) -> None:
        while chunks := stream.receive(1 << 20):
            for chunk in chunks:
                state["digest"].update(chunk)
                state["received"] += len(chunk)
        state["eof"] = stream.eof

    def _report(self, stream: Application, state: dict[str, Any], kind: Event) -> None:
        del self._states[stream]
        fallback = getattr(stream, "fallback", None)
        report = {
            "end": kind.value,
            "sent": state["sent"],
            "received": state["received"],
            "sha256": state["digest"].hexdigest(),
            "eof": state.get("eof", False),
            "mptcp": hasattr(stream, "subflows"),
            "fallback": getattr(fallback, "name", None),
            "counters": dict(self.stack.counters),
        }
        print(json.dumps(report), flush=True)
        self.left -= 1
        if self.left == 0:
            self.done.set()

    def close(self, now: float) -> None:
        for stream in list(self._states):
            stream.abort(now)


async def serve(arguments: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    device = TunDevice.open(arguments.tun, mtu=1500, offload=not arguments.no_offload)
    stack = Stack(
        random.SystemRandom(),
        TcpConfig(),
        MptcpConfig(
            checksum_enabled=arguments.checksum,
            subflows=arguments.limits[0],
            add_addr_accepted=arguments.limits[1],
        ),
    )
    locals_ = [parse_ip(text) for text in arguments.local]
    stack.local_addresses = [
        Endpoint(ip, index + 1, uplink=f"u{index}", subflow=arguments.command == "connect")
        for index, ip in enumerate(locals_)
    ]
    if arguments.endpoint is not None:
        stack.local_addresses = [_endpoint(*words) for words in enumerate(arguments.endpoint, 1)]
    stack.path_manager = path_manager_factory("kernel")
    done = asyncio.Event()
    peer = Peer(stack, arguments.send, arguments.connections, done, arguments.hold)
    runtime = Runtime(loop, device, stack)
    runtime.start(peer)
    print("ready", flush=True)
    if arguments.command == "listen":
        peer.port = arguments.port
    else:
        remote = Address.parse(arguments.remote)
        for _ in range(arguments.connections):
            peer.adopt(stack.connect_mptcp(locals_[0], remote, time.monotonic(), b"", "u0"))
        runtime.turn()
    try:
        await asyncio.wait_for(done.wait(), arguments.timeout)
        await asyncio.sleep(0.3)  # let the last acknowledgements out
        return 0
    except TimeoutError:
        print(json.dumps({"end": "test-timeout", "counters": dict(stack.counters)}), flush=True)
        return 1
    finally:
        runtime.stop()
        device.close()


def _endpoint(number: int, text: str) -> Endpoint:
    """``10.91.2.2`` or ``10.91.2.2=subflow,backup``."""
    address, _, flags = text.partition("=")
    names = [flag for flag in flags.split(",") if flag]
    return Endpoint(parse_ip(address), number, **dict.fromkeys(names, True))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("connect", "listen"))
    parser.add_argument("--tun", required=True)
    parser.add_argument("--local", action="append", required=True)
    parser.add_argument("--remote")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--send", type=int, default=0)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--checksum", action="store_true")
    parser.add_argument(
        "--limits", type=int, nargs=2, default=(8, 8), metavar=("SUBFLOWS", "ACCEPTED")
    )
    parser.add_argument("--endpoint", action="append", help="instead of one for each --local")
    parser.add_argument("--hold", action="store_true", help="do not finish after sending")
    parser.add_argument("--no-offload", action="store_true")
    return uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
