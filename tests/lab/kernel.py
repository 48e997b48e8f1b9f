"""The Linux kernel's MPTCP as the peer: a namespace with two addresses, counters, and a witness.

    engine ns: [our engine] t0 ── e1 ══emulated══ k1 ─┐
                                  e2 ══emulated══ k2 ─┴─ kernel ns, server address on lo

The engine has one address for each link behind its TUN; all routing follows the source address.
Nothing is offloaded on the emulated links, so that captures there show whole, final packets.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from tests.lab.capture import Capture, capturing
from tests.lab.link import Link, LinkSpec
from tests.lab.namespaces import LabError, Namespace, Namespaces
from tests.lab.topology import Configurator
from tests.lab.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
IPPROTO_MPTCP = 262
TUN = "t0"
SERVER4, SERVER6 = "10.80.0.1", "2001:db8:80::1"
PORT = 5000
# Counters that must stay at zero when two peers understand each other over loss-free links.
COMPLAINTS = (
    "MPCapableFallbackACK", "MPCapableFallbackSYNACK", "MPCapableSYNTXDrop",
    "MPCapableEndpAttempt", "MPFallbackTokenInit", "MPJoinNoTokenFound",
    "MPJoinSynAckHMacFailure", "MPJoinAckHMacFailure", "MPJoinRejected",
    "DSSNotMatching", "DSSCorruptionFallback", "DSSCorruptionReset", "InfiniteMapTx",
    "InfiniteMapRx", "DSSNoMatchTCP", "DataCsumErr", "NoDSSInWindow", "AddAddrDrop",
    "MismatchPortSynRx", "MismatchPortAckRx", "RmAddrDrop", "MPFailTx", "MPFailRx",
    "MPFastcloseTx", "MPFastcloseRx", "MPRstTx", "MPRstRx", "MPCapableDataFallback",
    "MD5SigFallback", "DssFallback", "SimultConnectFallback", "FallbackFailed", "Blackhole",
)  # fmt: skip


def engine_address(index: int, six: bool = False) -> str:
    """The engine's address on link 1 or 2."""
    return f"2001:db8:91:{index}::2" if six else f"10.91.{index}.2"


def kernel_address(index: int, six: bool = False) -> str:
    """The kernel peer's own address on link 1 or 2."""
    return f"2001:db8:81:{index}::2" if six else f"10.81.{index}.2"


def host_address(index: int, six: bool = False) -> str:
    """The address on link 1 or 2 of the kernel that the engine runs on."""
    return f"2001:db8:81:{index}::1" if six else f"10.81.{index}.1"


def counters(namespace: Namespace) -> dict[str, int]:
    """The kernel's MPTcpExt counters of a namespace, without that prefix."""
    return {
        key.removeprefix("MPTcpExt"): value
        for key, value in namespace.nstat().items()
        if key.startswith("MPTcpExt")
    }


def complaints(values: dict[str, int]) -> dict[str, int]:
    """Those counters that say that the peers did not understand each other."""
    return {name: values[name] for name in COMPLAINTS if values.get(name)}


@dataclass
class Talk:
    """What one end of one connection did."""

    received: int = 0
    digest: str = ""
    error: BaseException | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    @staticmethod
    def of(data: bytes) -> str:
        """The digest of ``data``."""
        return sha256(data).hexdigest()

    def wait(self, within: float = 60.0) -> Talk:
        """Waits for the end; raises what the end was if it was an error."""
        if not self.ended.wait(within):
            raise LabError(f"the kernel's end is not done ({self.received} bytes received)")
        if self.error is not None:
            raise self.error
        return self


def converse(sock: socket.socket, data: bytes) -> Talk:
    """In threads: sends ``data`` and ends that direction; reads to the other's end; closes."""
    talk = Talk()
    digest = sha256()
    sock.settimeout(60)

    def send() -> None:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            talk.error = talk.error or error

    def receive() -> None:
        try:
            while part := sock.recv(1 << 18):
                digest.update(part)
                talk.received += len(part)
        except OSError as error:
            talk.error = talk.error or error
        sender.join()
        talk.digest = digest.hexdigest()
        sock.close()
        talk.ended.set()

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    threading.Thread(target=receive, daemon=True).start()
    return talk


