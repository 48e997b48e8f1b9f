"""What an ICMP error means to a connection (Linux: icmp_err_convert, icmpv6_err_convert)."""

from __future__ import annotations

import errno

from proxy.tcp.events import Failure

ICMP4_UNREACHABLE = 3
ICMP4_TIME_EXCEEDED = 11
ICMP6_UNREACHABLE = 1
ICMP6_TIME_EXCEEDED = 3

_CODES4 = {
    0: errno.ENETUNREACH,
    1: errno.EHOSTUNREACH,
    2: errno.ENOPROTOOPT,
    3: errno.ECONNREFUSED,
    5: errno.EOPNOTSUPP,
    6: errno.ENETUNREACH,
    7: errno.EHOSTDOWN,
    8: errno.ENONET,
    9: errno.ENETUNREACH,
    10: errno.EHOSTUNREACH,
    11: errno.ENETUNREACH,
    12: errno.EHOSTUNREACH,
    13: errno.EHOSTUNREACH,
    14: errno.EHOSTUNREACH,
    15: errno.EHOSTUNREACH,
}
_CODES6 = {
    0: errno.ENETUNREACH,
    1: errno.EACCES,
    2: errno.EHOSTUNREACH,
    3: errno.EHOSTUNREACH,
    4: errno.ECONNREFUSED,
    5: errno.EACCES,
    6: errno.EACCES,
}


def icmp_failure(v4: bool, icmp_type: int, code: int) -> Failure | None:
    """The failure that a destination unreachable or time exceeded message reports, if any."""
    number = 0
    if icmp_type == (ICMP4_UNREACHABLE if v4 else ICMP6_UNREACHABLE):
        number = (_CODES4 if v4 else _CODES6).get(code, 0)
    elif icmp_type == (ICMP4_TIME_EXCEEDED if v4 else ICMP6_TIME_EXCEEDED):
        number = errno.EHOSTUNREACH
    return Failure(number, icmp_type, code) if number else None


def is_hard(v4: bool, icmp_type: int) -> bool:
    """Does the message end a connection attempt at once?

    DEVIATION from RFC 5461 §4: unreachable networks and hosts count too, as in Linux, so that a
    LAN client learns in one round trip what it would learn without the proxy.
    """
    return icmp_type == (ICMP4_UNREACHABLE if v4 else ICMP6_UNREACHABLE)
