"""Reads the attributes of requests, which have the names of the kernel's netlink specification."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from proxy.errors import MptcpProxyError
from proxy.wire.address import Address, format_ip, parse_ip

Request = Mapping[str, object]

FLAGS = ("signal", "subflow", "backup", "fullmesh", "laminar")
_HEX_TOKEN = re.compile(r"(?:0x)?[0-9a-fA-F]{1,8}")


class CommandError(MptcpProxyError):
    """A command cannot be done; ``errno_name`` is what the kernel would answer, as ``EINVAL``."""

    def __init__(self, errno_name: str, message: str) -> None:
        super().__init__(message)
        self.errno_name = errno_name


@dataclass(frozen=True, slots=True)
class AddressNest:
    """``addr`` of a request; what was not given is 0, empty or None."""

    id: int = 0
    ip: bytes = b""
    port: int = 0
    flags: frozenset[str] = frozenset()
    dev: str | None = None

    @property
    def address(self) -> Address:
        """Address and port."""
        return Address(self.ip, self.port)


def number(fields: Request, name: str, low: int, high: int, default: int | None = None) -> int:
    """The integer ``name``; CommandError if it is missing without a default, or out of range."""
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if value is None:
        raise CommandError("EINVAL", f"missing {name}")
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise CommandError("EINVAL", f"{name} must be a number from {low} to {high}")
    return value


def word(fields: Request, name: str) -> str:
    """The text ``name``; CommandError if there is none."""
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise CommandError("EINVAL", f"missing {name}")
    return value


def token(fields: Request) -> int:
    """The token of a connection: a number, or hexadecimal text as ``ss -M`` shows it."""
    value = fields.get("token")
    if isinstance(value, str) and _HEX_TOKEN.fullmatch(value):
        return int(value, 16)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0xFFFFFFFF:
        return value
    raise CommandError("EINVAL", "missing token, or it is not what ss -M shows")


def nest(fields: Request, name: str = "addr") -> AddressNest:
    """The nested address ``name``: id, addr4 or addr6, port, flags, dev."""
    value = fields.get(name)
    if not isinstance(value, Mapping):
        raise CommandError("EINVAL", f"missing {name}")
    unknown = set(value) - {"id", "family", "addr4", "addr6", "port", "flags", "dev", "if-idx"}
    if unknown:
        raise CommandError("EINVAL", f"{name} has no attribute {', '.join(sorted(unknown))}")
    dev = value.get("dev")
    if dev is not None and not isinstance(dev, str):
        raise CommandError("EINVAL", f"{name}: dev must be a name")
    return AddressNest(
        number(value, "id", 0, 255, 0),
        _ip(value, name),
        number(value, "port", 0, 65535, 0),
        _flags(value.get("flags", ())),
        dev,
    )


def _ip(value: Request, name: str) -> bytes:
    for key, length in (("addr4", 4), ("addr6", 16)):
        text = value.get(key)
        if text is None:
            continue
        with _refusing(f"{name}: {key} is not an address"):
            ip = parse_ip(str(text))
            if len(ip) != length:
                raise ValueError
        return ip
    return b""


@contextmanager
def _refusing(message: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise CommandError("EINVAL", message) from error


def _flags(value: object) -> frozenset[str]:
    if not isinstance(value, list | tuple):
        raise CommandError("EINVAL", f"flags must be a list of {', '.join(FLAGS)}")
    for flag in value:
        if flag == "implicit":
            raise CommandError("EINVAL", "can't create IMPLICIT endpoint")
        if flag not in FLAGS:
            raise CommandError("EINVAL", f"invalid addr flags: there are {', '.join(FLAGS)}")
    return frozenset(value)


def ip_fields(ip: bytes, prefix: str = "addr") -> dict[str, object]:
    """``addr4`` or ``addr6`` (or ``saddr4``, ...), as the kernel's attributes are called."""
    return {f"{prefix}{4 if len(ip) == 4 else 6}": format_ip(ip)}


def family(ip: bytes) -> int:
    """AF_INET or AF_INET6."""
    return 2 if len(ip) == 4 else 10