class KernelServer:
    """Listens with MPTCP (or plain TCP) and converses on every connection."""

    def __init__(
        self, namespace: Namespace, data: bytes, *, address: str = SERVER4, mptcp: bool = True
    ) -> None:
        self.talks: list[Talk] = []
        self._data = data
        protocol = IPPROTO_MPTCP if mptcp else 0
        self._listener = namespace.listen(address, PORT, protocol=protocol)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.talks.append(converse(sock, self._data))

    def talk(self, number: int = 0) -> Talk:
        """The end of connection ``number``, once there is one."""
        wait_for(lambda: len(self.talks) > number, "a connection", within=30)
        return self.talks[number].wait()

    def close(self) -> None:
        """No more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Engine:
    """``engine_peer`` in the engine's namespace."""

    def __init__(self, lab: KernelLab, *arguments: str, log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self.process = lab.engine.start(
                sys.executable, "-m", "tests.lab.engine_peer", *arguments,
                stdout=subprocess.PIPE, stderr=errors, cwd=ROOT,
            )  # fmt: skip
        assert self.process.stdout is not None
        self._output = self.process.stdout
        line = self._output.readline().decode().strip()
        if line != "ready":
            raise LabError(f"the engine did not start: {line!r}\n{log.read_text()}")

    def report(self) -> dict[str, object]:
        """The next connection's report."""
        line = self._output.readline()
        if not line:
            raise LabError(f"the engine ended without a report\n{self._log.read_text()}")
        return dict(json.loads(line))

    def finish(self, within: float = 60.0) -> None:
        """Waits for its end; LabError if that was a failure."""
        if self.process.wait(within):
            raise LabError(f"the engine failed\n{self._log.read_text()}")


class KernelLab:
    """The two namespaces and two links; see the module's picture."""

    def __init__(self, namespaces: Namespaces, specs: Sequence[LinkSpec]) -> None:
        self.namespaces = namespaces
        self.engine = namespaces.create("engine")
        self.kernel = namespaces.create("kernel")
        self.engine.sysctl("net.ipv4.ip_forward", 1)
        self.engine.sysctl("net.ipv6.conf.all.forwarding", 1)
        self.links = [
            Link(self.engine, f"e{index}", self.kernel, f"k{index}", spec)
            for index, spec in enumerate(specs, 1)
        ]
        self.engine.run("ip", "tuntap", "add", TUN, "mode", "tun", "multi_queue", "vnet_hdr")
        with Configurator(self.engine) as here, Configurator(self.kernel) as there:
            here.up(TUN)
            there.up("lo", f"{SERVER4}/32", f"{SERVER6}/128")
            for index in (1, 2):
                self._address(here, there, index)
        for index in (1, 2):
            self._route(index)
        for namespace in (self.engine, self.kernel):
            namespace.run("ip", "mptcp", "limits", "set", "subflows", "8")
            namespace.run("ip", "mptcp", "limits", "set", "add_addr_accepted", "8")

    @staticmethod
    def _address(here: Configurator, there: Configurator, index: int) -> None:
        for six, length in ((False, 24), (True, 64)):
            here.up(f"e{index}", f"{host_address(index, six)}/{length}")
            there.up(f"k{index}", f"{kernel_address(index, six)}/{length}")

    def _route(self, index: int) -> None:
        """What carries an address of link ``index`` uses that link, in both namespaces."""
        table = str(100 + index)
        for option, six in (("-4", False), ("-6", True)):
            engine, host = engine_address(index, six), host_address(index, six)
            kernel, server = kernel_address(index, six), SERVER6 if six else SERVER4
            for namespace, commands in (
                (self.engine, [
                    f"route add {engine} dev {TUN}",
                    f"route add default via {kernel} dev e{index} table {table}",
                    # To the peer's own addresses: by their links, where it expects them.
                    *(f"route add {kernel_address(other, six)} dev e{other} table {table}"
                      for other in (1, 2)),
                    f"rule add from {engine} lookup {table}",
                    f"rule add from {host} to {server} lookup {table}",
                    f"route add {server} via {kernel} dev e{index} metric {table}",
                ]),
                (self.kernel, [
                    f"route add {engine} via {host} dev k{index} metric 10",
                    f"route add {engine_address(3 - index, six)} via {host} dev k{index}"
                    " metric 200",
                    f"route add default via {host} dev k{index} table {table}",
                    f"rule add from {kernel} lookup {table}",
                ]),
            ):  # fmt: skip
                for command in commands:
                    namespace.run("ip", option, *command.split())

    def endpoint(self, namespace: Namespace, address: str, *words: str) -> None:
        """``ip mptcp endpoint add``."""
        namespace.run("ip", "mptcp", "endpoint", "add", address, *words)

    @contextmanager
    def witnessed(self, directory: Path) -> Iterator[list[Capture]]:
        """Captures both links at the kernel's end for the length of the block."""
        with ExitStack() as stack:
            yield [
                stack.enter_context(
                    capturing(self.kernel, f"k{index}", directory / f"k{index}.pcap")
                )
                for index in (1, 2)
            ]

    def settled(self, namespace: Namespace, within: float = 20.0) -> dict[str, int]:
        """The counters once no MPTCP connection is established any more."""

        def done() -> dict[str, int] | None:
            values = counters(namespace)
            return values if values["MPCurrEstab"] == 0 else None

        return wait_for(done, "all MPTCP connections are closed", within=within)


@contextmanager
def kernel_lab(*specs: LinkSpec) -> Iterator[KernelLab]:
    """The lab for the length of the block; 20 Mbit/s with 10 ms on both links by default.

    Their queues are deep: loss comes only where a test asks for it. (A subflow that still repairs
    losses when the connection is closed at data level may rightly be reset.)
    """
    with Namespaces() as namespaces:
        yield KernelLab(namespaces, specs or [LinkSpec.symmetric(20, 10, queue_ms=400)] * 2)


def silence(seconds: float) -> None:
    """Lets real time pass, where the absence of something is the point."""
    time.sleep(seconds)
