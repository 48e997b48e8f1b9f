"""Time to first byte, memory of idle connections, connections a second."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.figure import Figure, Load, running
from tests.lab.daemons import ROOT, Daemon
from tests.lab.link import LinkSpec
from tests.lab.namespaces import LabError, Namespace
from tests.lab.servers import Nginx
from tests.lab.topology import SERVER4, Topology, topology

REQUEST = b"GET /small HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"


def _first_byte(lab: Topology) -> tuple[float, float]:
    """Seconds until connected and until the first byte of the answer."""
    begin = time.monotonic()
    with lab.client.connect(SERVER4, 80) as sock:
        connected = time.monotonic()
        sock.sendall(REQUEST)
        if not sock.recv(1):
            raise LabError("no answer")
        return connected - begin, time.monotonic() - begin


def ttfb() -> list[Figure]:
    """Through both boxes against plain forwarding, taken in turns on two equal labs."""
    links = (LinkSpec.symmetric(50, 20), LinkSpec.symmetric(20, 60))
    with topology(*links) as direct, running(*links) as (proxied, _):
        labs = {"direct": direct, "proxied": proxied}
        for lab in labs.values():
            Nginx(lab.server, lab.namespaces.directory).add("small", 1000)
            for _ in range(5):
                _first_byte(lab)
        connects: dict[str, list[float]] = {name: [] for name in labs}
        firsts: dict[str, list[float]] = {name: [] for name in labs}
        for _ in range(100):
            for name, lab in labs.items():
                connect, first = _first_byte(lab)
                connects[name].append(connect * 1e3)
                firsts[name].append(first * 1e3)
    medians = {name: statistics.median(values) for name, values in firsts.items()}
    extra = medians["proxied"] - medians["direct"]
    detail: dict[str, object] = {f"{name}_ms": value for name, value in medians.items()}
    detail |= {f"connect_{name}_ms": statistics.median(v) for name, v in connects.items()}
    detail["proxied_p90_ms"] = statistics.quantiles(firsts["proxied"], n=10)[-1]
    detail["direct_p90_ms"] = statistics.quantiles(firsts["direct"], n=10)[-1]
    return [Figure("time to first byte: extra", extra, "ms", 2, "lower", detail).show()]


def _storm(namespace: Namespace, *words: str) -> subprocess.Popen[bytes]:
    return namespace.start(
        sys.executable, "-m", "tests.bench.storm", *words,
        stdin=subprocess.PIPE, stderr=None, cwd=ROOT,
    )  # fmt: skip


def _line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().decode().strip()
    if not line:
        raise LabError(f"storm ended with {process.wait()}")
    return line


def _resident(box: Daemon) -> int:
    for line in Path(f"/proc/{box.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise LabError("no VmRSS")


def idle() -> list[Figure]:
    """1,000 connections that were used once and lie idle: at most 60 KB each, per box."""
    count = 1000
    figures = []
    with running(None, None) as (lab, both):
        _line(_storm(lab.server, "serve", SERVER4))
        warm = _storm(lab.client, "hold", SERVER4, "5")
        _line(warm)
        before = {box.role: (_resident(box), box.memory()) for box in both}
        began = time.monotonic()
        held = _storm(lab.client, "hold", SERVER4, str(count))
        _line(held)
        opened = time.monotonic() - began
        time.sleep(3)  # joins complete, buffers are given back
        load = Load(both)
        time.sleep(3)
        shares = load.share()
        for box in both:
            resident, own = before[box.role]
            figures.append(
                Figure(
                    f"idle connections: memory at the {box.role}",
                    (_resident(box) - resident) / count / 1024,
                    "KB each",
                    60,
                    "lower",
                    {
                        "own_kb": (box.memory() - own) / count / 1024,
                        "idle_cpu": shares,
                        "opened_per_second": count / opened,
                    },
                ).show()
            )
        for process in (warm, held):
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    return figures


def rate() -> list[Figure]:
    """New connections a second, each with one byte there and back; 64 at once."""
    with running(None, None) as (lab, both):
        _line(_storm(lab.server, "serve", SERVER4))
        load = Load(both)
        result = json.loads(_line(_storm(lab.client, "connect", SERVER4, "6")))
        shares = load.share()
    value = float(result.pop("per_second"))
    return [Figure("connections", value, "a second", 500, detail={**result, **shares}).show()]
