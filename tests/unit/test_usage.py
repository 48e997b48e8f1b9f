"""Accounts of LAN hosts and clients: bounded, nothing lost, sums that only grow."""

from __future__ import annotations

import json
import random

import pytest

from proxy.relay.flow import Flow
from proxy.relay.usage import OTHER, RTT_BOUNDS, Histogram, Meters, Usage
from proxy.tcp.events import Event
from tests.pair.mptcp_harness import App, MptcpPair, path, payload
from tests.unit.test_relay_flow import FakeStream


class Home:
    """A relay's flows and their meters."""

    def __init__(self, limit: int = 3) -> None:
        self.meters = Meters(limit)

    def open(self, host: str, sent: int = 0, received: int = 0) -> Flow:
        near, far = FakeStream(b"x" * sent), FakeStream(b"y" * received)
        flow = Flow(1, near, far, self.meters.end, 0.0)
        self.meters.begin(flow, host)
        flow.start()
        return flow

    def read(self) -> dict[str, tuple[int, int, int, int]]:
        for flows in self.meters.slices():
            self.meters.read(flows)
        return {
            name: (account.sent, account.received, account.opened, account.open)
            for name, account in self.meters.usage.accounts.items()
        }


def total(accounts: dict[str, tuple[int, int, int, int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*accounts.values(), strict=True)))


def test_what_a_connection_moves_is_its_hosts_while_it_lives_and_after() -> None:
    home = Home()
    flow = home.open("192.0.2.1", sent=10, received=200)
    home.open("192.0.2.2", sent=1)
    assert home.read() == {"192.0.2.1": (10, 200, 1, 1), "192.0.2.2": (1, 0, 1, 1)}
    flow.far.inbox = b"z" * 50  # type: ignore[attr-defined]
    flow.on_event(flow.far, Event.READABLE, 0.0)
    assert home.read()["192.0.2.1"] == (10, 250, 1, 1)
    flow.abort(0.0)
    assert home.read()["192.0.2.1"] == (10, 250, 1, 0)
    assert home.meters.slices() == [[f for f in home.meters.slices()[0] if f is not flow]]


def test_what_was_never_read_counts_when_it_ends() -> None:
    home = Home()
    home.open("192.0.2.1", sent=10, received=200).abort(0.0)
    assert home.read() == {"192.0.2.1": (10, 200, 1, 0)}


def test_who_was_idle_the_longest_makes_room_and_is_counted_with_the_others() -> None:
    home = Home(limit=2)
    home.open("192.0.2.1", sent=1).abort(0.0)
    home.open("192.0.2.2", sent=20).abort(0.0)
    home.open("192.0.2.1", sent=300).abort(0.0)
    before = total(home.read())
    home.open("192.0.2.3", sent=4000)
    accounts = home.read()
    assert list(accounts) == ["192.0.2.1", OTHER, "192.0.2.3"]
    assert accounts[OTHER] == (20, 0, 1, 0)
    assert total(accounts) == (before[0] + 4000, 0, before[2] + 1, 1)


def test_a_table_that_is_in_use_stays_as_it_is() -> None:
    home = Home(limit=2)
    for host in ("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"):
        home.open(host, sent=1)
    assert home.read() == {
        "192.0.2.1": (1, 0, 1, 1), "192.0.2.2": (1, 0, 1, 1), OTHER: (2, 0, 2, 2),
    }  # fmt: skip


def test_sums_only_grow_and_the_table_never_does_beyond_its_limit() -> None:
    rng = random.Random(1)
    home = Home(limit=5)
    flows: list[Flow] = []
    moved, before = 0, (0, 0, 0)
    for _ in range(2000):
        if rng.random() < 0.5:
            size = rng.randrange(1000)
            flows.append(home.open(f"192.0.2.{rng.randrange(40)}", sent=size))
            moved += size
        elif flows:
            flows.pop(rng.randrange(len(flows))).abort(0.0)
        if rng.random() < 0.2:
            now = total(home.read())
            assert now[0] == moved
            assert all(a >= b for a, b in zip(now[:3], before, strict=True))
            assert now[3] == len(flows)
            assert len(home.meters.usage.accounts) <= 6
            before = now[:3]


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (0.002, 0), (0.0021, 1), (9.0, -1)])
def test_a_bucket_holds_its_bound(value: float, bucket: int) -> None:
    histogram = Histogram(RTT_BOUNDS)
    histogram.observe(value)
    assert histogram.counts[bucket] == sum(histogram.counts) == 1
    assert histogram.total == value


def test_what_processes_take_from_one_another_adds_up() -> None:
    """Each tells what is new, so that what it told stays when it ends, however it forgets."""
    workers, whole, moved = [Home(limit=2), Home(limit=2)], Usage(2), 0
    rng = random.Random(2)
    open_ = [{}, {}]
    for step in range(400):
        index = rng.randrange(2)
        flow = workers[index].open(f"192.0.2.{rng.randrange(6)}", sent=step)
        workers[index].meters.usage.rtt_of("fibre").observe(0.02)
        moved += step
        if rng.random() < 0.9:
            flow.abort(0.0)
        if rng.random() < 0.3:
            workers[index].read()
            taken = json.loads(json.dumps(workers[index].meters.usage.take()))
            whole.add(taken)
            open_[index] = {name: account[3] for name, account in taken["accounts"].items()}
            whole.set_open(open_)
    for worker in workers:
        worker.read()
        whole.add(worker.meters.usage.take())
    assert sum(account.sent for account in whole.accounts.values()) == moved
    assert sum(account.opened for account in whole.accounts.values()) == 400
    assert sum(account.open for account in whole.accounts.values()) == sum(
        sum(part.values()) for part in open_
    )
    assert len(whole.accounts) <= 3
    assert sum(whole.rtt["fibre"].counts) == 400


def test_round_trips_of_subflows_in_use_and_what_was_sent_twice() -> None:
    pair = MptcpPair(
        lambda rng: [path(rng, 50, 20), path(rng, 20, 60)], App(payload(3_000_000)), App(b"")
    )
    meters = Meters(3)
    flow = Flow(1, FakeStream(), pair.client, meters.end, 0.0)  # type: ignore[arg-type]
    meters.begin(flow, "192.0.2.1")
    pair.run_for(0.5)
    meters.sample([flow], pair.now - 0.2)
    counts = [
        (RTT_BOUNDS[index], count)
        for histogram in meters.usage.rtt.values()
        for index, count in enumerate(histogram.counts)
        if count
    ]
    assert sum(count for _, count in counts) == 2, "one of each subflow"
    meters.sample([flow], pair.now + 1.0)
    assert sum(sum(h.counts) for h in meters.usage.rtt.values()) == 2, "silent since"
    pair.run()
    meters.end(flow)
    assert sum(meters.usage.reinjected.counts) == 1
    assert meters.usage.reinjected.total == pair.client.tx.bytes_reinjected
