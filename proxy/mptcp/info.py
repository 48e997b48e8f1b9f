"""What ``getsockopt`` tells of a connection, in the kernel's binary layouts.

Sources: ``include/uapi/linux/mptcp.h`` and ``include/uapi/linux/tcp.h`` of Linux 6.18. All
numbers are in the byte order of this machine, but ports and addresses. ``_fields_`` are those of C,
so that ``from_buffer_copy`` reads what the kernel wrote.
"""

from __future__ import annotations

import ctypes
import math
import sys
from typing import TYPE_CHECKING, Literal

from proxy.mptcp.notes import Fallback
from proxy.tcp.chronograph import Limited
from proxy.tcp.states import State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.mptcp.connection import MptcpConnection
    from proxy.tcp.connection import TcpConnection
    from proxy.wire.address import Address

_U8, _U16, _U32, _U64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64
_MAX_U32 = 0xFFFFFFFF

FLAG_FALLBACK = 1
"""Of ``mptcpi_flags``: the connection is plain TCP."""
FLAG_REMOTE_KEY_RECEIVED = 2

# tcpi_options (TCPI_OPT_*), and the states of include/net/tcp_states.h.
_OPT_TIMESTAMPS, _OPT_SACK, _OPT_WSCALE, _OPT_ECN = 1, 2, 4, 8
_STATES = {
    State.ESTABLISHED: 1,
    State.SYN_SENT: 2,
    State.SYN_RECEIVED: 3,
    State.FIN_WAIT_1: 4,
    State.FIN_WAIT_2: 5,
    State.TIME_WAIT: 6,
    State.CLOSED: 7,
    State.CLOSE_WAIT: 8,
    State.LAST_ACK: 9,
    State.LISTEN: 10,
    State.CLOSING: 11,
}
_AF_INET, _AF_INET6 = 2, 10
_SSTHRESH_UNKNOWN = 0x7FFFFFFF  # TCP_INFINITE_SSTHRESH


class MptcpInfo(ctypes.Structure):
    """``struct mptcp_info``. Sequence numbers are data-level ones, times in milliseconds."""

    _fields_ = (
        *((f"mptcpi_{name}", _U8) for name in (
            "subflows", "add_addr_signal", "add_addr_accepted", "subflows_max",
            "add_addr_signal_max", "add_addr_accepted_max",
        )),
        ("mptcpi_flags", _U32),
        ("mptcpi_token", _U32),
        ("mptcpi_write_seq", _U64),
        ("mptcpi_snd_una", _U64),
        ("mptcpi_rcv_nxt", _U64),
        ("mptcpi_local_addr_used", _U8),
        ("mptcpi_local_addr_max", _U8),
        ("mptcpi_csum_enabled", _U8),
        ("mptcpi_retransmits", _U32),
        ("mptcpi_bytes_retrans", _U64),
        ("mptcpi_bytes_sent", _U64),
        ("mptcpi_bytes_received", _U64),
        ("mptcpi_bytes_acked", _U64),
        ("mptcpi_subflows_total", _U8),
        ("mptcpi_endp_laminar_max", _U8),
        ("mptcpi_endp_fullmesh_max", _U8),
        ("reserved", _U8),
        ("mptcpi_last_data_sent", _U32),
        ("mptcpi_last_data_recv", _U32),
        ("mptcpi_last_ack_recv", _U32),
    )  # fmt: skip


