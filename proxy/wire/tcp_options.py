"""TCP options other than MPTCP: those of a SYN, and SACK blocks.

Timestamps and DSS of established segments are built by ``proxy.seg``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from proxy.errors import LocalProtocolError

EOL = 0
NOP = 1
MSS = 2
WINDOW_SCALE = 3
SACK_PERMITTED = 4
SACK = 5
TIMESTAMPS = 8
MPTCP = 30
FAST_OPEN = 34

MAX_OPTIONS = 40  # bytes: a TCP header has 4 bits of length in words (RFC 9293 §3.1)


def split_options(raw: bytes) -> list[tuple[int, bytes]]:
    """The options of a TCP header as (kind, whole option), without NOPs.

    Stops in silence at EOL or at the first option whose length is impossible; what came before
    counts (RFC 9293 §3.1, net/ipv4/tcp_input.c tcp_parse_options).
    """
    found: list[tuple[int, bytes]] = []
    at, end = 0, len(raw)
    while at < end:
        kind = raw[at]
        if kind == EOL:
            break
        if kind == NOP:
            at += 1
            continue
        if at + 1 >= end:
            break
        length = raw[at + 1]
        if length < 2 or at + length > end:
            break
        found.append((kind, raw[at : at + length]))
        at += length
    return found


@dataclass(frozen=True, slots=True)
class SynOptions:
    """The plain TCP options of a SYN or SYN-ACK; -1 is absent.

    ``mss`` 0..65535, ``wscale`` 0..14, ``ts_val`` and ``ts_ecr`` u32.
    """

    mss: int = -1
    wscale: int = -1
    sack_permitted: bool = False
    ts_val: int = -1
    ts_ecr: int = 0

    @classmethod
    def parse(cls, raw: bytes) -> SynOptions:
        """Reads the option bytes of a TCP header; options of a wrong length are ignored."""
        mss = wscale = ts_val = -1
        ts_ecr = 0
        sack_permitted = False
        for kind, option in split_options(raw):
            if kind == MSS and len(option) == 4:
                mss = int.from_bytes(option[2:4], "big")
            elif kind == WINDOW_SCALE and len(option) == 3:
                wscale = min(option[2], 14)  # RFC 7323 §2.3
            elif kind == SACK_PERMITTED and len(option) == 2:
                sack_permitted = True
            elif kind == TIMESTAMPS and len(option) == 10:
                ts_val, ts_ecr = struct.unpack(">II", option[2:10])
        return cls(mss, wscale, sack_permitted, ts_val, ts_ecr)

    def build(self, mptcp: bytes = b"") -> bytes:
        """The option bytes in the kernel's order, padded to words, then ``mptcp`` (also padded).

        Raises LocalProtocolError if they do not fit in 40 bytes or ``mptcp`` is not padded.
        """
        parts: list[bytes] = []
        if self.mss >= 0:
            parts.append(struct.pack(">BBH", MSS, 4, self.mss))
        if self.ts_val >= 0:
            parts.append(b"\x04\x02" if self.sack_permitted else b"\x01\x01")
            parts.append(struct.pack(">BBII", TIMESTAMPS, 10, self.ts_val, self.ts_ecr))
        elif self.sack_permitted:
            parts.append(b"\x01\x01\x04\x02")
        if self.wscale >= 0:
            parts.append(struct.pack(">BBBB", NOP, WINDOW_SCALE, 3, self.wscale))
        parts.append(mptcp)
        built = b"".join(parts)
        if len(built) % 4 or len(built) > MAX_OPTIONS:
            raise LocalProtocolError(f"SYN options of {len(built)} bytes")
        return built


def sack_option(blocks: Iterable[tuple[int, int]], room: int) -> bytes:
    """A padded SACK option (RFC 2018) with the first of ``blocks`` that fit in ``room`` bytes.

    Empty if not one block fits or there is none; at most 4 blocks.
    """
    limit = min((room - 4) // 8, 4)
    edges: list[int] = []
    for left, right in blocks:
        if len(edges) >= 2 * limit:
            break
        edges += (left, right)
    if not edges:
        return b""
    return struct.pack(f">BBBB{len(edges)}I", NOP, NOP, SACK, 2 + 4 * len(edges), *edges)
