"""Remembers the nonces of tokens for as long as a token can be valid, so that each works once."""

from __future__ import annotations

import enum


class Seen(enum.Enum):
    """What the cache says of a nonce."""

    NEW = "new"
    REPLAY = "replay"
    FULL = "full"
    """The client has used up its share: whether this is a replay cannot be known."""
    FORGOTTEN = "forgotten"
    """It is as old as what whoever should know has forgotten."""


class NonceCache:
    """Nonces per client, in two generations that are swapped every ``lifetime`` seconds.

    A nonce is remembered for at least ``lifetime`` and at most twice as long; forgetting costs the
    same however many there are. ``share`` bounds what one client may have in a generation: beyond
    it the answer is ``FULL``, so that a flood by one client neither costs unbounded memory nor
    makes room for a replay, and other clients do not feel it.
    """

    __slots__ = ("_current", "_lifetime", "_previous", "_share", "_since")

    def __init__(self, lifetime: float = 60.0, share: int = 65536) -> None:
        self._lifetime = lifetime
        self._share = share
        self._current: dict[bytes, set[bytes]] = {}
        self._previous: dict[bytes, set[bytes]] = {}
        self._since = float("-inf")

    def add(self, client: bytes, nonce: bytes, now: float) -> Seen:
        """Enter ``nonce`` and say whether it was there. ``now``: seconds on the clock
        that the tokens are judged by."""
        age = now - self._since
        if age >= self._lifetime:
            self._previous = self._current if age < 2 * self._lifetime else {}
            self._current = {}
            self._since = now
        previous = self._previous.get(client)
        if previous is not None and nonce in previous:
            return Seen.REPLAY
        current = self._current.get(client)
        if current is None:
            current = self._current[client] = set()
        if nonce in current:
            return Seen.REPLAY
        if len(current) >= self._share:
            return Seen.FULL
        current.add(nonce)
        return Seen.NEW

    def clear(self) -> None:
        """Forget everything: only for when no token seen so far can be valid any more."""
        self._current = {}
        self._previous = {}
        self._since = float("-inf")

    def __len__(self) -> int:
        generations = (self._current, self._previous)
        return sum(len(nonces) for clients in generations for nonces in clients.values())
