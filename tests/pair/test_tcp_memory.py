"""Many connections, one budget: buffers stop growing, windows never shrink, and all is returned."""

from __future__ import annotations

import random

from proxy.tcp.config import TcpConfig
from proxy.tcp.memory import MemoryBudget
from tests.pair.harness import App, CounterTable, Pair
from tests.pair.link import Link
from tests.pair.mptcp_harness import MptcpPair, path

STREAM = random.Random(7).randbytes(12_000_000)
CONFIG = TcpConfig(time_wait=1.0)
MB = 1 << 20


def make(seed: int, memory: MemoryBudget, app: App, stream: bytes = STREAM) -> Pair:
    down = Link(random.Random(seed), delay=0.05, rate=200e6)
    up = Link(random.Random(seed + 1), delay=0.05)
    pair = Pair(
        seed, up=up, down=down, client_app=app, server_app=App(stream),
        client_config=CONFIG, server_config=CONFIG,
    )  # fmt: skip
    pair.client_host.memory = memory
    return pair


def test_buffers_together_stay_within_the_budget() -> None:
    memory = MemoryBudget(2 * MB, CounterTable())
    pairs = [make(seed, memory, App()) for seed in range(1, 5)]
    for at in range(40):
        for pair in pairs:
            pair.run_for(0.05)
        grown = [max(0, pair.client._rcv_buffer - CONFIG.receive_buffer) for pair in pairs]
        assert sum(grown) <= memory.used <= memory.limit, at
    assert memory.tight
    for pair in pairs:
        pair.run(1100)
        assert pair.client_app.received == STREAM
        pair.run_for(5)
    assert memory.used == 0
    assert not memory.tight


def test_slow_readers_hold_no_more_than_the_budget_lets_them() -> None:
    memory = MemoryBudget(1 * MB, CounterTable())
    pairs = []
    for seed in range(1, 5):
        app = App()
        pairs.append(make(seed, memory, app))
        pairs[-1].run_for(0.6)
        app.reading = False
        pairs[-1].run_for(2)
    held = sum(pair.client.receivable for pair in pairs)
    assert held <= memory.limit + len(pairs) * (CONFIG.receive_buffer + 65_536)


def test_one_that_needs_less_gives_back_what_another_needs() -> None:
    memory = MemoryBudget(3 * MB, CounterTable())
    first = make(1, memory, App(), STREAM[:9_000_000])
    first.server_app.close = False
    first.run_for(2.0)
    assert memory.tight
    assert first.client._rcv_buffer > 2 * MB
    edge = (first.client.rcv_right - first.client.irs) % 2**32
    for _ in range(240):  # it goes on, slowly
        first.server_app.data += STREAM[:20_000]
        first._settle()
        first.run_for(0.05)
        now = (first.client.rcv_right - first.client.irs) % 2**32
        assert now >= edge  # windows never shrink
        edge = now
    assert first.client._rcv_buffer < 1 * MB
    assert not memory.tight
    second = make(3, memory, App())
    second.run_for(2)
    assert second.client._rcv_buffer > 1 * MB


def test_mptcp_connections_share_the_budget() -> None:
    config = TcpConfig(memory=256 * 1024)
    pair = MptcpPair(
        lambda rng: [path(rng, 100, 40), path(rng, 50, 60)], App(), App(STREAM), client_tcp=config
    )
    pair.run_for(0.5)
    memory = pair.client_host.memory
    assert memory.used == memory.limit
    assert pair.client.rx.buffer == config.receive_buffer + memory.limit
    pair.run(60)
    pair.check_streams()
    pair.run_for(120)
    assert memory.used == 0
