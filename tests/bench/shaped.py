"""Emulated links: aggregation, the cut of an uplink, small requests during bulk, the lab itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from tests.bench import native
from tests.bench.chains import OURS, Chain, standing
from tests.bench.meter import Meter
from tests.bench.report import Figure, Goal, Report
from tests.bench.streams import iperf3
from tests.lab.link import LinkSpec
from tests.lab.namespaces import LabError
from tests.lab.servers import Nginx, random_file, start_iperf3
from tests.lab.topology import SERVER4, Topology
from tests.lab.transfer import Arrivals, Download, UploadServer, upload

SIMILAR = (LinkSpec.symmetric(50, 20), LinkSpec.symmetric(20, 60))
FAST = (LinkSpec.symmetric(300, 10), LinkSpec.symmetric(80, 30))
UNEQUAL = (LinkSpec.symmetric(100, 10), LinkSpec.symmetric(10, 200))


class Transfers:
    """Files of one size to fetch and to send in one chain's lab, verified."""

    def __init__(self, chain: Chain, size: int) -> None:
        lab = chain.lab
        self._client = lab.client
        self._server = lab.server
        self._directory = lab.namespaces.directory
        self.nginx = Nginx(lab.server, self._directory)
        self._digest = self.nginx.add("file", size)
        self._file = self._directory / "upload"
        random_file(self._file, size)
        self.address = chain.target(80)[0]

    def down(self) -> Arrivals:
        """One curl down."""
        arrivals = Download(self._client, self.nginx.url("file", self.address)).finish()
        if arrivals.sha256 != self._digest:
            raise LabError(f"CORRUPT download: {arrivals.total} bytes, SHA-256 differs")
        return arrivals

    def up(self) -> Arrivals:
        """One curl up."""
        server = UploadServer(self._server, address=SERVER4)
        try:
            url = f"http://{self.address}:8080/upload"
            if upload(self._client, url, self._file) != self._digest:
                raise LabError("CORRUPT upload: SHA-256 differs")
            return server.arrivals
        finally:
            server.close()


def _capacity(links: Sequence[LinkSpec]) -> float:
    return sum(link.tcp_payload_rate for link in links)


def _mean(arrivals: Arrivals) -> float:
    return arrivals.rate(arrivals.times[0], arrivals.times[-1])


def _aggregate(
    report: Report, links: tuple[LinkSpec, ...], label: str, peers: Sequence[str]
) -> None:
    capacity = _capacity(links)
    size = int(capacity / 8 * report.seconds(10, 6))
    figures = [
        Figure(f"one flow over {label} {direction}", "% of the sum", True, Goal(95), Goal(98))
        for direction in ("down", "up")
    ]
    with standing(report.chains(OURS, *peers), *links) as chains:
        transfers = {chain.name: Transfers(chain, size) for chain in chains}

        def measure(chain: Chain) -> list[float | None]:
            both = transfers[chain.name]
            return [100 * _mean(arrivals) / capacity for arrivals in (both.down(), both.up())]

        report.interleaved(figures, chains, measure)


def aggregation(report: Report) -> None:
    """One flow over 50 Mbit/s, 20 ms + 20, 60 and over 300, 10 + 80, 30: % of what both carry."""
    _aggregate(report, SIMILAR, "50/20 + 20/60", ["shadowsocks"])
    _aggregate(report, FAST, "300/10 + 80/30", ["shadowsocks"])


def unequal(report: Report) -> None:
    """One flow over 100 Mbit/s, 10 ms + 10 Mbit/s, 200 ms: % of the fast link alone."""
    alone = UNEQUAL[0].tcp_payload_rate
    size = int(_capacity(UNEQUAL) / 8 * report.seconds(10, 6))
    figures = [
        Figure(f"one flow over 100/10 + 10/200 {direction}", "% of the fast one", True, Goal(100))
        for direction in ("down", "up")
    ]
    with (
        standing(report.chains(OURS, "shadowsocks"), *UNEQUAL) as chains,
        standing(["direct"], UNEQUAL[0]) as single,
    ):
        every = [*chains, *single]
        transfers = {chain.name: Transfers(chain, size) for chain in every}

        def measure(chain: Chain) -> list[float | None]:
            both = transfers[chain.name]
            return [100 * _mean(arrivals) / alone for arrivals in (both.down(), both.up())]

        report.interleaved(figures, every, measure)


_LOST, _BACK = 3.0, 6.0


