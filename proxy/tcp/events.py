"""What a connection tells its application, and why it failed."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Event(enum.Enum):
    """Passed to ``Host.event(connection, kind)``; compare with ``is``.

    The second group is raised by MPTCP connections only; its details queue on ``conn.notes``.
    """

    ESTABLISHED = "established"
    READABLE = "readable"
    WRITABLE = "writable"
    EOF = "eof"
    CLOSED = "closed"
    RESET = "reset"
    TIMED_OUT = "timed-out"
    UNREACHABLE = "unreachable"

    FALLBACK = "fallback"
    SUBFLOW_ESTABLISHED = "subflow-established"
    SUBFLOW_CLOSED = "subflow-closed"
    ADDR_ANNOUNCED = "addr-announced"
    ADDR_REMOVED = "addr-removed"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a connection ended: an ``errno`` value, and the ICMP error behind it (-1: none)."""

    errno: int
    icmp_type: int = -1
    icmp_code: int = -1
