"""Convert messages by hand, from RFC 8803 §6 alone: a second opinion on ``proxy.convert``."""

from __future__ import annotations

import socket
import struct

SUCCESS = bytes.fromhex("01012263")


def message(*tlvs: tuple[int, bytes]) -> bytes:
    """A message of TLVs, each as its type and its value."""
    body = b""
    for kind, value in tlvs:
        value += bytes(-(len(value) + 2) % 4)
        body += bytes((kind, (len(value) + 2) // 4)) + value
    return struct.pack("!BBH", 1, 1 + len(body) // 4, 0x2263) + body


def connect(address: str, port: int, options: bytes = b"") -> tuple[int, bytes]:
    """A Connect TLV."""
    wide = address if ":" in address else f"::ffff:{address}"
    return 10, struct.pack("!H", port) + socket.inet_pton(socket.AF_INET6, wide) + options


def cookie(token: bytes) -> tuple[int, bytes]:
    """A Cookie TLV."""
    return 22, bytes(2) + token


def info() -> tuple[int, bytes]:
    """An Info TLV."""
    return 1, bytes(2)


def length(start: bytes) -> int:
    """How long the message is that begins with these four bytes."""
    version, words, magic = struct.unpack("!BBH", start)
    assert (version, magic) == (1, 0x2263), start.hex()
    return int(words) * 4


def error(reply: bytes) -> tuple[int, bytes]:
    """The error that a whole message consists of: its code, and what follows it."""
    kind, words, code = struct.unpack_from("!BBB", reply, 4)
    assert kind == 30, reply.hex()
    assert len(reply) == length(reply[:4]) == 4 + 4 * words
    return int(code), reply[7:]
