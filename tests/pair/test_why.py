"""Whatever can hold up a connection, made on purpose, is what ``why`` names, and nothing else."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.cli import why as cli
from proxy.control.why import explain
from proxy.mptcp.config import MptcpConfig
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.info import tcp_info
from proxy.tcp.config import TcpConfig
from proxy.tcp.connection import TcpConnection
from tests.pair.harness import Pair
from tests.pair.link import Link
from tests.pair.mptcp_harness import App, MptcpPair, Path, client_ip, path, payload
from tests.pair.mptcp_middlebox import strip_mptcp

LARGE = payload(20_000_000)


class SlowReader(App):
    """Reads ``rate`` bytes a second, from its first byte on."""

    def __init__(self, rate: float, data: bytes = b"") -> None:
        super().__init__(data, close=False)
        self.rate = rate

    def run(self, conn: TcpConnection, now: float) -> None:
        if conn.receivable and self.first_byte_at is None:
            self.first_byte_at = now
        began = now if self.first_byte_at is None else self.first_byte_at
        self.read_limit = max(int(self.rate * (now - began)) - len(self.received), 0)
        self.reading = self.read_limit > 0
        super().run(conn, now)


class Chatty(App):
    """Writes 1000 bytes every 100 ms."""

    def run(self, conn: TcpConnection, now: float) -> None:
        self.data = bytes(1000 * int((now - 1000.0) * 10 + 1))
        super().run(conn, now)


def stripping(_path: int, _up: bool, packet: bytes) -> list[bytes]:
    """A middlebox."""
    return [strip_mptcp(packet)]


def ticking(pair: MptcpPair | Pair, seconds: float, every: float = 0.01) -> None:
    """Run, and let the applications have a look all the time."""
    for number in range(int(seconds / every)):
        pair.at(pair.now + number * every, lambda: None)
    pair.run_for(seconds)


def one(mbit: float = 10, rtt_ms: float = 20) -> Any:
    return lambda rng: [path(rng, mbit, rtt_ms)]


def of(pair: MptcpPair, server: bool = False) -> dict[str, Any]:
    """What ``why`` answers at the client, as a proxy, or at the server, as a gateway."""
    ends: dict[str, Any] = {"near": None, "far": pair.client}
    if server:
        ends = {"near": pair.server, "far": None}
    flow: Any = SimpleNamespace(id=1, started=1000.0, **ends)
    return dict(explain(flow, pair.now))


def judge(why: dict[str, Any], direction: str, cause: str, share: float = 0.8) -> None:
    """The cause has its share, no other more than what is left, and the sums are right."""
    found = cli.verdict(why)
    assert (found["direction"], found["cause"]) == (direction, cause), found
    assert share <= found["share"] <= 1.0, found
    for spell in (why["sending"], why["receiving"]):
        assert all(seconds >= 0.0 for seconds in spell["seconds"].values())
    total = sum(why["sending"]["seconds"].values())
    opening = why["sending"]["seconds"]["opening"]
    assert math.isclose(total, why["age"] + opening, rel_tol=1e-6)
    assert math.isclose(sum(why["receiving"]["seconds"].values()), why["age"], rel_tol=1e-6)
    assert cli.render(why).startswith(f"{found['share']:.0%} of the time")


def test_bulk_is_limited_by_congestion_control() -> None:
    pair = MptcpPair(one(), App(LARGE), App())
    pair.run_for(10)
    judge(of(pair), "sending", "congestion", 0.95)
    (subflow,) = of(pair)["subflows"]
    assert subflow["busy"] > 9.8
    judge(of(pair, server=True), "receiving", "peer", 0.9)


def test_a_reader_that_is_slow_is_told_at_both_boxes() -> None:
    pair = MptcpPair(one(100), App(LARGE), SlowReader(200_000))
    ticking(pair, 20)
    judge(of(pair), "sending", "peer-reader", 0.9)
    judge(of(pair, server=True), "receiving", "reader", 0.9)
    assert "the server reads slowly" in cli.verdict(of(pair))["text"]
    assert "the server reads slowly" in cli.verdict(of(pair, server=True))["text"]


def test_a_sender_that_has_little_to_say() -> None:
    pair = MptcpPair(one(), Chatty(close=False), App(close=False))
    ticking(pair, 10)
    why = of(pair)
    judge(why, "sending", "application", 0.9)
    # Every 100 ms something is under way for a round trip and a delayed ACK.
    assert 0.1 < why["subflows"][0]["busy"] / why["age"] < 0.9


def test_a_window_that_is_small_for_the_path() -> None:
    small = TcpConfig(receive_buffer=65536, receive_buffer_max=65536)
    pair = MptcpPair(one(100, 100), App(LARGE), App(), server_tcp=small)
    pair.run_for(10)
    judge(of(pair), "sending", "peer-window", 0.8)


def test_a_send_buffer_that_is_small_for_the_path() -> None:
    small = TcpConfig(send_buffer_max=20_000)
    pair = MptcpPair(one(100, 100), App(LARGE), App(), client_tcp=small)
    pair.run_for(10)
    judge(of(pair), "sending", "send-buffer", 0.8)


def test_a_limit_that_is_set_for_the_uplink() -> None:
    pair = MptcpPair(one(100), App(LARGE), App())
    pair.client_host.limits["u0"].rate = 250_000
    pair.run_for(20)
    judge(of(pair), "sending", "rate-limit", 0.8)


def test_a_path_that_is_silent() -> None:
    pair = MptcpPair(one(), App(LARGE), App())
    pair.run_for(1)
    before = of(pair)
    pair.paths[0].alive = False
    pair.run_for(9)
    judge(of(pair), "sending", "silent-path", 0.8)
    assert of(pair)["sending"]["now"] == of(pair)["subflows"][0]["now"] == "silent-path"
    during = cli.since(before, of(pair))
    assert cli.verdict(during)["cause"] == "silent-path"
    assert during["age"] == pytest.approx(9)
    pair.paths[0].alive = True
    pair.run_for(10)
    between = of(pair)
    pair.run_for(5)
    assert cli.verdict(cli.since(between, of(pair)))["cause"] == "congestion"


@pytest.mark.parametrize("mptcp", [True, False], ids=["mptcp", "after a fall-back"])
def test_the_last_bytes_on_a_silent_path(mptcp: bool) -> None:
    apps = App(payload(1000), close=False), App(close=False)
    pair = MptcpPair(one(), *apps, filter=None if mptcp else stripping)
    pair.run_for(1)
    pair.paths[0].alive = False
    pair.client.send(payload(1000))
    pair._settle()
    pair.run_for(9)
    judge(of(pair), "sending", "silent-path", 0.8)
    pair.paths[0].alive = True
    pair.run_for(20)
    assert of(pair)["sending"]["now"] == of(pair)["subflows"][0]["now"] == "application"


def test_no_subflow_is_left() -> None:
    pair = MptcpPair(one(), App(LARGE), App())
    pair.run_for(1)
    pair.paths[0].alive = False
    pair.client.forsake_subflow(pair.client.subflows[0], pair.now)
    pair._settle()
    pair.run_for(5)
    judge(of(pair), "sending", "no-subflow", 0.8)


def test_a_slow_subflow_holds_up_what_a_fast_one_brings() -> None:
    def paths(rng: random.Random) -> list[Path]:
        return [path(rng, 50, 10, 200), path(rng, 2, 600, 900)]

    pair = MptcpPair(paths, App(LARGE), App(), client=MptcpConfig(scheduler="roundrobin"))
    pair.run_for(1)
    before = of(pair, server=True)
    pair.run_for(2)
    why = cli.since(before, of(pair, server=True))
    found = cli.verdict(why)
    assert (found["direction"], found["cause"]) == ("receiving", "gap")
    fast, slow = sorted(why["subflows"], key=lambda s: str(s["remote"]))
    assert slow["awaited"] > 0.9 * why["receiving"]["seconds"]["gap"]
    assert fast["awaited"] < 0.05 * slow["awaited"]
    assert f"which {slow['remote']} is to bring" in found["text"]


def test_two_paths_that_work_well_are_no_gap() -> None:
    def paths(rng: random.Random) -> list[Path]:
        return [path(rng, 20, 20), path(rng, 10, 30)]

    pair = MptcpPair(paths, App(LARGE), App())
    pair.run_for(5)
    judge(of(pair), "sending", "congestion", 0.95)
    judge(of(pair, server=True), "receiving", "peer", 0.8)


def test_what_was_sent_again_in_place_of_a_dead_subflow_is_that_ones_fault() -> None:
    def paths(rng: random.Random) -> list[Path]:
        return [path(rng, 20, 20), path(rng, 20, 30)]

    pair = MptcpPair(paths, App(LARGE), App())
    pair.run_for(3)
    before = of(pair, server=True)
    pair.paths[1].alive = False
    pair.run_for(0.2)
    pair_server = pair.server
    assert isinstance(pair_server, MptcpConnection)
    why = cli.since(before, of(pair, server=True))
    blame = {s["remote"]: s["awaited"] for s in why["subflows"]}
    dead = next(str(s.remote) for s in pair_server.subflows if s.remote.ip == client_ip(1))
    assert blame[dead] > 0.05
    assert blame[dead] > 5 * sum(seconds for name, seconds in blame.items() if name != dead)


def test_a_backup_subflow_waits_for_the_scheduler_and_the_other_one_does_not() -> None:
    def paths(rng: random.Random) -> list[Path]:
        return [path(rng, 10, 20), path(rng, 10, 20)]

    pair = MptcpPair(paths, App(LARGE), App(), backups=(1,))
    pair.run_for(10)
    why = of(pair)
    judge(why, "sending", "congestion", 0.95)
    regular, backup = why["subflows"]
    assert (regular["uplink"], backup["uplink"]) == ("u0", "u1")
    assert backup["seconds"]["scheduler"] > 9
    assert regular["seconds"]["scheduler"] < 0.5
    assert backup["busy"] < 0.5


def test_a_connection_without_mptcp_tells_as_well() -> None:
    pair = Pair(
        up=Link(random.Random(1), rate=100e6, delay=0.02),
        client_app=App(LARGE),
        server_app=SlowReader(200_000),
    )
    ticking(pair, 10)
    flow: Any = SimpleNamespace(id=7, started=1000.0, near=None, far=pair.client)
    why: dict[str, Any] = dict(explain(flow, pair.now))
    judge(why, "sending", "peer-reader", 0.8)
    assert why["token"] is None
    info = tcp_info(pair.client, pair.now)
    assert 8e6 < info.tcpi_rwnd_limited <= info.tcpi_busy_time <= 10e6
    assert info.tcpi_sndbuf_limited == 0


def test_an_idle_connection_has_no_chronograph() -> None:
    pair = MptcpPair(one(), App(payload(2000), close=False), App(payload(2000), close=False))
    pair.run_for(5)
    timed = [pair.client.tx, pair.client.rx, *pair.client.subflows]
    assert [part.chronograph for part in timed] == [None] * len(timed)
    why = of(pair)
    assert why["subflows"][0]["seconds"]["opening"] == pytest.approx(0.02, abs=1e-3)
    assert cli.verdict(why)["cause"] == "application"


def test_a_gap_ends_with_the_data_that_waited_for_it() -> None:
    pair = MptcpPair(one(), App(LARGE), App())
    pair.run_for(3)
    why = of(pair, server=True)
    assert why["receiving"]["now"] == "peer"
    assert why["receiving"]["seconds"]["gap"] == 0, "one subflow has no gaps at the data level"
