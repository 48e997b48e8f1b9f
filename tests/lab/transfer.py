"""Downloads and uploads by real curl, with a record of when which bytes arrived."""

from __future__ import annotations

import bisect
import itertools
import socket
import subprocess
import threading
import time
from hashlib import sha256
from pathlib import Path

from tests.lab.namespaces import LabError, Namespace
from tests.lab.servers import TcpServer
from tests.lab.topology import SERVER4


class Arrivals:
    """When how many bytes had arrived, with their SHA-256."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.times: list[float] = []
        self.totals: list[int] = []
        self._digest = sha256()

    def add(self, chunk: bytes) -> None:
        """A chunk has arrived now."""
        self._digest.update(chunk)
        self.totals.append(self.total + len(chunk))
        self.times.append(time.monotonic())

    @property
    def total(self) -> int:
        """Bytes so far."""
        return self.totals[-1] if self.totals else 0

    @property
    def sha256(self) -> str:
        """Of all bytes so far."""
        return self._digest.hexdigest()

    def at(self, moment: float) -> int:
        """Bytes that had arrived by then (monotonic time)."""
        index = bisect.bisect_right(self.times, moment)
        return self.totals[index - 1] if index else 0

    def rate(self, since: float, until: float) -> float:
        """Mean bits a second between two moments."""
        return (self.at(until) - self.at(since)) * 8 / (until - since)

    def longest_pause(self, since: float, until: float) -> float:
        """Longest time in seconds between two arrivals; the ends of the span count as such."""
        inside = self.times[
            bisect.bisect_left(self.times, since) : bisect.bisect_right(self.times, until)
        ]
        marks = [since, *inside, until]
        return max(later - earlier for earlier, later in itertools.pairwise(marks))

    def regained(self, since: float, rate: float, window: float = 0.25) -> float | None:
        """Seconds after ``since`` until ``rate`` (bit/s) holds over a window; None if never."""
        end = self.times[-1] if self.times else since
        moment = since
        while moment + window <= end:
            if self.rate(moment, moment + window) >= rate:
                return moment - since
            moment += 0.02
        return None


class Download:
    """A curl in a namespace whose output is read, hashed and timed as it comes."""

    def __init__(self, namespace: Namespace, url: str, *options: str) -> None:
        self.arrivals = Arrivals()
        self.process = namespace.start("curl", "-sS", "-N", *options, url, stderr=subprocess.PIPE)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        descriptor = self.process.stdout
        while chunk := descriptor.read1(1 << 18):  # type: ignore[attr-defined]
            self.arrivals.add(chunk)

    @property
    def running(self) -> bool:
        """Not at its end yet."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ends it early."""
        self.process.kill()
        self._thread.join()
        self.process.wait()

    def finish(self, within: float = 120.0) -> Arrivals:
        """Waits for its end; LabError if curl failed or is not done in time."""
        self._thread.join(within)
        if self._thread.is_alive():
            self.stop()
            raise LabError(f"curl: {self.arrivals.total} bytes and not done within {within} s")
        status = self.process.wait()
        assert self.process.stderr is not None
        error = self.process.stderr.read().decode().strip()
        if status:
            raise LabError(f"curl: exit {status}: {error} ({self.arrivals.total} bytes)")
        return self.arrivals


class UploadServer:
    """Takes HTTP PUTs in the server's namespace and times what arrives."""

    def __init__(self, namespace: Namespace, *, address: str = SERVER4, port: int = 8080) -> None:
        self.arrivals = Arrivals()
        self._server = TcpServer(namespace, self._take, address=address, port=port)
        host = f"[{address}]" if ":" in address else address
        self.url = f"http://{host}:{self._server.port}/upload"

    def _take(self, sock: socket.socket) -> int:
        head = b""
        while b"\r\n\r\n" not in head:
            part = sock.recv(1 << 16)
            if not part:
                raise LabError("the request ended within its head")
            head += part
        head, _, body = head.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:])
        if fields.get("expect") == "100-continue":
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        left, arrivals = int(fields["content-length"]), Arrivals()
        self.arrivals = arrivals
        if body:
            arrivals.add(body)
        while arrivals.total < left:
            part = sock.recv(1 << 18)
            if not part:
                raise LabError(f"the upload ended after {arrivals.total} of {left} bytes")
            arrivals.add(part)
        text = arrivals.sha256.encode()
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
        return left

    def close(self) -> None:
        """No more uploads."""
        self._server.close()


def upload(namespace: Namespace, url: str, file: Path, *, timeout: float = 120) -> str:
    """PUTs a file with curl; returns the server's answer."""
    return namespace.run("curl", "-sS", "-T", str(file), url, timeout=timeout).stdout.strip()
