"""Packet scripts: one ``TcpConnection`` against hand-made segments, in virtual time.

Sequence numbers are relative to both initial ones: our SYN is 0, the peer's SYN is 0. A script
starts from the constructor of a state::

    script = Script.established()
    script.inject("A", seq=1, ack=1, payload=b"abc")
    script.expect("A", seq=1, ack=4)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from proxy.seg import Segment, build_header, parse
from proxy.tcp.config import TcpConfig
from proxy.tcp.connection import TcpConnection
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.address import Address
from proxy.wire.tcp_options import SynOptions, sack_option
from tests.pair.harness import TestHost

LOCAL = Address(b"\x0a\x00\x00\x01", 40000)
REMOTE = Address(b"\x0a\x00\x00\x02", 80)
REMOTE_ISN = 0xFFFFF000  # close to the wrap on purpose
MASK = 0xFFFFFFFF
FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32, "E": 64, "W": 128}
CONFIG = TcpConfig(timestamps=False, pacing=False, delayed_ack=0.04)


def flag_bits(text: str) -> int:
    """``"SA"`` to the bits of the header."""
    return sum(FLAGS[letter] for letter in text)


class Script:
    """One connection, the host it lives on, and the peer's side of the conversation."""

    def __init__(self, config: TcpConfig = CONFIG, **changes: Any) -> None:
        self.host = TestHost(1, replace(config, **changes))
        self.conn = TcpConnection(self.host, LOCAL, REMOTE)
        self.now = 100.0
        self.sent: list[Segment] = []
        self.ts_val = 1000
        self.quick = False

    # -- constructors, one per state ------------------------------------------------------------

    @classmethod
    def syn_sent(cls, **changes: Any) -> Script:
        script = cls(**changes)
        script.conn.connect(script.now)
        script.expect("S", seq=0)
        return script

    @classmethod
    def listen(cls, payload: bytes = b"", **changes: Any) -> Script:
        """A SYN has come, its answer is held back."""
        script = cls(**changes)
        script.conn.open_passive(
            script.segment("S", 0, payload=payload, options=script.syn_options()), script.now
        )
        script.expect_nothing()
        return script

    @classmethod
    def syn_received(cls, **changes: Any) -> Script:
        script = cls.listen(**changes)
        script.conn.accept(script.now)
        script.expect("SA", seq=0, ack=1)
        return script

    @classmethod
    def established(cls, window: int = 60_000, mss: int = 1460, **changes: Any) -> Script:
        script = cls.syn_sent(**changes)
        script.inject("SA", seq=0, ack=1, window=window, options=script.syn_options(mss=mss))
        script.expect("A", seq=1, ack=1)
        script.expect_event(Event.ESTABLISHED)
        script.conn._quick_acks = 0
        return script

    @classmethod
    def fin_wait_1(cls, **changes: Any) -> Script:
        script = cls.established(**changes)
        script.conn.shutdown_write()
        script.expect("FA", seq=1, ack=1)
        return script

    @classmethod
    def fin_wait_2(cls, **changes: Any) -> Script:
        script = cls.fin_wait_1(**changes)
        script.inject("A", seq=1, ack=2)
        assert script.conn.state is State.FIN_WAIT_2
        return script

    @classmethod
    def close_wait(cls, **changes: Any) -> Script:
        script = cls.established(**changes)
        script.inject("FA", seq=1, ack=1)
        script.expect("A", seq=1, ack=2)
        script.expect_event(Event.EOF)
        return script

    @classmethod
    def last_ack(cls, **changes: Any) -> Script:
        script = cls.close_wait(**changes)
        script.conn.shutdown_write()
        script.expect("FA", seq=1, ack=2)
        return script

    @classmethod
    def closing(cls, **changes: Any) -> Script:
        script = cls.fin_wait_1(**changes)
        script.inject("FA", seq=1, ack=1)
        script.expect("A", seq=2, ack=2)
        script.expect_event(Event.EOF)
        return script

    @classmethod
    def time_wait(cls, **changes: Any) -> Script:
        script = cls.fin_wait_2(**changes)
        script.inject("FA", seq=1, ack=2)
        script.expect("A", seq=2, ack=2)
        script.expect_event(Event.CLOSED, Event.EOF)
        return script

    # -- the peer's side ------------------------------------------------------------------------

    def syn_options(self, mss: int = 1460, sack: bool = True) -> bytes:
        ts = self.ts_val if self.host.tcp_config.timestamps else -1
        return SynOptions(mss=mss, wscale=0, sack_permitted=sack, ts_val=ts).build()

    def segment(
        self, flags: str, seq: int, ack: int = 0, payload: bytes = b"", window: int = 60_000,
        options: bytes = b"", sack: tuple[tuple[int, int], ...] = (), tos: int = 0,
    ) -> Segment:  # fmt: skip
        """A segment of the peer, built as bytes and parsed as it would be from the wire."""
        if sack:
            blocks = [(self.absolute(left), self.absolute(right)) for left, right in sack]
            options += sack_option(blocks, 40 - len(options))
        bits = flag_bits(flags)
        header = build_header(
            REMOTE.ip, LOCAL.ip, REMOTE.port, LOCAL.port, (seq + REMOTE_ISN) & MASK,
            self.absolute(ack) if bits & 16 else 0, bits, window, options, len(payload), 0, tos,
        )  # fmt: skip
        return parse(header + payload)

    def absolute(self, ack: int) -> int:
        """One of our own sequence numbers."""
        return (self.conn.iss + ack) & MASK

    def inject(self, flags: str, seq: int, ack: int = 0, **fields: Any) -> None:
        """The peer sends a segment."""
        self.conn.on_segment(self.segment(flags, seq, ack, **fields), self.now)

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass; timers fire when they are due."""
        until = self.now + seconds
        while True:
            self._flush()
            due = self.host.next_timeout()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self.host.fire(self.now)
        self.now = until
        self._flush()

    # -- what we sent ---------------------------------------------------------------------------

    def _flush(self) -> None:
        for packet in self.host.flush(self.now):
            self.sent.append(parse(packet))

    def next(self) -> Segment:
        """The next segment that the connection sent."""
        self._flush()
        assert self.sent, "nothing was sent"
        return self.sent.pop(0)

    def expect(
        self, flags: str, seq: int | None = None, ack: int | None = None,
        length: int | None = None, payload: bytes | None = None,
        sack: tuple[tuple[int, int], ...] | None = None,
    ) -> Segment:  # fmt: skip
        """The next segment sent has these properties (PSH is not compared)."""
        seg = self.next()
        assert seg.flags & ~8 == flag_bits(flags), f"flags {seg.flags:#x}"
        if seq is not None:
            assert (seg.seq - self.conn.iss) & MASK == seq & MASK
        if ack is not None:
            assert (seg.ack - REMOTE_ISN) & MASK == ack
        if length is not None:
            assert seg.length == length
        if payload is not None:
            assert bytes(seg.payload) == payload
        if sack is not None:
            blocks = tuple(
                ((left - REMOTE_ISN) & MASK, (right - REMOTE_ISN) & MASK)
                for left, right in seg.sack
            )
            assert blocks == sack
        return seg

    def expect_nothing(self) -> None:
        """Nothing was sent."""
        self._flush()
        assert not self.sent, [(s.flags, s.seq - self.conn.iss, s.length) for s in self.sent]

    def expect_event(self, *kinds: Event) -> None:
        """Exactly these events since the last look, in any order."""
        seen = [kind for _, kind in self.host.events]
        self.host.events.clear()
        assert sorted(k.value for k in seen) == sorted(k.value for k in kinds)
