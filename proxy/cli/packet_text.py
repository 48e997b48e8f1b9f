"""Captured packets in words, one line each in tcpdump's manner, with MPTCP spelled out."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import dpkt

from proxy.cli.mptcp_text import option_text
from proxy.wire.address import format_ip
from proxy.wire.tcp_options import MPTCP, SACK, SynOptions, split_options

_FLAGS = ((2, "S"), (1, "F"), (4, "R"), (8, "P"), (32, "U"), (64, "E"), (128, "W"), (16, "."))
_SYN, _ACK = 2, 16
_CONVERT = 0x2263  # RFC 8803 §6.1


@dataclass(frozen=True, slots=True)
class PacketText:
    """``line`` as tcpdump would write it; ``mptcp``: each MPTCP option and what else is known."""

    line: str
    mptcp: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join((self.line, *self.mptcp))


def packet_text(data: bytes, length: int) -> PacketText:
    """An IP packet of ``length`` bytes, of which ``data`` was captured."""
    try:
        ip = dpkt.ip6.IP6(data) if data[0] >> 4 == 6 else dpkt.ip.IP(data)
    except (dpkt.UnpackError, IndexError):
        return PacketText(f"not IP, length {length}")
    name = "IP6" if data[0] >> 4 == 6 else "IP"
    source, destination = format_ip(ip.src), format_ip(ip.dst)
    tcp = ip.data
    if not isinstance(tcp, dpkt.tcp.TCP):
        kind = type(tcp).__name__ if isinstance(tcp, dpkt.Packet) else f"protocol {ip.p}"
        return PacketText(f"{name} {source} > {destination}: {kind}, length {length}")
    payload = length - (len(data) - len(tcp.data))
    flags = "".join(letter for bit, letter in _FLAGS if tcp.flags & bit) or "none"
    words = [f"Flags [{flags}]", _sequence(tcp, payload)]
    if tcp.flags & _ACK:
        words.append(f"ack {tcp.ack}")
    words.append(f"win {tcp.win}")
    options = ",".join(_plain_options(tcp))
    if options:
        words.append(f"options [{options}]")
    words.append(f"length {payload}")
    ends = f"{source}.{tcp.sport} > {destination}.{tcp.dport}"
    return PacketText(f"{name} {ends}: {', '.join(words)}", tuple(_mptcp(tcp)))


def _sequence(tcp: dpkt.tcp.TCP, payload: int) -> str:
    end = (tcp.seq + payload) & 0xFFFFFFFF
    return f"seq {tcp.seq}:{end}" if payload else f"seq {tcp.seq}"


def _plain_options(tcp: dpkt.tcp.TCP) -> Iterator[str]:
    plain = SynOptions.parse(tcp.opts)
    if plain.mss >= 0:
        yield f"mss {plain.mss}"
    if plain.sack_permitted:
        yield "sackOK"
    if plain.ts_val >= 0:
        yield f"TS val {plain.ts_val} ecr {plain.ts_ecr}"
    if plain.wscale >= 0:
        yield f"wscale {plain.wscale}"
    for kind, raw in split_options(tcp.opts):
        if kind == SACK and len(raw) % 8 == 2:
            edges = struct.unpack(f">{(len(raw) - 2) // 4}I", raw[2:])
            pairs = zip(edges[::2], edges[1::2], strict=True)
            yield "sack " + " ".join(f"{{{left}:{right}}}" for left, right in pairs)


def _mptcp(tcp: dpkt.tcp.TCP) -> Iterator[str]:
    syn, ack = bool(tcp.flags & _SYN), bool(tcp.flags & _ACK)
    for kind, raw in split_options(tcp.opts):
        if kind == MPTCP:
            yield option_text(raw, syn, ack)
    begin = bytes(tcp.data[:4])
    if len(begin) == 4 and begin[0] == 1 and int.from_bytes(begin[2:], "big") == _CONVERT:
        yield f"Convert message of {begin[1] * 4} bytes"
