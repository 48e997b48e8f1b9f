"""Makes one status of those of several workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from proxy.engine.counters import GAUGES


def add_counters(total: dict[str, int], counters: Mapping[str, int]) -> None:
    """Adds ``counters`` to ``total``."""
    for name, count in counters.items():
        total[name] = total.get(name, 0) + count


class Gone:
    """What workers had counted that have ended, as far as they were ever asked."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}
        self.uplinks: dict[str, tuple[int, int]] = {}
        """Bytes sent and received by uplink."""

    def add(self, last: Mapping[str, Any]) -> None:
        """A worker has ended; ``last``: counters and uplinks as it told them last."""
        counted = last.get("counters", {})
        add_counters(self.counters, {n: counted[n] for n in counted if n not in GAUGES})
        for uplink in last.get("uplinks", ()):
            sent, received = self.uplinks.get(uplink["name"], (0, 0))
            self.uplinks[uplink["name"]] = (
                sent + uplink["bytes_sent"],
                received + uplink["bytes_received"],
            )


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
        _uplink([u for part in parts for u in part["uplinks"] if u["name"] == name], gone)
        for name in [uplink["name"] for uplink in parts[0]["uplinks"]]
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
