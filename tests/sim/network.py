"""The paths between the two hosts: links, outages and the boxes that sit on them."""

from __future__ import annotations

import random
from collections.abc import Callable

from proxy.seg import build_header, gso_split, parse
from proxy.wire.icmp import build_too_big
from tests.pair.link import Link
from tests.sim.scenario import PathPlan

VIRTIO = 10
UP = 0
DOWN = 1
BURST_TIME = 0.3  # the longest burst of losses in seconds
Arrival = tuple[float, bytes]
Drop = Callable[[int, int, bytes, str], None]


def client_ip(index: int, v6: bool) -> bytes:
    """The client's own address on path ``index``."""
    if v6:
        return bytes((0xFD, 0, 0, index + 1)) + bytes(11) + b"\x01"
    return bytes((10, 0, index + 1, 1))


def public_ip(index: int, v6: bool) -> bytes:
    """What a path with address translation makes of it."""
    if v6:
        return bytes((0x20, 1, 0x0D, 0xB8, index + 1)) + bytes(10) + b"\x02"
    return bytes((192, 0, 2, index + 1))


def server_ip(v6: bool, number: int = 1) -> bytes:
    """The server's first or second address."""
    if v6:
        return bytes((0x20, 1, 0x0D, 0xB8, 0xFF)) + bytes(10) + bytes((number,))
    return bytes((198, 51, 100, number))


class Path:
    """Both directions of one uplink, with all that happens to packets on it."""

    def __init__(
        self, plan: PathPlan, index: int, v6: bool, rng: random.Random, start: float
    ) -> None:
        self.plan = plan
        self.index = index
        self.rng = rng
        self.start = start
        self.inside = client_ip(index, v6)
        self.outside = public_ip(index, v6) if plan.nat else self.inside
        self.links = tuple(self._link(rate, loss) for rate, loss in self._directions())
        self.on_drop: Drop | None = None
        self.changed = 0
        self._burst_since = [-1.0, -1.0]
        # The boxes whose rewriting needs a look into each packet.
        self._intrusive = bool(plan.nat or plan.strip or plan.syn_payload != "keep" or plan.corrupt)

    def _directions(self) -> tuple[tuple[float, float], ...]:
        plan = self.plan
        return (plan.rate_up, plan.loss_up), (plan.rate_down, plan.loss_down)

    def _link(self, rate: float, loss: float) -> Link:
        plan = self.plan
        return Link(
            self.rng,
            rate=rate,
            delay=plan.delay,
            queue=plan.queue,
            loss=loss,
            jitter=plan.jitter,
            reorder=plan.reorder,
            reorder_delay=plan.reorder_delay,
            duplicate=plan.duplicate,
            offload=True,  # what has to be split is split here
            batch=plan.batch,
        )

    def dead(self, direction: int, now: float, arriving: bool = False) -> bool:
        """Whether an outage swallows what enters (or, with ``flush``, what arrives)."""
        at = now - self.start
        name = "up" if direction == UP else "down"
        return any(
            outage.start <= at < outage.end
            and outage.direction in ("both", name)
            and (outage.flush or not arriving)
            for outage in self.plan.outages
        )

    def up_since(self, now: float) -> float:
        """Since when both directions have carried packets without a break; infinity if not now."""
        at = now - self.start
        since = 0.0
        for outage in self.plan.outages:
            if outage.start <= at < outage.end:
                return float("inf")
            if outage.end <= at:
                since = max(since, outage.end)
        return self.start + since

    def send(self, packet: bytes, direction: int, now: float) -> tuple[list[Arrival], bytes | None]:
        """What arrives of ``packet`` and when, and an ICMP error for the sender, if any."""
        if self.dead(direction, now):
            self._drop(direction, packet, "outage")
            return [], None
        plan = self.plan
        if plan.mtu < 1500 and _wire_size(packet) > plan.mtu:
            self._drop(direction, packet, "too big")
            return [], build_too_big(parse(packet), plan.mtu)
        if self._intrusive:
            rewritten = self._rewrite(packet, direction)
            if rewritten is None:
                return [], None
            packet = rewritten
        if plan.resegment:
            packet = _with_gso_size(packet, plan.resegment)
        arrivals: list[Arrival] = []
        for wire in [packet] if plan.offload else gso_split(packet):
            if plan.corrupt and self.rng.random() < plan.corrupt:
                wire = self._corrupt(wire)
            if plan.burst and self._in_burst(direction, now):
                self._drop(direction, wire, "burst")
                continue
            arrived = self.links[direction].send(wire, now)
            if not arrived:
                self._drop(direction, wire, "lost")
            arrivals += arrived
        return arrivals, None

    def _drop(self, direction: int, packet: bytes, why: str) -> None:
        if self.on_drop is not None:
            self.on_drop(self.index, direction, packet, why)

    def _in_burst(self, direction: int, now: float) -> bool:
        """Gilbert's model: a good state that loses nothing and a bad one that loses all."""
        rng = self.rng
        since = self._burst_since[direction]
        if since >= 0.0:
            if now - since < BURST_TIME and rng.random() >= 1.0 / self.plan.burst_length:
                return True
            self._burst_since[direction] = -1.0
            return False
        if rng.random() >= self.plan.burst:
            return False
        self._burst_since[direction] = now
        return True

    # -- boxes --------------------------------------------------------------------------------

    def _rewrite(self, packet: bytes, direction: int) -> bytes | None:
        plan = self.plan
        header = _Header(packet)
        syn = header.flags & 2
        if plan.nat:
            if direction == UP:
                header.src = self.outside
            else:
                header.dst = self.inside
        if syn and header.payload and not header.flags & 16 and plan.syn_payload != "keep":
            if plan.syn_payload == "drop":
                self._drop(direction, packet, "SYN payload")
                return None
            header.payload = b""
        if plan.strip and self._strips(header.flags):
            header.strip_mptcp()
        return header.build()

    def _strips(self, flags: int) -> bool:
        strip = self.plan.strip
        if strip == "all":
            return True
        if not flags & 2:
            return strip == "ack"
        return strip == ("syn-ack" if flags & 16 else "syn")

    def _corrupt(self, wire: bytes) -> bytes:
        header = _Header(wire)
        if not header.payload or header.flags & 2:
            return wire
        at = self.rng.randrange(len(header.payload))
        changed = bytearray(header.payload)
        changed[at] ^= 1 + self.rng.randrange(255)
        header.payload = bytes(changed)
        self.changed += 1
        return header.build()


