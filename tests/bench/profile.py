"""``python -m tests.bench.profile``: a flame graph of one box under a load, by py-spy.

The graph shows interpreted, compiled and C frames of the box's process; open it in a browser.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.bench import native
from tests.bench.chains import OURS, Chain, standing
from tests.bench.streams import iperf3
from tests.lab.link import LinkSpec
from tests.lab.servers import start_iperf3
from tests.lab.topology import Topology

PY_SPY = Path(sys.executable).with_name("py-spy")
RESULTS = Path("build/profile")
_MORE = 4.0
"""Seconds for which a load outlasts the sampling."""


def _download(chain: Chain, seconds: float) -> None:
    iperf3(chain, seconds, "-R")


def _upload(chain: Chain, seconds: float) -> None:
    iperf3(chain, seconds)


def _streams(chain: Chain, seconds: float) -> None:
    iperf3(chain, seconds, "-R", "-P", "8")


def _connections(chain: Chain, seconds: float) -> None:
    native.storm(chain.lab.client, chain.target(native.PORT), seconds, 1000)


def _busy(chain: Chain, seconds: float) -> None:
    held = native.Held(chain.lab.client, chain.target(native.PORT), 100)
    held.busy(100, seconds, 65536)
    held.close()


_UNSHAPED: tuple[LinkSpec | None, ...] = (None, None)
_PACKETS: tuple[LinkSpec | None, ...] = (LinkSpec.symmetric(310, 10),)

LOADS: dict[str, tuple[Callable[[Chain, float], None], tuple[LinkSpec | None, ...], str]] = {
    "download": (_download, _UNSHAPED, "one stream down, unshaped links"),
    "upload": (_upload, _UNSHAPED, "one stream up, unshaped links"),
    "streams": (_streams, _UNSHAPED, "eight streams down, unshaped links"),
    "packets": (_download, _PACKETS, "300 Mbit/s of MTU-sized packets down"),
    "packets-up": (_upload, _PACKETS, "300 Mbit/s of MTU-sized packets up"),
    "connections": (_connections, _UNSHAPED, "new connections of 1 kB, 64 at once"),
    "busy": (_busy, _UNSHAPED, "100 connections asking for 64 KB again and again"),
}


def _prepare(lab: Topology) -> None:
    start_iperf3(lab.server)
    native.serve(lab.server)


def record(box: str, load: str, seconds: float, output: Path, form: str, rate: int) -> None:
    """Samples the box's process while the load goes on."""
    run, links, _ = LOADS[load]
    output.parent.mkdir(parents=True, exist_ok=True)
    with standing([OURS], *links, prepare=_prepare) as (chain,):
        run(chain, 1.0)  # warms it up
        thread = threading.Thread(target=run, args=(chain, seconds + _MORE))
        thread.start()
        pid = str(chain.processes[box][0])
        words = ["-p", pid, "-d", f"{seconds:.0f}", "-r", str(rate), "-f", form, "-o", str(output)]
        done = subprocess.run(
            [str(PY_SPY), "record", "--native", *words],
            capture_output=True,
            text=True,
        )
        thread.join()
    if done.returncode:
        sys.exit(f"py-spy failed:\n{done.stdout}{done.stderr}")


def main() -> None:
    """The command line."""
    listed = "\n".join(f"  {name:<12} {text}" for name, (_, _, text) in LOADS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.profile",
        description=__doc__,
        epilog=f"loads:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--box", choices=("proxy", "gateway"), default="proxy")
    parser.add_argument("--load", choices=tuple(LOADS), default="download")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long it samples (8)")
    parser.add_argument("--rate", type=int, default=250, help="samples a second (250)")
    parser.add_argument("--format", choices=("flamegraph", "raw", "speedscope"),
                        default="flamegraph")  # fmt: skip
    parser.add_argument("--output", type=Path, help="the file (build/profile/BOX-LOAD.svg)")
    arguments = parser.parse_args()
    if not PY_SPY.exists():
        sys.exit("py-spy is not installed: deploy/setup.sh --bench")
    suffix = {"flamegraph": "svg", "raw": "txt", "speedscope": "json"}[arguments.format]
    output = arguments.output or RESULTS / f"{arguments.box}-{arguments.load}.{suffix}"
    record(
        arguments.box, arguments.load, arguments.seconds, output, arguments.format, arguments.rate
    )
    print(f"written: {output}")


if __name__ == "__main__":
    main()
