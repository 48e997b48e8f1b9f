"""``uplink-limit``: what all connections together may send by an uplink."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.config.proxy import BYTES_PER_MBIT, MAX_LIMIT
from proxy.control.fields import CommandError, Request, word

if TYPE_CHECKING:
    from proxy.engine.stack import Stack


def megabits(request: Request) -> float | None:
    """``up`` of a request in Mbit/s; None if it only asks. CommandError if it is none."""
    value = request.get("up")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_LIMIT:
        raise CommandError("EINVAL", f"up must be a number from 0 to {MAX_LIMIT:g} (Mbit/s)")
    return float(value)


class UplinkCommands:
    """Commands about the uplinks of a proxy; a gateway has none."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def limit(self, request: Request) -> object:
        """``uplink-limit``: the limit of ``uplink``; with ``up`` it is set first."""
        name = word(request, "uplink")
        limit = self._stack.limits.get(name)
        if limit is None:
            raise CommandError("ENODEV", f"no uplink {name}")
        rate = megabits(request)
        if rate is not None:
            limit.rate = rate * BYTES_PER_MBIT
        return {"uplink": name, "up": limit.rate / BYTES_PER_MBIT}
