"""ECN over a link whose queue marks before it drops."""

from __future__ import annotations

import random

from proxy.seg import checksum
from proxy.tcp.config import TcpConfig
from tests.pair.harness import App, Pair
from tests.pair.link import VIRTIO, Link

STREAM = random.Random(7).randbytes(6_000_000)


class MarkingLink(Link):
    """Beyond 20 packets in the queue what is ECN-capable is marked, as by a simple AQM."""

    marked = 0
    longest = 0

    def _send_one(self, wire: bytes, now: float) -> list[tuple[float, bytes]]:
        self.longest = max(self.longest, len(self._departures))
        if len(self._departures) > 20 and wire[VIRTIO + 1] & 3:
            self.marked += 1
            header = bytearray(wire[VIRTIO : VIRTIO + 20])
            header[1] |= 3
            header[10:12] = b"\0\0"
            header[10:12] = (checksum(bytes(header)) ^ 0xFFFF).to_bytes(2, "big")
            wire = wire[:VIRTIO] + bytes(header) + wire[VIRTIO + 20 :]
        return super()._send_one(wire, now)


def bulk(ecn: str) -> tuple[Pair, MarkingLink]:
    down = MarkingLink(random.Random(2), rate=20e6, delay=0.01, queue=100)
    pair = Pair(
        up=Link(random.Random(1), delay=0.01), down=down, server_app=App(STREAM),
        client_config=TcpConfig(ecn=ecn),
    )  # fmt: skip
    pair.run(1100)
    assert pair.client_app.received == STREAM
    return pair, down


def test_marks_keep_the_queue_short_without_a_loss_or_a_gap() -> None:
    pair, down = bulk("on")
    assert pair.server is not None
    assert pair.server.ecn
    assert down.marked
    assert down.dropped == 0
    assert pair.server.bytes_retransmitted == 0
    assert len(STREAM) * 8 / (pair.now - 1000) > 0.88 * 20e6 * 1448 / 1514
    assert pair.server_host.counters["TCPECNReductions"] > 2


def test_without_agreement_nothing_is_marked() -> None:
    pair, down = bulk("passive")
    assert pair.server is not None
    assert not pair.server.ecn
    assert down.marked == 0
    assert down.longest > 40
