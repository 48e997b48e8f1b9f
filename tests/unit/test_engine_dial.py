"""A connection attempt to a server that cannot even begin is a failure told later, not a raise."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from proxy.engine.runtime_poll import SocketPoll
from proxy.engine.runtime_socket import Dial, KernelStream
from proxy.wire.address import Address

SERVER = Address(bytes((127, 0, 0, 1)), 9)


def _no_descriptor(*_: object) -> socket.socket:
    raise OSError(errno.EMFILE, "Too many open files")


def _dial(monkeypatch: pytest.MonkeyPatch, *, cancel: bool) -> list[tuple[object, int]]:
    told: list[tuple[object, int]] = []

    def done(stream: KernelStream | None, code: int) -> None:
        told.append((stream, code))

    async def attempt() -> None:
        loop = asyncio.get_running_loop()
        with monkeypatch.context() as patched:
            patched.setattr("proxy.engine.runtime_socket.socket.socket", _no_descriptor)
            dial = Dial(loop, SocketPoll(), SERVER, done, lambda stream: None)
        assert told == []  # the caller has not even got the object yet
        if cancel:
            dial.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(attempt())
    return told


def test_shortage_of_descriptors_is_told_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _dial(monkeypatch, cancel=False) == [(None, errno.EMFILE)]


def test_cancelled_attempt_is_silent_though_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _dial(monkeypatch, cancel=True) == []
