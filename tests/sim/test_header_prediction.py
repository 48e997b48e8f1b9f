"""The oracle of header prediction: each world is played with it and without it.

After every step the whole state of both stacks and every packet sent must be the same. Of most
worlds the state is compared now and then only, since to write it down takes longer than to play.
"""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from tests.sim.scenario import Scenario, draw
from tests.sim.world import World
from tests.state import stack_state

EVERY_STEP = (*range(3),)
SOME_STEPS = (*range(3, 63),)
PAUSE = 211  # steps between two states of the latter; packets are always compared
CHUNK = 12


class Recorded(World):
    """Keeps a checksum of what each step left behind; of step ``show``, all of it."""

    def __init__(
        self, scenario: Scenario, prediction: bool, pause: int, show: int | None = None
    ) -> None:
        super().__init__(scenario)
        for stack in self.stacks:
            stack.header_prediction = prediction
        self.pause = pause
        self.show = show
        self.shown: dict[str, Any] = {}
        self.record: list[tuple[float, int, int]] = []
        self.packets = 0

    def _transmit(self, side: int, packet: bytes) -> None:
        self.packets = zlib.crc32(packet, self.packets)
        super()._transmit(side, packet)

    def _step(self) -> bool:
        more = super()._step()
        state = 0
        if not more or len(self.record) % self.pause == 0:
            state = zlib.crc32(repr([stack_state(stack) for stack in self.stacks]).encode())
        if len(self.record) == self.show:
            for side, stack in zip(("client", "server"), self.stacks, strict=True):
                self.shown |= flat(side, stack_state(stack))
        self.record.append((self.now, self.packets, state))
        return more

    def hits(self) -> int:
        """Segments that were predicted."""
        return sum(
            stack.counters[name] for stack in self.stacks for name in ("TCPHPHits", "TCPHPAcks")
        )


def flat(name: str, value: Any) -> dict[str, Any]:
    """Nested values by path, so that a difference is one line."""
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    else:
        return {name: value}
    parts: dict[str, Any] = {}
    for key, item in pairs:
        parts |= flat(f"{name}.{key}", item)
    return parts


def explain(seed: int, pause: int, step: int) -> str:
    """What is different after ``step``."""
    shown = []
    for prediction in (True, False):
        world = Recorded(draw(seed), prediction, pause, show=step)
        world.run()
        shown.append(world.shown)
    one, two = shown
    lines = [
        f"{name}: {one.get(name)} predicted, {two.get(name)} else"
        for name in {**one, **two}
        if one.get(name) != two.get(name)
    ]
    return f"seed {seed}, step {step}: " + "\n".join(lines[:20] or ["a packet, or the time"])


def compare(seed: int, pause: int) -> int:
    """Play ``seed`` both ways; how many segments were predicted."""
    worlds = [Recorded(draw(seed), prediction, pause) for prediction in (True, False)]
    for world in worlds:
        world.run()
    one, two = worlds
    if one.record != two.record:
        pairs = zip(one.record, two.record, strict=False)
        step = next((i for i, (a, b) in enumerate(pairs) if a != b), len(two.record) - 1)
        pytest.fail(explain(seed, pause, step), pytrace=False)
    assert two.hits() == 0
    return one.hits()


def chunks(seeds: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]


@pytest.mark.parametrize("seeds", chunks(EVERY_STEP), ids=lambda s: f"{s[0]}-{s[-1]}")
def test_every_step_leaves_the_same_state(seeds: tuple[int, ...]) -> None:
    assert sum(compare(seed, 1) for seed in seeds) > 20


@pytest.mark.parametrize("seeds", chunks(SOME_STEPS), ids=lambda s: f"{s[0]}-{s[-1]}")
def test_every_packet_is_the_same(seeds: tuple[int, ...]) -> None:
    assert sum(compare(seed, PAUSE) for seed in seeds) > 20
