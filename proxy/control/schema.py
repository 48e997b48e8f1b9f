"""What goes over the control socket.

One JSON object per line. A request has ``command``, may have an ``id`` (which comes back) and
``version``; a reply has ``version``, the ``id`` and either ``result`` or ``error``::

    {"id": 1, "command": "status"}
    {"version": 1, "id": 1, "result": {...}}
    {"version": 1, "id": 2, "error": {"code": "unknown-command", "message": "..."}}

After ``subscribe`` events follow, each a line of its own, between replies if there are any::

    {"version": 1, "event": "sub-established", "time": 1764000000.5, "token": "0a1b2c3d", ...}

The commands are described in docs/control.md. ``version`` changes when a field changes its meaning
or goes away, not when one is added. Sizes are bytes, times seconds, addresses text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired, Protocol, TypedDict

VERSION = 1
MAX_LINE = 65536
"""The longest request, in bytes, its newline included."""


class SubflowStatus(TypedDict):
    """One TCP connection of an MPTCP connection."""

    local: str
    remote: str
    uplink: str | None
    state: str
    """As ``ss`` writes it: ESTAB, SYN-SENT, ..."""
    backup: bool
    stale: NotRequired[bool]
    srtt: float | None
    cwnd: int
    bytes_sent: int
    bytes_received: int
    retransmitted: int
    """Bytes sent again on this subflow."""
    reinjected: int
    """Bytes sent here that had been sent on another subflow before."""


class ConnectionStatus(TypedDict):
    """One conversation that is carried."""

    id: int
    token: str | None
    """Eight hexadecimal digits, as ``ss -M`` shows them; None without MPTCP."""
    state: str
    source: str
    """Who opened it, as the server's side knows him."""
    destination: str
    fallback: str | None
    """Why it is plain TCP between proxy and gateway; None while it is MPTCP."""
    bytes_sent: int
    """From the source to the destination."""
    bytes_received: int
    via: NotRequired[str]
    """At a proxy: gateway or direct."""
    rule: NotRequired[str]
    """At a proxy: the rule that it falls under, if any."""
    client: NotRequired[str]
    """At a gateway: the configured client that it belongs to."""
    age: NotRequired[float]
    subflows: list[SubflowStatus]


class UplinkStatus(TypedDict):
    """One uplink of a proxy."""

    name: str
    interface: str
    address: str
    """The engine's address on it."""
    backup: bool
    up: bool
    gateway: NotRequired[str]
    """Whether the gateway answers on it: answers, silent, unknown."""
    waits_for: NotRequired[str]
    """Why it cannot be used, in words; absent while it can."""
    subflows: int
    bytes_sent: int
    bytes_received: int
    srtt: NotRequired[float | None]


class Spell(TypedDict):
    """How the time of a sender or a receiver was spent."""

    now: str
    """What it waits for at this moment."""
    seconds: dict[str, float]
    """By what it waited for; ``docs/control.md`` has the names."""


class SubflowSpell(Spell):
    """The same of a subflow, as a sender."""

    local: str
    remote: str
    uplink: str | None
    state: str
    busy: float
    """Seconds in which something was sent on it and not acknowledged."""
    awaited: float
    """Seconds in which data of other subflows waited here for what it was to bring."""


Why = TypedDict(
    "Why",
    {
        "role": Literal["proxy", "gateway"],
        "id": int,
        "token": str | None,
        "peer-token": str | None,
        "age": float,
        "bytes-sent": int,
        "bytes-received": int,
        "sending": Spell,
        "receiving": Spell,
        "local": Spell | None,
        "subflows": list[SubflowSpell],
    },
)
"""What the ``why`` command answers: the connection to the other box, as this one sees it. ``token``
names it here and ``peer-token`` there; both are None where it is plain TCP. ``local`` is the TCP
connection to the LAN host, as a sender."""


class WorkerStatus(TypedDict):
    """One of several processes that share the work."""

    worker: int
    """Its number, from 0."""
    pid: int
    uptime: float
    connections: int


class Status(TypedDict):
    """What the ``status`` command answers."""

    role: Literal["proxy", "gateway"]
    version: NotRequired[str]
    """The software's."""
    pid: NotRequired[int]
    uptime: NotRequired[float]
    gateway: NotRequired[str]
    gateway_reachable: NotRequired[bool]
    """False: new conversations go as ``gateway.when_unreachable`` says."""
    waits_for: NotRequired[list[str]]
    """LAN interfaces that are not there."""
    uplinks: list[UplinkStatus]
    connections: list[ConnectionStatus]
    workers: NotRequired[list[WorkerStatus]]
    """Only where there are several."""
    counters: NotRequired[dict[str, int]]


class StatusSource(Protocol):
    """What a daemon gives to the server: returns a ``Status``, or any dict that JSON can hold."""

    def __call__(self) -> Mapping[str, object]: ...


EVENTS = (
    "created",
    "established",
    "closed",
    "announced",
    "removed",
    "sub-established",
    "sub-closed",
    "sub-priority",
    "listener-created",
    "listener-closed",
    "uplink-up",
    "uplink-down",
    "gateway-unreachable",
    "gateway-reachable",
)
"""Events: first those of the kernel's ``mptcp_pm`` specification, under its names."""

ErrorName = Literal["bad-request", "too-long", "unknown-command", "refused", "failed", "busy"]


class ReplyError(TypedDict):
    """Why there is no result; ``code`` is for programs, ``message`` for people."""

    code: ErrorName
    message: str
    errno: NotRequired[str]
    """With ``refused``: what the kernel would answer, ``EINVAL`` for example."""


class Reply(TypedDict):
    """One line from the daemon."""

    version: int
    id: object
    result: NotRequired[object]
    error: NotRequired[ReplyError]
