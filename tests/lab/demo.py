"""``make demo``: one ordinary download over two uplinks, and the cut of one in the middle of it.

Everything runs in network namespaces of its own and is gone afterwards. curl and nginx are the
real ones and know nothing of all this. Exit status: 0 if every byte arrived, 1 if not.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from tests.lab.daemons import UPLINK_NAMES, Boxes
from tests.lab.demo_screen import Reading, Screen, mbit, percent, table
from tests.lab.link import LinkSpec
from tests.lab.namespaces import LabError
from tests.lab.servers import Nginx, TcpServer
from tests.lab.topology import CLIENT4, SERVER4, Topology, topology, uplink_address
from tests.lab.transfer import Arrivals, Download

LINKS = (LinkSpec.symmetric(50, 20), LinkSpec.symmetric(20, 60))
ALONE_SECONDS = 6
TOGETHER_SECONDS = 13
BEFORE_CUT, WHILE_CUT, AFTER_CUT = 4.0, 6.0, 6.0
REFRESH = 0.25
IN_USER_NAMESPACE = "MPTCP_PROXY_DEMO_NAMESPACE"


@dataclass
class Result:
    """One download and what was seen of it."""

    arrivals: Arrivals
    whole: bool
    received: list[int] = field(default_factory=list)  # bytes at the proxy's uplinks
    cut_at: float = 0.0
    returned_at: float = 0.0

    @property
    def rate(self) -> float:
        """Mean bit/s from the first byte to the last."""
        times = self.arrivals.times
        return self.arrivals.total * 8 / (times[-1] - times[0]) if len(times) > 1 else 0.0


class Content:
    """A file of random bytes of which the first n are asked for, their SHA-256 known."""

    def __init__(self, path: Path, sizes: list[int]) -> None:
        source, digest, written = Random(8684), sha256(), 0
        self.digests: dict[int, str] = {}
        with path.open("wb") as file:
            for size in sorted(sizes):
                while written < size:
                    chunk = source.randbytes(min(size - written, 1 << 20))
                    file.write(chunk)
                    digest.update(chunk)
                    written += len(chunk)
                self.digests[size] = digest.hexdigest()


def serve_ranges(path: Path, sock: socket.socket) -> None:
    """A web server in a few lines, where there is no nginx: GET with ``Range: bytes=0-N``."""
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(65536)
    match = re.search(rb"(?i)range: bytes=0-(\d+)", head)
    size = int(match[1]) + 1 if match else path.stat().st_size
    sock.sendall(b"HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\n\r\n" % size)
    with path.open("rb") as file:
        sock.sendfile(file, 0, size)


class Meter:
    """Per-uplink rates and round trip times, as the two daemons tell them."""

    def __init__(self, lab: Topology, boxes: Boxes | None, only: int | None) -> None:
        self._lab = lab
        self._boxes = boxes
        self._only = only
        self._base = self._counts()
        self._most = [0 for _ in lab.indices]
        self._last = (time.monotonic(), self.received())
        self._rates = [0.0 for _ in lab.indices]

    def received(self) -> list[int]:
        """Bytes that came in by each uplink since this meter was made.

        Never falls: what a subflow that is closing has carried may be missing for a while.
        """
        since = [now - then for now, then in zip(self._counts(), self._base, strict=True)]
        self._most = [max(pair) for pair in zip(self._most, since, strict=True)]
        return self._most

    def _counts(self) -> list[int]:
        """Payload as the daemon counts it, or the kernel without one."""
        if self._boxes is None:
            counts = (
                self._lab.proxy.interface_bytes(f"u{index}")[0] for index in self._lab.indices
            )
            # Ethernet, IPv4 and TCP headers taken off.
            return [count * 1448 // 1514 for count in counts]
        uplinks = self._boxes.proxy.query("status")["uplinks"]
        by_name = {uplink["name"]: int(uplink["bytes_received"]) for uplink in uplinks}
        return [by_name[UPLINK_NAMES[index - 1]] for index in self._lab.indices]

    def _round_trips(self) -> dict[int, float]:
        """Seconds by uplink, as the sender of the data measures them."""
        if self._boxes is None:
            text = self._lab.server.run("ss", "-Htin", "dst", CLIENT4, check=False).stdout
            times = [float(ms) for ms in re.findall(r"\brtt:([\d.]+)/", text)]
            return {self._only: times[-1] / 1e3} if times and self._only else {}
        found: dict[int, float] = {}
        for connection in self._boxes.gateway.query("status")["connections"]:
            for subflow in connection["subflows"]:
                index = self._uplink_of(subflow)
                if index and subflow["srtt"] and subflow["state"].lower().startswith("estab"):
                    found[index] = float(subflow["srtt"])
        return found

    def _uplink_of(self, subflow: dict[str, Any]) -> int | None:
        for index in self._lab.indices:
            if uplink_address(index) in subflow["remote"]:
                return index
        return None

    def read(self, notes: dict[int, str]) -> list[Reading]:
        """The state now; rates are smoothed over a second or so."""
        now, received = time.monotonic(), self.received()
        then, before = self._last
        self._last = (now, received)
        trips = self._round_trips()
        readings = []
        for position, index in enumerate(self._lab.indices):
            rate = (received[position] - before[position]) * 8 / max(now - then, 1e-3)
            self._rates[position] += 0.4 * (rate - self._rates[position])
            if self._only in (None, index):
                name, capacity = UPLINK_NAMES[position], LINKS[position].tcp_payload_rate
                readings.append(
                    Reading(name, self._rates[position], trips.get(index), capacity,
                            notes.get(index, ""))
                )  # fmt: skip
        return readings


class Demo:
    """The parts of the demo, in order."""

    def __init__(self, lab: Topology, screen: Screen) -> None:
        self.lab = lab
        self.screen = screen
        self.capacities = [spec.tcp_payload_rate for spec in LINKS]
        self.problems: list[str] = []
        together = sum(self.capacities)
        cut_load = together * (BEFORE_CUT + AFTER_CUT) + self.capacities[1] * WHILE_CUT
        self.sizes = {
            "alone1": round(self.capacities[0] / 8 * ALONE_SECONDS),
            "alone2": round(self.capacities[1] / 8 * ALONE_SECONDS),
            "together": round(together / 8 * TOGETHER_SECONDS),
            "cut": round(cut_load / 8),
        }
        self._serve(lab.namespaces.directory)

    def _serve(self, directory: Path) -> None:
        sizes = list(self.sizes.values())
        if shutil.which("nginx"):
            nginx = Nginx(self.lab.server, directory)
            self.content = Content(nginx.root / "film", sizes)
            self.server_name = "nginx"
        else:
            path = directory / "film"
            self.content = Content(path, sizes)
            self._own = TcpServer(self.lab.server, lambda s: serve_ranges(path, s), port=80)
            self.server_name = "a small web server"
        self.url = f"http://{SERVER4}/film"

    def download(
        self,
        part: str,
        boxes: Boxes | None = None,
        *,
        only: int | None = None,
        while_running: Callable[[Result, dict[int, str]], str] | None = None,
    ) -> Result:
        """One curl from start to end, shown while it runs."""
        size = self.sizes[part]
        meter = Meter(self.lab, boxes, only)
        download = Download(self.lab.client, self.url, "-r", f"0-{size - 1}")
        result = Result(download.arrivals, whole=False)
        notes: dict[int, str] = {}
        deadline = time.monotonic() + 60
        while download.running and time.monotonic() < deadline:
            label = while_running(result, notes) if while_running else ""
            elapsed = time.monotonic() - download.arrivals.started
            self.screen.progress(elapsed, meter.read(notes), label)
            time.sleep(REFRESH)
        try:
            arrivals = download.finish(1.0)
            result.whole = arrivals.sha256 == self.content.digests[size]
            if not result.whole:
                self.problems.append(f"{part}: SHA-256 differs, {arrivals.total} of {size} bytes")
        except LabError as error:
            self.problems.append(f"{part}: {error}")
        result.received = meter.received()
        verdict = "SHA-256 equal" if result.whole else "NOT WHOLE"
        self.screen.say(
            f"  {download.arrivals.total / 1e6:.1f} MB, {mbit(result.rate).strip()}, {verdict}"
        )
        return result

    def alone(self, index: int) -> Result:
        """An uplink by itself: plain TCP, neither box running."""
        name, spec = UPLINK_NAMES[index - 1], LINKS[index - 1]
        self.screen.heading(
            f"{name} alone: {spec.down.rate / 1e6:.0f} Mbit/s, {spec.down.delay * 2e3:.0f} ms;"
            " plain TCP, no proxy"
        )
        self.lab.direct_via(index)
        return self.download(f"alone{index}", only=index)

    def together(self, boxes: Boxes) -> Result:
        """Both uplinks, one download."""
        self.screen.heading("both together: the same curl, now through proxy and gateway")
        return self.download("together", boxes)

    def cut(self, boxes: Boxes) -> Result:
        """The faster uplink becomes a black hole in the middle and returns."""
        name = UPLINK_NAMES[0]
        self.screen.heading(
            f"cut: {name} becomes a black hole after {BEFORE_CUT:.0f} s and returns"
            f" {WHILE_CUT:.0f} s later"
        )

        def disturb(result: Result, notes: dict[int, str]) -> str:
            now = time.monotonic()
            age = now - result.arrivals.started
            if not result.cut_at and age >= BEFORE_CUT:
                self.lab.link(1).cut()
                result.cut_at = time.monotonic()
                notes[1] = "CUT"
            elif result.cut_at and not result.returned_at and now - result.cut_at >= WHILE_CUT:
                self.lab.link(1).restore()
                result.returned_at = time.monotonic()
                notes[1] = "back"
            return ""

        try:
            return self.download("cut", boxes, while_running=disturb)
        finally:
            self.lab.link(1).restore()

    def summary(self, alone: list[Result], together: Result, cut: Result) -> None:
        """The closing table."""
        whole = sum(self.capacities)
        rows = [["", "rate", "of what the links carry", "share of the download"]]
        for index, result in enumerate(alone):
            rows.append(
                [f"{UPLINK_NAMES[index]} alone", mbit(result.rate),
                 percent(result.rate, self.capacities[index]), ""]
            )  # fmt: skip
        rows.append(["both together", mbit(together.rate), percent(together.rate, whole), "100 %"])
        carried = sum(together.received)
        for index, received in enumerate(together.received):
            rate = together.rate * received / carried if carried else 0.0
            rows.append(
                [f"  of that {UPLINK_NAMES[index]}", mbit(rate),
                 percent(rate, self.capacities[index]), percent(received, carried)]
            )  # fmt: skip
            if received == 0:
                self.problems.append(f"{UPLINK_NAMES[index]} carried nothing")
        self.screen.heading("result (rates are TCP payload)")
        for line in table(rows):
            self.screen.say(line)
        self._cut_summary(cut)

    def _cut_summary(self, cut: Result) -> None:
        arrivals = cut.arrivals
        if not cut.cut_at or not cut.returned_at or not arrivals.times:
            self.problems.append("the download was over before the cut and return")
            return
        pause = arrivals.longest_pause(cut.cut_at, cut.returned_at)
        during = arrivals.rate(cut.cut_at + 1, cut.returned_at)
        before = arrivals.rate(cut.cut_at - 2, cut.cut_at)
        again = arrivals.regained(cut.returned_at, 0.9 * before, window=0.5)
        self.screen.say()
        self.screen.say(f"  longest pause at the cut  {pause * 1e3:6.0f} ms")
        self.screen.say(f"  rate while cut            {mbit(during)}")
        text = f"{again * 1e3:6.0f} ms" if again is not None else "     not seen"
        self.screen.say(f"  full use after return     {text}")


def run(screen: Screen) -> int:
    """The whole demo; returns the exit status."""
    build = ", ".join(
        f"{UPLINK_NAMES[n]} {spec.down.rate / 1e6:.0f} Mbit/s {spec.down.delay * 2e3:.0f} ms"
        for n, spec in enumerate(LINKS)
    )
    with topology(*LINKS) as lab:
        demo = Demo(lab, screen)
        screen.say(f"client ── proxy ══ {build} ══ gateway ── {demo.server_name}")
        alone = [demo.alone(index) for index in lab.indices]
        boxes = Boxes(lab)
        try:
            boxes.start()
            for box in boxes:
                screen.say(f"  {box.role}: {box.ready_line}")
            together = demo.together(boxes)
            cut = demo.cut(boxes)
            demo.summary(alone, together, cut)
            boxes.stop()
        except (LabError, OSError) as error:
            demo.problems.append(str(error))
            screen.say(boxes.logs()[-4000:])
    screen.say()
    for problem in demo.problems:
        screen.say(f"FAILED: {problem}")
    if not demo.problems:
        screen.say("every byte arrived; nothing was left behind")
    return 1 if demo.problems else 0


def become_root() -> None:
    """Without root: a user namespace if it may use TUN devices, else sudo. Returns only as root."""
    if os.geteuid() == 0:
        return
    command = [sys.executable, "-m", "tests.lab.demo"]
    namespace = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    usable = os.access("/dev/net/tun", os.R_OK | os.W_OK) and not os.environ.get(IN_USER_NAMESPACE)
    # /run is hidden behind an empty one: `ip netns` and the daemons keep their files there.
    prepare = 'mount -t tmpfs tmpfs /run && exec "$@"'
    if usable and subprocess.run([*namespace, "true"], stderr=subprocess.DEVNULL).returncode == 0:
        os.environ[IN_USER_NAMESPACE] = "1"
        os.execvp(namespace[0], [*namespace, "sh", "-c", prepare, "sh", *command])
    if shutil.which("sudo"):
        print("network namespaces need root here (no access to /dev/net/tun): asking sudo")
        os.execvp("sudo", ["sudo", *command])
    sys.exit("the demo needs root, or /dev/net/tun and user namespaces open to this user")


def main() -> int:
    """Entry point of ``make demo``."""
    become_root()
    missing = [name for name in ("ip", "nft", "curl", "cc") if shutil.which(name) is None]
    if missing:
        print(f"not installed: {', '.join(missing)}; run: make setup", file=sys.stderr)
        return 1
    try:
        return run(Screen())
    except LabError as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; all is taken down")
        return 130


if __name__ == "__main__":
    sys.exit(main())
