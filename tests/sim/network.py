"""The paths between the two hosts: links, outages and the boxes that sit on them."""

from __future__ import annotations

import random
from collections.abc import Callable

from proxy.seg import gso_split, parse
from proxy.wire.icmp import build_too_big
from tests.pair.link import Link
from tests.sim import boxes
from tests.sim.boxes import UP, VIRTIO, Box, Header
from tests.sim.scenario import FOREVER, Outage, PathPlan

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
        self.outages = list(plan.outages)
        self.gone = False  # the uplink has no address
        self.links = tuple(self._link(rate, loss) for rate, loss in self._directions())
        self.on_drop: Drop | None = None
        self._burst_since = [-1.0, -1.0]
        self._boxes = _boxes(plan, rng, self.inside, self.outside, start)
        # What counts or draws for each packet of the wire.
        self._per_wire = bool(plan.corrupt or plan.rst_chance or plan.strip_after)

    @property
    def changed(self) -> int:
        """Bytes of payload that boxes have changed."""
        return sum(box.changed for box in self._boxes)

    @property
    def killed(self) -> bool:
        """Whether a box may have ended a connection that was none of its own."""
        return any(box.killed for box in self._boxes)

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
            for outage in self.outages
        )

    def up_since(self, now: float) -> float:
        """Since when both directions have carried packets without a break; infinity if not now."""
        at = now - self.start
        since = 0.0
        for outage in self.outages:
            if outage.start <= at < outage.end:
                return FOREVER
            if outage.end <= at:
                since = max(since, outage.end)
        return self.start + since

    def vanish(self, now: float) -> None:
        """The uplink has no address any more."""
        self.outages.append(Outage(now - self.start, FOREVER))

    def appear(self, now: float) -> None:
        """The uplink has its address back."""
        last = self.outages.pop()
        self.outages.append(Outage(last.start, now - self.start - last.start))

    def send(
        self, packet: bytes, direction: int, now: float
    ) -> tuple[list[Arrival], list[bytes], list[bytes]]:
        """What arrives of ``packet``; what goes back to its sender, and what a box adds."""
        if self.outages and self.dead(direction, now):
            self._drop(direction, packet, "outage")
            return [], [], []
        plan = self.plan
        mtu = plan.mtu if now < self.start + plan.late_mtu_at else plan.late_mtu
        if mtu < 1500 and _wire_size(packet) > mtu:
            self._drop(direction, packet, "too big")
            return [], [build_too_big(parse(packet), mtu)] if plan.icmp else [], []
        back: list[bytes] = []
        on: list[bytes] = []
        split = not plan.offload
        if self._boxes and not self._per_wire:
            rewritten = self._rewrite(packet, direction, now)
            if rewritten is None:
                return [], back, on
            packet = rewritten
        if plan.resegment:
            packet = _with_gso_size(packet, plan.resegment)
        arrivals: list[Arrival] = []
        for wire in gso_split(packet) if split else [packet]:
            if self._boxes and self._per_wire:
                rewritten = self._rewrite(wire, direction, now)
                self._collect(direction, back, on, now)
                if rewritten is None:
                    continue
                wire = rewritten
            if plan.burst and self._in_burst(direction, now):
                self._drop(direction, wire, "burst")
                continue
            arrived = self.links[direction].send(wire, now)
            if not arrived:
                self._drop(direction, wire, "lost")
            arrivals += arrived
        return arrivals, back, on

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

    def _rewrite(
        self, packet: bytes, direction: int, now: float, after: Box | None = None
    ) -> bytes | None:
        """Through all boxes, or those behind ``after``."""
        header: Header | None = Header(packet)
        chain = self._boxes if direction == UP else self._boxes[::-1]
        if after is not None:
            chain = chain[chain.index(after) + 1 :]
        for box in chain:
            header = box.apply(header, direction, now) if header is not None else None
            if header is None:
                self._drop(direction, packet, type(box).__name__)
                return None
        return header.build() if header is not None else None

    def _collect(self, direction: int, back: list[bytes], on: list[bytes], now: float) -> None:
        for box in self._boxes:
            for where, packet in box.inject():
                sent = self._rewrite(packet, where, now, after=box)
                if sent is not None:
                    (on if where == direction else back).append(sent)

    def merge(self, packets: list[bytes]) -> list[bytes]:
        """What arrives at once, coalesced by a box."""
        limit = self.plan.coalesce
        return boxes.coalesce(packets, limit) if limit and len(packets) > 1 else packets


def _boxes(
    plan: PathPlan, rng: random.Random, inside: bytes, outside: bytes, start: float
) -> list[Box]:
    """From the client's side to the server's."""
    found: list[Box] = []
    if plan.syn_payload != "keep":
        found.append(boxes.SynPayload(plan.syn_payload))
    if plan.strip:
        found.append(boxes.Strip(plan.strip, plan.strip_after))
    if plan.strip_subtype:
        found.append(boxes.StripSubtype(plan.strip_subtype))
    if plan.drop_capable:
        found.append(boxes.DropCapable())
    if plan.strip_option:
        name, _, where = plan.strip_option.partition(":")
        kind = boxes.TIMESTAMPS if name == "timestamps" else boxes.SACK_PERMITTED
        found.append(boxes.StripOption(kind, where))
    if plan.shift:
        found.append(boxes.Shift(rng, plan.shift == "sack"))
    if plan.corrupt:
        found.append(boxes.Corrupt(rng, plan.corrupt))
    if plan.rst_chance:
        found.append(boxes.Injector(rng, plan.rst, plan.rst_chance))
    if plan.nat:
        rebinds = tuple(start + at for at in plan.rebinds)
        found.append(boxes.Nat(inside, outside, rebinds))
    return found


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
