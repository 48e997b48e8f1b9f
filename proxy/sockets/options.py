"""Socket options: which there are, what they may be, and what they mean to the engine.

What is refused, and with which errno, follows ``net/mptcp/sockopt.c`` of Linux 6.18.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from proxy.cc import base as cc

if TYPE_CHECKING:
    from proxy.tcp.config import TcpConfig

SOL_MPTCP = 284
IPPROTO_MPTCP = 262
TCP_IS_MPTCP = 43
TCP_CA_NAME_MAX = 16
_INT_MAX = 0x7FFFFFFF

Key = tuple[int, int]
CONGESTION = (socket.IPPROTO_TCP, socket.TCP_CONGESTION)
LINGER = (socket.SOL_SOCKET, socket.SO_LINGER)
KEEPALIVE = (socket.SOL_SOCKET, socket.SO_KEEPALIVE)
_IDLE = (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
_INTERVAL = (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
_COUNT = (socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
_USER_TIMEOUT = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
_SYNCNT = (socket.IPPROTO_TCP, socket.TCP_SYNCNT)


@dataclass(frozen=True, slots=True)
class _Setting:
    """An integer option: its default, and the range that it is kept in; ``switch``: 0 or 1."""

    default: int
    low: int = 0
    high: int = _INT_MAX
    switch: bool = False


_SETTINGS: dict[Key, _Setting] = {
    KEEPALIVE: _Setting(0, switch=True),
    (socket.SOL_SOCKET, socket.SO_REUSEADDR): _Setting(0, switch=True),
    # There is nothing to switch off: the engine never holds back what can be sent.
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): _Setting(0, switch=True),
    _IDLE: _Setting(7200, 1, 32767),
    _INTERVAL: _Setting(75, 1, 32767),
    _COUNT: _Setting(9, 1, 127),
    _SYNCNT: _Setting(6, 1, 127),
    _USER_TIMEOUT: _Setting(0),
}
"""Those that the engine acts on, or that a program sets without harm."""

NATIVE = frozenset(
    (socket.SOL_SOCKET, name)
    for name in (
        socket.SO_RCVBUF,
        socket.SO_SNDBUF,
        socket.SO_RCVLOWAT,
        socket.SO_RCVTIMEO,
        socket.SO_SNDTIMEO,
        socket.SO_TYPE,
    )
)
"""Those of the descriptor itself, which the kernel keeps."""


def refuse(code: int) -> OSError:
    """The error with the system's words for ``code``."""
    return OSError(code, os.strerror(code))


class Options:
    """What ``setsockopt`` has set on one socket; what has not been set here is as in ``parent``."""

    __slots__ = ("_congestion", "_parent", "_values", "linger", "uplinks")

    def __init__(self, parent: Options | None = None) -> None:
        self._parent = parent
        self._values: dict[Key, int] = {}
        self._congestion = ""
        self.linger: tuple[int, int] = (0, 0)
        self.uplinks: dict[str, Options] = {}
        """What differs on single uplinks, by name."""

    def on(self, uplink: str) -> Options:
        """Those of one uplink's subflows."""
        return self.uplinks.setdefault(uplink, Options(self))

    def copy(self) -> Options:
        """What an accepted connection has of its listener's."""
        other = Options()
        other._values = dict(self._values)
        other._congestion, other.linger = self._congestion, self.linger
        return other

    def knows(self, key: Key) -> bool:
        """Whether ``set`` takes it."""
        return key in _SETTINGS or key in (CONGESTION, LINGER)

    def set(self, key: Key, value: int | bytes) -> None:
        """OSError as the kernel's: EINVAL, ENOENT for a congestion control that is not there."""
        if key == CONGESTION:
            self._congestion = _congestion(value)
        elif key == LINGER:
            self.linger = _linger(value)
        else:
            self._values[key] = _checked(_SETTINGS[key], _integer(value))

    def get(self, key: Key) -> int:
        """An integer option."""
        value = self._set_value(key)
        return _SETTINGS[key].default if value is None else value

    @property
    def congestion(self) -> str:
        """The congestion control, if one was set; else empty."""
        if self._congestion or self._parent is None:
            return self._congestion
        return self._parent.congestion

    @property
    def resets_on_close(self) -> bool:
        """SO_LINGER with no time."""
        return self.linger[0] != 0 and self.linger[1] == 0

    def apply(self, config: TcpConfig) -> TcpConfig:
        """``config`` with what is set here."""
        changes: dict[str, Any] = {
            "keepalive_idle": float(self.get(_IDLE)) if self.get(KEEPALIVE) else float("inf")
        }
        for key, name, kind in _FIELDS:
            value = self._set_value(key)
            if value is not None:
                changes[name] = kind(value)
        if self.congestion:
            changes["congestion_control"] = self.congestion
        return replace(config, **changes)

    def _set_value(self, key: Key) -> int | None:
        value = self._values.get(key)
        if value is None and self._parent is not None:
            return self._parent._set_value(key)
        return value


_FIELDS: tuple[tuple[Key, str, Callable[[int], object]], ...] = (
    (_INTERVAL, "keepalive_interval", float),
    (_COUNT, "keepalive_count", int),
    (_SYNCNT, "syn_retries", int),
    (_USER_TIMEOUT, "user_timeout", lambda milliseconds: milliseconds / 1e3 or None),
)
"""Options that are fields of ``TcpConfig``."""


def _integer(value: int | bytes) -> int:
    if isinstance(value, int):
        return value
    if len(value) < 4:
        raise refuse(errno.EINVAL)
    return int(struct.unpack_from("i", value)[0])


def _checked(setting: _Setting, value: int) -> int:
    if setting.switch:
        return int(value != 0)
    if not setting.low <= value <= setting.high:
        raise refuse(errno.EINVAL)
    return value


def _congestion(value: int | bytes) -> str:
    if isinstance(value, int):
        raise refuse(errno.ENOENT)
    name = bytes(value[: TCP_CA_NAME_MAX - 1]).split(b"\0")[0].decode("ascii", "replace")
    if name not in cc.names():
        raise refuse(errno.ENOENT)
    return name


def _linger(value: int | bytes) -> tuple[int, int]:
    if isinstance(value, int) or len(value) < 8:
        raise refuse(errno.EINVAL)
    on, seconds = struct.unpack_from("ii", value)
    return on, seconds
