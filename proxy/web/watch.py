"""What the status page tells: rates, who moves how much, what happened, health in words."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from proxy.control.metrics import Report
from proxy.version import software_version
from proxy.web.history import History, Rate

MAX_EVENTS = 100
MAX_WHO = 50
EVERYBODY = "all clients"
"""What a gateway has instead of uplinks."""

Status = Mapping[str, Any]


class Watch:
    """Fed with a report about once a second."""

    def __init__(self) -> None:
        self._history = History()
        self._events: deque[dict[str, object]] = deque(maxlen=MAX_EVENTS)
        self._report: Report | None = None

    def add(self, report: Report, now: float, wall: float) -> None:
        """``now`` is monotonic, ``wall`` seconds since 1970."""
        if self._report is not None:
            for text in _changes(self._report.status, report.status):
                self._events.appendleft({"time": wall, "text": text})
        self._report = report
        self._history.add(now, _totals(report))

    def status(self) -> dict[str, object]:
        """All but the history."""
        if self._report is None:
            return {}
        report = self._report
        lines = [_uplink(uplink) for uplink in report.status["uplinks"]]
        lines = lines or [{"name": EVERYBODY, "state": "", "good": True}]
        for line in lines:
            line["down"], line["up"] = self._history.latest(str(line["name"]))
        return {
            "role": report.status["role"],
            "version": software_version(),
            "health": [{"good": good, "text": text} for good, text in _health(report.status)],
            "lines": lines,
            "who": _who(report),
            "events": list(self._events),
        }

    def history(self) -> dict[str, object]:
        """Rates by uplink, the newest last: bytes a second, down and up."""
        return {
            name: {"seconds": list(track.seconds), "minutes": list(track.minutes)}
            for name, track in self._history.tracks.items()
        }


def _totals(report: Report) -> dict[str, Rate]:
    uplinks = report.status["uplinks"]
    if uplinks:
        return {u["name"]: (u["bytes_received"], u["bytes_sent"]) for u in uplinks}
    accounts = report.usage.accounts.values()
    return {EVERYBODY: (sum(a.received for a in accounts), sum(a.sent for a in accounts))}


def _uplink(uplink: Mapping[str, Any]) -> dict[str, object]:
    good, state = _state(uplink)
    return {
        "name": uplink["name"],
        "state": state,
        "good": good,
        "rtt": uplink.get("srtt"),
        "subflows": uplink["subflows"],
        "received": uplink["bytes_received"],
        "sent": uplink["bytes_sent"],
    }


def _state(uplink: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether all is well with it, and how it is, in words."""
    if uplink.get("waits_for"):
        return False, str(uplink["waits_for"])
    if not uplink["up"]:
        return False, "does not answer"
    if uplink.get("gateway") == "silent":
        return False, "the gateway is silent on it"
    return True, "works, for when no other does" if uplink["backup"] else "works"


def _health(status: Status) -> list[tuple[bool, str]]:
    found = []
    if not status.get("gateway_reachable", True):
        found.append((False, "The gateway does not answer."))
    for name in status.get("waits_for", ()):
        found.append((False, f"The LAN interface {name} is not there."))
    for uplink in status["uplinks"]:
        good, state = _state(uplink)
        if not good:
            found.append((False, f"{uplink['name']}: {state}."))
    if found:
        return found
    if status["role"] == "gateway":
        return [(True, "The gateway is running.")]
    return [(True, "All is well: every uplink works, and the gateway answers.")]


def _who(report: Report) -> list[dict[str, object]]:
    """Those with open connections first, then who has moved the most."""
    accounts = sorted(
        report.usage.accounts.items(),
        key=lambda item: (item[1].open > 0, item[1].received + item[1].sent),
        reverse=True,
    )
    return [
        {"name": name, "open": a.open, "received": a.received, "sent": a.sent}
        for name, a in accounts[:MAX_WHO]
    ]


def _changes(before: Status, after: Status) -> Iterator[str]:
    """What happened in between, in words."""
    if before.get("gateway_reachable", True) != after.get("gateway_reachable", True):
        answers = after.get("gateway_reachable", True)
        yield "the gateway answers again" if answers else "the gateway does not answer any more"
    states = {uplink["name"]: _state(uplink) for uplink in before["uplinks"]}
    for uplink in after["uplinks"]:
        state = _state(uplink)
        if states.pop(uplink["name"], None) != state:
            yield f"{uplink['name']}: {state[1]}"
    for name in states:
        yield f"{name}: it is not configured any more"
    restarts = (s["counters"].get("WorkerRestarts", 0) for s in (before, after))
    if next(restarts) < next(restarts):
        yield "a worker had to be started again"
