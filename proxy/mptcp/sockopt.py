"""``getsockopt`` at ``SOL_MPTCP``: what lengths mean and which errors there are.

Source: ``net/mptcp/sockopt.c`` of Linux 6.18. A buffer is the ``optval`` of C, its length
``optlen``; what is returned is the ``optlen`` that comes back. Errors are ``OSError`` with
the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.mptcp.info import (
    FullInfo,
    MptcpInfo,
    SubflowAddrs,
    SubflowData,
    SubflowInfo,
    TcpInfo,
    mptcp_info,
    subflow_addrs,
    tcp_info,
)

if TYPE_CHECKING:
    from proxy.mptcp.connection import MptcpConnection
    from proxy.wire.address import Address

SOL_MPTCP = 284
MPTCP_INFO = 1
MPTCP_TCPINFO = 2
MPTCP_SUBFLOW_ADDRS = 3
MPTCP_FULL_INFO = 4

_HEADER = ctypes.sizeof(SubflowData)
_FULL_HEADER = FullInfo.mptcp_info.offset
_WORDS = {errno.EINVAL: "Invalid argument", errno.EOPNOTSUPP: "Operation not supported"}
_INT_MAX = 0x7FFFFFFF

WriteMemory = Callable[[int, bytes], None]
"""Stores bytes at an address that a program named, as ``copy_to_user`` does."""


@dataclass(frozen=True, slots=True)
class SubflowView:
    """A subflow as ``getsockopt`` tells of it; ``id`` counts from 1 in a connection."""

    id: int
    addrs: SubflowAddrs
    tcp: TcpInfo


@dataclass(frozen=True, slots=True)
class ConnectionView:
    """A connection as ``getsockopt`` tells of it."""

    info: MptcpInfo
    subflows: Sequence[SubflowView]


def fill(view: ConnectionView, option: int, buffer: memoryview, write: WriteMemory) -> int:
    """Answer ``option`` into ``buffer``; ``write`` reaches what ``MPTCP_FULL_INFO`` points to.

    EINVAL: a header of wrong sizes; EOPNOTSUPP: no such option.
    """
    if option == MPTCP_INFO:
        return _put(buffer, bytes(view.info))
    if option == MPTCP_TCPINFO:
        return _subflow_data(buffer, [bytes(flow.tcp) for flow in view.subflows], TcpInfo)
    if option == MPTCP_SUBFLOW_ADDRS:
        elements = [bytes(flow.addrs) for flow in view.subflows]
        return _subflow_data(buffer, elements, SubflowAddrs)
    if option == MPTCP_FULL_INFO:
        return _full_info(view, buffer, write)
    raise refusal(errno.EOPNOTSUPP)


def refusal(code: int) -> OSError:
    """The error with the kernel's words for ``code``."""
    return OSError(code, _WORDS.get(code, errno.errorcode[code]))


def _put(buffer: memoryview, answer: bytes, at: int = 0) -> int:
    size = min(len(answer), len(buffer) - at)
    buffer[at : at + size] = answer[:size]
    return size


def _subflow_data(buffer: memoryview, elements: list[bytes], kind: type[ctypes.Structure]) -> int:
    """A header that says how many there are, then as many elements as fit as a whole."""
    header = _read_subflow_data(buffer)
    at = header.size_subflow_data
    header.size_kernel = ctypes.sizeof(kind)
    header.size_user = size = min(header.size_user, header.size_kernel)
    header.num_subflows = len(elements)
    end = at
    for element in elements:
        if end == len(buffer) or len(buffer) - end < size:
            break
        end += _put(buffer[: end + size], element, end)
    _put(buffer, bytes(header))
    return end if end > at else _HEADER


def _read_subflow_data(buffer: memoryview) -> SubflowData:
    if len(buffer) < _HEADER:
        raise refusal(errno.EINVAL)
    header = SubflowData.from_buffer_copy(buffer)
    size = header.size_subflow_data
    if size > _INT_MAX or header.size_user > _INT_MAX or not _HEADER <= size <= len(buffer):
        raise refusal(errno.EINVAL)
    if header.num_subflows or header.size_kernel:
        raise refusal(errno.EINVAL)
    return header


def _full_info(view: ConnectionView, buffer: memoryview, write: WriteMemory) -> int:
    full = _read_full_info(buffer)
    full.size_tcpinfo_kernel = ctypes.sizeof(TcpInfo)
    full.size_sfinfo_kernel = ctypes.sizeof(SubflowInfo)
    full.size_tcpinfo_user = min(full.size_tcpinfo_user, full.size_tcpinfo_kernel)
    full.size_sfinfo_user = min(full.size_sfinfo_user, full.size_sfinfo_kernel)
    full.num_subflows = len(view.subflows)
    full.mptcp_info = view.info
    for number, flow in enumerate(view.subflows[: full.size_arrays_user]):
        info = bytes(SubflowInfo(id=flow.id, addrs=flow.addrs))
        for base, element, size in (
            (full.subflow_info, info, full.size_sfinfo_user),
            (full.tcp_info, bytes(flow.tcp), full.size_tcpinfo_user),
        ):
            if size:
                write(base + number * size, element[:size])
    return _put(buffer, bytes(full))


def _read_full_info(buffer: memoryview) -> FullInfo:
    if len(buffer) < _FULL_HEADER:
        raise refusal(errno.EINVAL)
    given = bytes(buffer[:_FULL_HEADER]).ljust(ctypes.sizeof(FullInfo), b"\0")
    full = FullInfo.from_buffer_copy(given)
    if full.size_tcpinfo_kernel or full.size_sfinfo_kernel or full.num_subflows:
        raise refusal(errno.EINVAL)
    if full.size_tcpinfo_user > _INT_MAX or full.size_sfinfo_user > _INT_MAX:
        raise refusal(errno.EINVAL)
    return full


def view(conn: MptcpConnection, now: float, public: Callable[[Address], Address]) -> ConnectionView:
    """``conn`` as ``getsockopt`` tells of it; ``public`` says how an address of ours is called."""
    flows = [
        SubflowView(flow.id, subflow_addrs(public(flow.local), flow.remote), tcp_info(flow, now))
        for flow in conn.subflows
    ]
    return ConnectionView(mptcp_info(conn, now), flows)
