"""What must hold inside a stack between two steps, whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import MAX_NOTES, Fallback
from proxy.tcp.connection import TcpConnection
from proxy.tcp.states import State
from tests.sim.endpoint import End, Failure

if TYPE_CHECKING:
    from proxy.engine.stack import Application, Stack

MASK = 0xFFFFFFFF
HALF = 0x80000000
_SLACK = 65536 + 65535  # a super-segment and the rounding of the window scale
_WAITING = (State.SYN_SENT, State.SYN_RECEIVED, State.TIME_WAIT)


def settled(stack: Stack, name: str) -> None:
    """Nothing waits for a poll or to be told: cheap, after every step."""
    if stack._awake or stack._out or stack._events:
        raise Failure(f"the {name} has work left at the end of a step")


def timers(conn: Application, stack: Stack) -> None:
    """What has a deadline is called for it, and what waits for the peer has one."""
    _armed(conn, stack)
    if not isinstance(conn, MptcpConnection):
        _tcp_has_timer(conn)
        return
    for subflow in conn.subflows:
        _armed(subflow, stack)
        _tcp_has_timer(subflow)
    if conn.state is State.CLOSED or conn.fallback is not Fallback.NONE or not conn.subflows:
        if conn.state is not State.CLOSED and not conn.subflows and conn.next_timeout() is None:
            raise Failure("a connection without subflows waits for nothing")
        return
    tx = conn.tx
    outstanding = tx.una < tx.nxt or (tx.fin_sent and not tx.fin_acked)
    if outstanding and conn.next_timeout() is None:
        raise Failure(f"data {tx.una}:{tx.nxt} is not DATA_ACKed, and no timer runs")


def _armed(conn: Application, stack: Stack) -> None:
    deadline = conn.next_timeout()
    if deadline is None:
        return
    armed = stack.timers._armed.get(conn)
    if armed is None or armed > deadline + 1e-9:
        kind = type(conn).__name__
        raise Failure(f"a timer of a {kind} is lost: due {deadline:.6f}, armed for {armed}")


def _tcp_has_timer(conn: TcpConnection) -> None:
    if conn.state is State.CLOSED or conn.state is State.LISTEN:
        return
    if (conn._flight or conn.state in _WAITING) and conn.next_timeout() is None:
        raise Failure(f"{conn.state.name} with {len(conn._flight)} in flight, and no timer runs")


def bounds(conn: Application) -> None:
    """Memory is bounded, and what is counted is there."""
    if isinstance(conn, MptcpConnection):
        _mptcp_bounds(conn)
    else:
        _tcp_bounds(conn)


def _mptcp_bounds(conn: MptcpConnection) -> None:
    config = conn.tcp_config
    stream = conn.rx.stream
    held = stream.ready_bytes + stream.waiting_bytes
    if held > config.receive_buffer_max + _SLACK:
        raise Failure(f"{held} bytes received and not read, {config.receive_buffer_max} allowed")
    if stream.ready_bytes != conn.receivable:
        raise Failure(f"receivable is {conn.receivable}, {stream.ready_bytes} bytes are there")
    _stream_is_sound(conn)
    tx = conn.tx
    if not tx.una <= tx.nxt <= tx.end:
        raise Failure(f"una {tx.una}, nxt {tx.nxt}, end {tx.end}")
    unacked = tx.end - tx.una
    # The first send is not limited by the buffer if the handshake leaves payload over.
    if unacked > max(config.send_buffer_max, 4096) + 2048:
        raise Failure(f"{unacked} bytes to send are held, {config.send_buffer_max} allowed")
    if conn._notes is not None and len(conn._notes) > MAX_NOTES:
        raise Failure(f"{len(conn._notes)} notes")
    if conn._held is not None and conn._held_bytes > conn.rx.buffer + 2 * _SLACK:
        raise Failure(f"{conn._held_bytes} bytes wait for the answer to MP_FAIL")
    if len(conn.subflows) > 17 or len(tx.reinject) > 4096:
        raise Failure(f"{len(conn.subflows)} subflows, {len(tx.reinject)} reinjections")
    for subflow in conn.subflows:
        _tcp_bounds(subflow)
        if len(subflow.mappings) > 8192:
            raise Failure(f"{len(subflow.mappings)} mappings on one subflow")
        if len(subflow._one_shots or ()) > 8:
            raise Failure(f"{len(subflow._one_shots or ())} options wait on one subflow")


def _stream_is_sound(conn: MptcpConnection) -> None:
    stream = conn.rx.stream
    at = stream.rcv_nxt
    waiting = 0
    for start, part in zip(stream._starts, stream._parts, strict=True):
        if start < at + (start == stream.rcv_nxt) or not len(part):
            raise Failure(f"fragments overlap, or could be read: {start} after {at}")
        at = start + len(part)
        waiting += len(part)
    if waiting != stream.waiting_bytes:
        raise Failure(f"{stream.waiting_bytes} bytes are said to wait, {waiting} do")
    ready = sum(len(piece) for piece in stream.ready)
    if ready != stream.ready_bytes:
        raise Failure(f"{stream.ready_bytes} bytes are said to be ready, {ready} are")


def _tcp_bounds(conn: TcpConnection) -> None:
    config = conn.config
    held = conn.receivable
    if conn._reassembly is not None:
        held += conn._reassembly.size
        if len(conn._reassembly.ranges) > config.max_out_of_order:
            raise Failure(f"{len(conn._reassembly.ranges)} ranges out of order")
    if held > config.receive_buffer_max + _SLACK:
        raise Failure(f"{held} bytes received and not read, {config.receive_buffer_max} allowed")
    flight = lost = sacked = 0
    at = conn.snd_una
    for tx in conn._flight:
        length = (tx.end - tx.seq) & MASK
        if tx.sacked:
            sacked += length
        elif tx.lost:
            lost += length
        else:
            flight += length
        if tx.seq != at:
            raise Failure(f"in flight: {tx.seq} follows {at}")
        at = tx.end
    counted = (conn.bytes_in_flight, conn._lost_bytes, conn._sacked_bytes)
    if counted != (flight, lost, sacked):
        raise Failure(f"in flight, lost, sacked: {counted} counted, {(flight, lost, sacked)} are")


def pair(one: End, other: End) -> None:
    """Between the two ends: nothing is acknowledged that has not arrived, or delivered unsent."""
    sender, receiver = one.conn, other.conn
    if not (isinstance(sender, MptcpConnection) and isinstance(receiver, MptcpConnection)):
        return
    if not (sender.fully_established and receiver.fully_established):
        return
    if sender.fallback is not Fallback.NONE or receiver.fallback is not Fallback.NONE:
        return
    tx, stream = sender.tx, receiver.rx.stream
    if receiver.state is not State.CLOSED and tx.una > stream.rcv_nxt:
        raise Failure(f"{one.name}: {tx.una} is DATA_ACKed, {stream.rcv_nxt} has arrived")
    if stream.rcv_nxt > tx.nxt:
        raise Failure(f"{other.name}: {stream.rcv_nxt} has arrived, {tx.nxt} was sent")


def nothing_left(stack: Stack, name: str) -> None:
    """After everything: no connection, timer, memory or gauge."""
    left = {
        "demux": len(stack.demux),
        "tokens": len(stack.tokens),
        "timers": len(stack.timers),
        "awake": len(stack._awake),
        "memory": stack.memory.used,
        "established": stack.counters.get("MPTcpExtMPCurrEstab", 0),
    }
    if any(left.values()):
        raise Failure(f"the {name} keeps {left}")
    negative = {key: value for key, value in stack.counters.items() if value < 0}
    if negative:
        raise Failure(f"the {name} counts {negative}")


# (sent by one, received by the other): never more of the second, unless a link duplicates.
_PAIRS = (
    ("MPTcpExtMPCapableSYNTX", "MPTcpExtMPCapableSYNRX"),
    ("MPTcpExtMPJoinSynTx", "MPTcpExtMPJoinSynRx"),
    ("MPTcpExtAddAddrTx", "MPTcpExtAddAddr"),
    ("MPTcpExtEchoAddTx", "MPTcpExtEchoAdd"),
    ("MPTcpExtRmAddrTx", "MPTcpExtRmAddr"),
    ("MPTcpExtMPPrioTx", "MPTcpExtMPPrioRx"),
    ("MPTcpExtMPFailTx", "MPTcpExtMPFailRx"),
    ("MPTcpExtMPFastcloseTx", "MPTcpExtMPFastcloseRx"),
    ("MPTcpExtInfiniteMapTx", "MPTcpExtInfiniteMapRx"),
)
# These are counted once however often the packet is sent again.
_REPEATED = ("MPTcpExtMPCapableSYNTX", "MPTcpExtMPJoinSynTx", "MPTcpExtInfiniteMapTx")


def counters_agree(one: Stack, other: Stack) -> None:
    """Nothing was received that the other side has not counted as sent (links do not copy)."""
    for sent, received in _PAIRS:
        if sent in _REPEATED:
            continue
        for here, there in ((one, other), (other, one)):
            tx, rx = here.counters.get(sent, 0), there.counters.get(received, 0)
            if rx > tx:
                raise Failure(f"{received} is {rx}, {sent} at the other side {tx}")
