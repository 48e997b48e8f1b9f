"""What a speed test found."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class Direction(enum.Enum):
    """Seen from the proxy."""

    DOWN = "down"
    UP = "up"


@dataclass(slots=True)
class Speed:
    """Of an uplink alone, or of one connection over all of ``bond``.

    Rates in bytes of payload a second; RTTs in seconds, medians of an exchange with the gateway's
    engine, the largest of all uplinks, under load of both directions; ``loss``: the part of the
    bytes sent up that was sent again. None: not measured. ``error``: why.
    """

    name: str
    bond: tuple[str, ...] = ()
    down: float | None = None
    up: float | None = None
    rtt_idle: float | None = None
    rtt_loaded: float | None = None
    loss: float | None = None
    error: str = ""

    def rate(self, direction: Direction) -> float | None:
        """Bytes a second."""
        return self.down if direction is Direction.DOWN else self.up

    def fields(self) -> dict[str, Any]:
        """As JSON has it: rates in bits a second."""
        return {
            "name": self.name,
            "bond": list(self.bond),
            "down": None if self.down is None else self.down * 8,
            "up": None if self.up is None else self.up * 8,
            "rtt_idle": self.rtt_idle,
            "rtt_loaded": self.rtt_loaded,
            "loss": self.loss,
            "error": self.error or None,
        }


def share(speeds: Sequence[Speed], direction: Direction) -> float | None:
    """The rate of the bond as a part of the sum of what its uplinks have alone, if known."""
    for bonded in speeds:
        alone = (speed for speed in speeds if not speed.bond and speed.name in bonded.bond)
        total = sum(speed.rate(direction) or 0.0 for speed in alone)
        rate = bonded.rate(direction)
        if total and rate is not None:
            return rate / total
    return None
