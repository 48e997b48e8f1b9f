"""Measuring tools that need no program on the machine: echo round trips and paced UDP trains."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

from tests.lab.namespaces import LabError, Namespace


def round_trips(
    namespace: Namespace, address: str, *, count: int = 10, interval: float = 0.02
) -> list[float]:
    """Round trip times in seconds of ICMP echoes that were answered within two seconds."""
    six = ":" in address
    family = socket.AF_INET6 if six else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    found = []
    with namespace.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(2.0)
        sock.connect((address, 0))
        for number in range(count):
            sent = time.monotonic()
            sock.send(struct.pack("!BBHHH", 128 if six else 8, 0, 0, 0, number) + b"lab" * 8)
            while True:
                try:
                    answer = sock.recv(2048)
                except (TimeoutError, OSError):
                    break
                if struct.unpack_from("!H", answer, 6)[0] == number:
                    found.append(time.monotonic() - sent)
                    break
            time.sleep(interval)
    return found


def reachable(namespace: Namespace, address: str, *, within: float = 10.0) -> None:
    """Waits until ``address`` answers an echo; LabError if it does not."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if round_trips(namespace, address, count=1, interval=0):
            return
    raise LabError(f"{namespace.label}: {address} does not answer")


def flood(
    sender: Namespace, address: str, port: int, *, seconds: float, size: int, rate: float
) -> int:
    """Sends UDP datagrams of ``size`` payload bytes at ``rate`` bit/s; returns how many."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sent, payload = 0, b"\0" * size
    with sender.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        begin = time.monotonic()
        while (elapsed := time.monotonic() - begin) < seconds:
            due = int(elapsed * rate / 8 / size) + 1
            while sent < due:
                # An ICMP error of an earlier one, or a full queue.
                with contextlib.suppress(OSError):
                    sock.send(payload)
                sent += 1
            time.sleep(0.0005)
    return sent
