"""Opening connections: how many a second, and how soon the first byte is there."""

from __future__ import annotations

import statistics

from tests.bench import native
from tests.bench.chains import OURS, Chain, standing
from tests.bench.meter import Meter
from tests.bench.report import Figure, Goal, Report

_PEERS = ("shadowsocks", "socat", "haproxy")
_SIZE = 1000


def rate(report: Report) -> None:
    """New connections a second, 1 kB each, 64 at once, over unshaped links."""
    seconds = report.seconds(4, 2)
    figures = [
        Figure("new connections of 1 kB", "a second", True, Goal(2000), Goal(4500)),
        Figure("new connections: CPU of both boxes", "us each", False),
        Figure("new connections: p99", "ms", False),
    ]

    def measure(chain: Chain) -> list[float | None]:
        meter = Meter(chain.processes)
        result = native.storm(chain.lab.client, chain.target(native.PORT), seconds, _SIZE)
        used = meter.read()
        used.pop("machine")
        count = result["connections"]
        each = 1e6 * sum(used.values()) / count if count and chain.processes else None
        return [count / result["seconds"], each, result["p99_ms"]]

    names = report.chains(OURS, *_PEERS)
    with standing(names, None, None, prepare=lambda lab: native.serve(lab.server)) as chains:
        report.interleaved(figures, chains, measure)


def ttfb(report: Report) -> None:
    """Time until the first byte of 1 kB of a new connection, added to plain forwarding."""
    count = int(report.seconds(100, 40))
    figure = Figure("first byte of 1 kB", "ms", False)

    def measure(chain: Chain) -> list[float | None]:
        target = chain.target(native.PORT)
        times = native.ask(chain.lab.client, target, count, pause=0.01, size=_SIZE, kept=False)
        return [statistics.median(times)]

    names = report.chains(OURS, *_PEERS)
    with standing(
        [*names, "direct"], None, None, prepare=lambda lab: native.serve(lab.server)
    ) as chains:
        report.interleaved([figure], chains, measure)
    added = Figure("first byte of 1 kB, added", "ms", False, Goal(0.8), Goal(0.3))
    for name in names:
        for value, direct in zip(figure.samples[name], figure.samples["direct"], strict=True):
            added.add(name, value - direct)
    report.figures.append(added)