def _wire_size(packet: bytes) -> int:
    """Length of the largest IP packet that ``packet`` becomes on the wire."""
    gso_size = int.from_bytes(packet[4:6], "little")
    if not packet[1] or not gso_size:
        return len(packet) - VIRTIO
    ip = 20 if packet[VIRTIO] >> 4 == 4 else 40
    return ip + (packet[VIRTIO + ip + 12] >> 4) * 4 + gso_size


def _with_gso_size(packet: bytes, size: int) -> bytes:
    """The packet as a super-segment of ``size`` bytes of payload per wire packet."""
    v4 = packet[VIRTIO] >> 4 == 4
    ip = 20 if v4 else 40
    payload = len(packet) - VIRTIO - ip - (packet[VIRTIO + ip + 12] >> 4) * 4
    if payload <= size or packet[VIRTIO + ip + 13] & 2:
        return packet
    return (
        packet[:1]
        + bytes((1 if v4 else 4,))
        + packet[2:4]
        + size.to_bytes(2, "little")
        + packet[6:]
    )


class _Header:
    """A packet taken apart, to be changed and put together again."""

    __slots__ = (
        "ack", "dport", "dst", "flags", "gso_size", "options", "payload", "seq", "sport", "src",
        "window",
    )  # fmt: skip

    def __init__(self, packet: bytes) -> None:
        if packet[VIRTIO] >> 4 == 4:
            self.src, self.dst, tcp = packet[22:26], packet[26:30], VIRTIO + 20
        else:
            self.src, self.dst, tcp = packet[18:34], packet[34:50], VIRTIO + 40
        self.sport = int.from_bytes(packet[tcp : tcp + 2], "big")
        self.dport = int.from_bytes(packet[tcp + 2 : tcp + 4], "big")
        self.seq = int.from_bytes(packet[tcp + 4 : tcp + 8], "big")
        self.ack = int.from_bytes(packet[tcp + 8 : tcp + 12], "big")
        self.flags = packet[tcp + 13]
        self.window = int.from_bytes(packet[tcp + 14 : tcp + 16], "big")
        end = tcp + (packet[tcp + 12] >> 4) * 4
        self.options = packet[tcp + 20 : end]
        self.payload = packet[end:]
        self.gso_size = int.from_bytes(packet[4:6], "little") if packet[1] else 0

    def strip_mptcp(self) -> None:
        """Replace options of kind 30 by NOPs, as boxes do that do not know them."""
        raw = bytearray(self.options)
        at = 0
        while at < len(raw) and raw[at]:
            if raw[at] == 1:
                at += 1
                continue
            length = raw[at + 1]
            if raw[at] == 30:
                raw[at : at + length] = b"\x01" * length
            at += length
        self.options = bytes(raw)

    def build(self) -> bytes:
        """The packet, its checksum left to offload."""
        header = build_header(
            self.src, self.dst, self.sport, self.dport, self.seq, self.ack, self.flags,
            self.window, self.options, len(self.payload), self.gso_size,
        )  # fmt: skip
        return header + self.payload
