"""Captures with tcpdump, judged by tshark."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.namespaces import LabError, Namespace
from tests.lab.waiting import wait_for

# An expert item that says our bytes are wrong: malformed or undecodable data, a bad checksum.
# (Severity "error" also stands for these; a RST or a retransmission is a note or a warning.)
FAULTS = (
    "_ws.malformed || tcp.checksum.status == 0 || ip.checksum.status == 0"
    " || _ws.expert.severity == error"
)
# Checksums are only judged when told to; captures end within connections, hence no reassembly.
PREFERENCES = (
    "tcp.check_checksum:TRUE",
    "ip.check_checksum:TRUE",
    "tcp.desegment_tcp_streams:FALSE",
    "mptcp.analyze_mptcp:TRUE",
    "mptcp.relative_sequence_numbers:FALSE",
)


class Capture:
    """A running tcpdump of one interface. ``close`` it before asking what it saw."""

    def __init__(
        self, namespace: Namespace, interface: str, file: Path, filter_: str = "tcp"
    ) -> None:
        self.file = file
        self._process = namespace.start(
            "tcpdump", "--immediate-mode", "-i", interface, "-w", str(file), "-U", "-s", "0",
            "-B", "16384", filter_,
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._process.stderr is not None
        line = ""
        while "listening on" not in line:
            line = self._process.stderr.readline().decode()
            if not line:
                raise LabError(f"tcpdump on {interface} did not start")

    def close(self) -> None:
        """Ends it; what has passed so far is in the file."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(10)

    def count(self, display_filter: str) -> int:
        """Packets in the finished capture that match a display filter."""
        return len(self.fields(display_filter, "frame.number"))

    def fields(self, display_filter: str, *names: str) -> list[list[str]]:
        """The named fields of each packet that matches."""
        options = [word for preference in PREFERENCES for word in ("-o", preference)]
        # Payload is nobody's protocol here, whatever it looks like to a heuristic.
        options += ["-d", "tcp.port==1-65535,data"]
        wanted = [word for name in names for word in ("-e", name)]
        done = subprocess.run(
            ["tshark", "-n", "-r", str(self.file), *options, "-Y", display_filter, "-T", "fields",
             *wanted],
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        if done.returncode:
            raise LabError(f"tshark: {done.stderr.strip()}")
        return [line.split("\t") for line in done.stdout.splitlines()]

    def faults(self) -> list[str]:
        """One line for each packet that tshark finds malformed or whose checksum is wrong."""
        names = ("frame.number", "_ws.col.Info", "_ws.expert.message", "tcp.checksum.status")
        found = [" | ".join(values) for values in self.fields(FAULTS, *names)]
        # The kernel writes a sum of zero as its other form; both are right (RFC 1624 §3).
        return [line for line in found if "0xffff instead of 0x0000" not in line]


@contextmanager
def capturing(
    namespace: Namespace, interface: str, file: Path, filter_: str = "tcp"
) -> Iterator[Capture]:
    """A capture for the length of the block; judge it after the block."""
    capture = Capture(namespace, interface, file, filter_)
    try:
        yield capture
    finally:
        # What has passed is on its way into the file: wait until that rests.
        sizes: list[int] = []

        def rests() -> bool:
            sizes.append(file.stat().st_size)
            return len(sizes) > 5 and len(set(sizes[-5:])) == 1

        wait_for(rests, "the capture is written", within=10, every=0.05)
        capture.close()


def no_offload(namespace: Namespace, interface: str) -> None:
    """Real packets on the wire: checksums complete, none larger than the MTU."""
    namespace.run("ethtool", "-K", interface, "tx", "off", "tso", "off", "gso", "off", "gro", "off")
