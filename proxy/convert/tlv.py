"""Convert messages and their TLVs (RFC 8803 §6), strict in both directions.

A message is the first bytes of the byte stream, in either direction; user data follows it directly.
Reserved and padding bytes are sent as zero and not looked at in what arrives, except where a zero
byte would mean something (TCP options). Private TLVs of ours are in the range 192-255 that §10.2.2
sets aside for it.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

from proxy.errors import CodecError
from proxy.wire.address import Address

VERSION = 1
MAGIC = 0x2263
HEADER_LENGTH = 4
MAX_LENGTH = 255 * 4  # bytes; the length field counts words of 32 bits

_HEADER = struct.Struct("!BBH")
_MAPPED_PREFIX = bytes(10) + b"\xff\xff"
_BROADCAST = b"\xff\xff\xff\xff"


class ErrorCode(enum.IntEnum):
    """The errors of RFC 8803 §6.2.8."""

    UNSUPPORTED_VERSION = 0
    MALFORMED_MESSAGE = 1
    UNSUPPORTED_MESSAGE = 2
    MISSING_COOKIE = 3
    NOT_AUTHORIZED = 32
    UNSUPPORTED_TCP_OPTION = 33
    RESOURCE_EXCEEDED = 64
    NETWORK_FAILURE = 65
    CONNECTION_RESET = 96
    DESTINATION_UNREACHABLE = 97


class ConvertError(CodecError):
    """What arrived is not a valid Convert message.

    ``code`` is what a converter answers to a client that may have an answer; a client resets the
    connection whatever it is. ``None``: there is no answer but a reset, or silence (§6, §6.1).
    """

    def __init__(self, message: str, code: ErrorCode | None = ErrorCode.MALFORMED_MESSAGE) -> None:
        super().__init__(message)
        self.code = code


class NoConvertMessage(ConvertError):
    """The bytes are something else: no converter answers them (§6)."""


class TcpOption(NamedTuple):
    """A TCP option of an Extended Connect; without a value the converter chooses one (§6.2.5)."""

    kind: int
    value: bytes = b""


@dataclass(frozen=True, slots=True)
class Info:
    """Asks which TCP extensions the converter supports (§6.2.3)."""

    type: ClassVar[int] = 1

    def value(self) -> bytes:
        """The bytes after type and length."""
        return bytes(2)

    @classmethod
    def parse(cls, value: memoryview) -> Info:
        """From the bytes after type and length; its length is always one word."""
        if len(value) != 2:
            raise ConvertError("Info TLV with a length other than 1")
        return cls()


@dataclass(frozen=True, slots=True)
class Connect:
    """Asks for a connection to ``destination``; with ``options`` it is an Extended one (§6.2.5).

    An IPv4 destination has 4 bytes here and travels as an IPv4-mapped address. Multicast and
    broadcast are refused; so is loopback, but that is left to the policy on destinations.
    """

    destination: Address
    options: tuple[TcpOption, ...] = ()
    type: ClassVar[int] = 10

    def value(self) -> bytes:
        """The bytes after type and length."""
        ip, port = self.destination
        wide = ip if len(ip) == 16 else _MAPPED_PREFIX + ip
        return port.to_bytes(2, "big") + wide + _build_options(self.options)

    @classmethod
    def parse(cls, value: memoryview) -> Connect:
        """From the bytes after type and length."""
        if len(value) < 18:
            raise ConvertError("Connect TLV with a length below 5")
        wide = bytes(value[2:18])
        ip = wide[12:] if wide.startswith(_MAPPED_PREFIX) else wide
        multicast = ip[0] == 0xFF if len(ip) == 16 else 224 <= ip[0] <= 239
        if multicast or ip == _BROADCAST:
            raise ConvertError("Connect TLV with a multicast or broadcast address")
        port = value[0] << 8 | value[1]
        return cls(Address(ip, port), _parse_options(value[18:]))


@dataclass(frozen=True, slots=True)
class ExtendedTcpHeader:
    """``options``: the TCP options of the server's SYN+ACK as they came (§6.2.6)."""

    options: bytes
    type: ClassVar[int] = 20

    def value(self) -> bytes:
        """The bytes after type and length."""
        return bytes(2) + self.options

    @classmethod
    def parse(cls, value: memoryview) -> ExtendedTcpHeader:
        """From the bytes after type and length; padding stays in ``options``."""
        return cls(bytes(value[2:]))


@dataclass(frozen=True, slots=True)
class SupportedTcpExtensions:
    """``kinds``: the TCP options that the converter can use towards servers (§6.2.4)."""

    kinds: tuple[int, ...]
    type: ClassVar[int] = 21
    FORBIDDEN: ClassVar[frozenset[int]] = frozenset({0, 1, 2, 3, 5, 29})

    def value(self) -> bytes:
        """The bytes after type and length."""
        if not self.FORBIDDEN.isdisjoint(self.kinds):
            raise ValueError("kinds 0, 1, 2, 3, 5 and 29 must not be listed")
        return bytes(2) + bytes(self.kinds)

    @classmethod
    def parse(cls, value: memoryview) -> SupportedTcpExtensions:
        """From the bytes after type and length; kinds that must not be listed are left out."""
        return cls(tuple(kind for kind in value[2:] if kind not in cls.FORBIDDEN))


