"""``python -m tests.bench [NAME...]``: measures figures; without a name, all of them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tests.bench import connections, holding, shaped, streams, workers
from tests.bench.chains import PEERS
from tests.bench.report import Report

BENCHES: dict[str, Callable[[Report], None]] = {
    "stream": streams.stream,
    "streams": streams.streams,
    "packets": streams.packets,
    "connections": connections.rate,
    "ttfb": connections.ttfb,
    "idle": holding.idle,
    "busy": holding.busy,
    "workers": workers.workers,
    "aggregation": shaped.aggregation,
    "unequal": shaped.unequal,
    "cut": shaped.cut,
    "request": shaped.request,
    "emulator": shaped.emulator,
}
RESULTS = Path("build/bench")


def _arguments(words: list[str] | None) -> argparse.Namespace:
    listed = "\n".join(f"  {name:<12} {bench.__doc__}" for name, bench in BENCHES.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measures the figures of docs/performance.md, each beside other relays.",
        epilog=f"figures:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="a figure; all if none is named")
    parser.add_argument("--quick", action="store_true", help="one short round each")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (5)")
    parser.add_argument(
        "--peers", metavar="LIST",
        help=f"of these alone, comma-separated; none: '' (all: {','.join(PEERS)})",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the results are written")
    arguments = parser.parse_args(words)
    unknown = [name for name in arguments.names if name not in BENCHES]
    if unknown:
        parser.error(f"unknown figure {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    if arguments.peers is not None:
        arguments.peers = [name for name in arguments.peers.split(",") if name]
        strange = [name for name in arguments.peers if name not in PEERS]
        if strange:
            parser.error(f"unknown peer {', '.join(strange)}; there are {', '.join(PEERS)}")
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Runs the named benches; 1 if a figure is below what is promised."""
    arguments = _arguments(words)
    if os.geteuid() != 0:
        print("network namespaces need root", file=sys.stderr)
        return 2
    names = arguments.names or list(BENCHES)
    report = Report(
        rounds=1 if arguments.quick else arguments.rounds,
        quick=arguments.quick,
        peers=arguments.peers,
    )
    file = arguments.json or RESULTS / f"{names[0] if len(names) == 1 else 'all'}.json"
    for name in names:
        report.run(name, BENCHES[name])
        report.write(file)  # what is there if the next one is interrupted
    print(report.table())
    print(f"written: {file}")
    if report.missed:
        print(f"missed: {', '.join(report.missed)}")
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
