"""One super-segment in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.tcp.buffers import Buffer


class Transmission:
    """Bytes ``seq`` to ``end`` (FIN counts one) as they were last sent.

    It owns its payload, so that a retransmission needs no look-up. ``sacked`` and ``lost``
    exclude each other; neither = in the pipe. ``in_flight``, ``lost_before``: the connection's
    bytes in flight with it and its bytes ever lost when it was sent, for delivery samples; these
    and the rest that is only declared here are set by who makes it.
    """

    __slots__ = (
        "app_limited", "chunks", "delivered", "delivered_at", "end", "fin", "in_flight",
        "lost", "lost_before", "rate_sent_at", "retransmitted", "sacked", "sent_at", "seq",
    )  # fmt: skip

    app_limited: bool
    delivered: int
    delivered_at: float
    in_flight: int
    lost_before: int
    rate_sent_at: float

    def __init__(self, seq: int, end: int, chunks: list[Buffer], fin: bool, now: float) -> None:
        self.seq = seq
        self.end = end
        self.chunks = chunks
        self.fin = fin
        self.sent_at = now
        self.retransmitted = 0
        self.sacked = False
        self.lost = False
