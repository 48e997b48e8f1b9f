"""Which uplink opens the next connection: the health of each, learnt from what its packets say."""

from __future__ import annotations

from dataclasses import dataclass, field

# After an attempt on an uplink went unanswered, other uplinks go first for this long (seconds).
SUSPECT_PERIOD = 2.0


@dataclass(slots=True, eq=False)
class UplinkHealth:
    """What is known of one uplink.

    ``local_ip`` is its engine address (4 or 16 bytes), ``srtt`` in seconds (0 while unknown),
    ``suspect_until`` the time before which other uplinks are preferred.
    """

    name: str
    interface: str
    local_ip: bytes
    backup: bool = False
    srtt: float = 0.0
    suspect_until: float = field(default=0.0)
    attempts: int = 0
    failures: int = 0

    def answered(self, srtt: float) -> None:
        """A handshake on it completed."""
        self.srtt = srtt
        self.suspect_until = 0.0

    def unanswered(self, now: float) -> None:
        """A SYN on it stayed without answer, or one of its subflows went stale."""
        self.failures += 1
        self.suspect_until = now + SUSPECT_PERIOD


def preference(uplinks: list[UplinkHealth], now: float) -> list[UplinkHealth]:
    """The uplinks in the order in which to try them.

    Healthy before suspect, regular before backup (RFC 8684 §3.3.8), then the lowest RTT; an
    uplink whose RTT is unknown keeps the operator's order behind those that are known.
    """
    return sorted(
        uplinks,
        key=lambda uplink: (
            uplink.suspect_until > now,
            uplink.backup,
            uplink.srtt or float("inf"),
        ),
    )
