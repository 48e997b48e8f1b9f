"""Clears up after a lab whose process died without doing so (also by SIGKILL).

Runs as a process of its own: reads ``ns NAME`` and ``dir PATH`` lines; when its stdin ends, the
processes in those namespaces are killed, and the namespaces and directories removed.
Depends on the standard library alone, so that it starts quickly and stays small.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

NETNS_DIR = "/run/netns"


def processes_in(name: str) -> list[int]:
    """Process ids whose network namespace is ``name`` (they are ours: so is the namespace)."""
    try:
        wanted = os.stat(f"{NETNS_DIR}/{name}").st_ino
    except OSError:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/net").st_ino == wanted:
                    found.append(int(entry))
    return found


def kill_processes_in(name: str, patience: float = 2.0) -> None:
    """Kills every process in the namespace and waits until they are gone."""
    deadline = time.monotonic() + patience
    while pids := processes_in(name):
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def remove_namespace(name: str) -> None:
    """Kills what runs in the namespace and deletes it; no error if it is not there."""
    if not os.path.exists(f"{NETNS_DIR}/{name}"):
        return
    kill_processes_in(name)
    subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)


def main() -> None:
    """Follows stdin to its end, then clears up."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    registered: list[tuple[str, str]] = []
    for line in sys.stdin:
        kind, _, what = line.strip().partition(" ")
        registered.append((kind, what))
    for kind, what in reversed(registered):
        if kind == "ns":
            remove_namespace(what)
    for kind, what in registered:
        if kind == "dir":
            shutil.rmtree(what, ignore_errors=True)


if __name__ == "__main__":
    main()
