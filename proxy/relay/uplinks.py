"""Which uplink opens the next connection: the health of each, learnt from what its packets say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from proxy.convert.auth import CHALLENGE_LIFETIME

# After an attempt on an uplink went unanswered, other uplinks go first for this long (seconds).
SUSPECT_PERIOD = 2.0
# How long a challenge is answered (seconds): half of what the gateway lets it live.
CHALLENGE_PERIOD = CHALLENGE_LIFETIME / 2
# How long SYNs go without payload after a path ate one (seconds), and the longest such time: it
# doubles each time the path is found to do it again (RFC 7413 §4.1.3.1).
EATEN_PERIOD = 3600.0
EATEN_PERIOD_MAX = 7 * 86400.0


class HostUplink(Protocol):
    """What the host says of an uplink's interface now (``net.uplinks.Uplink``)."""

    @property
    def name(self) -> str: ...
    @property
    def addr4(self) -> bytes | None: ...
    @property
    def addr6(self) -> bytes | None: ...
    @property
    def sources(self) -> tuple[bytes, ...]: ...
    @property
    def waits_for(self) -> str: ...


@dataclass(slots=True, eq=False)
class UplinkHealth:
    """What is known of one uplink.

    ``local_ip`` is its engine address towards the gateway (4 or 16 bytes), ``other_ip`` that of
    the other family; ``ways`` are those of them that have a way out now. ``waits_for`` says in
    words why it cannot be used (empty: it can), ``sources`` are the addresses that its packets
    leave with. ``srtt`` in seconds (0 while unknown), ``suspect_until`` the time before which
    other uplinks are preferred, ``eaten_until`` that before which the request goes after the
    handshake.
    """

    name: str
    interface: str
    local_ip: bytes
    other_ip: bytes = b""
    slot: int = 0
    backup: bool = False
    weight: int = 1
    metered: bool = False
    waits_for: str = ""
    ways: frozenset[bytes] = frozenset()
    sources: frozenset[bytes] = frozenset()
    srtt: float = 0.0
    suspect_until: float = 0.0
    challenge: bytes = b""
    challenge_until: float = 0.0
    eaten_until: float = 0.0
    eaten_period: float = EATEN_PERIOD
    attempts: int = 0
    failures: int = 0
    tell: Callable[[UplinkHealth], None] | None = None
    """Called when there are ``news`` for other processes that use the same uplink."""

    def ip(self, length: int) -> bytes:
        """The engine's address of the family whose addresses have ``length`` bytes."""
        return self.local_ip if len(self.local_ip) == length else self.other_ip

    def usable(self, length: int) -> bool:
        """Whether packets to addresses of ``length`` bytes can leave by it."""
        return not self.waits_for and self.ip(length) in self.ways

    def challenge_at(self, now: float) -> bytes:
        """The gateway's challenge to answer in a request; empty when there is none to answer."""
        return self.challenge if now < self.challenge_until else b""

    def challenged(self, challenge: bytes, now: float) -> None:
        """The gateway wants its challenge answered in requests that come this way.

        It is bound to the network that the gateway sees, so that each uplink has its own.
        """
        self.challenge = challenge
        self.challenge_until = now + CHALLENGE_PERIOD
        self._tell()

    def takes_syn_data(self, now: float) -> bool:
        """Whether a SYN with payload gets through, as far as is known."""
        return now >= self.eaten_until

    def ate_syn_data(self, now: float) -> None:
        """The path dropped the payload of a SYN, or the SYN because of it."""
        self.eaten_until = now + self.eaten_period
        self.eaten_period = min(2 * self.eaten_period, EATEN_PERIOD_MAX)
        self._tell()

    def answered(self, srtt: float) -> None:
        """A handshake on it completed."""
        news = not self.srtt or self.suspect_until > 0.0
        self.srtt = srtt
        self.suspect_until = 0.0
        if news:
            self._tell()

    def unanswered(self, now: float) -> None:
        """A SYN on it stayed without answer, or one of its subflows went stale."""
        self.failures += 1
        self.suspect_until = now + SUSPECT_PERIOD
        self._tell()

    def news(self) -> dict[str, Any]:
        """What ``learn`` takes, as JSON can hold it."""
        return {
            "srtt": self.srtt,
            "suspect_until": self.suspect_until,
            "challenge": self.challenge.hex(),
            "challenge_until": self.challenge_until,
            "eaten_until": self.eaten_until,
            "eaten_period": self.eaten_period,
        }

    def learn(self, news: dict[str, Any]) -> None:
        """Another process on this host, so on the same clock, has ``news``; what is newer stays."""
        self.srtt = news["srtt"] or self.srtt
        self.suspect_until = news["suspect_until"]
        if news["challenge_until"] > self.challenge_until:
            self.challenge = bytes.fromhex(news["challenge"])
            self.challenge_until = news["challenge_until"]
        self.eaten_until = max(self.eaten_until, news["eaten_until"])
        self.eaten_period = max(self.eaten_period, news["eaten_period"])

    def _tell(self) -> None:
        if self.tell is not None:
            self.tell(self)


def preference(uplinks: Iterable[UplinkHealth], now: float) -> list[UplinkHealth]:
    """``uplinks`` in the order in which to try them.

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
