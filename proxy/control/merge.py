"""Makes one status of those of several workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def add_counters(total: dict[str, int], counters: Mapping[str, int]) -> None:
    """Adds ``counters`` to ``total``."""
    for name, count in counters.items():
        total[name] = total.get(name, 0) + count


def merged_status(
    parts: Sequence[Mapping[str, Any]], gone: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    """The ``Status`` of all; ``gone``: bytes by uplink that ended workers sent and received."""
    if not parts:
        return {"uplinks": [], "connections": [], "counters": {}}
    status = dict(parts[0])
    status["connections"] = [entry for part in parts for entry in part["connections"]]
    status["counters"] = {}
    for part in parts:
        add_counters(status["counters"], part["counters"])
    status["uplinks"] = [
        _uplink([part["uplinks"][position] for part in parts], gone)
        for position in range(min(len(part["uplinks"]) for part in parts))
    ]
    return status


def _uplink(
    parts: Sequence[Mapping[str, Any]], gone: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    uplink = dict(parts[0])
    sent, received = gone.get(uplink["name"], (0, 0))
    uplink["subflows"] = sum(part["subflows"] for part in parts)
    uplink["bytes_sent"] = sent + sum(part["bytes_sent"] for part in parts)
    uplink["bytes_received"] = received + sum(part["bytes_received"] for part in parts)
    # A worker that has subflows on it knows better than one that has none.
    witnesses = [part for part in parts if part["subflows"]] or parts
    uplink["up"] = any(part["up"] for part in witnesses)
    uplink["srtt"] = min((part["srtt"] for part in parts if part["srtt"]), default=None)
    return uplink
