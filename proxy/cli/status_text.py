"""The tables of ``mptcp-proxy status``: columns as ``ss -M`` has them, numbers for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Sequence[str]


def render(status: Mapping[str, Any]) -> str:
    """The text for a ``schema.Status``; fields that a daemon does not have show as ``-``."""
    parts = [_title(status)]
    uplinks = status.get("uplinks") or []
    if uplinks:
        parts.append(_table(_UPLINK_HEAD, [_uplink(uplink) for uplink in uplinks]))
    if status.get("gateway_reachable") is False:
        parts.append("the gateway does not answer")
    waiting = [f"waits for the LAN interface {name}" for name in status.get("waits_for") or []]
    waiting += [
        f"uplink {_text(uplink, 'name')} waits: {_text(uplink, 'waits_for')}"
        for uplink in uplinks
        if uplink.get("waits_for")
    ]
    if waiting:
        parts.append("\n".join(waiting))
    connections = status.get("connections") or []
    if connections:
        rows: list[Row] = []
        for connection in connections:
            rows.append(_connection(connection))
            rows.extend(_subflow(subflow) for subflow in connection.get("subflows") or [])
        parts.append(_table(_CONNECTION_HEAD, rows))
    else:
        parts.append("no connections")
    return "\n\n".join(parts)


def human_bytes(count: float | None) -> str:
    """``count`` bytes with three digits or so: 999B, 1.5MB, 12.0GB (powers of 1000)."""
    if count is None:
        return "-"
    if count < 1000:
        return f"{count:.0f}B"
    units = iter(("kB", "MB", "GB", "TB"))
    unit = next(units)
    count /= 1000
    while count >= 999.95 and unit != "TB":
        unit = next(units)
        count /= 1000
    return f"{count:.1f}{unit}"


def human_time(seconds: float | None) -> str:
    """A duration: 850us, 23.4ms, 12.0s, 5m03s, 2h05m, 3d04h."""
    if seconds is None:
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f}us"
    if seconds < 1:
        return f"{seconds * 1000:.1f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes:02}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02}h"


_UPLINK_HEAD = ("Uplink", "Interface", "Address", "State", "Subflows", "RTT", "Sent", "Received")
_CONNECTION_HEAD = (
    "State",
    "Source / subflow",
    "Destination / remote",
    "Sent",
    "Received",
    "Details",
)


def _title(status: Mapping[str, Any]) -> str:
    words = [_text(status, "role")]
    if "gateway" in status:
        words.append(f"to {_text(status, 'gateway')}")
    if "pid" in status:
        words.append(f"pid {_text(status, 'pid')}")
    if "workers" in status:
        words.append(f"{len(status['workers'])} workers")
    if "uptime" in status:
        words.append(f"up {human_time(status['uptime'])}")
    connections = status.get("connections") or []
    words.append(f"{len(connections)} connection{'' if len(connections) == 1 else 's'}")
    return ", ".join(words)


def _uplink(uplink: Mapping[str, Any]) -> Row:
    state = "up" if uplink.get("up") else "waits" if uplink.get("waits_for") else "down"
    return (
        _text(uplink, "name"),
        _text(uplink, "interface"),
        _text(uplink, "address"),
        f"{state} backup" if uplink.get("backup") else state,
        _text(uplink, "subflows"),
        human_time(uplink.get("srtt")),
        human_bytes(uplink.get("bytes_sent")),
        human_bytes(uplink.get("bytes_received")),
    )


def _connection(connection: Mapping[str, Any]) -> Row:
    details = []
    for name in ("id", "token", "client", "rule"):
        if connection.get(name) is not None:
            details.append(f"{name}:{_text(connection, name)}")
    if connection.get("fallback"):
        details.append(f"fallback:{_text(connection, 'fallback')}")
    if connection.get("via") == "direct":
        details.append("direct")
    if connection.get("age") is not None:
        details.append(f"age:{human_time(connection['age'])}")
    return (
        _text(connection, "state"),
        _text(connection, "source"),
        _text(connection, "destination"),
        human_bytes(connection.get("bytes_sent")),
        human_bytes(connection.get("bytes_received")),
        " ".join(details),
    )


def _subflow(subflow: Mapping[str, Any]) -> Row:
    details = [
        f"rtt:{human_time(subflow.get('srtt'))}",
        f"cwnd:{human_bytes(subflow.get('cwnd'))}",
    ]
    if subflow.get("uplink") is not None:
        details.insert(0, _text(subflow, "uplink"))
    for name in ("retransmitted", "reinjected"):
        if subflow.get(name):
            details.append(f"{name}:{human_bytes(subflow[name])}")
    details.extend(name for name in ("backup", "stale") if subflow.get(name))
    return (
        f"  {_text(subflow, 'state')}",
        f"  {_text(subflow, 'local')}",
        f"  {_text(subflow, 'remote')}",
        human_bytes(subflow.get("bytes_sent")),
        human_bytes(subflow.get("bytes_received")),
        " ".join(details),
    )


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return "-"
    return "".join(char if char.isprintable() else "?" for char in str(value))


def _table(head: Row, rows: Sequence[Row]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if title in _RIGHT else cell.ljust(width)
            for cell, width, title in zip(row, widths, head, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


_RIGHT = {"Sent", "Received", "Subflows", "RTT"}
