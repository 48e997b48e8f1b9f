"""Processor time and memory of processes, their children and the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """The process and all its descendants that live."""
    found = [pid]
    for member in found:
        try:
            for children in Path(f"/proc/{member}/task").glob("*/children"):
                found += [int(child) for child in children.read_text().split()]
        except OSError:
            continue
    return found


def _seconds(pid: int) -> float:
    """Of the process and of those of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICKS


def _softirq_threads() -> list[int]:
    threads = []
    for status in Path("/proc").glob("[0-9]*/comm"):
        try:
            if status.read_text().startswith("ksoftirqd/"):
                threads.append(int(status.parent.name))
        except OSError:
            continue
    return threads


def _machine_seconds() -> float:
    """Time in which a processor of the machine was not idle."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / _TICKS


class Meter:
    """Processor seconds since its making, by name.

    ``ksoftirqd`` is what the kernel could not charge to a process, of the whole machine, like
    ``machine``: both mean little while something else runs.
    """

    def __init__(self, processes: Mapping[str, Sequence[int]]) -> None:
        self._processes = processes
        self._kernel = _softirq_threads()
        self._began = time.monotonic()
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        used = {
            name: sum(_seconds(member) for pid in pids for member in family(pid))
            for name, pids in self._processes.items()
        }
        used["ksoftirqd"] = sum(map(_seconds, self._kernel))
        used["machine"] = _machine_seconds()
        return used

    def read(self) -> dict[str, float]:
        """Seconds so far."""
        now = self._now()
        return {name: used - self._before[name] for name, used in now.items()}

    @property
    def elapsed(self) -> float:
        """Seconds of the clock so far."""
        return time.monotonic() - self._began


def private_bytes(pids: Sequence[int]) -> int:
    """Resident memory that belongs to these processes and their descendants alone."""
    total = 0
    for pid in pids:
        for member in family(pid):
            try:
                lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            for line in lines:
                if line.startswith(("Private_Clean:", "Private_Dirty:")):
                    total += int(line.split()[1]) * 1024
    return total


def kernel_bytes() -> int:
    """Slab, per-processor memory, page tables and kernel stacks of the machine."""
    names = ("Slab:", "Percpu:", "PageTables:", "KernelStack:")
    return sum(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith(names)
    )
