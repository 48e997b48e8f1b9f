"""Clients that are known by their address alone: RFC 8803 without a secret of ours.

For converters' clients that are not our proxy. The operator lists the networks from which they may
come; everybody else meets silence, as ever. That an address is not forged is shown by the
handshake or, if the message comes in the SYN, by a cookie that was sent to it before (§6.2.7)::

    time u32 | HMAC-SHA256(key of this run, label | time | source address)[:12]
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import TYPE_CHECKING

from proxy.convert import tlv
from proxy.convert.auth import Request, Unauthorised
from proxy.convert.networks import Networks
from proxy.convert.tlv import (
    Connect,
    ConvertError,
    Cookie,
    Error,
    ErrorCode,
    Info,
    Message,
    NoConvertMessage,
)

if TYPE_CHECKING:
    from proxy.config import ClientConfig

COOKIE_LENGTH = 16
COOKIE_LIFETIME = 86400.0  # seconds; within one run of the gateway
_LABEL = b"mptcp-proxy address cookie v1\0"
_TYPES = frozenset({Info.type, Connect.type, Cookie.type})


class NoMessage(Unauthorised):
    """A guest sent something that is to be reset (RFC 8803 §6.1), not answered."""


class GuestBook:
    """Judges the messages of ``clients`` that have networks instead of a secret.

    ``key`` are 32 random bytes that no other run uses.
    """

    def __init__(self, clients: Iterable[ClientConfig], key: bytes) -> None:
        self._clients = [
            (client.name, Networks(client.networks), client.cookie)
            for client in clients
            if client.networks
        ]
        self._key = key

    def find(self, source: bytes) -> tuple[str, bool] | None:
        """The client at the packed address ``source``: its name, and whether a cookie is due."""
        for name, networks, cookie in self._clients:
            if source in networks:
                return name, cookie
        return None

    def verify(self, data: bytes, source: bytes, wall_time: float, reached: bool) -> Request:
        """Judges the message with which ``data`` begins.

        ``reached``: a handshake has shown that the client is at ``source``. Raises ``Unauthorised``
        for silence, ``NoMessage`` for a RST; any other shortcoming is in the request's ``error``.
        """
        found = self.find(source)
        if found is None:
            raise Unauthorised("stranger")
        name, wants_cookie = found
        length = len(data)
        destination: Connect | None = None
        asks = False
        error: Error | None = None
        try:
            length = tlv.message_length(data) or 0
            message = data[:length]
            framed = tlv.frame(message)
            tlv.check_types(framed)
            parsed = Message(tuple(_parse(raw) for raw in framed))
        except ConvertError as what:
            error = _answer(what, data[:length])
        else:
            error = self._judge_cookie(
                parsed.find(Cookie), source, wall_time, wants_cookie and not reached
            )
            destination = parsed.find(Connect)
            asks = parsed.find(Info) is not None
            if error is None and destination is None and not asks:
                error = Error.echo(ErrorCode.MALFORMED_MESSAGE, message, _ROOM)
        return Request(
            client=name,
            destination=None if destination is None else destination.destination,
            options=() if destination is None else destination.options,
            wants_info=asks,
            late=reached,
            weight=1,
            length=length,
            error=error,
        )

    def _judge_cookie(
        self, cookie: Cookie | None, source: bytes, now: float, due: bool
    ) -> Error | None:
        if cookie is not None:
            good = len(cookie.token) == COOKIE_LENGTH and self._is_own(cookie.token, source, now)
            return None if good else Error(ErrorCode.NOT_AUTHORIZED)
        return Error.missing_cookie(self._make(source, int(now))) if due else None

    def _make(self, source: bytes, time: int) -> bytes:
        stamp = (time & 0xFFFFFFFF).to_bytes(4, "big")
        mac = hmac.digest(self._key, _LABEL + stamp + source, "sha256")
        return stamp + mac[: COOKIE_LENGTH - 4]

    def _is_own(self, token: bytes, source: bytes, now: float) -> bool:
        time = int.from_bytes(token[:4], "big")
        own = hmac.compare_digest(self._make(source, time), token)
        return own and -1 <= now - time <= COOKIE_LIFETIME


_ROOM = tlv.MAX_LENGTH - tlv.HEADER_LENGTH


def _parse(raw: tlv.RawTlv) -> tlv.Tlv:
    if raw.type not in _TYPES:
        raise ConvertError(f"TLV of type {raw.type}", ErrorCode.UNSUPPORTED_MESSAGE)
    return tlv.parse_tlv(raw)


def _answer(what: ConvertError, message: bytes) -> Error:
    if isinstance(what, NoConvertMessage):
        raise Unauthorised("no-convert") from what
    if what.code is None:
        raise NoMessage("no-convert") from what
    if what.code is ErrorCode.UNSUPPORTED_VERSION:
        return Error(what.code, bytes((tlv.VERSION,)))
    return Error.echo(what.code, message, _ROOM)
