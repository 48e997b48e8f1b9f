"""The load generator ``load.c``: compiled on first use, run in namespaces, its answers parsed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.lab.namespaces import LabError, Namespace
from tests.lab.topology import SERVER4

SOURCE = Path(__file__).with_name("load.c")
BUILD = Path(__file__).resolve().parents[2] / "build" / "bench"
PORT = 7200


def _program() -> str:
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    binary = BUILD / f"load-{digest}"
    if not binary.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        partial = BUILD / f"{binary.name}.{os.getpid()}"
        argv = [os.environ.get("CC", "cc"), "-O2", "-Wall", "-o", str(partial), str(SOURCE)]
        done = subprocess.run(argv, capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"the load generator does not compile:\n{done.stderr}")
        partial.rename(binary)
    return str(binary)


def _line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().decode().strip()
    if not line:
        raise LabError(f"the load generator ended with {process.wait()}")
    return line


def serve(namespace: Namespace) -> subprocess.Popen[bytes]:
    """A server that answers each request with as many bytes as it asks for."""
    process = namespace.start(_program(), "serve", SERVER4, str(PORT), stderr=None)
    if _line(process) != "ready":
        raise LabError("the load server does not listen")
    return process


Target = tuple[str, int]


def storm(namespace: Namespace, target: Target, seconds: float, size: int) -> dict[str, Any]:
    """Connections, 64 at any time, each with one request of ``size`` bytes."""
    words = [_program(), "connect", target[0], str(target[1]), str(seconds), "64", str(size)]
    return dict(json.loads(namespace.run(*words, timeout=seconds + 60).stdout))


def ask(
    namespace: Namespace, target: Target, count: int, *, pause: float, size: int, kept: bool
) -> list[float]:
    """Requests one after the other; milliseconds until the first byte of each answer.

    Over one ``kept`` connection (its opening is part of the first), or over a new one each.
    ``pause``: seconds after each.
    """
    words = [
        _program(), "ask", target[0], str(target[1]), str(count), str(pause * 1e3), str(size),
        "kept" if kept else "new",
    ]  # fmt: skip
    return list(json.loads(namespace.run(*words, timeout=120).stdout)["ms"])


class Held:
    """Connections that are open, were used once, and can be kept busy."""

    def __init__(self, namespace: Namespace, target: Target, count: int) -> None:
        words = [_program(), "hold", target[0], str(target[1]), str(count), "64"]
        self._process = namespace.start(*words, stdin=subprocess.PIPE, stderr=None)
        self.opening = self._result()
        if self.opening["held"] < count:
            raise LabError(f"{self.opening['held']} of {count} connections were opened")

    def _result(self) -> dict[str, Any]:
        return dict(json.loads(_line(self._process)))

    def busy(self, count: int, seconds: float, size: int) -> dict[str, Any]:
        """Keeps the first ``count`` asking for ``size`` bytes again and again."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(f"busy {count} {seconds} {size}\n".encode())
        stdin.flush()
        return self._result()

    def close(self) -> None:
        """Closes all of them."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
