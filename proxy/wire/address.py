"""IP addresses as packed bytes, and an address with its port."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

IpAddress = bytes  # packed: 4 bytes (IPv4) or 16 bytes (IPv6)


def format_ip(ip: bytes) -> str:
    """The usual text of a packed address; ValueError if it is not 4 or 16 bytes long."""
    return str(ipaddress.ip_address(ip))


def parse_ip(text: str) -> bytes:
    """The packed address of ``text`` (no name, no port, no zone); ValueError if it is none."""
    return ipaddress.ip_address(text).packed


class Address(NamedTuple):
    """An address and a port (0..65535)."""

    ip: bytes
    port: int

    @property
    def is_v6(self) -> bool:
        """True for IPv6."""
        return len(self.ip) == 16

    def __str__(self) -> str:
        text = format_ip(self.ip)
        return f"[{text}]:{self.port}" if len(self.ip) == 16 else f"{text}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads ``1.2.3.4:80`` or ``[::1]:80``; ValueError for anything else."""
        host, separator, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{text!r} is not an address with a port")
        ip = parse_ip(host[1:-1] if bracketed else host)
        if bracketed != (len(ip) == 16):
            raise ValueError(f"{text!r} is not an address with a port")
        return cls(ip, int(port))
