"""Keys, tokens, initial data sequence numbers and HMACs (RFC 8684 §3.1, §3.2, §3.4.1)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple, Protocol

KEY_SIZE = 8
NONCE_SIZE = 4
JOIN_SYN_ACK_HMAC = 8  # leftmost bytes in a SYN-ACK
JOIN_ACK_HMAC = 20  # leftmost bytes in the third ACK
_TRIES = 5  # as often as Linux draws again when a token is taken
_TRIES_SHARED = 20  # times the number of workers: none of theirs fits once in 10**8 connections


class RandomBytes(Protocol):
    """The one method of ``random.Random`` that keys need."""

    def randbytes(self, n: int) -> bytes:
        """``n`` unpredictable bytes."""
        ...


@dataclass(frozen=True, slots=True)
class TokenShare:
    """The tokens that are this worker's: those that leave ``index`` when divided by ``count``.

    So a token tells every worker whose connection a join is for, and no two draw the same. ``run``
    counts how often a worker was started in this place.
    """

    index: int = 0
    count: int = 1
    run: int = 0

    def owner(self, token: int) -> int:
        """The worker that ``token`` belongs to."""
        return token % self.count

    def holds(self, token: int) -> bool:
        """Whether ``token`` is one of ours."""
        return token % self.count == self.index

    def part(self, limit: int) -> int:
        """What this worker may have of a ``limit`` for all of them; at least 1."""
        return max(limit // self.count, 1)


ALL_TOKENS = TokenShare()
"""The share of a single process."""


class Key(NamedTuple):
    """A key (8 bytes) with what follows from it: ``token`` (u32) and ``idsn`` (u64)."""

    key: bytes
    token: int
    idsn: int


def derive(key: bytes) -> Key:
    """Token = first 32 bits, IDSN = last 64 bits of SHA-256(key) (§3.1)."""
    digest = hashlib.sha256(key).digest()
    return Key(key, int.from_bytes(digest[:4], "big"), int.from_bytes(digest[-8:], "big"))


def generate(
    rng: RandomBytes, tokens: Container[int], share: TokenShare = ALL_TOKENS
) -> Key | None:
    """A fresh key, its token in ``share``, not in ``tokens``; None if there is none (KEY-02).

    Key 0 and token 0 are never used, as in Linux.
    """
    for _ in range(_TRIES if share.count == 1 else _TRIES_SHARED * share.count):
        key = derive(rng.randbytes(KEY_SIZE))
        if not share.holds(key.token):
            continue
        if key.token and any(key.key) and key.token not in tokens:
            return key
    return None


def nonce(rng: RandomBytes) -> bytes:
    """A nonce for MP_JOIN, never zero (SEC-06)."""
    drawn = rng.randbytes(NONCE_SIZE)
    return drawn if any(drawn) else b"\x00\x00\x00\x01"


def join_hmac(own_key: bytes, peer_key: bytes, own_nonce: bytes, peer_nonce: bytes) -> bytes:
    """The whole 32-byte HMAC that the owner of ``own_key`` sends (§3.2)."""
    return hmac.digest(own_key + peer_key, own_nonce + peer_nonce, "sha256")


def add_addr_hmac(
    sender_key: bytes, receiver_key: bytes, address_id: int, ip: bytes, port: int | None
) -> bytes:
    """The rightmost 8 bytes of the HMAC of an ADD_ADDR; an absent port counts as 0 (§3.4.1)."""
    message = bytes((address_id,)) + ip + (port or 0).to_bytes(2, "big")
    return hmac.digest(sender_key + receiver_key, message, "sha256")[-8:]


def same(a: bytes, b: bytes) -> bool:
    """Compare in constant time (KEY-05)."""
    return hmac.compare_digest(a, b)
