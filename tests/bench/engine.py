"""``python -m tests.bench.engine``: processor time of two engines back to back, without a kernel.

One MPTCP connection over one path carries data from a client to a server, both stacks in this
process, the clock made up. ``64K``: super-segments arrive whole; ``MTU``: as 1.4 KB packets, one by
one; ``batch``: the same, merged per batch as the runtime does. Each is run in turns with header
prediction and without it.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import time
from collections.abc import Callable

from proxy.engine.stack import Stack
from proxy.mptcp.connection import MptcpConnection
from proxy.seg import Segment, gro_merge, gso_split
from proxy.wire.address import Address

CLIENT = b"\x0a\x00\x00\x01"
SERVER = Address(b"\x0a\x09\x00\x01", 8803)
ROUND_TRIP = 0.002
BATCH = 64
CHUNK = memoryview(bytes(65536))


def _whole(packets: list[bytes]) -> list[bytes]:
    return packets


def _split(packets: list[bytes]) -> list[bytes]:
    return [wire for packet in packets for wire in gso_split(packet)]


SHAPES: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int]] = {
    "64K": (_whole, 0),
    "MTU": (_split, 0),
    "batch": (_split, BATCH),
}


class _Acceptor:
    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.accepted: list[MptcpConnection] = []

    def on_syn(self, syn: Segment, now: float) -> None:
        connection = self.stack.open_passive(syn, now, True)
        assert isinstance(connection, MptcpConnection)
        connection.accept(now)
        self.accepted.append(connection)

    def on_stray(self, segment: Segment, now: float) -> bool:
        return False


class Engines:
    """Two stacks and the processor time of each: the client sends, the server receives."""

    def __init__(self, shape: str, prediction: bool) -> None:
        self.cut, self.batch = SHAPES[shape]
        rng = random.Random(1)
        self.client, self.server = Stack(rng), Stack(rng)
        self.client.header_prediction = self.server.header_prediction = prediction
        self.acceptor = self.server.listener = _Acceptor(self.server)
        self.now = 1000.0
        self.connection = self.client.connect_mptcp(CLIENT, SERVER, self.now, b"", "uplink")
        self.packets = self.received = 0
        self.sending = self.receiving = 0.0

    def run(self, size: int) -> None:
        """Carry ``size`` bytes."""
        while self.received < size:
            began = time.process_time()
            up = [b"".join(packet) for packet in self.client.poll_transmit(self.now)]
            middle = time.process_time()
            down = [b"".join(packet) for packet in self.server.poll_transmit(self.now)]
            self.receiving += time.process_time() - middle
            self.sending += middle - began
            up, down = self.cut(up), self.cut(down)
            self.packets += len(up) + len(down)
            self.now += ROUND_TRIP / 2
            began = time.process_time()
            self._arrive(self.server, up)
            for connection in self.acceptor.accepted:
                self.received += sum(map(len, connection.receive(1 << 30)))
            middle = time.process_time()
            self._arrive(self.client, down)
            if self.connection.state.name == "ESTABLISHED":
                while self.connection.send_room() >= len(CHUNK):
                    self.connection.send(CHUNK)
            self.sending += time.process_time() - middle
            self.receiving += middle - began

    def _arrive(self, stack: Stack, packets: list[bytes]) -> None:
        step = self.batch or 1
        for start in range(0, len(packets), step):
            part = packets[start : start + step]
            for packet in gro_merge(part) if self.batch else part:
                stack.receive(packet, self.now)
        stack.handle_timeout(self.now)
        while stack.next_event() is not None:
            pass


def measure(shape: str, size: int, prediction: bool) -> str:
    """One line about one run."""
    engines = Engines(shape, prediction)
    engines.run(size)
    count, received = engines.packets, engines.received
    total = engines.sending + engines.receiving
    counters = engines.server.counters
    hits = counters["TCPHPHits"]
    share = hits / max(hits + counters["TCPHPMisses"], 1)
    return (
        f"{shape:<6} {share:7.2%} predicted  {total / received * 1e9:6.3f} s/GB"
        f"  {total / count * 1e6:7.2f} us/packet"
        f"  sender {engines.sending / received * 1e9:6.3f} s/GB"
        f"  receiver {engines.receiving / received * 1e9:6.3f} s/GB  ({count} packets)"
    )


def main() -> None:
    """Measure, or profile one shape."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine", description=__doc__)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mb", type=int, default=100, help="per run of packets, 64K: ten times")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    for shape in options.shapes or SHAPES:
        size = options.mb << 20
        if shape == "64K":
            size *= 10
        if options.profile:
            profile = cProfile.Profile()
            profile.runcall(measure, shape, size, True)
            pstats.Stats(profile).sort_stats("tottime").print_stats(45)
            continue
        for _ in range(options.rounds):
            for prediction in (True, False):
                print(measure(shape, size, prediction), flush=True)


if __name__ == "__main__":
    main()
