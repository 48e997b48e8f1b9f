"""Middleboxes: each takes one packet of a path and gives back what leaves it."""

from __future__ import annotations

import random

from proxy.seg import build_header

VIRTIO = 10
UP = 0
DOWN = 1
SYN = 2
RST = 4
ACK = 16
MPTCP = 30
TIMESTAMPS = 8
SACK_PERMITTED = 4
SACK = 5
MASK = 0xFFFFFFFF
SUBTYPES = {"capable": 0, "join": 1, "dss": 2, "add-addr": 3}
Key = tuple[bytes, int, bytes, int]


class Header:
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

    def find(self) -> list[tuple[int, int, int]]:
        """(offset, kind, length) of each option but NOP and EOL."""
        found = []
        raw = self.options
        at = 0
        while at < len(raw) and raw[at]:
            if raw[at] == 1:
                at += 1
                continue
            found.append((at, raw[at], raw[at + 1]))
            at += raw[at + 1]
        return found

    def has(self, subtype: int) -> bool:
        """Whether there is an MPTCP option of that subtype."""
        raw = self.options
        return any(k == MPTCP and raw[at + 2] >> 4 == subtype for at, k, _ in self.find())

    def strip(self, kind: int, subtype: int = -1) -> None:
        """Replace options by NOPs, as boxes do that do not know them."""
        raw = bytearray(self.options)
        for at, found, length in self.find():
            if found == kind and (subtype < 0 or raw[at + 2] >> 4 == subtype):
                raw[at : at + length] = b"\x01" * length
        self.options = bytes(raw)

    def key(self, direction: int) -> Key:
        """The same for both directions of a flow."""
        if direction == UP:
            return self.src, self.sport, self.dst, self.dport
        return self.dst, self.dport, self.src, self.sport

    def build(self) -> bytes:
        """The packet, its checksum left to offload."""
        header = build_header(
            self.src, self.dst, self.sport, self.dport, self.seq, self.ack, self.flags,
            self.window, self.options, len(self.payload), self.gso_size,
        )  # fmt: skip
        return header + self.payload


class Box:
    """Base: lets all pass. ``changed``: bytes of payload that it has changed."""

    changed = 0
    killed = 0

    def apply(self, packet: Header, direction: int, now: float) -> Header | None:
        """The packet, changed, or None to drop it."""
        return packet

    def inject(self) -> list[tuple[int, bytes]]:
        """Packets of the box's own with their direction, sent after the one it has seen."""
        return []


class Strip(Box):
    """Takes MPTCP options from "syn", "syn-ack", "ack" (all but SYNs) or "all" segments.

    ``after``: only once that many packets of a flow have passed.
    """

    def __init__(self, where: str, after: int = 0) -> None:
        self.where = where
        self.after = after
        self._seen: dict[Key, int] = {}

    def apply(self, packet: Header, direction: int, now: float) -> Header | None:
        if self.after:
            key = packet.key(direction)
            seen = self._seen[key] = self._seen.get(key, 0) + 1
            if seen <= self.after:
                return packet
        if self._strips(packet.flags):
            packet.strip(MPTCP)
        return packet

    def _strips(self, flags: int) -> bool:
        if self.where == "all":
            return True
        if not flags & SYN:
            return self.where == "ack"
        return self.where == ("syn-ack" if flags & ACK else "syn")


class StripSubtype(Box):
    """Takes one kind of MPTCP option only."""

    def __init__(self, name: str) -> None:
        self.subtype = SUBTYPES[name]

    def apply(self, packet: Header, direction: int, now: float) -> Header | None:
        packet.strip(MPTCP, self.subtype)
        return packet


class DropCapable(Box):
    """Drops SYNs with MP_CAPABLE."""

    def apply(self, packet: Header, direction: int, now: float) -> Header | None:
        return None if packet.flags & SYN and packet.has(0) else packet


class StripOption(Box):
    """Takes a TCP option, from SYNs ("syn"), SYN-ACKs ("syn-ack"), both ("syns") or "all"."""

    def __init__(self, kind: int, where: str) -> None:
        self.kind = kind
        self.where = where

    def apply(self, packet: Header, direction: int, now: float) -> Header | None:
        flags = packet.flags
        if flags & SYN:
            mine = "syn-ack" if flags & ACK else "syn"
            strips = self.where in ("all", "syns", mine)
        else:
            strips = self.where == "all"
        if strips:
            packet.strip(self.kind)
        return packet


class SynPayload(Box):
    """Strips the payload of SYNs, or drops SYNs that have one."""

    def __init__(self, how: str) -> None:
        self.how = how

    def apply(self, packet: Header, direction: int, now: float) -> Header | None:
        if packet.payload and packet.flags & (SYN | ACK) == SYN:
            if self.how == "drop":
                return None
            packet.payload = b""
        return packet


