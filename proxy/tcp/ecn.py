"""Explicit Congestion Notification (RFC 3168), with the gentler reaction of RFC 8511 (ABE)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.tcp.core import ACK, ACK_NOW, CA_OPEN, CWR, ECE, ECT_0
from proxy.tcp.recovery import Recovery
from proxy.tcp.states import State

if TYPE_CHECKING:
    from proxy.seg import Segment

CE = 3
ABE_BETA = 0.85
"""What a mark leaves of the window: a queue that marks is shorter than one that drops."""


class Ecn(Recovery):
    """Who asked for ECN, what marks arrived here, and what the peer says of ours."""

    __slots__ = ()

    def _negotiate_ecn(self, seg: Segment) -> None:
        """From the peer's SYN or SYN-ACK (RFC 3168 §6.1.1).

        A SYN that is itself ECN-capable is not ours to understand (Linux: tcp_ecn_create_request).
        """
        bits = seg.flags & (ECE | CWR)
        if seg.flags & ACK:
            agreed = self._ecn_asked and bits == ECE
        elif self.state is State.SYN_SENT:
            agreed = self._ecn_asked and bits == ECE | CWR
        else:
            agreed = self.config.ecn != "off" and bits == ECE | CWR and not seg.ecn
        self.ecn = ECT_0 if agreed else 0

    def _on_ecn(self, seg: Segment, now: float) -> None:
        """The ECN bits of an acceptable segment, once its ACK was processed."""
        flags = seg.flags
        if flags & ECE:
            self._on_congestion_echo(now)
        if seg.length:
            if flags & CWR:
                self._ecn_echo = 0
            if seg.ecn == CE:
                self.counters.add("InCEPkts")
                if not self._ecn_echo:
                    self._ecn_echo = ECE
                    self._ack_state = ACK_NOW

    def _on_congestion_echo(self, now: float) -> None:
        """The peer got marks: reduce once per window (RFC 3168 §6.1.2).

        That is until something is acknowledged which was sent after the last reduction.
        """
        if self._ca_state != CA_OPEN or self.bytes_acked <= self._reduced_at:
            return
        congestion = self.congestion
        before = congestion.cwnd
        avoiding = before >= congestion.ssthresh
        congestion.on_mark(now)
        gentle = int(before * ABE_BETA)
        if avoiding and congestion.cwnd < gentle:
            congestion.cwnd = congestion.ssthresh = gentle
        self._reduced_at = self.bytes_sent
        self._cwr_due = True
        self._take_congestion_window()
        self.counters.add("TCPECNReductions")
