"""One worker in each box beside two."""

from __future__ import annotations

from tests.bench import native
from tests.bench.chains import OURS, TWO_WORKERS, Chain, standing
from tests.bench.meter import Meter
from tests.bench.report import Figure, Report
from tests.bench.streams import iperf3
from tests.lab.servers import start_iperf3
from tests.lab.topology import Topology

_IPERF3 = 5201


def _servers(lab: Topology) -> None:
    start_iperf3(lab.server, port=_IPERF3)
    native.serve(lab.server)


def workers(report: Report) -> None:
    """One and two workers: 1 and 8 streams down, new connections, processor time of each."""
    seconds = report.seconds(3, 2)
    figures = []
    for streams in (1, 8):
        figures += [
            Figure(f"{streams} streams down", "Gbit/s", True),
            Figure(f"{streams} streams down: CPU of both boxes", "s/GB", False),
        ]
    figures += [
        Figure("new connections of 1 kB", "a second", True),
        Figure("new connections: CPU of both boxes", "us each", False),
        Figure("packets handed over, of both boxes", "in a round", False),
    ]

    def measure(chain: Chain) -> list[float | None]:
        values: list[float | None] = []
        before = _handed_over(chain)
        for streams in (1, 8):
            rate, size, meter = iperf3(chain, seconds, "-P", str(streams), "-R")
            values += [rate / 1e9, _of_boxes(meter) / (size / 1e9)]
        meter = Meter(chain.processes)
        result = native.storm(chain.lab.client, chain.target(native.PORT), seconds, 1000)
        count = result["connections"]
        values += [count / result["seconds"], 1e6 * _of_boxes(meter) / count]
        return [*values, _handed_over(chain) - before]

    with standing([OURS, TWO_WORKERS], None, None, prepare=_servers) as chains:
        report.interleaved(figures, chains, measure)


def _of_boxes(meter: Meter) -> float:
    used = meter.read()
    return used["proxy"] + used["gateway"]


def _handed_over(chain: Chain) -> float:
    counters = [box.query("counters") for box in chain.boxes]  # type: ignore[attr-defined]
    return sum(float(found.get("WorkerHandover", 0)) for found in counters)
