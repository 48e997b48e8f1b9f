"""Handshakes without state (RFC 4987 §3.6), for SYNs that carry no proof of who sent them.

A path that eats SYN payloads leaves the gateway with bare SYNs. They are answered, but nothing is
kept: what the SYN said is in the sequence number and the timestamp of the SYN+ACK, as in Linux
(``net/ipv4/syncookies.c``), and our MPTCP key is a keyed hash of the addresses (RFC 8684 App. B.1
leaves that to the host). A connection is made when a segment comes back that carries both the
cookie and, as its data, a message that the caller accepts.

Sequence number: 5 bits of time, 3 bits of MSS, 24 bits of hash. Timestamp: the low 6 bits are the
window scale (15: none) and SACK permission; without timestamps neither is offered.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.keys import derive
from proxy.seg import Segment
from proxy.tcp.connection import TcpConnection
from proxy.wire.address import Address
from proxy.wire.mptcp_options import MpCapable, parse_option

if TYPE_CHECKING:
    from proxy.engine.stack import Application, Stack
    from proxy.mptcp.trace import Trace
    from proxy.tcp.host import Packet

_PERIOD = 64.0  # seconds; a cookie is good in its period and the next
_MSS = (536, 1220, 1300, 1360, 1400, 1440, 1460, 8960)
_NO_SCALE = 15
_SYN = 2
_MASK = 0xFFFFFFFF


class SynCookies:
    """Answers SYNs for one stack and makes connections of the cookies that come back."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def answer(self, syn: Segment, now: float) -> None:
        """Send the SYN+ACK for ``syn`` and forget it."""
        index = max(bisect_right(_MSS, syn.mss) - 1, 0)
        bits = _NO_SCALE
        if syn.ts_val >= 0:
            bits = (syn.wscale if syn.wscale >= 0 else _NO_SCALE) | syn.sack_permitted << 4
        offered = self._syn(syn, syn.seq, index, bits, _offers_mptcp(syn))
        scratch = _Scratch(self._stack)
        isn = self._cookie(syn, syn.seq, int(now / _PERIOD), index)
        connection = _open(scratch, offered, now, isn, self._key(syn, syn.seq))
        first = connection.initial if isinstance(connection, MptcpConnection) else connection
        if first is not None and syn.ts_val >= 0:
            first.carry_in_timestamp(bits, now)
        connection.accept(now)
        for packet in scratch.packets:
            self._stack.transmit(packet)

    def restore(
        self, segment: Segment, now: float, accepts: Callable[[bytes], bool]
    ) -> Application | None:
        """The connection that ``segment`` completes: its first data, with a cookie of ours.

        ``accepts`` judges the data before anything is made. None if either says no.
        """
        cookie = (segment.ack - 1) & _MASK
        client_isn = (segment.seq - 1) & _MASK
        period = int(now / _PERIOD)
        index = cookie >> 24 & 7
        age = (period - (cookie >> 27)) & 31
        if age > 1 or cookie != self._cookie(segment, client_isn, period - age, index):
            return None
        if not accepts(bytes(segment.payload)):
            return None
        key = self._key(segment, client_isn)
        bits = segment.ts_ecr & 63 if segment.ts_val >= 0 else _NO_SCALE
        syn = self._syn(segment, client_isn, index, bits, _echoes(segment, key))
        return self._stack.reopen(segment, now, lambda: _open(self._stack, syn, now, cookie, key))

    def _hash(self, label: bytes, segment: Segment, client_isn: int, more: int, size: int) -> bytes:
        data = segment.key + client_isn.to_bytes(4, "big") + more.to_bytes(8, "big")
        return blake2b(data, digest_size=size, key=self._stack.secret, person=label).digest()

    def _cookie(self, segment: Segment, client_isn: int, period: int, index: int) -> int:
        digest = self._hash(b"syncookie", segment, client_isn, period << 3 | index, 3)
        return (period & 31) << 27 | index << 24 | int.from_bytes(digest, "big")

    def _key(self, segment: Segment, client_isn: int) -> bytes:
        """The first of a row of hashes whose token is this worker's: the same in both calls."""
        share = self._stack.token_share
        keys = (self._hash(b"mptcp key", segment, client_isn, n, 8) for n in range(1 << 16))
        return next(key for key in keys if share.holds(derive(key).token))

    @staticmethod
    def _syn(segment: Segment, client_isn: int, index: int, bits: int, mptcp: bool) -> Segment:
        """The SYN as far as a cookie can tell it."""
        syn = Segment()
        syn.src, syn.dst, syn.key = segment.src, segment.dst, segment.key
        syn.sport, syn.dport = segment.sport, segment.dport
        syn.seq, syn.flags, syn.window = client_isn, _SYN, 65535
        syn.mss = _MSS[index]
        syn.ts_val = segment.ts_val
        if segment.ts_val >= 0:
            syn.wscale = -1 if bits & 15 == _NO_SCALE else bits & 15
            syn.sack_permitted = bool(bits & 16)
        if mptcp:
            syn.mptcp = (MpCapable(version=1).build(),)
            syn.has_mptcp = True
        return syn


class _Scratch:
    """A host for a connection that lives for one SYN+ACK and is entered nowhere."""

    def __init__(self, stack: Stack) -> None:
        self.rng = stack.rng
        self.secret = stack.secret
        self.path_mtus = stack.path_mtus
        self.paced_senders = stack.paced_senders
        self.header_prediction = stack.header_prediction
        self.memory = stack.memory
        self.tcp_config = stack.tcp_config
        self.mptcp_config = stack.mptcp_config
        self.token_share = stack.token_share
        self.counters = stack.counters
        # A copy would cost by the number of connections: only the one token asked for matters,
        # and it is checked for uniqueness again when the cookie comes back.
        self.tokens: dict[int, MptcpConnection] = {}
        self.keepalives = stack.keepalives
        self.blackhole = stack.blackhole
        self.local_addresses = stack.local_addresses
        self.public_addresses = stack.public_addresses
        self.path_manager = stack.path_manager
        self.limits = stack.limits
        self.trace: Trace | None = None
        self.packets: list[Packet] = []

    def transmit(self, packet: Packet) -> None:
        self.packets.append(packet)

    def register(self, connection: TcpConnection) -> None:
        pass

    def wake(self, obj: Any) -> None:
        pass

    def arm(self, obj: Any) -> None:
        pass

    def event(self, obj: Any, kind: Any) -> None:
        pass

    def forget(self, obj: Any) -> None:
        pass

    def reset(self, segment: Segment, now: float, options: bytes = b"") -> None:
        pass

    def open_local_port(self, local_ip: bytes, remote: Address) -> Address:
        raise NotImplementedError


def _open(host: Stack | _Scratch, syn: Segment, now: float, isn: int, key: bytes) -> Application:
    if syn.mptcp and host.mptcp_config.enabled:
        return MptcpConnection.open_passive(host, syn, now, isn=isn, local_key=key)
    local, remote = Address(syn.dst, syn.dport), Address(syn.src, syn.sport)
    connection = TcpConnection(host, local, remote)
    host.register(connection)
    connection.open_passive(syn, now, isn)
    return connection


def _offers_mptcp(syn: Segment) -> bool:
    return any(isinstance(parse_option(raw, True, False), MpCapable) for raw in syn.mptcp)


def _echoes(segment: Segment, key: bytes) -> bool:
    """Whether an MP_CAPABLE came back with our key (RFC 8684 §3.1: both keys in the third ACK)."""
    for raw in segment.mptcp:
        option = parse_option(raw, False, True)
        if isinstance(option, MpCapable):
            return option.receiver_key == key
    return False
