"""Aggregation, unequal links, cut and return, and one stream over unshaped links."""

from __future__ import annotations

import json
import threading
import time

from tests.bench.figure import Figure, Load, running
from tests.lab.link import LinkSpec
from tests.lab.namespaces import LabError
from tests.lab.servers import Nginx, random_file, start_iperf3
from tests.lab.topology import SERVER4, Topology, topology
from tests.lab.transfer import Arrivals, Download, UploadServer, upload

EQUALISH = (LinkSpec.symmetric(50, 20), LinkSpec.symmetric(20, 60))
UNEQUAL = (LinkSpec.symmetric(100, 10), LinkSpec.symmetric(10, 200))
SECONDS = 15


def _download(lab: Topology, size: int, name: str = "file") -> Arrivals:
    nginx = Nginx(lab.server, lab.namespaces.directory)
    digest = nginx.add(name, size)
    arrivals = Download(lab.client, nginx.url(name)).finish()
    if arrivals.sha256 != digest:
        raise LabError(f"CORRUPT: {arrivals.total} of {size} bytes, SHA-256 differs")
    return arrivals


def _upload(lab: Topology, size: int) -> Arrivals:
    server = UploadServer(lab.server)
    file = lab.namespaces.directory / "upload"
    digest = random_file(file, size)
    if upload(lab.client, server.url, file) != digest:
        raise LabError("CORRUPT: SHA-256 of the upload differs")
    return server.arrivals


def _mean(arrivals: Arrivals, skip: float = 0.0) -> float:
    begin, end = arrivals.times[0], arrivals.times[-1]
    return arrivals.rate(begin + skip, end)


def _aggregate(name: str, links: tuple[LinkSpec, ...], direction: str, target: float) -> Figure:
    capacity = sum(link.tcp_payload_rate for link in links)
    size = int(capacity / 8 * SECONDS)
    with running(*links) as (lab, both):
        load = Load(both)
        transfer = _download if direction == "down" else _upload
        arrivals = transfer(lab, size)
        shares = load.share()
    mean = _mean(arrivals)
    return Figure(
        name, 100 * mean / capacity, "% of the links' sum", target,
        detail={
            "mbit": mean / 1e6,
            "after_2s": _mean(arrivals, 2.0) / 1e6,
            "longest_pause_ms": 1e3 * arrivals.longest_pause(arrivals.times[0], arrivals.times[-1]),
            **shares,
        },
    ).show()  # fmt: skip


def aggregation() -> list[Figure]:
    """50/20 + 20/60, one curl each way: at least 90 % of the sum."""
    return [
        _aggregate("aggregation down", EQUALISH, "down", 90),
        _aggregate("aggregation up", EQUALISH, "up", 90),
    ]


def unequal() -> list[Figure]:
    """100/10 + 10/200: never below the fast link alone (plain TCP over it, measured here)."""
    fast, capacity = UNEQUAL[0], sum(link.tcp_payload_rate for link in UNEQUAL)
    size = int(capacity / 8 * SECONDS)
    figures = []
    for direction, transfer in (("down", _download), ("up", _upload)):
        with topology(fast) as lab:
            alone = _mean(transfer(lab, int(fast.tcp_payload_rate / 8 * SECONDS)))
        with running(*UNEQUAL) as (lab, both):
            load = Load(both)
            together = _mean(transfer(lab, size))
            shares = load.share()
        figures.append(
            Figure(
                f"unequal {direction}",
                100 * together / alone,
                "% of the fast link alone",
                100,
                detail={"alone_mbit": alone / 1e6, "together_mbit": together / 1e6, **shares},
            ).show()
        )
    return figures


def _cut_once(lab: Topology, direction: str, size: int) -> tuple[Arrivals, float, float]:
    """A transfer whose first uplink is a black hole from 4 s to 10 s after its start."""
    moments: list[float] = []
    stop = threading.Event()

    def disturb() -> None:
        for wait, act in ((4.0, lab.link(1).cut), (6.0, lab.link(1).restore)):
            if stop.wait(wait):
                return
            act()
            moments.append(time.monotonic())

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        arrivals = _download(lab, size) if direction == "down" else _upload(lab, size)
    finally:
        stop.set()
        thread.join()
        lab.link(1).restore()
    if len(moments) < 2:
        raise LabError("the transfer was over before the uplink returned")
    return arrivals, moments[0], moments[1]


def cut() -> list[Figure]:
    """Black hole of the busier uplink: the longest pause, and full use after its return."""
    figures = []
    capacity = sum(link.tcp_payload_rate for link in EQUALISH)
    size = int((capacity * 11 + EQUALISH[1].tcp_payload_rate * 6) / 8)
    for direction in ("down", "up"):
        with running(*EQUALISH) as (lab, _):
            arrivals, lost, returned = _cut_once(lab, direction, size)
        before = arrivals.rate(lost - 2, lost)
        again = arrivals.regained(returned, 0.9 * before, window=0.5)
        pause = arrivals.longest_pause(lost, returned)
        figures += [
            Figure(f"cut {direction}: pause", pause * 1e3, "ms", 500, "lower",
                   {"rate_while_cut_mbit": arrivals.rate(lost + 1, returned) / 1e6}).show(),
            Figure(f"cut {direction}: full use after return",
                   again if again is not None else 99.0, "s", 2, "lower",
                   {"rate_before_mbit": before / 1e6}).show(),
        ]  # fmt: skip
    return figures


def _iperf3(lab: Topology, *options: str) -> dict[str, object]:
    done = lab.client.run("iperf3", "-c", SERVER4, "-t", "8", "-O", "1", "-J", *options)
    return dict(json.loads(done.stdout)["end"])


def unshaped() -> list[Figure]:
    """Plain veth pairs as links, one iperf3 stream: at least 1.5 Gbit/s."""
    figures = []
    for direction, options in (("up", ()), ("down", ("-R",))):
        with running(None, None) as (lab, both):
            start_iperf3(lab.server)
            load = Load(both)
            end = _iperf3(lab, *options)
            shares = load.share()
        rate = end["sum_received"]["bits_per_second"]  # type: ignore[index]
        figures.append(
            Figure(f"unshaped {direction}", rate / 1e9, "Gbit/s", 1.5, detail=shares).show()
        )
    return figures


def emulator() -> list[Figure]:
    """The lab itself: plain TCP over one emulated link, no boxes; accuracy and its cost."""
    figures = []
    for mbit, rtt in ((20, 60), (50, 20), (100, 10), (300, 20)):
        spec = LinkSpec.symmetric(mbit, rtt)
        with topology(spec) as lab:
            start_iperf3(lab.server)
            began, used = time.monotonic(), lab.link(1).processor_seconds()
            end = _iperf3(lab, "-R")
            used = (lab.link(1).processor_seconds() - used) / (time.monotonic() - began)
            rate = end["sum_received"]["bits_per_second"]  # type: ignore[index]
        figures.append(
            Figure(
                f"emulator {mbit} Mbit/s {rtt} ms",
                100 * rate / spec.tcp_payload_rate,
                "% of the TCP payload it should carry",
                95,
                detail={"emulator_cpu": f"{100 * used:.0f}%"},
            ).show()
        )
    return figures
