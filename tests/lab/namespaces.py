"""Network namespaces with names of their own per run, and processes and sockets inside them."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import re
import socket as sockets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tests.lab import reaper

PREFIX = "mplab"
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


class LabError(Exception):
    """The lab could not be built or a command in it failed."""


def setns(fd: int) -> None:
    """Moves the calling thread into the network namespace that ``fd`` refers to."""
    if _LIBC.setns(fd, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise LabError(f"setns: {os.strerror(error)}")


def _started_at(pid: int) -> float | None:
    """Unix time at which the process started, None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        boot = next(
            int(line.split()[1])
            for line in Path("/proc/stat").read_text().splitlines()
            if line.startswith("btime")
        )
    except OSError:
        return None
    return boot + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def clean_stale() -> list[str]:
    """Removes the namespaces of earlier runs whose process is dead; returns their names."""
    removed = []
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(reaper.NETNS_DIR)):
            match = re.match(rf"{PREFIX}(\d+)[a-z]*-", name)
            if match is None:
                continue
            started = _started_at(int(match[1]))
            made = os.stat(f"{reaper.NETNS_DIR}/{name}").st_ctime
            # A process that started after the namespace was made only inherited the number.
            if started is None or started > made + 2:
                reaper.remove_namespace(name)
                removed.append(name)
    return removed


class Namespace:
    """One network namespace; made by ``Namespaces.create``."""

    def __init__(self, label: str, name: str, owner: Namespaces) -> None:
        self.label = label
        self.name = name
        self.path = f"{reaper.NETNS_DIR}/{name}"
        self._owner = owner
        self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Gives the handle back; the namespace itself goes with ``Namespaces.close``."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in this namespace for the length of the block."""
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(self._fd)
            yield
        finally:
            setns(back)
            os.close(back)

    def socket(
        self, family: int = sockets.AF_INET, kind: int = sockets.SOCK_STREAM, protocol: int = 0
    ) -> sockets.socket:
        """A socket that lives in this namespace, usable from here."""
        with self.entered():
            return sockets.socket(family, kind, protocol)

    def connect(
        self, address: str, port: int, *, timeout: float = 10.0, protocol: int = 0
    ) -> sockets.socket:
        """A TCP socket of this namespace, connected to ``address`` (v4 or v6)."""
        family = sockets.AF_INET6 if ":" in address else sockets.AF_INET
        sock = self.socket(family, protocol=protocol)
        try:
            sock.settimeout(timeout)
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def listen(
        self, address: str, port: int = 0, *, backlog: int = 4096, protocol: int = 0
    ) -> sockets.socket:
        """A TCP listener of this namespace on ``address`` (v4 or v6)."""
        family = sockets.AF_INET6 if ":" in address else sockets.AF_INET
        sock = self.socket(family, protocol=protocol)
        sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(backlog)
        return sock

    def command(self, argv: Sequence[str]) -> list[str]:
        """``argv`` as it is run inside (``ip netns exec`` also gives it a /sys of its own)."""
        return ["ip", "netns", "exec", self.name, *argv]

    def run(
        self, *argv: str, check: bool = True, timeout: float = 60.0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end; a LabError with its output if it fails and ``check``."""
        done = subprocess.run(
            self.command(argv), capture_output=True, text=True, timeout=timeout, input=stdin
        )
        if check and done.returncode:
            raise LabError(
                f"{self.label}: {' '.join(argv)}: exit {done.returncode}\n"
                f"{done.stdout}{done.stderr}"
            )
        return done

    def start(
        self,
        *argv: str,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = subprocess.PIPE,
        stderr: int | IO[Any] | None = subprocess.STDOUT,
        env: dict[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts a command that the lab's end will kill if nobody else has."""
        process = subprocess.Popen(
            self.command(argv), stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd
        )
        self._owner.adopt(process)
        return process

    def sysctl(self, key: str, value: str | int) -> None:
        """Writes a ``net.*`` sysctl of this namespace (dots or slashes)."""
        with self.entered():
            Path("/proc/sys", key if "/" in key else key.replace(".", "/")).write_text(str(value))

    def interface_bytes(self, name: str) -> tuple[int, int]:
        """(received, sent) bytes of an interface since it was made; (0, 0) if it is not there."""
        with self.entered():
            lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        for line in lines:
            device, _, figures = line.partition(":")
            if device.strip() == name:
                fields = figures.split()
                return int(fields[0]), int(fields[8])
        return 0, 0

    def nstat(self) -> dict[str, int]:
        """The kernel's MIB counters of this namespace: TcpExt, MPTcpExt, Tcp, Ip, Ip6, ..."""
        counters: dict[str, int] = {}
        with self.entered():
            for file in ("netstat", "snmp"):
                lines = Path("/proc/thread-self/net", file).read_text().splitlines()
                for names, values in zip(lines[::2], lines[1::2], strict=True):
                    group, _, rest = names.partition(":")
                    numbers = values.partition(":")[2].split()
                    for key, number in zip(rest.split(), numbers, strict=True):
                        counters[f"{group}{key}"] = int(number)
            for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines():
                name, number = line.split()
                counters[name] = int(number)
        return counters


class Namespaces:
    """All namespaces, processes and files of one lab; a context manager.

    They go when the block ends, at the interpreter's exit, and, through the reaper process,
    when this process is killed.
    """

    _count = 0
    _lock = threading.Lock()

    def __init__(self) -> None:
        clean_stale()
        with Namespaces._lock:
            suffix = "abcdefghijklmnopqrstuvwxyz"[Namespaces._count % 26]
            Namespaces._count += 1
        self._prefix = f"{PREFIX}{os.getpid()}{suffix}-"
        self._members: dict[str, Namespace] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._reaper = subprocess.Popen(
            [sys.executable, "-S", "-E", reaper.__file__], stdin=subprocess.PIPE, text=True
        )
        self.directory = Path(tempfile.mkdtemp(prefix=self._prefix))
        self.directory.chmod(0o755)  # servers that give up root read their files here
        self._tell(f"dir {self.directory}")
        self._closed = False
        atexit.register(self.close)

    def __enter__(self) -> Namespaces:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, label: str) -> Namespace:
        return self._members[label]

    def __iter__(self) -> Iterator[Namespace]:
        return iter(self._members.values())

    def _tell(self, line: str) -> None:
        assert self._reaper.stdin is not None
        self._reaper.stdin.write(line + "\n")
        self._reaper.stdin.flush()

    def adopt(self, process: subprocess.Popen[bytes]) -> None:
        """The process is killed at the end if it still runs."""
        self._processes.append(process)

    def create(self, label: str) -> Namespace:
        """Makes a namespace, with its loopback up."""
        name = self._prefix + label
        self._tell(f"ns {name}")
        done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"ip netns add {name}: {done.stderr.strip()}")
        namespace = Namespace(label, name, self)
        self._members[label] = namespace
        # A new namespace copies the host's IPv4 settings, and a host with Docker on it forwards.
        namespace.sysctl("net.ipv4.ip_forward", 0)
        namespace.run("ip", "link", "set", "lo", "up")
        namespace.sysctl("net.ipv4.ping_group_range", "0 0")  # echoes without a raw socket
        return namespace

    def close(self) -> None:
        """Kills and removes everything; may be called again."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for namespace in self._members.values():
            namespace.close()
        assert self._reaper.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._reaper.stdin.close()
        self._reaper.wait()
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
