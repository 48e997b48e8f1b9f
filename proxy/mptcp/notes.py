"""Details of a connection's events, for the application and the operator."""

from __future__ import annotations

import enum
from typing import NamedTuple

from proxy.tcp.events import Event
from proxy.wire.address import Address

MAX_NOTES = 64


class Fallback(enum.Enum):
    """How far a connection fell back to plain TCP; compare with ``is``."""

    NONE = "none"
    AT_HANDSHAKE = "at-handshake"
    INFINITE_MAPPING = "infinite-mapping"


class Again(enum.Enum):
    """Why bytes are sent on a second subflow."""

    TIMEOUT = "timeout"
    """The retransmission timer of the first one ran out."""
    TAIL_PROBE = "tail-probe"
    """It was silent for two round trips, so that it is probed."""
    SILENT = "silent"
    """Another one made a round trip since, and it still is."""
    LOSS = "loss"
    """It lost them, and is slow."""
    WINDOW_BLOCKED = "window-blocked"
    """The peer's window waits for them, and a faster one has nothing to do."""
    TAIL = "tail"
    """All that there is was sent, and a faster one delivers these bytes sooner."""
    PATH_LOST = "path-lost"
    """Its link or address has gone."""
    CLOSING = "subflow-closing"
    GONE = "subflow-gone"
    """It was reset, or died."""
    NO_DATA_ACK = "no-data-ack"
    """It delivered them, and they were not acknowledged at the data level."""


class Note(NamedTuple):
    """One event: ``reason`` is the MP_TCPRST reason of a closed subflow, -1 if none was given."""

    kind: Event
    local: Address | None = None
    remote: Address | None = None
    address_id: int = -1
    reason: int = -1
    text: str = ""
