"""What schedulers promise, over pairs of unequal links in virtual time.

The oracle of speed is the better link alone; that of correctness is the byte stream.
"""

from __future__ import annotations

import importlib
import random
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path as File

import pytest

from proxy.mptcp.config import MptcpConfig
from proxy.pm.base import Endpoint, uplink_id
from proxy.sched import base
from tests.pair.link import Link
from tests.pair.mptcp_harness import App, MptcpPair, Path, client_ip, path, payload

START = 1000.0
MB = 1_000_000
KB = 1000
ALL = base.names()
MakePath = Callable[[random.Random], Path]
both_ways = pytest.mark.parametrize("up", [False, True], ids=["download", "upload"])


@dataclass
class FadingLink(Link):
    """Loses all in times of 20 ms on average, which are the share ``fading`` of all time."""

    fading: float = 0.0
    _good: bool = False
    _until: float = 0.0

    def _send_one(self, wire: bytes, now: float) -> list[tuple[float, bytes]]:
        at = max(now, self._free_at)
        while at >= self._until:
            self._good = not self._good
            mean = 0.02 * (1.0 - self.fading) / self.fading if self._good else 0.02
            self._until = max(self._until, START) + self.rng.expovariate(1.0 / mean)
        return super()._send_one(wire, now) if self._good else []


def fading(rng: random.Random, mbit: float, rtt_ms: float, share: float) -> Path:
    plain = path(rng, mbit, rtt_ms)
    ways = [
        FadingLink(rng, rate=way.rate, delay=way.delay, queue=way.queue, fading=share)
        for way in (plain.up, plain.down)
    ]
    return Path(*ways)


PROFILES: dict[str, tuple[MakePath, MakePath]] = {
    "fibre+lte": (lambda r: path(r, 300, 8), lambda r: path(r, 30, 40)),
    "jittery": (
        lambda r: path(r, 150, 30, jitter=0.01),
        lambda r: path(r, 100, 50, jitter=0.02),
    ),
    "deep-buffers": (lambda r: path(r, 100, 10, 1000), lambda r: path(r, 10, 200, 1000)),
    "dsl+dsl": (lambda r: path(r, 50, 20), lambda r: path(r, 20, 60)),
    "dsl+satellite": (lambda r: path(r, 20, 60), lambda r: path(r, 50, 300, 300)),
}


def run(makers: tuple[MakePath, ...], sender: App, up: bool, **settings: object) -> MptcpPair:
    apps = (sender, App()) if up else (App(), sender)
    pair = MptcpPair(lambda rng: [make(rng) for make in makers], *apps, **settings)
    pair.run(120.0)
    assert pair.finished
    pair.check_streams()
    return pair


def seconds(makers: tuple[MakePath, ...], size: int, up: bool, seed: int = 1) -> float:
    pair = run(makers, App(payload(size)), up, seed=seed)
    finished = (pair.server_app if up else pair.client_app).finished_at
    assert finished is not None
    return finished - START


def sent_by(pair: MptcpPair, up: bool) -> list[int]:
    """Bytes that each subflow's uplink carried, in the order of the client's paths."""
    links = [one.up if up else one.down for one in pair.paths]
    return [link.carried for link in links]


# -- never slower than the better link alone -----------------------------------------------------


@both_ways
@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("size", [100 * KB, 1 * MB, 6 * MB], ids=["100KB", "1MB", "6MB"])
def test_two_links_are_never_slower_than_the_better_one(name: str, size: int, up: bool) -> None:
    makers = PROFILES[name]
    # With jitter, slow start ends by chance: sooner or later, with or without a loss at the end.
    seeds = range(1, 5) if name == "jittery" else range(1, 2)
    best = sum(seconds(makers[:1], size, up, seed) for seed in seeds)
    if name == "dsl+satellite" and size > MB:
        best = min(best, seconds(makers[1:], size, up))
    tolerance = 1.03 if name == "jittery" else 1.001
    assert sum(seconds(makers, size, up, seed) for seed in seeds) <= best * tolerance


