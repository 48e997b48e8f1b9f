"""One try to reach a destination through the gateway on one uplink, until it has an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.convert.auth import Reply
from proxy.convert.tlv import MAX_LENGTH, ConvertError, message_length
from proxy.mptcp.connection import MptcpConnection
from proxy.relay.uplinks import UplinkHealth
from proxy.tcp.events import Event


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway said.

    ``reply`` is None if it did not prove that it knows our secret (RFC 8803 §9.4: traffic theft);
    ``rest`` are the first bytes of the server that came along.
    """

    reply: Reply | None
    rest: bytes = b""


class DirectAttempt:
    """One try to reach a server itself on one uplink: MPTCP, or TCP if it does not take part."""

    __slots__ = ("stream", "uplink")

    def __init__(self, stream: MptcpConnection, uplink: UplinkHealth) -> None:
        self.stream = stream
        self.uplink = uplink


class Attempt:
    """Collects the gateway's Convert message: from the SYN+ACK, or the first bytes after it.

    ``check`` turns exactly one message into a proven ``Reply`` or raises ``ConvertError``.
    ``challenge`` is what the request answered, empty for none.
    """

    __slots__ = ("_check", "_received", "challenge", "stream", "uplink")

    def __init__(
        self,
        stream: MptcpConnection,
        uplink: UplinkHealth,
        check: Callable[[bytes], Reply],
        challenge: bytes,
    ) -> None:
        self.stream = stream
        self.uplink = uplink
        self.challenge = challenge
        self._check = check
        self._received = b""

    def rtt(self) -> float:
        """Least RTT of the initial subflow in seconds; 0 while unknown."""
        subflows = self.stream.subflows
        return subflows[0].min_rtt if subflows else 0.0

    def syn_data_eaten(self) -> bool:
        """Whether the request was in the SYN and did not get through with it."""
        return self.stream.syn_payload_acked < len(self.stream.syn_payload)

    def on_event(self, kind: Event) -> Answer | None:
        """The answer, once it is complete."""
        if kind is Event.ESTABLISHED:
            self._received = bytes(self.stream.syn_ack_payload)
        elif kind is not Event.READABLE and kind is not Event.EOF:
            return None
        answer = self._parse()
        while answer is None:
            chunks = self.stream.receive(MAX_LENGTH)
            if not chunks:
                # Whoever finishes without an answer is no gateway of ours, say a captive portal.
                return Answer(None) if self.stream.eof else None
            self._received += b"".join(chunks)
            answer = self._parse()
        return answer

    def _parse(self) -> Answer | None:
        try:
            length = message_length(self._received)
            if length is None or len(self._received) < length:
                return None
            reply = self._check(self._received[:length])
        except ConvertError:
            return Answer(None)
        return Answer(reply, self._received[length:])
