"""MPTCP options in words (RFC 8684 §3)."""

from __future__ import annotations

from collections.abc import Iterator

from proxy.wire.address import Address, format_ip
from proxy.wire.mptcp_options import (
    DSS,
    AddAddr,
    MpCapable,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpPrio,
    MptcpOption,
    MpTcprst,
    RemoveAddr,
    parse_option,
    subtype_of,
)

# RFC 8684 §3.6
REASONS = (
    "unspecified",
    "MPTCP-specific",
    "lack of resources",
    "administratively prohibited",
    "too much outstanding data",
    "unacceptable performance",
    "middlebox interference",
)


def option_text(raw: bytes, syn: bool, ack: bool) -> str:
    """One whole kind-30 option of a packet with these flags, as a few words."""
    if subtype_of(raw) == DSS:
        return _dss(raw)
    option = parse_option(raw, syn, ack)
    if option is None:
        return f"MPTCP subtype {subtype_of(raw)} of {len(raw)} bytes, not understood"
    return " ".join(_words(option))


def _words(option: MptcpOption) -> Iterator[str]:
    match option:
        case MpCapable():
            yield from _capable(option)
        case MpJoinSyn():
            yield f"MP_JOIN SYN id {option.address_id} token 0x{option.token:08x}"
            yield f"nonce 0x{option.nonce.hex()}{_backup(option.backup)}"
        case MpJoinSynAck():
            yield f"MP_JOIN SYN/ACK id {option.address_id} hmac 0x{option.hmac.hex()}"
            yield f"nonce 0x{option.nonce.hex()}{_backup(option.backup)}"
        case MpJoinAck():
            yield f"MP_JOIN ACK hmac 0x{option.hmac.hex()}"
        case AddAddr():
            yield f"ADD_ADDR id {option.address_id}"
            port = option.port
            yield format_ip(option.ip) if port is None else str(Address(option.ip, port))
            yield "echo" if option.echo else f"hmac 0x{option.hmac.hex()}"
        case RemoveAddr():
            yield f"REMOVE_ADDR id {','.join(map(str, option.address_ids))}"
        case MpPrio():
            yield f"MP_PRIO {'backup' if option.backup else 'regular'}"
        case MpFail():
            yield f"MP_FAIL dsn {option.dsn}"
        case MpFastclose():
            yield f"MP_FASTCLOSE key 0x{option.receiver_key.hex()}"
        case MpTcprst():
            yield f"MP_TCPRST reason {option.reason} ({_reason(option.reason)})"
            if option.transient:
                yield "transient"


def _capable(option: MpCapable) -> Iterator[str]:
    # As the flags are called: A checksum required, C no subflows to this address, H HMAC-SHA256.
    flags = "A" * option.checksum_required + "C" * option.no_subflows_here + "H"
    yield f"MP_CAPABLE v{option.version} flags [{flags}]"
    if option.sender_key:
        yield f"key 0x{option.sender_key.hex()}"
    if option.receiver_key:
        yield f"peer key 0x{option.receiver_key.hex()}"
    if option.data_length is not None:
        yield f"length {option.data_length}"
    if option.checksum is not None:
        yield f"checksum 0x{option.checksum:04x}"


def _backup(backup: bool) -> str:
    return " backup" if backup else ""


def _reason(number: int) -> str:
    return REASONS[number] if number < len(REASONS) else "unknown"


def _dss(raw: bytes) -> str:
    """DSS (§3.3): flags A, a (8 octets), M, m (8 octets), F."""
    flags = raw[3] if len(raw) > 3 else 0
    ack_size = (8 if flags & 2 else 4) if flags & 1 else 0
    dsn_size = (8 if flags & 8 else 4) if flags & 4 else 0
    size = 4 + ack_size + (dsn_size + 6 if dsn_size else 0)
    if len(raw) not in (size, size + 2 if dsn_size else size):
        return f"DSS of {len(raw)} bytes, malformed"
    words = []
    if dsn_size:
        at = 4 + ack_size
        dsn = int.from_bytes(raw[at : at + dsn_size], "big")
        at += dsn_size
        ssn = int.from_bytes(raw[at : at + 4], "big")
        length = int.from_bytes(raw[at + 4 : at + 6], "big")
        words.append(f"dsn {dsn} ssn {ssn} length {length}")
        if not length:
            words.append("infinite mapping")
        if len(raw) > size:
            words.append(f"checksum 0x{raw[size:].hex()}")
    if ack_size:
        words.append(f"DATA_ACK {int.from_bytes(raw[4 : 4 + ack_size], 'big')}")
    if flags & 0x10:
        words.append("DATA_FIN")
    return f"DSS {', '.join(words)}".rstrip()
