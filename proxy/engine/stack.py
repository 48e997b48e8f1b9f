"""The sans-IO stack: packets and time in, packets and events out.

One stack serves one TUN. It knows no socket, loop, clock or global randomness, so all of it runs
in virtual time: ``receive`` and ``handle_timeout`` change state, ``next_event`` tells what came of
it, ``poll_transmit`` returns what is to be written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from proxy.engine.counters import CounterTable
from proxy.engine.demux import Demux, flow_key
from proxy.engine.rate import TokenBucket
from proxy.engine.timers import Timers
from proxy.errors import CodecError
from proxy.mptcp.blackhole import Blackhole
from proxy.mptcp.config import MptcpConfig
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.keepalive import KeepaliveBudget
from proxy.mptcp.keys import ALL_TOKENS, TokenShare
from proxy.mptcp.subflow import Subflow
from proxy.mptcp.trace import Trace
from proxy.pm.base import Endpoint, PathManager
from proxy.pm.base import factory as path_manager_factory
from proxy.seg import Segment, build_header, parse
from proxy.tcp.config import TcpConfig
from proxy.tcp.connection import TcpConnection
from proxy.tcp.events import Event
from proxy.tcp.host import Packet, Pollable, Rng
from proxy.tcp.limit import RateLimit
from proxy.tcp.memory import MemoryBudget
from proxy.tcp.paced_senders import PacedSenders
from proxy.tcp.path_mtus import PathMtus
from proxy.wire import icmp
from proxy.wire.address import Address
from proxy.wire.mptcp_options import MpCapable, MpJoinSyn, MpTcprst, pad, parse_option

if TYPE_CHECKING:
    from proxy.engine.handover import Handover

FIN = 1
SYN = 2
RST = 4
ACK = 16
_VIRTIO_HEADER = 10
# RSTs for segments of no connection, per second: a flood is not echoed (RFC 8684 §5).
_RESET_RATE = 200.0
# RFC 6335 §6: dynamic ports; RFC 6056 §3.3.1: chosen at random, retried on a clash.
_FIRST_PORT = 32768
_PORTS = 28232
_PORT_TRIES = 64

Application = TcpConnection | MptcpConnection
"""What an application holds: a plain connection or an MPTCP one."""


class Listener(Protocol):
    """Decides on segments that belong to no connection."""

    def on_syn(self, syn: Segment, now: float) -> None:
        """A SYN that joins nothing: open it with ``Stack.open_passive`` or leave it unanswered."""
        ...

    def on_stray(self, segment: Segment, now: float) -> bool:
        """Any other segment of no connection; True to have it answered by a RST."""
        ...


class Stack:
    """All connections behind one TUN device, or one queue of it; the ``Host`` of each of them.

    ``share``: the tokens that connections here may have, where there are other workers.
    """

    def __init__(
        self,
        rng: Rng,
        tcp_config: TcpConfig | None = None,
        mptcp_config: MptcpConfig | None = None,
        share: TokenShare = ALL_TOKENS,
    ) -> None:
        self.rng = rng
        self.token_share = share
        self.handover: Handover | None = None
        self.packet = b""
        """The packet that ``receive`` is at."""
        self.secret = rng.randbytes(16)
        self.path_mtus = PathMtus()
        self.paced_senders = PacedSenders()
        self.header_prediction = True
        self.tcp_config = tcp_config or TcpConfig()
        self.mptcp_config = mptcp_config or MptcpConfig()
        self.counters = CounterTable()
        self.memory = MemoryBudget(self.tcp_config.memory, self.counters)
        self.tokens: dict[int, MptcpConnection] = {}
        self.keepalives = KeepaliveBudget()
        self.blackhole = Blackhole(self.mptcp_config.blackhole_timeout, self.counters)
        self.local_addresses: Sequence[Endpoint] = ()
        self.public_addresses: Mapping[bytes, bytes] = {}
        self.path_manager: Callable[[], PathManager] = path_manager_factory("passive")
        # Bytes sent and received by the subflows of each uplink that are gone.
        self.limits: dict[str, RateLimit] = {}
        self.retired: dict[str, tuple[int, int]] = {}
        self.trace: Trace | None = None
        self.listener: Listener | None = None
        self.demux = Demux()
        self.timers = Timers()
        self._awake: dict[Pollable, None] = {}
        self._out: list[Packet] = []
        self._events: deque[tuple[Application, Event]] = deque()
        self._resets = TokenBucket(_RESET_RATE / share.count)

    # -- sans-IO interface --------------------------------------------------------------------

    def receive(self, packet: bytes, now: float) -> None:
        """Take one packet from the device: a virtio header and an IP packet. Never raises."""
        try:
            segment = parse(packet)
        except CodecError:
            self._receive_other(packet, now)
            return
        self.packet = packet
        self.receive_segment(segment, now)

    def receive_segment(self, segment: Segment, now: float) -> None:
        """Take one parsed segment."""
        connection = self.demux.find(segment.key)
        if connection is not None:
            if segment.flags & SYN and connection.accepts_reuse(segment):
                self.forget(connection)
                self._receive_stray(segment, now)
                return
            connection.on_segment(segment, now)
            return
        self._receive_stray(segment, now)

    def poll_transmit(self, now: float) -> list[Packet]:
        """Let all that woke up send; returns the packets to write, in order."""
        awake = self._awake
        while awake:
            pollable = next(iter(awake))
            del awake[pollable]
            pollable.poll(now)
        out = self._out
        if out:
            self._out = []
        return out

    def next_timeout(self) -> float | None:
        """When ``handle_timeout`` has work; None while nothing is due ever."""
        return self.timers.next_timeout()

    def handle_timeout(self, now: float) -> None:
        """Fire what is due."""
        self.timers.fire(now)

    def next_event(self) -> tuple[Application, Event] | None:
        """The next thing an application should know, oldest first."""
        return self._events.popleft() if self._events else None

    # -- connections --------------------------------------------------------------------------

    def open_passive(self, syn: Segment, now: float, mptcp: bool) -> Application:
        """A connection for ``syn``, its answer held back until ``accept`` or ``refuse``.

        It is an ``MptcpConnection`` if ``mptcp`` allows it and the SYN asks for it, else a plain
        ``TcpConnection`` (RFC 8684 §3.1: a SYN without MP_CAPABLE gets none back).
        """
        if mptcp and self.mptcp_config.enabled and offers_mptcp(syn):
            return MptcpConnection.open_passive(self, syn, now)
        connection = TcpConnection(
            self, Address(syn.dst, syn.dport), Address(syn.src, syn.sport), self.tcp_config
        )
        self.register(connection)
        connection.open_passive(syn, now)
        return connection

    def reopen(self, segment: Segment, now: float, make: Callable[[], Application]) -> Application:
        """A connection that ``make`` rebuilds up to SYN-RECEIVED, completed by ``segment``.

        Its SYN-ACK was sent before (``syncookies``), so that it is not sent now.
        """
        sent = len(self._out)
        connection = make()
        connection.accept(now)
        del self._out[sent:]
        self.receive_segment(segment, now)
        return connection

    def connect_mptcp(
        self,
        local_ip: bytes,
        remote: Address,
        now: float,
        syn_payload: bytes,
        uplink: str,
        stamp: Callable[[int], int] | None = None,
    ) -> MptcpConnection:
        """Open an MPTCP connection whose initial subflow leaves from ``local_ip``.

        ``stamp``: see ``TcpConnection.connect``.
        """
        local = self.open_local_port(local_ip, remote)
        return MptcpConnection.connect(
            self, local, remote, now, syn_payload=syn_payload, uplink=uplink, stamp=stamp
        )

    def connect_tcp(
        self,
        local_ip: bytes,
        remote: Address,
        now: float,
        syn_payload: bytes = b"",
        stamp: Callable[[int], int] | None = None,
    ) -> TcpConnection:
        """Open a connection of plain TCP; see ``TcpConnection.connect``."""
        local = self.open_local_port(local_ip, remote)
        connection = TcpConnection(self, local, remote, self.tcp_config)
        self.register(connection)
        connection.connect(now, syn_payload, stamp)
        return connection

    def open_local_port(self, local_ip: bytes, remote: Address) -> Address:
        """A local address with a port free towards ``remote``, chosen at random (RFC 6056)."""
        for _ in range(_PORT_TRIES * self.token_share.count):
            port = _FIRST_PORT + self.rng.getrandbits(32) % _PORTS
            local = Address(local_ip, port)
            if self.demux.taken(local, remote):
                continue
            if self.handover is None or self.handover.is_home(flow_key(local, remote)):
                return local
        raise OSError("no free local port")

    def answer_unreachable(self, syn: Segment, why: icmp.Unreachable) -> None:
        """Tell the sender of ``syn`` that its destination cannot be reached (RFC 1122 §3.2.2.1)."""
        self.transmit([icmp.build_unreachable(syn, why)])

    def set_limit(self, uplink: str, rate: float) -> None:
        """All subflows that leave by ``uplink`` send ``rate`` bytes a second at most; 0: any."""
        limit = self.limits.setdefault(uplink, RateLimit())
        limit.rate = rate

    # -- Host: what connections ask of their stack ----------------------------------------------

    def register(self, connection: TcpConnection) -> None:
        """Enter a connection or subflow into the demux."""
        self.demux.add(connection)
        if self.handover is not None:
            self.handover.registered(flow_key(connection.local, connection.remote))

    def transmit(self, packet: Packet) -> None:
        """Queue a packet for the device."""
        self._out.append(packet)

    def wake(self, obj: Pollable) -> None:
        """Poll ``obj`` at the next ``poll_transmit``."""
        self._awake[obj] = None

    def arm(self, obj: Pollable) -> None:
        """The deadline of ``obj`` may have become earlier."""
        self.timers.arm(obj)

    def event(self, obj: Any, kind: Event) -> None:
        """Queue an event for the application."""
        self._events.append((obj, kind))

    def forget(self, obj: Any) -> None:
        """``obj`` is gone: no packet and no timer finds it any more."""
        if isinstance(obj, TcpConnection):
            self.demux.remove(obj)
            if self.handover is not None and not self.demux.taken(obj.local, obj.remote):
                self.handover.forgotten(flow_key(obj.local, obj.remote))
            if isinstance(obj, Subflow) and obj.uplink is not None:
                sent, received = self.retired.get(obj.uplink, (0, 0))
                self.retired[obj.uplink] = (
                    sent + obj.bytes_sent,
                    received + obj.bytes_received,
                )
        self.timers.disarm(obj)
        self._awake.pop(obj, None)

    # -- what belongs to no connection ------------------------------------------------------------

    def _receive_stray(self, segment: Segment, now: float) -> None:
        if self.handover is not None and self._hand_over(self.handover, segment, now):
            return
        if segment.flags & RST:
            return
        if segment.flags & (SYN | ACK | FIN) == SYN:
            self._receive_syn(segment, now)
            return
        if self.listener is not None and self.listener.on_stray(segment, now):
            self.reset(segment, now)

    def _hand_over(self, handover: Handover, segment: Segment, now: float) -> bool:
        join = _join_of(segment) if segment.flags & (SYN | ACK | FIN | RST) == SYN else None
        token = None if join is None else join.token
        return handover.take(segment.key, self.packet, token, now)

    def _receive_syn(self, syn: Segment, now: float) -> None:
        join = _join_of(syn)
        if join is not None:
            self._receive_join(syn, join, now)
        elif any(e.port == syn.dport and e.ip == syn.dst for e in self.local_addresses):
            # As in Linux, a port that was announced is for joins alone.
            self.counters.add("MPTcpExtMPCapableEndpAttempt")
            self.reset(syn, now)
        elif self.listener is not None:
            self.listener.on_syn(syn, now)

    def _receive_join(self, syn: Segment, join: MpJoinSyn, now: float) -> None:
        connection = self.tokens.get(join.token)
        self.counters.add("MPTcpExtMPJoinSynRx")
        if connection is not None:
            connection.on_join(syn, now)
            if self.handover is not None and self.demux.find(syn.key) is None:
                self.handover.forgotten(syn.key)  # it was claimed, and then refused
            return
        # RFC 8684 §3.2: an unknown token is answered with a RST; reason 1 as Linux sends it.
        self.counters.add("MPTcpExtMPJoinNoTokenFound")
        self.reset(syn, now, pad(MpTcprst(reason=1).build()))

    def reset(self, segment: Segment, now: float, options: bytes = b"") -> None:
        """Answer ``segment`` with a RST (RFC 9293 §3.10.7.1), within the rate limit."""
        if not self._resets.take(now):
            self.counters.add("ResetsSuppressed")
            return
        if segment.flags & ACK:
            seq, ack, flags = segment.ack, 0, RST
        else:
            length = segment.length + bool(segment.flags & SYN) + bool(segment.flags & FIN)
            seq, ack, flags = 0, (segment.seq + length) & 0xFFFFFFFF, RST | ACK
        self.counters.add("TCPOutRsts")
        self.transmit(
            [
                build_header(
                    segment.dst,
                    segment.src,
                    segment.dport,
                    segment.sport,
                    seq,
                    ack,
                    flags,
                    0,
                    options,
                    0,
                    0,
                )
            ]
        )

    def _receive_other(self, packet: bytes, now: float) -> None:
        try:
            error = icmp.parse_icmp(packet)
        except CodecError:
            self.counters.add("InErrs")
            return
        connection = self.demux.find(error.key)
        if connection is None:
            handover = self.handover
            if handover is None or not handover.take(error.key, packet, None, now):
                self.counters.add("IcmpNoConnection")
            return
        connection.on_icmp(error, now)


def offers_mptcp(syn: Segment) -> bool:
    """Whether a SYN carries an MP_CAPABLE that we may answer."""
    return any(isinstance(parse_option(raw, True, False), MpCapable) for raw in syn.mptcp)


def _join_of(syn: Segment) -> MpJoinSyn | None:
    for raw in syn.mptcp:
        option = parse_option(raw, True, False)
        if isinstance(option, MpJoinSyn):
            return option
    return None
