"""Packet scripts for MPTCP: a real ``Stack`` against hand-made segments, in virtual time.

A script plays the peer, with a key of its own. Each ``Leg`` is the peer's end of one subflow; its
numbers count from the initial ones (a SYN is 0), stream offsets count from 0 as ``dss`` turns them
into DSNs::

    script = MptcpScript.client()
    script.first.inject(options=script.dss(ack=0))
    script.first.inject(payload=b"abc", options=script.dss(ack=0, at=0, ssn=1, length=3))
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from proxy.engine.stack import Application, Stack
from proxy.mptcp import keys
from proxy.mptcp.config import MptcpConfig
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.subflow import Subflow
from proxy.pm.base import Endpoint, factory
from proxy.seg import Segment, build_header, dss_checksum, parse
from proxy.tcp.config import TcpConfig
from proxy.tcp.events import Event
from proxy.wire.address import Address
from proxy.wire.mptcp_options import (
    MpCapable,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MptcpOption,
    MpTcprst,
    pad,
    parse_option,
)
from proxy.wire.tcp_options import SynOptions
from tests.script.harness import flag_bits

OURS = Address(b"\x0a\x01\x00\x01", 40000)
OURS_2 = b"\x0a\x02\x00\x01"
PEER = Address(b"\x0a\x09\x00\x01", 8803)
PEER_2 = b"\x0a\x09\x00\x02"
SECOND = Address(b"\x0a\x02\x00\x09", 51000)
PEER_ISN = 0xFFFFF000  # close to the wrap on purpose
PEER_KEY = bytes.fromhex("38b0e02f1ae77431")  # as a kernel drew it
PEER_NONCE = bytes.fromhex("83e4732e")
MASK = 0xFFFFFFFF
MASK64 = (1 << 64) - 1
TCP = TcpConfig(timestamps=False, pacing=False)

_T = TypeVar("_T")


class Leg:
    """The peer's end of one subflow: what it sends next, and what came from the engine."""

    def __init__(self, script: MptcpScript, ours: Address, theirs: Address) -> None:
        self.script = script
        self.ours = ours
        self.theirs = theirs
        self.isn = PEER_ISN
        self.iss = 0  # the engine's, once its SYN was seen
        self.seq = 0
        self.ack = 0
        self.came: list[Segment] = []

    @property
    def subflow(self) -> Subflow:
        """The engine's end."""
        found = [s for s in self.script.conn.subflows if s.local == self.ours]
        return next(s for s in found if s.remote == self.theirs)

    def inject(
        self, flags: str = "A", *, options: bytes = b"", payload: bytes = b"",
        seq: int | None = None, ack: int | None = None, window: int = 60_000,
    ) -> None:  # fmt: skip
        """The peer sends a segment, by default the next one in order that acknowledges all."""
        at = self.seq if seq is None else seq
        bits = flag_bits(flags)
        acked = (self.iss + (self.ack if ack is None else ack)) & MASK
        if bits & 2:
            options = SynOptions(mss=1460, wscale=0, sack_permitted=True).build(options)
        header = build_header(
            self.theirs.ip, self.ours.ip, self.theirs.port, self.ours.port,
            (self.isn + at) & MASK, acked if bits & 16 else 0, bits, window, pad(options),
            len(payload), 0,
        )  # fmt: skip
        if seq is None:
            self.seq += len(payload) + bool(bits & 2) + bool(bits & 1)
        self.script.deliver(header + payload)

    def take(self) -> list[Segment]:
        """What the engine sent on this subflow since the last look."""
        self.script.flush()
        came, self.came = self.came, []
        return came

    def next(self) -> Segment:
        """The next segment of the engine on this subflow."""
        self.script.flush()
        assert self.came, "nothing was sent"
        return self.came.pop(0)

    def last(self) -> Segment:
        """The newest one; those before it are forgotten."""
        came = self.take()
        assert came, "nothing was sent"
        return came[-1]

    def quiet(self) -> bool:
        """Whether the engine sent nothing here."""
        return not self.take()

    def dead(self) -> bool:
        """Whether the engine has no such subflow (any more)."""
        self.script.flush()
        pair = (self.ours, self.theirs)
        return not any((s.local, s.remote) == pair for s in self.script.conn.subflows)


