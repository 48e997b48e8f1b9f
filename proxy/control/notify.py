"""Tells systemd how the service is doing (sd_notify(3), the protocol over NOTIFY_SOCKET)."""

from __future__ import annotations

import os
import socket
import time


def send(state: str) -> bool:
    """Send ``state`` (lines of ``KEY=value``); False if nobody listens. Never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.send(state.encode())
    except OSError:
        return False
    return True


def ready(status: str = "") -> bool:
    """The service has started; ``status`` is a line for ``systemctl status``."""
    return send(f"READY=1\nSTATUS={status}\n" if status else "READY=1\n")


def reloading() -> bool:
    """The service reads its configuration again; ``ready`` ends that."""
    return send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\n")


def stopping() -> bool:
    """The service has begun to stop."""
    return send("STOPPING=1\n")
