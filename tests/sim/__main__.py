"""``python -m tests.sim --seed N [--trace]`` replays one seed, ``--seeds A-B`` runs many."""

from __future__ import annotations

import argparse
import pprint
import sys
import time
import traceback

from tests.sim.scenario import draw
from tests.sim.world import START, World


def main(arguments: list[str] | None = None) -> int:
    """Exit status 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="replay one seed")
    which.add_argument("--seeds", help="run a range, A-B (B included)")
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return _one(options.seed, options.trace)
    first, _, last = options.seeds.partition("-")
    return _many(int(first), int(last or first), options.keep_going)


def _one(seed: int, traced: bool) -> int:
    scenario = draw(seed)
    pprint.pprint(scenario, width=110)
    trace = (lambda now, text: print(f"{now - START:12.6f} {text}")) if traced else None
    world = World(scenario, trace)
    try:
        world.run()
    except BaseException:
        traceback.print_exc()
        status = 1
    else:
        status = 0
    for flow in world.flows:
        print(flow.client.describe())
        print(flow.server.describe())
    for name, stack in zip(("client", "server"), world.stacks, strict=True):
        print(name, dict(sorted(stack.counters.items())))
    sent = sum(monitor.sent for monitor in world.monitors)
    result = "FAILED" if status else "passed"
    print(
        f"seed {seed} ({scenario.theme}): {result}, {world.steps} steps, {sent} packets, "
        f"{world.now - START:.3f} s, longest stall {world.judge.longest_stall:.2f} s"
    )
    return status


def _many(first: int, last: int, keep_going: bool) -> int:
    began = time.monotonic()
    failed: list[int] = []
    slowest = (0.0, 0)
    stall = (0.0, 0)
    for seed in range(first, last + 1):
        start = time.monotonic()
        world = World(draw(seed))
        try:
            world.run()
        except Exception as error:
            failed.append(seed)
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = type(error).__name__
            print(
                f"seed {seed} ({world.scenario.theme}): {kind}: {error} "
                f"({where.filename.rpartition('/')[2]}:{where.lineno})",
                flush=True,
            )
            if not keep_going:
                break
        slowest = max(slowest, (time.monotonic() - start, seed))
        stall = max(stall, (world.judge.longest_stall, seed))
        if (seed - first) % 500 == 499:
            print(f"... {seed}, {len(failed)} failed", file=sys.stderr, flush=True)
    span = time.monotonic() - began
    count = seed - first + 1
    print(
        f"{count} seeds, {len(failed)} failed, {count / span:.1f} a second; slowest "
        f"{slowest[0]:.2f} s (seed {slowest[1]}), longest stall {stall[0]:.1f} s (seed {stall[1]})"
    )
    if failed:
        print(f"replay: python -m tests.sim --seed {failed[0]} --trace")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