@dataclass(frozen=True, slots=True)
class Cookie:
    """``token``: opaque bytes which show that the client may use the converter (§6.2.7)."""

    token: bytes
    type: ClassVar[int] = 22

    def value(self) -> bytes:
        """The bytes after type and length."""
        return bytes(2) + self.token

    @classmethod
    def parse(cls, value: memoryview) -> Cookie:
        """From the bytes after type and length; padding stays in ``token``."""
        if len(value) < 6:
            raise ConvertError("Cookie TLV without a cookie")
        return cls(bytes(value[2:]))


@dataclass(frozen=True, slots=True)
class Error:
    """Why there is no connection (§6.2.8).

    ``code`` is an ``ErrorCode`` or, if we do not know it, any number up to 255. ``detail`` is what
    follows the code, padding included.
    """

    code: int
    detail: bytes = b""
    type: ClassVar[int] = 30

    def value(self) -> bytes:
        """The bytes after type and length."""
        return bytes((self.code,)) + self.detail

    @classmethod
    def parse(cls, value: memoryview) -> Error:
        """From the bytes after type and length."""
        return cls(value[0], bytes(value[1:]))

    @classmethod
    def echo(cls, code: ErrorCode, message: bytes, room: int) -> Error:
        """Malformed or Unsupported Message, with a copy of what it is about.

        ``room`` is what the TLV may take, in bytes.
        DEVIATION: §6.2.8 wants the whole message back; one of up to 1020 bytes does not fit beside
        the answer's own header and proof, so that the copy is cut to what does.
        """
        return cls(code, b"\0" + message[: max(room - 4, 0) & ~3])

    @classmethod
    def missing_cookie(cls, cookie: bytes) -> Error:
        """Missing Cookie, with the cookie to use (a whole number of words)."""
        return cls(ErrorCode.MISSING_COOKIE, b"\0" + cookie)

    @property
    def cookie(self) -> bytes:
        """The cookie of a Missing Cookie error; empty in any other."""
        return self.detail[1:] if self.code == ErrorCode.MISSING_COOKIE else b""

    @property
    def delay(self) -> float:
        """Seconds to leave the converter alone (§6.2.8: zero stands for at least 30)."""
        if self.code not in (ErrorCode.RESOURCE_EXCEEDED, ErrorCode.NETWORK_FAILURE):
            return 0.0
        return float(self.detail[0]) if self.detail and self.detail[0] else 30.0

    def __str__(self) -> str:
        try:
            return f"{ErrorCode(self.code).name.lower().replace('_', ' ')} ({self.code})"
        except ValueError:
            return f"error {self.code}"


@dataclass(frozen=True, slots=True)
class Proof:
    """The gateway's proof that it knows the client's secret: a private TLV of ours."""

    nonce: bytes
    tag: bytes
    type: ClassVar[int] = 0xC1
    NONCE_LENGTH: ClassVar[int] = 16
    TAG_LENGTH: ClassVar[int] = 16

    def value(self) -> bytes:
        """The bytes after type and length."""
        return bytes(2) + self.nonce + self.tag

    @classmethod
    def parse(cls, value: memoryview) -> Proof:
        """From the bytes after type and length."""
        if len(value) != 34:
            raise ConvertError("proof TLV with a length other than 9")
        return cls(bytes(value[2:18]), bytes(value[18:34]))


@dataclass(frozen=True, slots=True)
class Unknown:
    """A TLV of a type that we do not know, with its padding."""

    kind: int
    content: bytes

    @property
    def type(self) -> int:
        """The TLV's type, 1..255."""
        return self.kind

    def value(self) -> bytes:
        """The bytes after type and length."""
        return self.content


Tlv = Info | Connect | ExtendedTcpHeader | SupportedTcpExtensions | Cookie | Error | Proof | Unknown
_T = TypeVar("_T", Info, Connect, ExtendedTcpHeader, SupportedTcpExtensions, Cookie, Error, Proof)

_PARSERS: dict[int, Callable[[memoryview], Tlv]] = {
    Info.type: Info.parse,
    Connect.type: Connect.parse,
    ExtendedTcpHeader.type: ExtendedTcpHeader.parse,
    SupportedTcpExtensions.type: SupportedTcpExtensions.parse,
    Cookie.type: Cookie.parse,
    Error.type: Error.parse,
    Proof.type: Proof.parse,
}


class RawTlv(NamedTuple):
    """A TLV whose frame is good and whose value nobody has looked at."""

    type: int
    start: int
    """Where its value starts in the message."""
    value: memoryview


