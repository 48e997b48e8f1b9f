"""The states of a TCP connection (RFC 9293 §3.3.2)."""

from __future__ import annotations

import enum


class State(enum.Enum):
    """Compare with ``is``; the names are those of RFC 9293.

    ``LISTEN`` is a passive open whose SYN-ACK is still held back (see
    ``TcpConnection.open_passive``). ``CLOSED`` is both the first and the last state.
    """

    CLOSED = "closed"
    LISTEN = "listen"
    SYN_SENT = "syn-sent"
    SYN_RECEIVED = "syn-received"
    ESTABLISHED = "established"
    FIN_WAIT_1 = "fin-wait-1"
    FIN_WAIT_2 = "fin-wait-2"
    CLOSE_WAIT = "close-wait"
    CLOSING = "closing"
    LAST_ACK = "last-ack"
    TIME_WAIT = "time-wait"