class TcpInfo(ctypes.Structure):
    """``struct tcp_info``. Times in microseconds but ``tcpi_last_*`` (milliseconds); sizes in bytes
    but windows and counts of segments."""

    _fields_ = (
        *((f"tcpi_{name}", _U8) for name in (
            "state", "ca_state", "retransmits", "probes", "backoff", "options",
        )),
        ("tcpi_snd_wscale", _U8, 4),
        ("tcpi_rcv_wscale", _U8, 4),
        ("tcpi_delivery_rate_app_limited", _U8, 1),
        ("tcpi_fastopen_client_fail", _U8, 2),
        *((f"tcpi_{name}", _U32) for name in (
            "rto", "ato", "snd_mss", "rcv_mss", "unacked", "sacked", "lost", "retrans", "fackets",
            "last_data_sent", "last_ack_sent", "last_data_recv", "last_ack_recv", "pmtu",
            "rcv_ssthresh", "rtt", "rttvar", "snd_ssthresh", "snd_cwnd", "advmss", "reordering",
            "rcv_rtt", "rcv_space", "total_retrans",
        )),
        *((f"tcpi_{name}", _U64) for name in (
            "pacing_rate", "max_pacing_rate", "bytes_acked", "bytes_received",
        )),
        *((f"tcpi_{name}", _U32) for name in (
            "segs_out", "segs_in", "notsent_bytes", "min_rtt", "data_segs_in", "data_segs_out",
        )),
        *((f"tcpi_{name}", _U64) for name in (
            "delivery_rate", "busy_time", "rwnd_limited", "sndbuf_limited",
        )),
        ("tcpi_delivered", _U32),
        ("tcpi_delivered_ce", _U32),
        ("tcpi_bytes_sent", _U64),
        ("tcpi_bytes_retrans", _U64),
        *((f"tcpi_{name}", _U32) for name in (
            "dsack_dups", "reord_seen", "rcv_ooopack", "snd_wnd", "rcv_wnd", "rehash",
        )),
        ("tcpi_total_rto", _U16),
        ("tcpi_total_rto_recoveries", _U16),
        *((f"tcpi_{name}", _U32) for name in (
            "total_rto_time", "received_ce", "delivered_e1_bytes", "delivered_e0_bytes",
            "delivered_ce_bytes", "received_e1_bytes", "received_e0_bytes", "received_ce_bytes",
        )),
        ("tcpi_accecn_fail_mode", _U16),
        ("tcpi_accecn_opt_seen", _U16),
    )  # fmt: skip


class SubflowData(ctypes.Structure):
    """``struct mptcp_subflow_data``: what precedes the elements of an answer."""

    _fields_ = (
        ("size_subflow_data", _U32),
        ("num_subflows", _U32),
        ("size_kernel", _U32),
        ("size_user", _U32),
    )


class SubflowAddrs(ctypes.Structure):
    """``struct mptcp_subflow_addrs``: two ``sockaddr_storage``; ``sockaddr`` reads one."""

    _fields_ = (("local", _U8 * 128), ("remote", _U8 * 128))


class SubflowInfo(ctypes.Structure):
    """``struct mptcp_subflow_info``."""

    # sockaddr_storage is aligned as a pointer is.
    _fields_ = (("id", _U32), ("_pad", _U32), ("addrs", SubflowAddrs))


class FullInfo(ctypes.Structure):
    """``struct mptcp_full_info``; ``subflow_info`` and ``tcp_info`` are addresses of arrays."""

    _fields_ = (
        ("size_tcpinfo_kernel", _U32),
        ("size_tcpinfo_user", _U32),
        ("size_sfinfo_kernel", _U32),
        ("size_sfinfo_user", _U32),
        ("num_subflows", _U32),
        ("size_arrays_user", _U32),
        ("subflow_info", _U64),
        ("tcp_info", _U64),
        ("mptcp_info", MptcpInfo),
    )


def sockaddr(storage: bytes) -> tuple[bytes, int]:
    """The packed address and the port in a ``sockaddr_in`` or ``sockaddr_in6``.

    ValueError for any other family.
    """
    family = int.from_bytes(storage[:2], _native())
    port = int.from_bytes(storage[2:4], "big")
    if family == _AF_INET:
        return bytes(storage[4:8]), port
    if family == _AF_INET6:
        return bytes(storage[8:24]), port
    raise ValueError(f"address family {family}")


def _build_sockaddr(address: Address) -> bytes:
    six = len(address.ip) == 16
    family = (_AF_INET6 if six else _AF_INET).to_bytes(2, _native())
    head = family + address.port.to_bytes(2, "big") + bytes(4 if six else 0) + address.ip
    return head.ljust(128, b"\0")


def _native() -> Literal["little", "big"]:
    return sys.byteorder


def mptcp_fields(conn: MptcpConnection) -> dict[str, int]:
    """The fields of ``struct mptcp_info`` without their prefix (``mptcp_diag_fill_info``)."""
    tx, rx = conn.tx, conn.rx
    announced, accepted = conn.path_manager.announcements()
    endpoints = conn.host.local_addresses
    fallback = conn.fallback is not Fallback.NONE
    remote_key = bool(conn.remote_key)
    return {
        "subflows": sum(not subflow.initial for subflow in conn.subflows),
        "add_addr_signal": announced,
        "add_addr_accepted": accepted,
        "subflows_max": conn.limits.subflows,
        "add_addr_signal_max": sum(endpoint.signal for endpoint in endpoints),
        "add_addr_accepted_max": conn.limits.add_addr_accepted,
        "flags": FLAG_FALLBACK * fallback | FLAG_REMOTE_KEY_RECEIVED * remote_key,
        "token": conn.local_key.token,
        "write_seq": tx.dsn(tx.end),
        "snd_una": tx.dsn(tx.una),
        "rcv_nxt": rx.data_ack() if remote_key else 0,
        "local_addr_used": len({flow.local_id for flow in conn.subflows if flow.local_id}),
        "local_addr_max": sum(endpoint.subflow for endpoint in endpoints),
        "csum_enabled": conn.checksum,
        "bytes_retrans": tx.bytes_reinjected,
        "bytes_sent": tx.nxt,
        "bytes_received": rx.stream.rcv_nxt,
        "bytes_acked": tx.una,
        "subflows_total": len(conn.subflows),
    }


