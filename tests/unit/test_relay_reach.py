"""Whether the gateway answers is found out in time, with few packets, and without flapping."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.relay.lan import LanRelay
from proxy.relay.reach import GatewayWatch
from tests.unit.test_relay_hostile import connect, lan_relay


class World:
    """A proxy whose gateway answers as long as ``alive`` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, alive: bool = True) -> None:
        self.relay: LanRelay = lan_relay()
        self.relay.watch = GatewayWatch(self.relay, 1.0)
        self.alive = alive
        self.now = 1.0
        self.probes: list[float] = []
        self.events: list[tuple[float, str]] = []
        self.relay.table.tell = lambda name, _: self.events.append((self.now, name))
        send = GatewayWatch._send

        def sent(watch: GatewayWatch, uplink: Any, reach: Any, now: float, early: bool) -> None:
            self.probes.append(now)
            send(watch, uplink, reach, now, early)
            if self.alive:
                watch.answered(uplink, now)

        monkeypatch.setattr(GatewayWatch, "_send", sent)

    def run(self, seconds: float) -> None:
        stack, end = self.relay.stack, self.now + seconds
        while (due := stack.next_timeout()) is not None and due <= end:
            self.now = max(self.now, due)
            stack.handle_timeout(self.now)
            while (event := stack.next_event()) is not None:
                self.relay.on_event(event[0], event[1], self.now)
            stack.poll_transmit(self.now)
        self.now = end


def test_a_gateway_that_answers_is_asked_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.relay.watch.start()
    world.run(600.0)
    assert world.relay.watch.reachable
    assert 2 * 600 / 15 <= len(world.probes) + 4 <= 2 * 600 / 15 + 8
    assert world.events == []


def test_a_silent_gateway_is_given_up_within_a_second_of_a_new_conversation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, alive=False)
    connect(world.relay)
    world.run(1.0)
    assert not world.relay.watch.reachable
    assert [name for _, name in world.events] == ["gateway-unreachable"]
    opening: Any = next(o for o in world.relay._owners.values() if hasattr(o, "direct"))
    assert opening.direct
    assert {attempt.stream.remote for attempt in opening.attempts} == {opening.destination}


def test_one_uplink_that_answers_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, alive=False)
    watch, (first, second) = world.relay.watch, world.relay.uplinks
    connect(world.relay)
    for _ in range(50):
        world.run(0.1)
        watch.answered(second, world.now)
    assert watch.reachable
    assert (watch.state(first), watch.state(second)) == ("silent", "answers")


def test_it_is_back_after_answers_in_a_row_and_later_if_it_flaps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, alive=False)
    outages = []
    for _ in range(4):
        world.alive = False
        connect(world.relay, world.now, port=40000 + len(outages))
        world.run(5.0)
        assert not world.relay.watch.reachable
        world.alive = True
        came_back = world.now
        while not world.relay.watch.reachable:
            world.run(0.5)
        outages.append(world.now - came_back)
    assert outages[0] < 6
    assert outages[-1] > 2 * outages[0], outages


def test_while_it_is_silent_it_is_asked_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, alive=False)
    world.relay.watch.start()
    for number in range(20):
        connect(world.relay, world.now, port=41000 + number)
    world.run(300.0)
    assert len(world.probes) < 2 * 2 * 300 / 5 + 40


def test_a_refused_conversation_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, alive=False)
    gateway: Any = world.relay.config.gateway
    object.__setattr__(gateway, "when_unreachable", "refuse")
    connect(world.relay)
    world.run(1.0)
    assert not any(hasattr(owner, "direct") for owner in world.relay._owners.values())
