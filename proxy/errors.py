"""The errors of mptcp-proxy, one class per way to react."""

from __future__ import annotations


class MptcpProxyError(Exception):
    """Base of all errors that this package raises on purpose."""


class CodecError(MptcpProxyError):
    """Bytes from the network do not parse: drop the packet or option and count it."""


class LocalProtocolError(MptcpProxyError):
    """Our own caller broke a rule of the protocol: a bug on this side."""


class RemoteProtocolError(MptcpProxyError):
    """The peer broke a rule of the protocol.

    ``reason`` is the MP_TCPRST reason code (RFC 8684 §3.6) to answer with.
    """

    def __init__(self, message: str, reason: int = 0) -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(MptcpProxyError):
    """A configuration key is unknown, missing or has a bad value.

    ``path`` names the key as the operator wrote it, for example ``uplink[1].next_hop``.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class DeviceError(MptcpProxyError):
    """A TUN device, route, rule or nft table could not be set up or failed while running."""
