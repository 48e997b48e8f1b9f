"""Sequence numbers: TCP modulo 2**32 (RFC 9293 §3.4), DSNs modulo 2**64 (RFC 8684)."""

from __future__ import annotations

MASK32 = 0xFFFFFFFF
MASK64 = 0xFFFFFFFFFFFFFFFF
_HALF32 = 0x80000000
_HALF64 = 0x8000000000000000


def seq_diff(a: int, b: int) -> int:
    """How far ``a`` is ahead of ``b``, -2**31 .. 2**31-1."""
    return ((a - b + _HALF32) & MASK32) - _HALF32


def seq_lt(a: int, b: int) -> bool:
    """``a`` comes before ``b``."""
    return (a - b) & _HALF32 != 0


def seq_le(a: int, b: int) -> bool:
    """``a`` comes before ``b`` or is equal to it."""
    return (b - a) & _HALF32 == 0


def seq_gt(a: int, b: int) -> bool:
    """``a`` comes after ``b``."""
    return (b - a) & _HALF32 != 0


def seq_ge(a: int, b: int) -> bool:
    """``a`` comes after ``b`` or is equal to it."""
    return (a - b) & _HALF32 == 0


def dsn_diff(a: int, b: int) -> int:
    """How far ``a`` is ahead of ``b``, -2**63 .. 2**63-1."""
    return ((a - b + _HALF64) & MASK64) - _HALF64


def dsn_lt(a: int, b: int) -> bool:
    """``a`` comes before ``b``."""
    return (a - b) & _HALF64 != 0


def dsn_expand(raw: int, near: int) -> int:
    """The u64 that ends in the 32 bits ``raw`` and is nearest to ``near`` (RFC 8684 §3.3.1)."""
    return (near + ((raw - near + _HALF32) & MASK32) - _HALF32) & MASK64
