"""The server name in a TLS ClientHello (RFC 8446 §4.1.2, RFC 6066 §3): what path rules go by."""

from __future__ import annotations

MAX_HELLO = 16384
"""Nobody's ClientHello is longer; what has no end by then has no name."""

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_SERVER_NAME = 0
_HOST_NAME = 0
_FIXED = 2 + 32  # legacy_version, random


def server_name(data: bytes) -> str | None:
    """The name that the client asks for, in lower case and without a final dot.

    ``data`` is the beginning of the client's stream. Empty if it is not TLS or names nobody; None
    while more is needed to tell.
    """
    hello = _hello(data)
    if not hello:
        return None if hello is None and len(data) < MAX_HELLO else ""
    try:
        return _name(hello)
    except (IndexError, UnicodeDecodeError):
        return ""


def _hello(data: bytes) -> bytes | None:
    """The body of the ClientHello, put together of its records; empty if it is something else."""
    message = b""
    at = 0
    while True:
        header = data[at : at + 5]
        # TLS of any version says 3 here; what else begins with 22 is no TLS.
        if header[:1] not in (b"", bytes((_HANDSHAKE,))) or header[1:2] not in (b"", b"\3"):
            return b""
        if len(header) < 5:
            return None
        length = int.from_bytes(header[3:5], "big")
        if not length:
            return b""
        message += data[at + 5 : at + 5 + length]
        if message and message[0] != _CLIENT_HELLO:
            return b""
        if len(message) >= 4:
            wanted = 4 + int.from_bytes(message[1:4], "big")
            if wanted > MAX_HELLO:
                return b""
            if len(message) >= wanted:
                return message[4:wanted]
        at += 5 + length
        if at > len(data):
            return None


class _Reader:
    """Takes fields off the front; IndexError when there is too little."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        found = self.data[self.at : self.at + count]
        if len(found) < count:
            raise IndexError
        self.at += count
        return found

    def number(self, size: int) -> int:
        """An integer of ``size`` bytes."""
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        """A vector behind its length of ``size`` bytes."""
        return self.take(self.number(size))

    @property
    def left(self) -> bool:
        """Whether there is more."""
        return self.at < len(self.data)


def _name(hello: bytes) -> str:
    body = _Reader(hello)
    body.take(_FIXED)
    body.vector(1)  # legacy_session_id
    body.vector(2)  # cipher_suites
    body.vector(1)  # legacy_compression_methods
    if not body.left:
        return ""
    extensions = _Reader(body.vector(2))
    while extensions.left:
        kind, value = extensions.number(2), extensions.vector(2)
        if kind == _SERVER_NAME:
            names = _Reader(_Reader(value).vector(2))
            while names.left:
                kind, name = names.number(1), names.vector(2)
                if kind == _HOST_NAME:
                    return name.decode("ascii").lower().rstrip(".")
    return ""
