"""Initial sequence numbers and timestamp offsets that outsiders cannot guess."""

from __future__ import annotations

from hashlib import blake2b

MASK = 0xFFFFFFFF


def initial_numbers(secret: bytes, key: bytes, now: float) -> tuple[int, int]:
    """The ISN (RFC 6528: a 4 microsecond clock plus a keyed hash) and the timestamp offset.

    ``key`` is the 4-tuple. The offset differs per 4-tuple, or the timestamps of two flows would
    tell that they come from one machine, and how long it has been up (RFC 7323 §7.1).
    """
    digest = blake2b(key, digest_size=8, key=secret).digest()
    isn = int.from_bytes(digest[:4], "big") + int(now * 250_000)
    return isn & MASK, int.from_bytes(digest[4:], "big")
