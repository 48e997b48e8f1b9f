"""Many connections open: memory of idle ones, and what the idle ones cost the busy ones."""

from __future__ import annotations

import time

from tests.bench import native
from tests.bench.chains import OURS, Chain, relayed_connections, standing
from tests.bench.meter import Meter, kernel_bytes, private_bytes
from tests.bench.report import Figure, Goal, Report
from tests.lab.topology import Topology

_BUSY, _BLOCK = 100, 65536


def _server(lab: Topology) -> None:
    native.serve(lab.server)


def _idle_memory(chain: Chain, count: int) -> tuple[native.Held, dict[str, float]]:
    """Bytes a connection: of each box's processes, and of the kernel for all of the lab."""
    target = chain.target(native.PORT)
    native.Held(chain.lab.client, target, 20)  # warms everything up, and stays
    time.sleep(1)
    before = {role: private_bytes(pids) for role, pids in chain.processes.items()}
    kernel = kernel_bytes()
    held = native.Held(chain.lab.client, target, count)
    time.sleep(3)  # joins complete, buffers are given back
    grown = {
        role: (private_bytes(pids) - before[role]) / count for role, pids in chain.processes.items()
    }
    grown["kernel"] = (kernel_bytes() - kernel) / count
    return held, grown


def idle(report: Report) -> None:
    """Memory of an idle connection at each box, process and kernel, unshaped links."""
    count = int(report.seconds(3000, 1000))
    figures = [
        Figure("idle connection, per box", "KB", False, Goal(24), Goal(10)),
        Figure("idle connection: process at the proxy", "KB", False),
        Figure("idle connection: process at the gateway", "KB", False),
        Figure("idle connection: kernel, per box", "KB", False),
    ]
    names = report.chains(OURS, "shadowsocks", "socat", "haproxy")
    for number in range(report.rounds):
        if number:
            time.sleep(3)  # the kernel takes its time to give back what the last labs had
        with standing(["direct", *names], None, None, prepare=_server) as (plain, *chains):
            # Nothing is closed before all is measured, so that memory only grows.
            held, grown = _idle_memory(plain, count)
            ends, every = grown["kernel"], [held]
            for chain in chains:
                # Each of socat's is a process: some are enough.
                held, grown = _idle_memory(chain, 200 if chain.name == "socat" else count)
                every.append(held)
                # The client's and the server's own sockets are there without a box, too.
                kernel = (grown["kernel"] - ends) / 2
                own = (grown["proxy"] + grown["gateway"]) / 2
                values = (own + kernel, grown["proxy"], grown["gateway"], kernel)
                for figure, value in zip(figures, values, strict=True):
                    figure.add(chain.name, value / 1024)
                report.say(
                    f"{number + 1}/{report.rounds}  {chain.name:<12} "
                    f"{(own + kernel) / 1024:.1f} KB per box, of that kernel {kernel / 1024:.1f}"
                )
    report.figures += figures


def busy(report: Report) -> None:
    """100 busy connections among 10,000 open ones, against 100 alone: rate, CPU per GB."""
    seconds = report.seconds(3, 2)
    count = int(report.seconds(10000, 3000))
    figures = [
        Figure("100 busy alone", "Gbit/s"),
        Figure(f"100 busy of {count:,}", "Gbit/s"),
        Figure(f"100 busy of {count:,} by 100 alone: rate", "%", True, Goal(100)),
        Figure(f"100 busy of {count:,} by 100 alone: CPU per byte", "%", False, Goal(100)),
    ]

    def load(chain: Chain, held: native.Held) -> tuple[float, float]:
        meter = Meter(chain.processes)
        result = held.busy(_BUSY, seconds, _BLOCK)
        used = meter.read()
        used.pop("machine")
        return result["bytes"] * 8 / result["seconds"], sum(used.values()) / result["bytes"]

    names = report.chains(OURS, "shadowsocks")
    # Two labs a chain, so that alone and among many are measured in turns as well.
    with standing([*names, *names], None, None, prepare=_server) as both:
        alone, crowded = both[: len(names)], both[len(names) :]
        few = {c.name: native.Held(c.lab.client, c.target(native.PORT), _BUSY) for c in alone}
        many = {}
        for chain in crowded:
            most = count if chain.name == OURS else min(count, relayed_connections())
            many[chain.name] = native.Held(chain.lab.client, chain.target(native.PORT), most)
            rate = most / many[chain.name].opening["seconds"]
            report.say(f"{chain.name:<12} {most} opened, {rate:.0f} a second")
        twins = {chain.name: chain for chain in crowded}

        def measure(chain: Chain) -> list[float | None]:
            rate, cost = load(chain, few[chain.name])
            among_rate, among_cost = load(twins[chain.name], many[chain.name])
            return [
                rate / 1e9, among_rate / 1e9, 100 * among_rate / rate,
                100 * among_cost / cost if cost else None,
            ]  # fmt: skip

        report.interleaved(figures, alone, measure)
        for held in [*few.values(), *many.values()]:
            held.close()