def _cut(chain: Chain, both: Transfers, direction: str) -> tuple[Arrivals, float, float]:
    """A transfer whose first uplink is a black hole from 3 s to 6 s after its start."""
    link = chain.lab.link(1)
    moments: list[float] = []
    stop = threading.Event()

    def disturb() -> None:
        for wait, act in ((_LOST, link.cut), (_BACK - _LOST, link.restore)):
            if stop.wait(wait):
                return
            act()
            moments.append(time.monotonic())

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        arrivals = both.down() if direction == "down" else both.up()
    finally:
        stop.set()
        thread.join()
        link.restore()
    if len(moments) < 2:
        raise LabError("the transfer was over before the uplink returned")
    return arrivals, moments[0], moments[1]


def cut(report: Report) -> None:
    """Black hole of the busier uplink: the longest pause, and full use after its return."""
    capacity = _capacity(SIMILAR)
    size = int((capacity * 5 + SIMILAR[1].tcp_payload_rate * 3) / 8)
    figures = []
    for direction in ("down", "up"):
        figures += [
            Figure(f"silent cut {direction}: pause", "ms", False, Goal(300), Goal(150)),
            Figure(f"silent cut {direction}: full use after return", "s", False, Goal(2)),
        ]
    with standing(report.chains(OURS, "shadowsocks"), *SIMILAR) as chains:
        transfers = {chain.name: Transfers(chain, size) for chain in chains}

        def measure(chain: Chain) -> list[float | None]:
            values: list[float | None] = []
            for direction in ("down", "up"):
                arrivals, lost, back = _cut(chain, transfers[chain.name], direction)
                before = arrivals.rate(lost - 1, lost)
                until = min(back, arrivals.times[-1])
                values += [
                    1e3 * arrivals.longest_pause(lost, until),
                    arrivals.regained(back, 0.9 * before, window=0.5),
                ]
            return values

        report.interleaved(figures, chains, measure)


class _Bulk:
    """iperf3 in the background, for as long as the block takes."""

    def __init__(self, chain: Chain, *options: str) -> None:
        address, port = chain.target(5201)
        self._process = chain.lab.client.start(
            "iperf3", "-c", address, "-p", str(port), "-t", "60", *options
        )

    def __enter__(self) -> None:
        time.sleep(2)  # past slow start
        if self._process.poll() is not None:
            raise LabError("iperf3 ended early")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        time.sleep(1)  # what it queued drains


def request(report: Report) -> None:
    """1 kB asked for during bulk over 50/20 + 20/60 on a kept connection: p99 over idle."""
    count = int(report.seconds(100, 50))
    figures = [
        Figure("1 kB request, idle: p99", "ms", False),
        Figure("1 kB request during a download: p99 over idle", "ms", False, Goal(60), Goal(20)),
        Figure("1 kB request during an upload: p99 over idle", "ms", False, Goal(60), Goal(20)),
        Figure("1 kB request during a download: median over idle", "ms", False),
        Figure("1 kB request during an upload: median over idle", "ms", False),
    ]

    def prepare(lab: Topology) -> None:
        native.serve(lab.server)
        start_iperf3(lab.server)

    def asked(chain: Chain) -> tuple[float, float]:
        times = native.ask(
            chain.lab.client, chain.target(native.PORT), count + 1, pause=0.03, size=1000, kept=True
        )
        times = sorted(times[1:])
        return times[len(times) // 2], times[len(times) * 99 // 100 - 1]

    def measure(chain: Chain) -> list[float | None]:
        median, p99 = asked(chain)
        with _Bulk(chain, "-R"):
            down = asked(chain)
        with _Bulk(chain):
            up = asked(chain)
        return [p99, down[1] - p99, up[1] - p99, down[0] - median, up[0] - median]

    with standing(report.chains(OURS, "shadowsocks"), *SIMILAR, prepare=prepare) as chains:
        report.interleaved(figures, chains, measure)


def emulator(report: Report) -> None:
    """The lab itself: plain TCP over one emulated link: accuracy, and its own cost."""
    for mbit, rtt in ((20, 60), (50, 20), (100, 10), (300, 20)):
        spec = LinkSpec.symmetric(mbit, rtt)
        figures = [
            Figure(f"emulator {mbit} Mbit/s, {rtt} ms", "% of its rate"),
            Figure(f"emulator {mbit} Mbit/s, {rtt} ms: itself", "% of a core"),
        ]

        def measure(chain: Chain, spec: LinkSpec = spec) -> list[float | None]:
            meter = Meter({"link": [chain.lab.link(1).process.pid]})
            rate, _, _ = iperf3(chain, 4, "-R", "-O", "2")
            return [100 * rate / spec.tcp_payload_rate, 100 * meter.read()["link"] / meter.elapsed]

        with standing(["direct"], spec, prepare=lambda lab: start_iperf3(lab.server)) as chains:
            report.interleaved(figures, chains, measure, rounds=1)