class Shift(Box):
    """Chooses initial sequence numbers anew, as firewalls do; ``sack``: in SACK blocks as well."""

    def __init__(self, rng: random.Random, sack: bool) -> None:
        self.rng = rng
        self.sack = sack
        self._shifts: dict[Key, tuple[int, int]] = {}

    def apply(self, packet: Header, direction: int, now: float) -> Header | None:
        key = packet.key(direction)
        shifts = self._shifts.get(key)
        if shifts is None:
            if not packet.flags & SYN:
                return packet
            shifts = self._shifts[key] = (self.rng.getrandbits(32), self.rng.getrandbits(32))
        back = shifts[1 - direction]
        packet.seq = (packet.seq + shifts[direction]) & MASK
        if packet.flags & ACK:
            packet.ack = (packet.ack - back) & MASK
            if self.sack:
                self._shift_blocks(packet, back)
        return packet

    @staticmethod
    def _shift_blocks(packet: Header, back: int) -> None:
        raw = bytearray(packet.options)
        for at, kind, length in packet.find():
            if kind == SACK:
                for edge in range(at + 2, at + length, 4):
                    value = (int.from_bytes(raw[edge : edge + 4], "big") - back) & MASK
                    raw[edge : edge + 4] = value.to_bytes(4, "big")
        packet.options = bytes(raw)


class Nat(Box):
    """Address translation; after ``rebinds`` (times) it knows none of its flows any more."""

    def __init__(self, inside: bytes, outside: bytes, rebinds: tuple[float, ...]) -> None:
        self.inside = inside
        self.outside = outside
        self.rebinds = list(rebinds)
        self._generation = 0
        self._out: dict[tuple[int, bytes, int], int] = {}
        self._in: dict[tuple[int, bytes, int], int] = {}

    def apply(self, packet: Header, direction: int, now: float) -> Header | None:
        while self.rebinds and self.rebinds[0] <= now:
            del self.rebinds[0]
            self._generation += 1
            self.killed += 1
            self._out.clear()
            self._in.clear()
        if direction == DOWN:
            inside = self._in.get((packet.dport, packet.src, packet.sport))
            if inside is None:
                return None
            packet.dst, packet.dport = self.inside, inside
            return packet
        flow = (packet.sport, packet.dst, packet.dport)
        port = self._out.get(flow)
        if port is None:
            port = packet.sport
            if self._generation and not packet.flags & SYN:
                port = 1024 + (port * 31 + self._generation * 97) % 30000
            self._out[flow] = port
            self._in[port, packet.dst, packet.dport] = packet.sport
        packet.src, packet.sport = self.outside, port
        return packet


class Corrupt(Box):
    """Changes a byte of some segments and mends the TCP checksum."""

    def __init__(self, rng: random.Random, chance: float) -> None:
        self.rng = rng
        self.chance = chance

    def apply(self, packet: Header, direction: int, now: float) -> Header | None:
        rng = self.rng
        if rng.random() >= self.chance or not packet.payload or packet.flags & SYN:
            return packet
        at = rng.randrange(len(packet.payload))
        changed = bytearray(packet.payload)
        changed[at] ^= 1 + rng.randrange(255)
        packet.payload = bytes(changed)
        self.changed += 1
        return packet


class Injector(Box):
    """Sends RSTs in the name of an end.

    ``how``: "exact" (it fits and ends the subflow), "window" (inside the window: to be
    challenged) or "blind" (outside: to be ignored).
    """

    def __init__(self, rng: random.Random, how: str, chance: float) -> None:
        self.rng = rng
        self.how = how
        self.chance = chance
        self._due: list[tuple[int, bytes]] = []

    def apply(self, packet: Header, direction: int, now: float) -> Header | None:
        rng = self.rng
        if packet.flags & (SYN | RST) or not packet.flags & ACK or rng.random() >= self.chance:
            return packet
        rst = Header(packet.build())
        rst.src, rst.dst = packet.dst, packet.src
        rst.sport, rst.dport = packet.dport, packet.sport
        rst.payload = rst.options = b""
        rst.flags, rst.window, rst.gso_size = RST, 0, 0
        seq = packet.ack  # what the sender of this packet expects next
        if self.how == "window":
            seq += 1 + rng.randrange(max(1, packet.window // 2))
        elif self.how == "blind":
            seq += (1 << 30) + rng.randrange(1 << 31)
        rst.seq, rst.ack = seq & MASK, 0
        if self.how == "exact":
            self.killed += 1
        self._due.append((1 - direction, rst.build()))
        return packet

    def inject(self) -> list[tuple[int, bytes]]:
        due, self._due = self._due, []
        return due


def coalesce(packets: list[bytes], limit: int) -> list[bytes]:
    """Join neighbours of one flow whose bytes follow each other; the first one's options stay."""
    out: list[Header] = []
    for raw in packets:
        packet = Header(raw)
        last = out[-1] if out else None
        if (
            last is not None
            and last.payload
            and packet.payload
            and not (last.flags | packet.flags) & (SYN | RST)
            and not last.flags & 1
            and last.key(UP) == packet.key(UP)
            and (last.seq + len(last.payload)) & MASK == packet.seq
            and len(last.payload) + len(packet.payload) <= limit
        ):
            last.payload += packet.payload
            last.flags |= packet.flags
            last.ack, last.window = packet.ack, packet.window
            continue
        out.append(packet)
    return [packet.build() for packet in out]
