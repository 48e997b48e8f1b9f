"""What a capture tells of a packet, as words and as pcapng."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any, BinaryIO

from proxy.cli.packet_text import PacketText, packet_text
from proxy.tun.pcap import INBOUND, OUTBOUND, PcapWriter


def text_of(event: dict[str, Any]) -> PacketText:
    """An event ``packet`` in words: what the packet says, then what the daemon knows of it."""
    data = base64.b64decode(event["data"])
    text = packet_text(data, event["length"])
    return PacketText(text.line, (*text.mptcp, *_known(event)))


class CaptureFile:
    """Writes events ``packet`` to a pcapng file, an interface for each name."""

    def __init__(self, file: BinaryIO, interfaces: Iterable[str]) -> None:
        self._file = file
        self._writer = PcapWriter(file)
        self._numbers = {name: self._writer.interface(name) for name in interfaces}
        file.flush()

    def write(self, event: dict[str, Any]) -> None:
        """One packet, with what it says in words as its comment."""
        name = event["interface"]
        number = self._numbers.get(name)
        if number is None:  # an uplink that came with a reload
            number = self._numbers[name] = self._writer.interface(name)
        self._writer.packet(
            number,
            base64.b64decode(event["data"]),
            event["time"],
            INBOUND if event["direction"] == "in" else OUTBOUND,
            length=event["length"],
            comment="; ".join(text_of(event).mptcp),
        )
        self._file.flush()


def _known(event: dict[str, Any]) -> Iterable[str]:
    if "gso-size" in event:
        yield f"super-segment for segments of {event['gso-size']} bytes"
    if "token" in event:
        yield f"connection {event['token']}"
    if "scheduler" in event:
        yield f"scheduled by {event['scheduler']}: {event['interface']}"
