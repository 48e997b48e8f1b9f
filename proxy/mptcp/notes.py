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


class Note(NamedTuple):
    """One event: ``reason`` is the MP_TCPRST reason of a closed subflow, -1 if none was given."""

    kind: Event
    local: Address | None = None
    remote: Address | None = None
    address_id: int = -1
    reason: int = -1
    text: str = ""
