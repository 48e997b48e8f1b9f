"""One TCP connection: the facade that the stack and the application see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.tcp.core import ConnectionCore

if TYPE_CHECKING:
    from proxy.seg import Segment
    from proxy.tcp.buffers import Buffer
    from proxy.tcp.host import IcmpError


class TcpConnection(ConnectionCore):
    """Plain TCP; ``proxy.mptcp.subflow.Subflow`` overrides the hooks of ``ConnectionCore``.

    Nothing is sent inside ``on_segment`` but challenge ACKs and RSTs: it records work and wakes;
    ``poll`` sends. ``host.event`` may be called from any entry point.
    """

    __slots__ = ()

    # -- opening --------------------------------------------------------------------------------

    def connect(self, now: float, syn_payload: bytes = b"") -> None:
        """Send a SYN, with ``syn_payload`` in it (RFC 7413 without a cookie).

        The payload is the start of the byte stream. ``syn_payload_acked`` says afterwards how
        much of it the SYN-ACK acknowledged; the rest is sent again as ordinary data.
        """

    def open_passive(self, syn: Segment, now: float) -> None:
        """Take a SYN, and keep the SYN-ACK back until ``accept``, ``refuse`` or ``discard``."""

    def accept(self, now: float, take_syn_payload: bool = False) -> None:
        """Send the SYN-ACK.

        With ``take_syn_payload`` it acknowledges ``syn_payload``, which the caller has consumed;
        else the peer sends these bytes again.
        """

    def refuse(self, now: float) -> None:
        """Answer the SYN by RST and forget the connection."""

    def discard(self, now: float) -> None:
        """Forget the connection in silence."""

    # -- application ----------------------------------------------------------------------------

    def send(self, chunk: Buffer) -> None:
        """Queue all of ``chunk``; the caller honours ``send_room()``. Not copied: do not change it."""

    def send_room(self) -> int:
        """Bytes the send buffer still takes (0 when closed); WRITABLE follows a shortage."""
        return 0

    def receive(self, limit: int) -> list[Buffer]:
        """Take at most ``limit`` bytes of the stream, in order."""
        return []

    def shutdown_write(self) -> None:
        """Send FIN after what is queued."""

    def close(self, now: float) -> None:
        """Send FIN and read no more: later data is answered by RST."""

    def abort(self, now: float) -> None:
        """Send RST and forget everything."""

    # -- engine ---------------------------------------------------------------------------------

    def on_segment(self, seg: Segment, now: float) -> None:
        """A segment of this connection arrived."""

    def poll(self, now: float) -> None:
        """Send what may be sent: lost data first, then new data, then the pending ACK."""

    def next_timeout(self) -> float | None:
        """When ``on_timeout`` must be called; None: never."""
        return None

    def on_timeout(self, now: float) -> None:
        """A deadline may have passed; early calls do nothing."""

    def on_icmp(self, error: IcmpError, now: float) -> None:
        """An ICMP error quoting this connection (RFC 5461, RFC 5927)."""

    def accepts_reuse(self, syn: Segment) -> bool:
        """In TIME_WAIT: may ``syn`` begin a new incarnation (RFC 6191)?"""
        return False

    def send_capacity(self, now: float) -> int:
        """Bytes of new data that may go to the network at once (the packet scheduler's input)."""
        return 0

    def request_ack(self) -> None:
        """Send a pure ACK at the next ``poll`` even if data goes out (for one-shot options)."""
