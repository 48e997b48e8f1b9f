"""Many connections from one light process: ``serve``, ``hold N`` or ``connect SECONDS``.

Run inside a namespace. A connection is: connect, one byte there, one byte back, close.
"""

from __future__ import annotations

import contextlib
import json
import resource
import selectors
import socket
import sys
import time

PORT = 7100
AT_ONCE = 64


def _prepare() -> selectors.BaseSelector:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    return selectors.DefaultSelector()


def serve(address: str) -> None:
    """Answers each byte with a byte, for ever."""
    selector = _prepare()
    listener = socket.create_server((address, PORT), backlog=4096)
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock is listener:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        incoming, _ = listener.accept()
                        incoming.setblocking(False)
                        selector.register(incoming, selectors.EVENT_READ)
                continue
            try:
                data = sock.recv(1024)
                if data:
                    sock.send(data)
                    continue
            except OSError:
                pass
            selector.unregister(sock)
            sock.close()


def hold(address: str, count: int) -> None:
    """Opens ``count`` connections, uses each once, then keeps them until stdin ends."""
    _prepare()
    socks = []
    for _ in range(count):
        sock = socket.create_connection((address, PORT), timeout=30)
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        socks.append(sock)
    print(f"held {len(socks)}", flush=True)
    sys.stdin.read()


class Storm:
    """``AT_ONCE`` connections under way at any time."""

    def __init__(self, address: str) -> None:
        self._target = (address, PORT)
        self._selector = _prepare()
        self._began: dict[socket.socket, float] = {}
        self.times: list[float] = []
        self.errors = 0

    def _open(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(self._target)
        self._began[sock] = time.monotonic()
        self._selector.register(sock, selectors.EVENT_WRITE)

    def _step(self, sock: socket.socket, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                sock.send(b"x")
                self._selector.modify(sock, selectors.EVENT_READ)
                return
            if sock.recv(16) == b"x":
                self.times.append(time.monotonic() - self._began[sock])
            else:
                self.errors += 1
        except OSError:
            self.errors += 1
        self._selector.unregister(sock)
        del self._began[sock]
        sock.close()

    def run(self, seconds: float) -> dict[str, object]:
        """Connects for that long; returns what became of it."""
        begin = time.monotonic()
        while (elapsed := time.monotonic() - begin) < seconds:
            while len(self._began) < AT_ONCE:
                self._open()
            for key, events in self._selector.select(0.1):
                assert isinstance(key.fileobj, socket.socket)
                self._step(key.fileobj, events)
        times = sorted(self.times)
        return {
            "per_second": len(times) / elapsed,
            "errors": self.errors,
            "unanswered": len(self._began),
            "median_ms": 1e3 * times[len(times) // 2] if times else None,
            "p99_ms": 1e3 * times[len(times) * 99 // 100] if times else None,
        }


def main(arguments: list[str]) -> None:
    """``storm serve|hold|connect ADDRESS [NUMBER]``."""
    verb, address = arguments[0], arguments[1]
    if verb == "serve":
        serve(address)
    elif verb == "hold":
        hold(address, int(arguments[2]))
    else:
        print(json.dumps(Storm(address).run(float(arguments[2]))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