@dataclass(frozen=True, slots=True)
class Message:
    """A Convert message: its TLVs in the order of the wire."""

    tlvs: tuple[Tlv, ...] = ()

    def build(self) -> bytes:
        """The message as it travels. ValueError if it would be longer than 1020 bytes."""
        return build(self.tlvs)

    @classmethod
    def parse(cls, message: bytes) -> Message:
        """From exactly one message (see ``message_length``), or ``ConvertError``."""
        framed = frame(message)
        check_types(framed)
        return cls(tuple(parse_tlv(raw) for raw in framed))

    def find(self, kind: type[_T]) -> _T | None:
        """The TLV of that class, if there is one."""
        for tlv in self.tlvs:
            if isinstance(tlv, kind):
                return tlv
        return None


def message_length(data: bytes | memoryview) -> int | None:
    """How long the message is with which ``data`` begins, in bytes: 4 to 1020.

    ``None`` if its header is not complete yet; the message itself may be longer than ``data``.
    Raises ``ConvertError`` as soon as a byte says that this is no message.
    """
    if data and data[0] == 0:
        raise ConvertError("version 0 must not be used", None)
    if len(data) > 1 and data[1] == 0:
        raise ConvertError("total length 0", None)  # §6.1: MUST be reset
    if len(data) < HEADER_LENGTH:
        return None
    version, words, magic = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise NoConvertMessage("no Convert message: wrong magic number", None)
    if version != VERSION:
        raise ConvertError(f"version {version}", ErrorCode.UNSUPPORTED_VERSION)
    return int(words) * 4


def frame(message: bytes) -> list[RawTlv]:
    """The TLVs of exactly one message by their lengths alone (§9: they lie inside the message)."""
    length = message_length(message)
    if length is None or length != len(message):
        raise ConvertError("the message is not as long as its header says")
    view = memoryview(message)
    tlvs: list[RawTlv] = []
    offset = HEADER_LENGTH
    while offset < length:
        end = offset + view[offset + 1] * 4  # offset is a multiple of 4, as is length
        if end == offset:
            raise ConvertError("TLV with length 0")
        if end > length:
            raise ConvertError("TLV longer than its message")
        tlvs.append(RawTlv(view[offset], offset + 2, view[offset + 2 : end]))
        offset = end
    return tlvs


def check_types(tlvs: Iterable[RawTlv]) -> None:
    """No type is 0 and none is there twice (§6.2.1), or ``ConvertError``."""
    seen = 0
    for tlv in tlvs:
        if tlv.type == 0:
            raise ConvertError("TLV of type 0", ErrorCode.UNSUPPORTED_MESSAGE)
        if seen >> tlv.type & 1:
            raise ConvertError(f"TLV of type {tlv.type} is there twice")
        seen |= 1 << tlv.type


def parse_tlv(raw: RawTlv) -> Tlv:
    """The value object of ``raw``; ``Unknown`` if its type is not one of ours."""
    parser = _PARSERS.get(raw.type)
    return parser(raw.value) if parser is not None else Unknown(raw.type, bytes(raw.value))


def build(tlvs: Iterable[Tlv]) -> bytes:
    """The message of ``tlvs``. ValueError if it would be longer than 1020 bytes."""
    body = b"".join([_build_tlv(tlv) for tlv in tlvs])
    total = HEADER_LENGTH + len(body)
    if total > MAX_LENGTH:
        raise ValueError(f"a Convert message of {total} bytes: more than {MAX_LENGTH}")
    return _HEADER.pack(VERSION, total // 4, MAGIC) + body


def _build_tlv(tlv: Tlv) -> bytes:
    value = tlv.value()
    words = (2 + len(value) + 3) // 4
    if words > 255:
        raise ValueError(f"a TLV of {words} words: more than 255")
    return bytes((tlv.type, words)) + value + bytes(words * 4 - 2 - len(value))


def _build_options(options: tuple[TcpOption, ...]) -> bytes:
    parts = []
    for kind, value in options:
        if kind in (0, 1):
            raise ValueError("TCP option kinds 0 and 1 must not appear in a Connect TLV")
        parts.append(bytes((kind, 2 + len(value))) + value)
    return b"".join(parts)


def _parse_options(data: memoryview) -> tuple[TcpOption, ...]:
    """§6.2.5: kind, length >= 2, value; kinds 0 and 1 must not appear; zero padding to a word."""
    options: list[TcpOption] = []
    offset = 0
    while offset < len(data):
        kind = data[offset]
        if kind == 0:
            if len(data) - offset > 3 or any(data[offset:]):
                raise ConvertError("TCP option of kind 0 in a Connect TLV")
            break
        if kind == 1:
            raise ConvertError("TCP option of kind 1 in a Connect TLV")
        length = data[offset + 1] if offset + 1 < len(data) else 0
        if length < 2 or offset + length > len(data):
            raise ConvertError("TCP option with a bad length in a Connect TLV")
        options.append(TcpOption(kind, bytes(data[offset + 2 : offset + length])))
        offset += length
    return tuple(options)
