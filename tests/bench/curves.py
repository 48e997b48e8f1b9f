"""``python -m tests.bench.curves``: rate, processor time and memory over the number of connections.

At each number so many connections are open and all ask for 16 KB again and again. Writes the
plots and what they show as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tests.bench import native, plot
from tests.bench.chains import OURS, PEERS, Chain, relayed_connections, standing
from tests.bench.meter import Meter, private_bytes
from tests.lab.topology import Topology

COUNTS = (10, 30, 100, 300, 1000, 3000, 10000)
_BLOCK = 16384
_PLOTS = {
    "throughput": ("Payload of all connections", "Mbit/s"),
    "cpu": ("Processor time of both boxes", "seconds per GB"),
    "memory": ("Memory of both boxes' processes, busy", "KB per connection"),
    "wait": ("Time for 16 KB, median", "ms"),
}


def measure(chain: Chain, count: int, seconds: float) -> dict[str, float]:
    """One point of each curve; the connections are closed at its end."""
    before = sum(private_bytes(pids) for pids in chain.processes.values())
    held = native.Held(chain.lab.client, chain.target(native.PORT), count)
    meter = Meter(chain.processes)
    result = held.busy(count, seconds, _BLOCK)
    used = meter.read()
    memory = sum(private_bytes(pids) for pids in chain.processes.values()) - before
    held.close()
    gigabytes = max(result["bytes"], 1) / 1e9
    return {
        "throughput": result["bytes"] * 8 / seconds / 1e6,
        "cpu": (used["proxy"] + used["gateway"]) / gigabytes,
        "memory": max(memory, 0) / count / 1024,
        "wait": result["p50_ms"],
    }


def _server(lab: Topology) -> None:
    native.serve(lab.server)


def collect(
    names: list[str], counts: list[int], seconds: float
) -> dict[str, list[dict[str, float]]]:
    """The points of each chain; a chain that cannot hold so many stops before."""
    points: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for count in counts:
        for name in names:
            if name != OURS and count > relayed_connections():
                continue
            # Anew for each number, so that memory is that of this number alone.
            with standing([name], None, None, prepare=_server) as (chain,):
                native.Held(chain.lab.client, chain.target(native.PORT), 5).close()
                time.sleep(0.5)
                point = measure(chain, count, seconds)
            points[name].append({"connections": count, **point})
            text = ", ".join(f"{key} {value:.4g}" for key, value in point.items())
            print(f"{count:>6}  {name:<12} {text}", file=sys.stderr, flush=True)
    return points


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.curves", description=__doc__)
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="comma-separated")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each point (4)")
    parser.add_argument("--peers", default="shadowsocks", help="comma-separated (shadowsocks)")
    parser.add_argument("--output", type=Path, default=Path("docs/performance"))
    arguments = parser.parse_args()
    peers = [name for name in arguments.peers.split(",") if name]
    if strange := [name for name in peers if name not in PEERS]:
        parser.error(f"unknown peer {', '.join(strange)}; there are {', '.join(PEERS)}")
    counts = [int(count) for count in arguments.counts.split(",")]
    points = collect([OURS, *peers], counts, arguments.seconds)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "curves.json").write_text(json.dumps(points, indent=1) + "\n")
    for name, (title, unit) in _PLOTS.items():
        series = {
            chain: [(point["connections"], point[name]) for point in found]
            for chain, found in points.items()
            if found
        }
        file = arguments.output / f"{name}.svg"
        file.write_text(plot.chart(title, "open and busy connections", unit, series))
        print(f"written: {file}")


if __name__ == "__main__":
    main()
