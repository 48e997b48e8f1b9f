"""What each host puts on the wire, judged independently of its own idea of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.mptcp.notes import Fallback
from proxy.mptcp.subflow import Subflow
from proxy.seg import DSS_ACK, DSS_MAP, Segment
from proxy.tcp.connection import TcpConnection
from tests.sim.endpoint import Failure

if TYPE_CHECKING:
    from proxy.engine.stack import Stack
    from proxy.mptcp.connection import MptcpConnection

MASK = 0xFFFFFFFF
HALF = 0x80000000
SYN = 2
ACK = 16
RST = 4


class _Direction:
    """What a host has learnt of one TCP connection from the segments that it was given."""

    __slots__ = ("edge", "own_edge", "own_scale", "peer_scale")

    def __init__(self) -> None:
        self.peer_scale = -1
        self.own_scale = -1
        self.edge = -1  # right edge that the peer has promised us
        self.own_edge = -1  # right edge that we have promised the peer


class Monitor:
    """Watches one stack: windows are honoured and never taken back, segments fit the path."""

    def __init__(self, name: str, stack: Stack, mtu: int) -> None:
        self.name = name
        self.stack = stack
        self.mtu = mtu
        self.sent = 0
        self._flows: dict[bytes, _Direction] = {}
        self._data_edges: dict[MptcpConnection, int] = {}
        self._own_data_edges: dict[MptcpConnection, tuple[int, int]] = {}

    def _flow(self, key: bytes) -> _Direction:
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = _Direction()
        return flow

    # -- what comes in --------------------------------------------------------------------------

    def received(self, seg: Segment) -> None:
        """The host is about to be given ``seg``."""
        flags = seg.flags
        if flags & SYN:
            flow = self._flow(seg.key)
            flow.peer_scale = seg.wscale
            if not flags & ACK:
                flow.edge = flow.own_edge = -1  # perhaps a new incarnation
        else:
            flow = self._flow(seg.key)
        if not flags & ACK or flags & RST:
            return
        scaled = not flags & SYN and flow.peer_scale >= 0 and flow.own_scale >= 0
        window = seg.window << flow.peer_scale if scaled else seg.window
        edge = (seg.ack + window) & MASK
        if flow.edge < 0 or (edge - flow.edge) & MASK < HALF:
            flow.edge = edge
        connection = self.stack.demux.find(seg.key)
        if isinstance(connection, Subflow) and connection.mptcp:
            self._data_window(connection.conn, seg, window)

    def _data_window(self, conn: MptcpConnection, seg: Segment, window: int) -> None:
        if seg.dss_flags >= 0 and seg.dss_flags & DSS_ACK:
            base = seg.data_ack & MASK
        elif conn not in self._data_edges:
            base = (conn.local_key.idsn + 1) & MASK
        else:
            return
        edge = (base + window) & MASK
        known = self._data_edges.get(conn, -1)
        if known < 0 or (edge - known) & MASK < HALF:
            self._data_edges[conn] = edge

    # -- what goes out --------------------------------------------------------------------------

    def transmitted(self, seg: Segment, size: int) -> None:
        """The host sends ``seg``, an IP packet of ``size`` bytes (perhaps a super-segment)."""
        self.sent += 1
        self._fits(seg, size)
        key = seg.dst + seg.src + seg.dport.to_bytes(2, "big") + seg.sport.to_bytes(2, "big")
        flow = self._flow(key)
        if seg.flags & SYN:
            flow.own_scale = seg.wscale
            return
        if seg.flags & RST:
            return
        connection = self.stack.demux.find(key)
        if connection is None:
            return
        if isinstance(connection, Subflow):
            if connection.mptcp:
                if seg.length:
                    self._within_data_window(connection, seg)
                self._keeps_data_promise(flow, connection.conn, seg)
                return
            if connection.conn.fallback is not Fallback.AT_HANDSHAKE:
                return
        self._within_window(flow, seg)
        self._keeps_promise(flow, seg, connection)

    def _fits(self, seg: Segment, size: int) -> None:
        payload = seg.length
        wire = size if not seg.gso_size else size - payload + min(payload, seg.gso_size)
        if wire > self.mtu:
            raise Failure(f"{self.name} sends an IP packet of {wire} bytes, MTU is {self.mtu}")
        if size > 65535:
            raise Failure(f"{self.name} sends a super-segment of {size} bytes")

    def _within_window(self, flow: _Direction, seg: Segment) -> None:
        if flow.edge < 0 or not seg.length:
            return
        beyond = (seg.seq + seg.length - flow.edge) & MASK
        if 0 < beyond < HALF:
            raise Failure(f"{self.name} sends {beyond} bytes beyond the peer's window")

    def _keeps_promise(self, flow: _Direction, seg: Segment, connection: TcpConnection) -> None:
        scaled = flow.peer_scale >= 0 and flow.own_scale >= 0
        window = seg.window << flow.own_scale if scaled else seg.window
        edge = (seg.ack + window) & MASK
        before = flow.own_edge
        if before >= 0 and not isinstance(connection, Subflow):
            back = (before - edge) & MASK
            if 0 < back < HALF:
                raise Failure(f"{self.name} takes back {back} bytes of its window")
        if before < 0 or (edge - before) & MASK < HALF:
            flow.own_edge = edge

    def _keeps_data_promise(self, flow: _Direction, conn: MptcpConnection, seg: Segment) -> None:
        # RFC 8684 §3.3.4: the right edge of the connection, on whatever subflow it is told. Less
        # than the unit of the window scale is rounding (RFC 7323 §2.4), and is taken all the same.
        if seg.dss_flags < 0 or not seg.dss_flags & DSS_ACK:
            return
        scale = flow.own_scale if flow.peer_scale >= 0 and flow.own_scale >= 0 else 0
        edge = (seg.data_ack + (seg.window << scale)) & MASK
        before, unit = self._own_data_edges.get(conn, (-1, 0))
        back = (before - edge) & MASK
        unit = max(unit, 1 << scale)
        if before >= 0 and unit <= back < HALF and seg.window < 65535:
            raise Failure(f"{self.name} takes back {back} bytes of its data window")
        if before < 0 or (edge - before) & MASK < HALF:
            self._own_data_edges[conn] = edge, unit

    def _within_data_window(self, subflow: Subflow, seg: Segment) -> None:
        edge = self._data_edges.get(subflow.conn)
        if edge is None or seg.dss_flags < 0 or not seg.dss_flags & DSS_MAP:
            return
        if not seg.data_length:
            return
        into = (seg.seq - subflow.tx_base - seg.ssn) & MASK
        beyond = (seg.dsn + into + seg.length - edge) & MASK
        if 0 < beyond < HALF:
            raise Failure(f"{self.name} sends {beyond} bytes beyond the peer's data window")
