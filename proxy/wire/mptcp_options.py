"""MPTCP options (TCP kind 30, RFC 8684 §3), one frozen dataclass each.

Keys, HMACs and nonces are bytes as on the wire (8, 8 or 20, and 4 bytes); tokens, DSNs and ids are
ints. ``parse`` takes one whole option (kind and length included) of a length that is right for
its subtype, else it raises CodecError; ``build`` gives the option without padding. DSS has no
class here: it is parsed and built by ``proxy.seg``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from proxy.errors import CodecError

KIND = 30
VERSION = 1

MP_CAPABLE = 0
MP_JOIN = 1
DSS = 2
ADD_ADDR = 3
REMOVE_ADDR = 4
MP_PRIO = 5
MP_FAIL = 6
MP_FASTCLOSE = 7
MP_TCPRST = 8

# MP_TCPRST reasons (RFC 8684 §3.6)
REASON_UNSPECIFIED = 0
REASON_MPTCP = 1
REASON_RESOURCES = 2
REASON_PROHIBITED = 3
REASON_OUTSTANDING = 4
REASON_PERFORMANCE = 5
REASON_MIDDLEBOX = 6

_CHECKSUM = 0x80
_EXTENSIBILITY = 0x40
_NO_SUBFLOWS_HERE = 0x20
_CRYPTO = 0x1F
_HMAC_SHA256 = 0x01


def pad(option: bytes) -> bytes:
    """``option`` (one or several) with NOPs to a multiple of 4 bytes."""
    return option + b"\x01" * (-len(option) % 4)


def subtype_of(raw: bytes) -> int:
    """The subtype of a whole kind-30 option, -1 if it is too short to have one."""
    return raw[2] >> 4 if len(raw) > 2 else -1


def _head(raw: bytes, subtype: int, lengths: tuple[int, ...]) -> None:
    if len(raw) not in lengths or raw[0] != KIND or raw[1] != len(raw) or raw[2] >> 4 != subtype:
        raise CodecError(f"MPTCP option {subtype} of {len(raw)} bytes")


@dataclass(frozen=True, slots=True)
class MpCapable:
    """MP_CAPABLE (§3.1): no key in a SYN, the sender's in a SYN-ACK, both in the third ACK.

    ``data_length`` (0..65535) is set on the first data segment, ``checksum`` with it if DSS
    checksums are in use; None is absent.
    """

    sender_key: bytes = b""
    receiver_key: bytes = b""
    checksum_required: bool = False
    no_subflows_here: bool = False  # flag C: no more subflows to this address and port
    data_length: int | None = None
    checksum: int | None = None
    version: int = VERSION

    subtype: ClassVar[int] = MP_CAPABLE

    @classmethod
    def parse(cls, raw: bytes, syn: bool = False, ack: bool = True) -> MpCapable:
        """The lengths and versions that are right for SYN, SYN-ACK and others (CAP-01, CAP-03)."""
        lengths = ((12,) if ack else (4,)) if syn else (20, 22, 24)
        _head(raw, MP_CAPABLE, lengths)
        version, flags, length = raw[2] & 0x0F, raw[3], len(raw)
        first_syn = syn and not ack
        if version < VERSION or (version > VERSION and not first_syn):
            raise CodecError(f"MP_CAPABLE version {version}")
        # A SYN may offer several algorithms; afterwards exactly one is left (§3.1).
        crypto = flags & (_HMAC_SHA256 if first_syn else _CRYPTO)
        if flags & _EXTENSIBILITY or crypto != _HMAC_SHA256:
            raise CodecError(f"MP_CAPABLE flags {flags:#x}")
        return cls(
            sender_key=raw[4:12],
            receiver_key=raw[12:20],
            checksum_required=flags & _CHECKSUM != 0,
            no_subflows_here=flags & _NO_SUBFLOWS_HERE != 0,
            data_length=int.from_bytes(raw[20:22], "big") if length >= 22 else None,
            checksum=int.from_bytes(raw[22:24], "big") if length == 24 else None,
            version=version,
        )

    def build(self) -> bytes:
        """4, 12, 20, 22 or 24 bytes, by what is set."""
        flags = _HMAC_SHA256
        flags |= _CHECKSUM if self.checksum_required else 0
        flags |= _NO_SUBFLOWS_HERE if self.no_subflows_here else 0
        body = self.sender_key + self.receiver_key
        if self.data_length is not None:
            body += self.data_length.to_bytes(2, "big")
            if self.checksum is not None:
                body += self.checksum.to_bytes(2, "big")
        return bytes((KIND, 4 + len(body), MP_CAPABLE << 4 | self.version, flags)) + body


@dataclass(frozen=True, slots=True)
class MpJoinSyn:
    """MP_JOIN of a SYN (§3.2)."""

    backup: bool
    address_id: int
    token: int
    nonce: bytes

    subtype: ClassVar[int] = MP_JOIN

    @classmethod
    def parse(cls, raw: bytes) -> MpJoinSyn:
        """12 bytes."""
        _head(raw, MP_JOIN, (12,))
        token = int.from_bytes(raw[4:8], "big")
        return cls(raw[2] & 1 != 0, raw[3], token, raw[8:12])

    def build(self) -> bytes:
        """12 bytes."""
        head = (KIND, 12, MP_JOIN << 4 | self.backup, self.address_id)
        return bytes(head) + self.token.to_bytes(4, "big") + self.nonce


@dataclass(frozen=True, slots=True)
class MpJoinSynAck:
    """MP_JOIN of a SYN-ACK: ``hmac`` is the leftmost 64 bits (§3.2)."""

    backup: bool
    address_id: int
    hmac: bytes
    nonce: bytes

    subtype: ClassVar[int] = MP_JOIN

    @classmethod
    def parse(cls, raw: bytes) -> MpJoinSynAck:
        """16 bytes."""
        _head(raw, MP_JOIN, (16,))
        return cls(raw[2] & 1 != 0, raw[3], raw[4:12], raw[12:16])

    def build(self) -> bytes:
        """16 bytes."""
        head = (KIND, 16, MP_JOIN << 4 | self.backup, self.address_id)
        return bytes(head) + self.hmac + self.nonce


@dataclass(frozen=True, slots=True)
class MpJoinAck:
    """MP_JOIN of the third ACK: ``hmac`` is the leftmost 160 bits (§3.2)."""

    hmac: bytes

    subtype: ClassVar[int] = MP_JOIN

    @classmethod
    def parse(cls, raw: bytes) -> MpJoinAck:
        """24 bytes."""
        _head(raw, MP_JOIN, (24,))
        return cls(raw[4:24])

    def build(self) -> bytes:
        """24 bytes."""
        return bytes((KIND, 24, MP_JOIN << 4, 0)) + self.hmac


@dataclass(frozen=True, slots=True)
class AddAddr:
    """ADD_ADDR (§3.4.1): ``hmac`` is the rightmost 64 bits, empty in an echo."""

    address_id: int
    ip: bytes
    port: int | None = None
    echo: bool = False
    hmac: bytes = b""

    subtype: ClassVar[int] = ADD_ADDR

    @classmethod
    def parse(cls, raw: bytes) -> AddAddr:
        """16, 18, 28 or 30 bytes; an echo 8, 10, 20 or 22."""
        echo = len(raw) > 2 and raw[2] & 1 != 0
        _head(raw, ADD_ADDR, (8, 10, 20, 22) if echo else (16, 18, 28, 30))
        body = raw[4:] if echo else raw[4:-8]
        size = 4 if len(body) < 16 else 16
        port = int.from_bytes(body[size:], "big") if len(body) > size else None
        return cls(raw[3], body[:size], port, echo, b"" if echo else raw[-8:])

    def build(self) -> bytes:
        """8 to 30 bytes, by what is set."""
        port = b"" if self.port is None else self.port.to_bytes(2, "big")
        body = self.ip + port + (b"" if self.echo else self.hmac)
        return bytes((KIND, 4 + len(body), ADD_ADDR << 4 | self.echo, self.address_id)) + body


@dataclass(frozen=True, slots=True)
class RemoveAddr:
    """REMOVE_ADDR (§3.4.2): one or more address ids."""

    address_ids: tuple[int, ...]

    subtype: ClassVar[int] = REMOVE_ADDR

    @classmethod
    def parse(cls, raw: bytes) -> RemoveAddr:
        """3 + n bytes, n >= 1."""
        _head(raw, REMOVE_ADDR, tuple(range(4, 41)))
        return cls(tuple(raw[3:]))

    def build(self) -> bytes:
        """3 + n bytes. More than 8 ids are refused by Linux."""
        head = (KIND, 3 + len(self.address_ids), REMOVE_ADDR << 4)
        return bytes(head + self.address_ids)


@dataclass(frozen=True, slots=True)
class MpPrio:
    """MP_PRIO (§3.3.8): the subflow it travels on becomes backup, or regular again."""

    backup: bool

    subtype: ClassVar[int] = MP_PRIO

    @classmethod
    def parse(cls, raw: bytes) -> MpPrio:
        """3 bytes (the form with an address id was of version 0)."""
        _head(raw, MP_PRIO, (3,))
        return cls(raw[2] & 1 != 0)

    def build(self) -> bytes:
        """3 bytes."""
        return bytes((KIND, 3, MP_PRIO << 4 | self.backup))


@dataclass(frozen=True, slots=True)
class MpFail:
    """MP_FAIL (§3.7): the data from ``dsn`` (u64) on did not have its checksum."""

    dsn: int

    subtype: ClassVar[int] = MP_FAIL

    @classmethod
    def parse(cls, raw: bytes) -> MpFail:
        """12 bytes."""
        _head(raw, MP_FAIL, (12,))
        return cls(int.from_bytes(raw[4:12], "big"))

    def build(self) -> bytes:
        """12 bytes."""
        return struct.pack(">BBBBQ", KIND, 12, MP_FAIL << 4, 0, self.dsn)


@dataclass(frozen=True, slots=True)
class MpFastclose:
    """MP_FASTCLOSE (§3.5): the whole connection is aborted."""

    receiver_key: bytes

    subtype: ClassVar[int] = MP_FASTCLOSE

    @classmethod
    def parse(cls, raw: bytes) -> MpFastclose:
        """12 bytes."""
        _head(raw, MP_FASTCLOSE, (12,))
        return cls(raw[4:12])

    def build(self) -> bytes:
        """12 bytes."""
        return bytes((KIND, 12, MP_FASTCLOSE << 4, 0)) + self.receiver_key


@dataclass(frozen=True, slots=True)
class MpTcprst:
    """MP_TCPRST (§3.6): why this subflow is reset, and whether a later one may work."""

    reason: int
    transient: bool = False

    subtype: ClassVar[int] = MP_TCPRST

    @classmethod
    def parse(cls, raw: bytes) -> MpTcprst:
        """4 bytes."""
        _head(raw, MP_TCPRST, (4,))
        return cls(raw[3], raw[2] & 1 != 0)

    def build(self) -> bytes:
        """4 bytes."""
        return bytes((KIND, 4, MP_TCPRST << 4 | self.transient, self.reason))


MptcpOption = (
    MpCapable
    | MpJoinSyn
    | MpJoinSynAck
    | MpJoinAck
    | AddAddr
    | RemoveAddr
    | MpPrio
    | MpFail
    | MpFastclose
    | MpTcprst
)

_ANYWHERE: dict[int, type[AddAddr | RemoveAddr | MpPrio | MpFail | MpFastclose | MpTcprst]] = {
    ADD_ADDR: AddAddr,
    REMOVE_ADDR: RemoveAddr,
    MP_PRIO: MpPrio,
    MP_FAIL: MpFail,
    MP_FASTCLOSE: MpFastclose,
    MP_TCPRST: MpTcprst,
}


def parse_option(raw: bytes, syn: bool, ack: bool) -> MptcpOption | None:
    """One whole kind-30 option of a segment with these flags; None if it is to be ignored.

    Ignored are unknown subtypes, DSS, and whatever has a wrong length, version or flag.
    """
    subtype = subtype_of(raw)
    try:
        if subtype == MP_CAPABLE:
            return MpCapable.parse(raw, syn, ack) if syn or ack else None
        if subtype == MP_JOIN:
            if syn:
                return MpJoinSynAck.parse(raw) if ack else MpJoinSyn.parse(raw)
            return MpJoinAck.parse(raw) if ack else None
        option = _ANYWHERE.get(subtype)
        return None if option is None else option.parse(raw)
    except CodecError:
        return None


# Subtypes that may not share a segment with the one that is the index, as bit sets
# (the kernel's rule since CVE-2026-80587).
_EXCLUDES = {
    MP_CAPABLE: (MP_JOIN, DSS, ADD_ADDR, MP_PRIO, MP_FAIL, MP_FASTCLOSE, MP_TCPRST),
    MP_JOIN: (DSS, ADD_ADDR, MP_FAIL, MP_FASTCLOSE, MP_TCPRST),
    ADD_ADDR: (MP_FAIL, MP_FASTCLOSE, MP_TCPRST),
    REMOVE_ADDR: (MP_FAIL, MP_FASTCLOSE, MP_TCPRST),
    MP_PRIO: (MP_FAIL, MP_FASTCLOSE, MP_TCPRST),
    DSS: (MP_TCPRST,),
    MP_FAIL: (MP_FASTCLOSE,),
}
_CONFLICTS = [0] * 16
for _one, _others in _EXCLUDES.items():
    for _other in _others:
        _CONFLICTS[_one] |= 1 << _other
        _CONFLICTS[_other] |= 1 << _one


def compatible(subtypes: Iterable[int]) -> bool:
    """Whether options of these subtypes may share a segment: no forbidden pair, none twice."""
    seen = 0
    for subtype in subtypes:
        if seen & (_CONFLICTS[subtype] | 1 << subtype):
            return False
        seen |= 1 << subtype
    return True


def parse_options(
    raws: Iterable[bytes], *, syn: bool, ack: bool, rst: bool = False, dss_count: int = 0
) -> tuple[MptcpOption, ...]:
    """All options of a segment (``Segment.mptcp``), those to be ignored left out.

    ``dss_count`` is that of the Segment. MP_TCPRST counts only with ``rst``. Raises CodecError
    if they may not share a segment: none of them is then to be acted on.
    """
    found: list[MptcpOption] = []
    for raw in raws:
        option = parse_option(raw, syn, ack)
        if option is not None and (rst or option.subtype != MP_TCPRST):
            found.append(option)
    if not compatible([option.subtype for option in found] + [DSS] * dss_count):
        raise CodecError("MPTCP options that exclude each other")
    return tuple(found)
