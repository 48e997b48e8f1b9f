"""Seeds of the simulation, in chunks; a failure names its seed and how to replay it.

``SIM_SEEDS=0-9999`` runs others than the default ones.
"""

from __future__ import annotations

import os

import pytest

from tests.sim.scenario import draw
from tests.sim.world import World

FIRST, LAST = 0, 1999
CHUNK = 25


def _chunks() -> list[range]:
    first, _, last = os.environ.get("SIM_SEEDS", f"{FIRST}-{LAST}").partition("-")
    end = int(last or first) + 1
    return [range(start, min(start + CHUNK, end)) for start in range(int(first), end, CHUNK)]


@pytest.mark.parametrize("seeds", _chunks(), ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_streams_arrive_whole_whatever_happens_on_the_way(seeds: range) -> None:
    for seed in seeds:
        world = World(draw(seed))
        try:
            world.run()
        except Exception as error:
            theme = world.scenario.theme
            pytest.fail(
                f"seed {seed} ({theme}): {type(error).__name__}: {error}\n"
                f"replay: python -m tests.sim --seed {seed} --trace",
                pytrace=not isinstance(error, AssertionError),
            )


def test_a_seed_plays_the_same_twice() -> None:
    for seed in (3, 7, 11):
        runs = [World(draw(seed)) for _ in range(2)]
        for world in runs:
            world.run()
        one, two = runs
        assert (one.now, one.steps) == (two.now, two.steps)
        assert [m.sent for m in one.monitors] == [m.sent for m in two.monitors]
        assert [s.counters for s in one.stacks] == [s.counters for s in two.stacks]
