"""How much one client may ask of the gateway at once (RFC 8803 §9.3)."""

from __future__ import annotations

from proxy.engine.rate import TokenBucket
from proxy.mptcp.keys import TokenShare

# Per client: conversations that wait for their server, and all that are open.
MAX_OPENING = 4096
MAX_FLOWS = 65536
# The same for one address among clients that are known by their network, and its requests a second.
MAX_OPENING_PER_SOURCE = 256
MAX_FLOWS_PER_SOURCE = 4096
SOURCE_RATE = 100.0
MAX_SOURCES = 16384


class _Account:
    """What one client, or one address, has under way, and its limits."""

    __slots__ = ("bucket", "flows", "max_flows", "max_opening", "opening")

    def __init__(self, max_opening: int, max_flows: int) -> None:
        self.max_opening = max_opening
        self.max_flows = max_flows
        self.opening = 0
        self.flows = 0
        self.bucket = TokenBucket(SOURCE_RATE)


class Place:
    """One conversation's place in the accounts: first as one that opens, then as a flow."""

    __slots__ = ("_accounts", "_flow")

    def __init__(self, accounts: tuple[_Account, ...]) -> None:
        self._accounts = accounts
        self._flow = False
        for account in accounts:
            account.opening += 1

    @property
    def has_room(self) -> bool:
        """Whether it is within the limits."""
        return all(
            account.opening <= account.max_opening and account.flows < account.max_flows
            for account in self._accounts
        )

    def open(self) -> None:
        """Its server has answered."""
        self._flow = True
        for account in self._accounts:
            account.opening -= 1
            account.flows += 1

    def leave(self) -> None:
        """It has ended."""
        for account in self._accounts:
            if self._flow:
                account.flows -= 1
            else:
                account.opening -= 1
        self._accounts = ()


class Admission:
    """The accounts of all clients and, for clients without a secret, of their addresses.

    ``share``: which part of the limits, that hold for the box, is this worker's.
    """

    def __init__(self, share: TokenShare) -> None:
        self._part = share.part
        self._clients: dict[str, _Account] = {}
        self._sources: dict[bytes, _Account] = {}

    def takes(self, source: bytes, now: float) -> bool:
        """Whether one more request of that address, of a client without a secret, is looked at."""
        account = self._sources.get(source)
        if account is None:
            if len(self._sources) >= MAX_SOURCES and not self._forget_idle():
                return False
            account = self._sources[source] = self._account(
                MAX_OPENING_PER_SOURCE, MAX_FLOWS_PER_SOURCE
            )
        return account.bucket.take(now)

    def enter(self, client: str, source: bytes | None) -> Place:
        """A place for a new conversation; ``source`` only for clients without a secret, after
        ``takes``. It is entered whether or not it ``has_room``."""
        account = self._clients.get(client)
        if account is None:
            account = self._clients[client] = self._account(MAX_OPENING, MAX_FLOWS)
        if source is None:
            return Place((account,))
        return Place((account, self._sources[source]))

    def _account(self, max_opening: int, max_flows: int) -> _Account:
        return _Account(self._part(max_opening), self._part(max_flows))

    def _forget_idle(self) -> bool:
        idle = [ip for ip, account in self._sources.items() if not account.opening + account.flows]
        for ip in idle:
            del self._sources[ip]
        return bool(idle)
