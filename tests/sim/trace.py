"""Segments in words."""

from __future__ import annotations

from proxy.seg import DSS_ACK, DSS_FIN, DSS_MAP, Segment
from proxy.wire.address import Address
from proxy.wire.mptcp_options import parse_option

_FLAGS = ((2, "S"), (1, "F"), (4, "R"), (8, "P"), (16, "."))


def describe(seg: Segment) -> str:
    """One line: addresses, flags, numbers as on the wire, options."""
    flags = "".join(name for bit, name in _FLAGS if seg.flags & bit)
    parts = [
        f"{Address(seg.src, seg.sport)} > {Address(seg.dst, seg.dport)} [{flags}]",
        f"seq {seg.seq}" + (f":{(seg.seq + seg.length) & 0xFFFFFFFF}" if seg.length else ""),
        f"ack {seg.ack}" if seg.flags & 16 else "",
        f"win {seg.window}",
        f"len {seg.length}" + (f"/{seg.gso_size}" if seg.gso_size else "") if seg.length else "",
        _syn_options(seg),
        "sack " + " ".join(f"{a}:{b}" for a, b in seg.sack) if seg.sack else "",
        _dss(seg),
        *(_option(raw, seg) for raw in seg.mptcp),
    ]
    return ", ".join(part for part in parts if part)


def _syn_options(seg: Segment) -> str:
    if not seg.flags & 2:
        return ""
    sack = " sackOK" if seg.sack_permitted else ""
    stamps = " ts" if seg.ts_val >= 0 else ""
    return f"mss {seg.mss} wscale {seg.wscale}{sack}{stamps}"


def _dss(seg: Segment) -> str:
    flags = seg.dss_flags
    if flags < 0:
        return ""
    text = "dss"
    if flags & DSS_ACK:
        text += f" ack {seg.data_ack & 0xFFFFFFFF}"
    if flags & DSS_MAP:
        text += f" map {seg.dsn & 0xFFFFFFFF} ssn {seg.ssn} len {seg.data_length}"
    if flags & DSS_FIN:
        text += " FIN"
    return text


def _option(raw: bytes, seg: Segment) -> str:
    try:
        option = parse_option(raw, bool(seg.flags & 2), bool(seg.flags & 16))
    except ValueError:
        option = None
    return str(option) if option is not None else f"mptcp {raw.hex()}"
