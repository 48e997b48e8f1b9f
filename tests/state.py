"""The whole state of a stack's connections as plain values, to compare two that shall be alike."""

from __future__ import annotations

import enum
import zlib
from collections import deque
from typing import Any

from proxy.engine.stack import Stack

# What belongs to the host or is the same for all; ``conn`` leads back to the connection.
SKIPPED = frozenset(
    {"host", "config", "tcp_config", "counters", "memory", "path_manager", "conn", "__weakref__"}
)
# What only says who took a segment.
PREDICTION = frozenset({"TCPHPHits", "TCPHPAcks", "TCPHPMisses"})


def stack_state(stack: Stack) -> dict[str, Any]:
    """All connections and subflows, deadlines and counters."""
    seen: set[int] = set()
    return {
        "subflows": {c.key: _state(c, seen) for c in stack.demux},
        "connections": {token: _state(c, seen) for token, c in stack.tokens.items()},
        "timeout": stack.next_timeout(),
        "counters": {k: v for k, v in sorted(stack.counters.items()) if k not in PREDICTION},
        "memory": stack.memory.tight,
    }


def _state(value: Any, seen: set[int]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return (len(value), zlib.crc32(value))
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, (list, tuple, deque)):
        return [_state(item, seen) for item in value]
    if isinstance(value, dict):
        return {_state(k, seen): _state(v, seen) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return len(value)
    if not type(value).__module__.startswith("proxy.") or id(value) in seen:
        return type(value).__name__
    seen.add(id(value))
    names = [name for cls in type(value).__mro__ for name in _slots(cls)]
    return {
        name: _state(getattr(value, name), seen)
        for name in [*names, *getattr(value, "__dict__", ())]
        if name not in SKIPPED and hasattr(value, name)
    }


def _slots(cls: type) -> tuple[str, ...]:
    slots: str | tuple[str, ...] = cls.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