def test_lost_repairs_are_repaired_without_a_time_out() -> None:
    # Many holes at once, and some of what fills them is lost again: behind the first hole the
    # echo of timestamps stands still, but SACK says which repairs arrived.
    retransmitted = 0
    for seed in range(1, 5):  # how many holes there are is a matter of luck
        pair = run(PROFILES["jittery"], App(payload(16 * MB)), False, seed=seed)
        retransmitted += pair.server_counters["TcpRetransSegs"]
        assert pair.server_counters.get("TCPTimeouts", 0) == 0
    assert retransmitted > 120


@both_ways
def test_a_link_that_fades_does_not_slow_down_a_lossy_one(up: bool) -> None:
    lossy: MakePath = lambda r: path(r, 30, 40, loss=0.01)  # noqa: E731
    bursty: MakePath = lambda r: fading(r, 30, 80, 0.03)  # noqa: E731
    size = 3 * MB // 2
    # Single runs are a matter of luck.
    first, second, both = (
        sum(seconds(makers, size, up, seed) for seed in range(1, 7))
        for makers in ((lossy,), (bursty,), (lossy, bursty))
    )
    assert both <= min(first, second)


def delays(makers: tuple[MakePath, ...], size: int, every: float, up: bool) -> list[float]:
    """Seconds from each write of a stream that is limited by its application to its arrival."""
    sender, reader = App(close=False), App(close=False)
    apps = (sender, reader) if up else (reader, sender)
    pair = MptcpPair(lambda rng: [make(rng) for make in makers], *apps)
    writes: list[tuple[float, int]] = []
    piece = payload(size)

    def write() -> None:
        sender.data += piece
        writes.append((pair.now, len(sender.data)))
        if pair.now < START + 3.0:
            pair.after(every, write)

    pair.at(START + 0.5, write)
    pair.run_for(5.0)
    assert bytes(reader.received) == sender.data
    ends = [end for _, end in reader.arrivals]
    return sorted(reader.arrivals[bisect_left(ends, end)][0] - at for at, end in writes)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize(
    ("size", "every"), [(2 * KB, 0.02), (10 * KB, 0.02), (25 * KB, 0.1)], ids=str
)
def test_a_stream_that_its_application_limits_is_not_delayed(
    name: str, size: int, every: float
) -> None:
    best = delays(PROFILES[name][:1], size, every, False)
    both = delays(PROFILES[name], size, every, False)
    assert sum(both) <= sum(best) * 1.03
    assert both[len(both) * 95 // 100] <= best[len(best) * 95 // 100] * 1.1


# -- every scheduler -----------------------------------------------------------------------------

UNEQUAL: tuple[MakePath, MakePath] = (
    lambda r: path(r, 50, 20, loss=0.002),
    lambda r: path(r, 20, 60, reorder=0.01, reorder_delay=0.01),
)


@both_ways
@pytest.mark.parametrize("name", ALL)
def test_every_scheduler_delivers_the_stream(name: str, up: bool) -> None:
    config = MptcpConfig(scheduler=name)
    pair = run(UNEQUAL, App(payload(2 * MB)), up, client=config, server=config)
    pair.check_gone()


@pytest.mark.parametrize("name", ["blest", "ecf", "default"])
def test_bulk_is_faster_over_both_links(name: str) -> None:
    config = MptcpConfig(scheduler=name)
    makers = PROFILES["dsl+dsl"]
    size = 8 * MB
    pair = run(makers, App(payload(size)), False, server=config)
    assert pair.client_app.finished_at is not None
    assert pair.client_app.finished_at - START <= 0.85 * seconds(makers[:1], size, False)


@both_ways
def test_any_scheduler_may_follow_any_other_in_mid_transfer(up: bool) -> None:
    order = [name for name in ALL for name in (name, "default", "overflow")]
    sender = App(payload(8 * MB))
    apps = (sender, App()) if up else (App(), sender)
    pair = MptcpPair(lambda rng: [make(rng) for make in UNEQUAL], *apps)

    def change() -> None:
        conn = pair.client if up else pair.server
        assert conn is not None
        conn.set_scheduler(order.pop())  # type: ignore[union-attr]
        if order:
            pair.after(0.03, change)

    pair.at(START + 0.1, change)
    pair.run(60.0)
    assert not order
    assert pair.finished
    pair.check_streams()
    pair.check_gone()


# -- weights and order ---------------------------------------------------------------------------


def two_equal(rng: random.Random) -> list[Path]:
    return [path(rng, 20, 30), path(rng, 20, 30)]


def with_uplinks(
    name: str, sender: App, up: bool, weights: tuple[int, int], begin: int = 0
) -> MptcpPair:
    """The connection begins on uplink ``begin``, which is the harness's first path."""
    config = MptcpConfig(scheduler=name)
    apps = (sender, App()) if up else (App(), sender)
    pair = MptcpPair(two_equal, *apps, client=config, server=config, manual_accept=True)
    ips = [client_ip(0), client_ip(1)]
    if begin:
        ips.reverse()
    pair.client_host.local_addresses = [
        Endpoint(
            ip,
            uplink_id(index, weights[index]),
            uplink=f"u{index}",
            subflow=True,
            weight=weights[index],
        )
        for index, ip in enumerate(ips)
    ]
    initial = pair.client.subflows[0]
    initial.weight, initial.priority = weights[begin], begin
    pair.run_for(0.02)
    assert pair.server is not None
    pair.server.subflows[0].weight = weights[begin]  # type: ignore[union-attr]
    pair.accept()
    pair.run(60.0)
    assert pair.finished
    pair.check_streams()
    return pair


@both_ways
@pytest.mark.parametrize("begin", [0, 1])
def test_a_light_uplink_carries_its_share(begin: int, up: bool) -> None:
    pair = with_uplinks("weighted", App(payload(6 * MB)), up, (4, 1), begin)
    heavy, light = sent_by(pair, up)[:: -1 if begin else 1]
    # Until the heavy one has joined, and for the bytes that are late at the end, all may serve.
    assert heavy / 5 < light < heavy / 3


@both_ways
@pytest.mark.parametrize("begin", [0, 1])
def test_what_one_uplink_cannot_carry_overflows_to_the_next(begin: int, up: bool) -> None:
    pair = with_uplinks("overflow", App(payload(6 * MB)), up, (1, 1), begin)
    first, second = sent_by(pair, up)[:: -1 if begin else 1]
    assert first > second > first / 2


@both_ways
def test_a_short_transfer_stays_on_the_first_uplink(up: bool) -> None:
    pair = with_uplinks("overflow", App(payload(100 * KB)), up, (1, 1))
    _, second = sent_by(pair, up)
    assert second < 10  # handshake, acknowledgements and close


# -- the guide's example -------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: File, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example of the guide as an installed distribution."""
    guide = (File(__file__).parents[2] / "docs" / "schedulers.md").read_text()
    code = re.search(r"```python\n(.*?)```", guide, re.DOTALL)
    project = re.search(r"```toml\n(.*?)```", guide, re.DOTALL)
    assert code is not None
    assert project is not None
    entry = re.search(r"\[project.entry-points.\"(.*)\"\]\n(\w+) = \"(.*)\"", project[1])
    assert entry is not None
    assert entry[1] == base.ENTRY_POINTS
    (tmp_path / f"{entry[3].split(':')[0]}.py").write_text(code[1])
    about = tmp_path / "spread_scheduler-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: spread-scheduler\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{entry[1]}]\n{entry[2]} = {entry[3]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    base._registry.pop("spread", None)
    sys.modules.pop("spread_scheduler", None)


@pytest.mark.usefixtures("installed")
def test_the_example_of_the_guide_is_found_by_name_and_works() -> None:
    assert "spread" in base.names()
    pair = run(UNEQUAL, App(payload(1 * MB)), False, server=MptcpConfig(scheduler="spread"))
    server = pair.server
    assert server is not None
    assert server.scheduler.name == "spread"  # type: ignore[union-attr]
