"""``python -m tests.bench [NAME...]``: measures figures; without a name, all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.bench import connections, transfers

if TYPE_CHECKING:
    from tests.bench.figure import Figure
from tests.lab.namespaces import LabError

BENCHES: dict[str, Callable[[], list[Figure]]] = {
    "aggregation": transfers.aggregation,
    "unequal": transfers.unequal,
    "cut": transfers.cut,
    "unshaped": transfers.unshaped,
    "ttfb": connections.ttfb,
    "idle": connections.idle,
    "connections": connections.rate,
    "emulator": transfers.emulator,
}


def main(names: list[str]) -> int:
    """Runs the named benches; 1 if a target was missed."""
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are:", file=sys.stderr)
        for name, bench in BENCHES.items():
            print(f"  {name:<12} {bench.__doc__}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("network namespaces need root", file=sys.stderr)
        return 2
    missed: list[str] = []
    for name in names or BENCHES:
        try:
            missed += [figure.name for figure in BENCHES[name]() if not figure.reached]
        except LabError as error:
            print(f"{name}: FAILED: {error}", flush=True)
            missed.append(name)
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