class MptcpScript:
    """One connection of the engine and its peer's side of the conversation."""

    def __init__(
        self,
        mptcp: MptcpConfig | None = None,
        path_manager: str = "passive",
        endpoints: Sequence[Endpoint] = (),
        tcp: TcpConfig = TCP,
        checksum: bool = False,
        c_flag: bool = False,
        seed: int = 1,
    ) -> None:
        self.stack = Stack(random.Random(seed), tcp, mptcp or MptcpConfig())
        self.stack.path_manager = factory(path_manager)
        self.stack.local_addresses = list(endpoints)
        self.stack.listener = self
        self.now = 1000.0
        self.checksum = checksum
        self.c_flag = c_flag
        self.peer = keys.derive(PEER_KEY)
        self.legs: dict[tuple[Address, Address], Leg] = {}
        self.accepted: list[Application] = []
        self.events: list[Event] = []
        self.conn: MptcpConnection
        self.first: Leg

    # -- constructors ---------------------------------------------------------------------------

    @classmethod
    def syn_sent(cls, syn_payload: bytes = b"", **settings: Any) -> MptcpScript:
        """The engine has sent its SYN, which is left in ``first``."""
        script = cls(**settings)
        script.conn = script.stack.connect_mptcp(OURS.ip, PEER, script.now, syn_payload, "u0")
        script.first = script.leg(script.conn.local, PEER)
        script.flush()
        return script

    @classmethod
    def client(cls, proven: bool = True, window: int = 60_000, **settings: Any) -> MptcpScript:
        """The engine has connected; ``proven``: a DATA_ACK has come, so that it may join."""
        script = cls.syn_sent(**settings)
        first = script.first
        first.take()
        first.inject("SA", options=script.capable(), window=window)
        first.take()
        if proven:
            first.inject(options=script.dss(ack=0), window=window)
            first.take()
        return script

    @classmethod
    def syn_received(cls, capable: bytes | None = None, **settings: Any) -> MptcpScript:
        """The engine has a SYN and has answered; its SYN-ACK is left in ``first``."""
        script = cls(**settings)
        script.first = script.leg(Address(PEER_2, 80), Address(OURS_2, 50000))
        option = script.capable(keys_=b"") if capable is None else capable
        script.first.inject("S", options=option)
        assert isinstance(script.accepted[0], MptcpConnection)
        script.conn = script.accepted[0]
        script.flush()
        return script

    @classmethod
    def server(cls, **settings: Any) -> MptcpScript:
        """The peer has connected and sent its keys."""
        script = cls.syn_received(**settings)
        script.first.take()
        script.first.inject(options=script.capable(PEER_KEY + script.conn.local_key.key))
        script.first.take()
        return script

    # -- Listener -------------------------------------------------------------------------------

    def on_syn(self, syn: Segment, now: float) -> None:
        """Take every connection."""
        connection = self.stack.open_passive(syn, now, mptcp=True)
        self.accepted.append(connection)
        connection.accept(now)

    def on_stray(self, segment: Segment, now: float) -> bool:
        """Reset what belongs to nothing."""
        return True

    # -- the wire -------------------------------------------------------------------------------

    def leg(self, ours: Address, theirs: Address) -> Leg:
        """The leg between two addresses, made if there is none."""
        return self.legs.setdefault((ours, theirs), Leg(self, ours, theirs))

    def deliver(self, packet: bytes) -> None:
        """A packet reaches the engine, which answers at once."""
        self.stack.receive(packet, self.now)
        self.flush()

    def flush(self) -> None:
        """Let the engine send."""
        for packet in self.stack.poll_transmit(self.now):
            seg = parse(b"".join(packet))
            leg = self.leg(Address(seg.src, seg.sport), Address(seg.dst, seg.dport))
            if seg.flags & 2:
                leg.iss = seg.seq
            end = (seg.seq - leg.iss + seg.length + (seg.flags & 1) + bool(seg.flags & 2)) & MASK
            if not seg.flags & 4:
                leg.ack = max(leg.ack, end)
            leg.came.append(seg)
        while (event := self.stack.next_event()) is not None:
            self.events.append(event[1])

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass; timers fire when they are due."""
        until = self.now + seconds
        for _ in range(10_000):
            self.flush()
            due = self.stack.next_timeout()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self.stack.handle_timeout(self.now)
        self.now = until
        self.flush()

    def send(self, data: bytes) -> None:
        """The engine's application writes."""
        self.conn.send(data)
        self.flush()

    def read(self) -> bytes:
        """What the engine's application can read."""
        return b"".join(bytes(piece) for piece in self.conn.receive(1 << 30))

    def count(self, name: str) -> int:
        """A counter of the kernel's ``MPTcpExt`` group."""
        return self.stack.counters[f"MPTcpExt{name}"]

    # -- the peer's options -----------------------------------------------------------------------

    def capable(self, keys_: bytes = PEER_KEY, length: int | None = None) -> bytes:
        """MP_CAPABLE with no, one or two keys."""
        return MpCapable(
            keys_[:8],
            keys_[8:],
            checksum_required=self.checksum,
            no_subflows_here=self.c_flag,
            data_length=length,
        ).build()

    def dsn(self, at: int) -> int:
        """DSN of an offset of the peer's stream."""
        return (self.peer.idsn + 1 + at) & MASK64

    def data_ack(self, at: int) -> int:
        """DATA_ACK for an offset of the engine's stream."""
        return (self.conn.local_key.idsn + 1 + at) & MASK64

    def dss(
        self, *, ack: int | None = None, at: int | None = None, ssn: int = 0, length: int = 0,
        fin: bool = False, ack64: bool = True, dsn64: bool = True, checksum: int | None = None,
        payload: bytes | None = None,
    ) -> bytes:  # fmt: skip
        """A DSS; ``payload`` (instead of ``checksum``) has its checksum computed."""
        flags, body = 0, b""
        if ack is not None:
            flags |= 3 if ack64 else 1
            size = 8 if ack64 else 4
            body += (self.data_ack(ack) & ((1 << 8 * size) - 1)).to_bytes(size, "big")
        if at is not None:
            flags |= (12 if dsn64 else 4) | (16 if fin else 0)
            size = 8 if dsn64 else 4
            body += (self.dsn(at) & ((1 << 8 * size) - 1)).to_bytes(size, "big")
            body += ssn.to_bytes(4, "big") + length.to_bytes(2, "big")
            if payload is not None:
                checksum = dss_checksum(self.dsn(at), ssn, length, [memoryview(payload)])
            if checksum is not None:
                body += checksum.to_bytes(2, "big")
        return bytes((30, 4 + len(body), 0x20, flags)) + body

    # -- joins ------------------------------------------------------------------------------------

    def join_syn(
        self, token: int | None = None, *, address_id: int = 3, backup: bool = False
    ) -> bytes:
        """MP_JOIN of the peer's SYN."""
        wanted = self.conn.local_key.token if token is None else token
        return MpJoinSyn(backup, address_id, wanted, PEER_NONCE).build()

    def join_hmac(self, nonce: bytes) -> bytes:
        """The peer's HMAC for a nonce of the engine."""
        return keys.join_hmac(PEER_KEY, self.conn.local_key.key, PEER_NONCE, nonce)

    def join_hmac_of_ours(self, nonce: bytes) -> bytes:
        """The HMAC that the engine owes for its own nonce."""
        return keys.join_hmac(self.conn.local_key.key, PEER_KEY, nonce, PEER_NONCE)

    def joined_by_peer(self, theirs: Address = SECOND, **settings: Any) -> Leg:
        """The peer joins; returns the new leg, fully established."""
        leg = self.half_joined_by_peer(theirs, **settings)
        answer = option_of(leg.last(), MpJoinSynAck)
        leg.inject(options=MpJoinAck(self.join_hmac(answer.nonce)[:20]).build())
        leg.take()
        return leg

    def half_joined_by_peer(self, theirs: Address = SECOND, **settings: Any) -> Leg:
        """The peer sent a SYN with MP_JOIN; the answer is left in the leg."""
        leg = self.leg(self.conn.local, theirs)
        leg.inject("S", options=self.join_syn(**settings))
        return leg

    def joining(self, ours: Address | None = None, **settings: Any) -> Leg:
        """The engine joins from a second address; its SYN is left in the leg."""
        local = ours or Address(OURS_2, 41000)
        self.conn.open_subflow(local, self.conn.remote, self.now, local_id=2, **settings)
        self.flush()
        return self.leg(local, self.conn.remote)

    def join_syn_ack(self, leg: Leg, *, backup: bool = False) -> bytes:
        """MP_JOIN of the peer's answer to the SYN in ``leg``."""
        nonce = option_of(leg.next(), MpJoinSyn).nonce
        return MpJoinSynAck(backup, 0, self.join_hmac(nonce)[:8], PEER_NONCE).build()

    def joined(self, **settings: Any) -> Leg:
        """The engine has joined from a second address; the new leg is fully established."""
        leg = self.joining(**settings)
        leg.inject("SA", options=self.join_syn_ack(leg))
        leg.take()
        leg.inject(options=self.dss(ack=self.conn.tx.una))
        leg.take()
        return leg


def options_of(seg: Segment) -> list[MptcpOption]:
    """The MPTCP options of a segment but DSS."""
    syn, ack = bool(seg.flags & 2), bool(seg.flags & 16)
    found = [parse_option(raw, syn, ack or bool(seg.flags & 4)) for raw in seg.mptcp]
    return [option for option in found if option is not None]


def has_option(seg: Segment, kind: type[Any]) -> bool:
    """Whether a segment carries an option of this class."""
    return any(isinstance(option, kind) for option in options_of(seg))


def option_of(seg: Segment, kind: type[_T]) -> _T:
    """The option of a segment that is of this class."""
    found = [option for option in options_of(seg) if isinstance(option, kind)]
    assert len(found) == 1, f"{options_of(seg)} for {kind.__name__}"
    return found[0]


def reset_reason(leg: Leg) -> int:
    """The MP_TCPRST reason of the RST that is the newest segment of a leg; -1 for no option."""
    seg = leg.last()
    assert seg.flags & 4, f"flags {seg.flags:#x}"
    return option_of(seg, MpTcprst).reason if seg.mptcp else -1


def config(**changes: Any) -> MptcpConfig:
    """The kernel's defaults with changes, and room for joins."""
    return replace(MptcpConfig(subflows=4), **changes)