def mptcp_info(conn: MptcpConnection, now: float) -> MptcpInfo:
    """``MPTCP_INFO`` of a connection."""
    info = MptcpInfo()
    _fill(info, "mptcpi_", mptcp_fields(conn))
    received = max((subflow.last_received for subflow in conn.subflows), default=0.0)
    info.mptcpi_endp_fullmesh_max = sum(end.fullmesh for end in conn.host.local_addresses)
    info.mptcpi_last_ack_recv = info.mptcpi_last_data_recv = _since(received, now)
    return info


def tcp_info(connection: TcpConnection, now: float) -> TcpInfo:
    """``TCP_INFO`` of a connection or subflow; what the engine does not count is 0."""
    mss = max(connection.mss, 1)
    info = TcpInfo()
    info.tcpi_options = (
        _OPT_TIMESTAMPS * bool(connection.timestamps)
        | _OPT_SACK * bool(connection.sack_permitted)
        | _OPT_WSCALE * bool(connection.snd_wscale or connection.rcv_wscale)
        | _OPT_ECN * bool(connection.ecn)
    )
    min_rtt = connection.min_rtt
    ssthresh = connection.ssthresh
    _fill(
        info,
        "tcpi_",
        {
            "state": _STATES[connection.state],
            "retransmits": connection.rto_count,
            "backoff": connection.rto_count,
            "snd_wscale": connection.snd_wscale,
            "rcv_wscale": connection.rcv_wscale,
            "rto": _microseconds(connection.rto),
            "snd_mss": connection.mss,
            "unacked": -(-connection.bytes_in_flight // mss),
            "last_data_recv": _since(connection.last_received, now),
            "last_ack_recv": _since(connection.last_received, now),
            "rtt": _microseconds(connection.srtt),
            "rttvar": _microseconds(connection.rttvar),
            "snd_ssthresh": _SSTHRESH_UNKNOWN if ssthresh >= 1 << 30 else ssthresh // mss,
            "snd_cwnd": -(-connection.cwnd // mss),
            "total_retrans": -(-connection.bytes_retransmitted // mss),
            "pacing_rate": int(connection.pacing_rate),
            "max_pacing_rate": (1 << 64) - 1,
            "bytes_acked": connection.bytes_acked,
            "bytes_received": connection.bytes_received,
            "min_rtt": _MAX_U32 if math.isinf(min_rtt) else _microseconds(min_rtt),
            "delivery_rate": int(connection.delivery_rate),
            "bytes_sent": connection.bytes_sent,
            "bytes_retrans": connection.bytes_retransmitted,
            "snd_wnd": connection.snd_wnd,
            **_limits(connection, now),
        },
    )
    return info


def _limits(connection: TcpConnection, now: float) -> dict[str, int]:
    # tcp_get_info_chrono_stats(): the busy time has the others in it.
    spent = connection.spent(now)
    window = spent[Limited.WINDOW] + spent[Limited.READER]
    return {
        "busy_time": round(connection.busy_seconds(now) * 1e6),
        "rwnd_limited": round(window * 1e6),
        "sndbuf_limited": round(spent[Limited.SEND_BUFFER] * 1e6),
    }


def subflow_addrs(local: Address, remote: Address) -> SubflowAddrs:
    """``MPTCP_SUBFLOW_ADDRS`` of one subflow."""
    return SubflowAddrs.from_buffer_copy(_build_sockaddr(local) + _build_sockaddr(remote))


def _fill(info: ctypes.Structure, prefix: str, fields: Mapping[str, int]) -> None:
    for name, value in fields.items():
        setattr(info, prefix + name, value)


def _microseconds(seconds: float) -> int:
    return min(round(seconds * 1e6), _MAX_U32)


def _since(when: float, now: float) -> int:
    """Milliseconds since ``when``; 0 if that never was."""
    return min(max(round((now - when) * 1e3), 0), _MAX_U32) if when else 0
