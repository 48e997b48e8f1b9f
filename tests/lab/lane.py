"""One lane of the matrix: two namespaces, two links, an engine at either side, many cells.

    near ns: [engine] t0 ── e1 ══box══ k1 ─┐
                            e2 ══════ k2 ──┴─ far ns: the kernel, and [engine] t0

The near side is always the engine. The far side is the kernel's MPTCP or a second engine.
"""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.lab.cells import (
    COALESCED_MTU,
    EngineEnd,
    EngineProcess,
    KernelEnd,
    Progress,
)
from tests.lab.kernel import (
    IPPROTO_MPTCP,
    TUN,
    KernelLab,
    engine_address,
    kernel_address,
)
from tests.lab.link import LinkSpec
from tests.lab.namespaces import LabError, Namespace, Namespaces
from tests.lab.topology import Configurator
from tests.lab.waiting import wait_for

SPEC = LinkSpec.symmetric(100, 4, queue_ms=200)
SIZE = 600_000
GATE, SECOND_GATE = SIZE // 2, SIZE * 3 // 4


def far_address(index: int, six: bool) -> str:
    """The far engine's address; both links lead to the first, link 2 to the second."""
    return f"2001:db8:92:{index}::2" if six else f"10.92.{index}.2"


class Lane:
    """Runs one cell after the other; ``close`` takes it down."""

    def __init__(self, directory: Path) -> None:
        self.namespaces = Namespaces()
        try:
            self.lab = KernelLab(self.namespaces, [SPEC, SPEC])
            self._prepare_far()
            self.near = EngineProcess(self.lab.engine, TUN, directory / "near.log")
            self.far = EngineProcess(self.lab.kernel, TUN, directory / "far.log")
            for namespace in (self.lab.engine, self.lab.kernel):
                namespace.run("ip", "link", "set", TUN, "mtu", str(COALESCED_MTU))
        except BaseException:
            self.namespaces.close()
            raise
        self.links = self.lab.links
        self._ports = itertools.count(20000)

    def _prepare_far(self) -> None:
        kernel = self.lab.kernel
        for key, value in (
            ("net.ipv4.ip_forward", 1),
            ("net.ipv6.conf.all.forwarding", 1),
            ("net.mptcp.close_timeout", 2),
            ("net.mptcp.blackhole_timeout", 0),
            ("net.mptcp.syn_retrans_before_tcp_fallback", 0),
            ("net.ipv4.tcp_mtu_probing", 1),
            ("net.ipv4.tcp_retries1", 1),
            ("net.ipv4.tcp_no_metrics_save", 1),
        ):
            kernel.sysctl(key, value)
        kernel.run("ip", "tuntap", "add", TUN, "mode", "tun", "multi_queue", "vnet_hdr")
        with Configurator(kernel) as there:
            there.up(TUN)
        for six in (False, True):
            for index in (1, 2):
                address, option = far_address(index, six), "-6" if six else "-4"
                kernel.run("ip", option, "route", "add", address, "dev", TUN)
            self._route_announced(six)

    def _route_announced(self, six: bool) -> None:
        """To and from the second far address by link 2 alone: a join to it is a second path."""
        far, option = far_address(2, six), "-6" if six else "-4"
        self.lab.engine.run(
            "ip", option, "route", "add", far, "via", kernel_address(2, six), "dev", "e2",
            "table", "101",
        )  # fmt: skip
        self.lab.kernel.run("ip", option, "rule", "add", "from", far, "lookup", "102")

    def close(self) -> None:
        """Takes everything down."""
        self.namespaces.close()

    # -- ends -----------------------------------------------------------------------------------

    def engine_end(
        self, process: EngineProcess, *, far: bool, six: bool, role: str, port: int, remote: str,
        checksum: bool, endpoints: str,
    ) -> EngineEnd:  # fmt: skip
        """The engine of one side as one end of a cell."""
        address = far_address if far else engine_address
        words: dict[str, Any] = {
            "locals": [address(1, six), address(2, six)],
            "role": role, "port": port, "remote": remote, "checksum": checksum,
            "endpoints": endpoints, "size": SIZE, "gate": GATE,
            "mine": "far" if far else "near", "theirs": "near" if far else "far",
        }  # fmt: skip
        return EngineEnd(process, words)

    def kernel_end(
        self, *, six: bool, role: str, port: int, remote: str, checksum: bool, endpoints: str
    ) -> KernelEnd:
        """A kernel socket as the far end; a listener accepts one connection."""
        kernel = self.lab.kernel
        kernel.sysctl("net.mptcp.checksum_enabled", int(checksum))
        if endpoints:
            self.lab.endpoint(kernel, kernel_address(2, six), "dev", "k2", endpoints)
        end = KernelEnd(Progress(SIZE, GATE, "far", "near"))
        if role == "connect":
            end.run(kernel.connect(remote, port, protocol=IPPROTO_MPTCP, timeout=20))
            return end
        listener = kernel.listen("::" if six else "0.0.0.0", port, protocol=IPPROTO_MPTCP)
        end.accept(listener)
        return end

    def next_port(self) -> int:
        """Each cell has its own: what an earlier one left never meets a listener."""
        return next(self._ports)

    # -- between cells ----------------------------------------------------------------------------

    def heal(self) -> None:
        """The links as they were."""
        for link in self.links:
            link.restore()
            link.shape(up=SPEC.up, down=SPEC.down)

    def hush(self) -> None:
        """Waits until the kernel has no connection left, having killed what there is."""
        kernel = self.lab.kernel
        kernel.run("ip", "mptcp", "endpoint", "flush")
        if not _connections(kernel):
            return
        # In silence: a RST of a dying connection must not be counted by the next cell.
        deadline = time.monotonic() + 1.0
        while _connections(kernel) and time.monotonic() < deadline:
            time.sleep(0.01)
        if _connections(kernel):
            kernel.run("ss", "-K", "-t", "-a", "state", "connected", check=False)
        wait_for(lambda: not _connections(kernel), "the kernel's connections are gone")

    def flush_routes(self) -> None:
        """No path MTU is remembered."""
        for namespace in (self.lab.engine, self.lab.kernel):
            for option in ("-4", "-6"):
                with suppress(LabError):
                    namespace.run("ip", option, "route", "flush", "cache")


def _connections(namespace: Namespace) -> int:
    """TCP sockets that are neither listening nor in TIME-WAIT."""
    count = 0
    with namespace.entered():
        for name in ("tcp", "tcp6"):
            lines = Path("/proc/thread-self/net", name).read_text().splitlines()[1:]
            count += sum(line.split()[3] not in ("06", "0A") for line in lines)
    return count
