"""Emulated links: rate, delay, jitter, loss, queue, cut and return between two namespaces.

The work is done by ``linkemu.c``, one process a link, because two directions of 25,000 packets a
second must leave the processors to the boxes under test. It is compiled on first use.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.lab.middlebox import NO_BOX, Middlebox
from tests.lab.namespaces import LabError, Namespace

SOURCES = [Path(__file__).with_name(name) for name in ("linkemu.c", "middlebox.c", "middlebox.h")]
BUILD = Path(__file__).resolve().parents[2] / "build" / "lab"


def build_emulator() -> Path:
    """Compiles the emulator unless that was done for this source; returns its path."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in SOURCES)).hexdigest()[:16]
    binary = BUILD / f"linkemu-{digest}"
    if binary.exists():
        return binary
    BUILD.mkdir(parents=True, exist_ok=True)
    partial = BUILD / f"{binary.name}.{os.getpid()}.{threading.get_ident()}"
    done = subprocess.run(
        [
            os.environ.get("CC", "cc"), "-O2", "-Wall", "-o", str(partial),
            *(str(file) for file in SOURCES if file.suffix == ".c"),
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    if done.returncode:
        raise LabError(f"the link emulator does not compile:\n{done.stderr}")
    partial.rename(binary)
    return binary


@dataclass(frozen=True)
class Shape:
    """One direction of a link.

    ``rate`` in bits of IP packets a second (0: unlimited); ``delay`` and ``jitter`` in seconds, one
    way; ``loss`` as a probability; ``queue`` in bytes (0: unlimited), drop-tail; ``queue_packets``
    likewise; ``max_packet``: larger IP packets vanish (0: any passes), with ``icmp`` their sender
    is told; ``no_syn_data``: SYNs with payload vanish, as some middleboxes have it; ``box``: what
    else a middlebox does.
    """

    rate: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    queue: int = 0
    queue_packets: int = 0
    max_packet: int = 0
    reorder: bool = False
    icmp: bool = False
    no_syn_data: bool = False
    seed: int = 1
    box: Middlebox = NO_BOX

    def words(self) -> dict[str, str]:
        """Keys and values in the emulator's command language."""
        return {
            "rate": f"{round(self.rate)}",
            "delay": f"{round(self.delay * 1e9)}",
            "jitter": f"{round(self.jitter * 1e9)}",
            "loss": f"{self.loss:.9f}",
            "queue_bytes": f"{self.queue}",
            "queue_packets": f"{self.queue_packets}",
            "mtu": f"{self.max_packet}",
            "icmp": f"{int(self.icmp)}",
            "reorder": f"{int(self.reorder)}",
            "no_syn_data": f"{int(self.no_syn_data)}",
            "seed": f"{self.seed}",
            **self.box.words(),
        }


@dataclass(frozen=True)
class LinkSpec:
    """A link between a router (uplink side) and the gateway.

    ``down`` is the way towards the router, ``up`` the way towards the gateway. ``gro``: both ends
    merge what arrives back to back, as a NIC with GRO does.
    """

    down: Shape
    up: Shape
    mtu: int = 1500
    gro: bool = False

    @classmethod
    def symmetric(
        cls,
        mbit: float,
        rtt_ms: float,
        *,
        queue_ms: float | None = None,
        mtu: int = 1500,
        gro: bool = False,
        **shape: Any,
    ) -> LinkSpec:
        """Equal rate both ways and half the round trip each way.

        The queue holds ``queue_ms`` at the link's rate; by default one round trip, at least 20 ms
        (a bandwidth-delay product, the classic router's buffer).
        """
        held = max(rtt_ms, 20.0) if queue_ms is None else queue_ms
        queue = max(int(mbit * 1e6 / 8 * held / 1e3), 4 * mtu)
        one = Shape(rate=mbit * 1e6, delay=rtt_ms / 2e3, queue=queue, **shape)
        return cls(down=one, up=replace(one, seed=one.seed + 1000), mtu=mtu, gro=gro)

    @property
    def tcp_payload_rate(self) -> float:
        """Bits a second of TCP payload downstream: IPv4 and TCP with timestamps taken off."""
        return self.down.rate * (self.mtu - 52) / self.mtu


class Link:
    """A running emulated link between ``a`` (uplink side) and ``b`` (gateway side).

    ``up`` is the direction a to b. The devices exist as soon as this is made and vanish with
    ``close``; addresses and routes are the caller's.
    """

    def __init__(
        self, a: Namespace, a_name: str, b: Namespace, b_name: str, spec: LinkSpec
    ) -> None:
        self.spec = spec
        self.names = (a_name, b_name)
        argv = [str(build_emulator()), a.path, a_name, b.path, b_name]
        self._lock = threading.Lock()
        self.process = a.start(
            *argv,
            *(["gro"] if spec.gro else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
        )
        if self._answer() != "ready":
            raise LabError("the link emulator did not start")
        for namespace, name in ((a, a_name), (b, b_name)):
            namespace.run("ip", "link", "set", name, "mtu", str(spec.mtu), "txqueuelen", "10000")
            if spec.gro:
                # What NAPI delivers waits this long for more of the same flow (nanoseconds).
                with namespace.entered():
                    _set_gro(namespace, name)
            namespace.run("ip", "link", "set", name, "up")
        self._words = {"ab": Shape(seed=0).words(), "ba": Shape(seed=0).words()}
        self.shape(up=spec.up, down=spec.down)

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def _ask(self, command: str) -> str:
        with self._lock:
            assert self.process.stdin is not None
            try:
                self.process.stdin.write(command.encode() + b"\n")
                self.process.stdin.flush()
                answer = self._answer()
            except (BrokenPipeError, ValueError) as error:
                raise LabError(f"link {self.names}: the emulator is gone") from error
        if not answer or answer.startswith("error"):
            raise LabError(f"link {self.names}: {command!r}: {answer or 'no answer'}")
        return answer

    def shape(self, *, up: Shape | None = None, down: Shape | None = None) -> None:
        """Changes the link at run time; what is under way keeps its time of arrival."""
        if up is not None:
            self._set("ab", up)
            self.spec = replace(self.spec, up=up)
        if down is not None:
            self._set("ba", down)
            self.spec = replace(self.spec, down=down)

    def _set(self, direction: str, shape: Shape) -> None:
        # A seed begins its row anew even if it is the same, counts only if their key changes.
        words, before = shape.words(), self._words[direction]
        self._words[direction] = words
        changed = [f"{k}={v}" for k, v in words.items() if v != before[k] or k == "seed"]
        self._ask(f"set {direction} {' '.join(changed)}")

    def set(self, **changes: Any) -> None:
        """Changes fields of both directions' ``Shape``, for example ``set(rate=10e6)``."""
        self.shape(up=replace(self.spec.up, **changes), down=replace(self.spec.down, **changes))

    def cut(self, direction: str = "both") -> None:
        """Black hole: everything vanishes, nobody is told. ``up``, ``down`` or ``both``."""
        self._ask(f"cut {_DIRECTIONS[direction]}")

    def restore(self, direction: str = "both") -> None:
        """The end of ``cut``."""
        self._ask(f"restore {_DIRECTIONS[direction]}")

    def reset(self, direction: str = "both") -> None:
        """A RST that will be believed goes into every flow a middlebox has seen, that way."""
        self._ask(f"rst {_DIRECTIONS[direction]}")

    def statistics(self, *, reset: bool = False) -> dict[str, dict[str, Any]]:
        """Counters of the directions ``up`` and ``down``."""
        answer = json.loads(self._ask("stats reset" if reset else "stats"))
        return {"up": answer["ab"], "down": answer["ba"]}

    def processor_seconds(self) -> float:
        """Processor time that the emulator has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """Ends the link; its devices vanish."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=5)


_DIRECTIONS = {"up": "ab", "down": "ba", "both": "both"}


def _set_gro(namespace: Namespace, name: str) -> None:
    settings = f"/sys/class/net/{name}"
    namespace.run("sh", "-c", f"echo 100000 > {settings}/gro_flush_timeout")
    namespace.run("ethtool", "-K", name, "gro", "on")
