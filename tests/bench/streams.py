"""Bulk over unshaped links: rates and processor time; MTU-sized packets at a fixed rate."""

from __future__ import annotations

import json

from tests.bench.chains import OURS, Chain, standing
from tests.bench.meter import Meter
from tests.bench.report import Figure, Goal, Report
from tests.lab.link import LinkSpec
from tests.lab.servers import start_iperf3
from tests.lab.topology import Topology

_IPERF3 = 5201
_PEERS = ("shadowsocks", "socat", "haproxy")


def _server(lab: Topology) -> None:
    start_iperf3(lab.server, port=_IPERF3)


def iperf3(chain: Chain, seconds: float, *options: str) -> tuple[float, float, Meter]:
    """Payload in bits a second and in bytes, and what the boxes used for it."""
    address, port = chain.target(_IPERF3)
    meter = Meter(chain.processes)
    done = chain.lab.client.run(
        "iperf3", "-c", address, "-p", str(port), "-t", f"{seconds:.0f}", "-J", *options
    )
    received = json.loads(done.stdout)["end"]["sum_received"]
    return float(received["bits_per_second"]), float(received["bytes"]), meter


def _rates(report: Report, label: str, streams: int, aim: Goal) -> None:
    seconds = report.seconds(3, 2)
    figures = []
    for direction in ("down", "up"):
        figures += [
            Figure(f"{label} {direction}", "Gbit/s", True, Goal(1.0, "shadowsocks"), aim),
            Figure(
                f"{label} {direction}: CPU of both boxes", "s/GB", False,
                Goal(1.0, "shadowsocks"), Goal(0.6, "shadowsocks"),
            ),
            Figure(f"{label} {direction}: CPU of all", "s/GB", False),
        ]  # fmt: skip

    def measure(chain: Chain) -> list[float | None]:
        values: list[float | None] = []
        for direction in ("-R",), ():
            rate, size, meter = iperf3(chain, seconds, "-P", str(streams), *direction)
            used = meter.read()
            machine = used.pop("machine")
            gigabytes = size / 1e9
            boxes = sum(used.values()) / gigabytes if chain.processes else None
            values += [rate / 1e9, boxes, machine / gigabytes]
        return values

    names = report.chains(OURS, *_PEERS, "direct")
    with standing(names, None, None, prepare=_server) as chains:
        report.interleaved(figures, chains, measure)


def stream(report: Report) -> None:
    """One stream over unshaped links, down and up, and processor time per GB."""
    _rates(report, "one stream", 1, Goal(1.0, "haproxy"))


def streams(report: Report) -> None:
    """Eight streams over unshaped links, down and up, and processor time per GB."""
    _rates(report, "8 streams", 8, Goal(1.6, "shadowsocks"))


def packets(report: Report) -> None:
    """300 Mbit/s of MTU-sized packets, never merged: share of one core, by box."""
    seconds = report.seconds(4, 2)
    figures = [
        Figure(f"300 Mbit/s of MTU packets {direction}: {role}", "% of a core", False,
               Goal(60), Goal(30))
        for direction in ("down", "up")
        for role in ("proxy", "gateway")
    ]  # fmt: skip

    def measure(chain: Chain) -> list[float | None]:
        values: list[float | None] = []
        for direction in ("-R",), ():
            rate, _, meter = iperf3(chain, seconds, *direction)
            used, elapsed = meter.read(), meter.elapsed
            # Of a rate a little lower or higher than asked for: as much as for the rate.
            scale = 100 * 300e6 / rate
            values += [scale * used[role] / elapsed for role in ("proxy", "gateway")]
        return values

    names = report.chains(OURS, "shadowsocks", "socat")
    with standing(names, LinkSpec.symmetric(310, 10), prepare=_server) as chains:
        report.interleaved(figures, chains, measure)
