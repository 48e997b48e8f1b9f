"""Sysctls that are set for a while, with their old values kept where a crash cannot lose them."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from proxy.errors import DeviceError

__all__ = ["STATE_DIRECTORY", "RoleTakenError", "StateFile", "Sysctls", "read_sysctl"]

log = logging.getLogger(__name__)

STATE_DIRECTORY = Path("/run/mptcp-proxy")
_ROOT = Path("/proc/sys")
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h, since 5.14


def read_sysctl(name: str) -> str | None:
    """The value of ``net/ipv4/ip_forward``; None when the kernel has no such sysctl."""
    try:
        return (_ROOT / name).read_text().strip()
    except OSError:
        return None


class RoleTakenError(DeviceError):
    """A process that is alive has the role."""


class StateFile:
    """What a start changed, for the next start: one file per role and network namespace.

    The lock beside it is held while the role runs and goes with the process, however that ends.
    """

    def __init__(self, role: str, directory: Path = STATE_DIRECTORY) -> None:
        self._role = role
        self._directory = directory
        self._path = directory / f"{role}.{_namespace()}.json"
        self._lock_path = self._path.with_suffix(".lock")
        self._lock = -1

    def lock(self) -> None:
        """Claim the role in this namespace. Idempotent. Raises RoleTakenError, DeviceError."""
        while self._lock < 0:
            try:
                self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
                descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise DeviceError(f"{self._lock_path}: {error.strerror}") from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                message = f"another mptcp-proxy runs as {self._role} in this network namespace"
                raise RoleTakenError(f"{message} ({self._lock_path})") from None
            if _same_file(descriptor, self._lock_path):
                self._lock = descriptor
            else:  # the former owner removed it between our open and our lock
                os.close(descriptor)

    def exists(self) -> bool:
        """Whether a process has the role, or had it and could not give it back."""
        return self._lock_path.exists()

    def unlock(self) -> None:
        """Give the role back and remove the files. Idempotent."""
        if self._lock >= 0:
            self._path.unlink(missing_ok=True)
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def load(self) -> list[tuple[str, str, str]]:
        """(name, old, new) of every change that was not taken back, oldest first."""
        try:
            state = json.loads(self._path.read_text())
            if state["boot"] != _boot():
                return []
            return [(str(name), str(old), str(new)) for name, old, new in state["sysctls"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: not readable, old sysctls stay as they are: %s", self._path, error)
            return []

    def save(self, changes: list[tuple[str, str, str]]) -> None:
        """Replace what ``load`` gives. Raises DeviceError."""
        text = json.dumps({"boot": _boot(), "sysctls": changes})
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(text)
            fresh.replace(self._path)
        except OSError as error:
            raise DeviceError(f"{self._path}: {error.strerror}") from None


class Sysctls:
    """Sets sysctls and puts them back."""

    def __init__(self, state: StateFile) -> None:
        self._state = state
        self._changes: list[tuple[str, str, str]] = []

    def recover(self) -> None:
        """Take over what an earlier process changed and did not restore."""
        self._changes = self._state.load()

    def changed(self, name: str) -> bool:
        """Whether ``name`` differs from the operator's value because of us."""
        return any(name == changed for changed, _, _ in self._changes)

    def set(self, name: str, value: str) -> bool:
        """Set ``net/...`` to ``value``; True if that changed it.

        The old value is on record before the new one is written. Raises DeviceError.
        """
        old = read_sysctl(name)
        if old is None:
            raise DeviceError(f"sysctl {_dotted(name)}: the kernel has no such setting")
        if old == value:
            return False
        self.remember(name, value)
        write_sysctl(name, value)
        return True

    def remember(self, name: str, value: str) -> None:
        """Put the present value on record, when something else will change it to ``value``."""
        old = read_sysctl(name)
        if old is not None and old != value and not self.changed(name):
            self._changes.append((name, old, value))
            self._state.save(self._changes)

    def release(self, unwanted: Callable[[str], bool]) -> None:
        """Put the old values of those that are ``unwanted`` back, and forget them."""
        kept = [change for change in self._changes if not unwanted(change[0])]
        if len(kept) == len(self._changes):
            return
        released = [change for change in self._changes if change not in kept]
        _put_back(released)
        self._changes = kept
        self._state.save(kept)

    def restore(self) -> None:
        """Put every old value back, the last change first, unless somebody changed it since."""
        _put_back(self._changes)
        self._changes.clear()


def _put_back(changes: list[tuple[str, str, str]]) -> None:
    for name, old, new in reversed(changes):
        if read_sysctl(name) != new:
            continue  # gone with its interface, or the operator's own choice meanwhile
        try:
            write_sysctl(name, old)
        except DeviceError as error:
            log.warning("%s", error)


def write_sysctl(name: str, value: str) -> None:
    """Set without keeping the old value: for what belongs to our own device. Raises DeviceError.

    What is right already is not written: a container's /proc/sys may be read-only.
    """
    if read_sysctl(name) == value:
        return
    try:
        (_ROOT / name).write_text(value)
    except OSError as error:
        raise DeviceError(f"sysctl {_dotted(name)} = {value}: {error.strerror}") from None


def _dotted(name: str) -> str:
    return name.replace(".", "\0").replace("/", ".").replace("\0", "/")


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _namespace() -> str:
    """A number that this network namespace has and no other since the boot had."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            cookie = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
            return str(int.from_bytes(cookie, "little"))
        except OSError:
            return str(os.stat("/proc/thread-self/ns/net").st_ino)
