"""Schedulers, asked with hand-made subflows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from proxy.errors import ConfigError
from proxy.sched.base import Scheduler, create, names, register

KB = 1000


@dataclass(eq=False)
class Sub:
    srtt: float
    room: int = 0
    cwnd: int = 100 * KB
    ssthresh: int = 100 * KB
    rttvar: float = 0.001
    min_rtt: float = 0.0
    delivery_rate: float = 0.0
    bytes_in_flight: int = 50 * KB
    last_progress: float = 100.0
    mss: int = 1460
    backup: bool = False
    peer_backup: bool = False
    stale: bool = False


@dataclass
class Conn:
    pending: int = 1000 * KB
    window_left: int = 100_000 * KB
    backlogged: bool = True


def ask(scheduler: Scheduler, subflows: list[Sub], conn: Conn | None = None) -> Sub | None:
    return scheduler.get_send(conn or Conn(), subflows, 100.0)


def test_all_names_of_the_registry_make_a_scheduler() -> None:
    assert names() == ["backup", "default", "redundant", "roundrobin"]
    for name in names():
        assert create(name).name == name
    with pytest.raises(ConfigError, match="'fastest' is none of"):
        create("fastest")


def test_a_third_party_can_register_its_own() -> None:
    class Mine(Scheduler):
        __slots__ = ()
        name = "mine"

    register("mine", Mine)
    assert isinstance(create("mine"), Mine)
    from proxy.sched import base

    del base._registry["mine"]


def test_default_prefers_the_shortest_round_trip_with_room() -> None:
    fast, slow = Sub(0.01, room=9000), Sub(0.06, room=9000)
    assert ask(create("default"), [slow, fast]) is fast


def test_default_uses_the_slow_one_when_there_is_more_than_the_fast_one_carries() -> None:
    fast, slow = Sub(0.01, room=0), Sub(0.06, room=9000)
    assert ask(create("default"), [fast, slow]) is slow


def test_default_waits_for_the_fast_one_with_little_to_send() -> None:
    fast, slow = Sub(0.01, room=0), Sub(0.2, room=9000)
    conn = Conn(pending=50 * KB, backlogged=False)
    assert ask(create("default"), [fast, slow], conn) is None


def test_default_waits_when_the_slow_one_would_block_the_window() -> None:
    fast, slow = Sub(0.01, room=0), Sub(0.2, room=9000)
    assert ask(create("default"), [fast, slow], Conn(window_left=500 * KB)) is None


def test_default_counts_on_the_doublings_of_slow_start() -> None:
    fast, slow = Sub(0.01, cwnd=10 * KB, ssthresh=10 * KB), Sub(0.06, room=9000)
    conn = Conn(pending=100 * KB, backlogged=False)
    assert ask(create("default"), [fast, slow], conn) is slow
    fast.ssthresh = 1 << 40
    assert ask(create("default"), [fast, slow], conn) is None


def probe(subflows: list[Sub]) -> Sub | None:
    return create("default").get_probe(Conn(), subflows, 100.0)


def test_default_measures_an_idle_subflow_again_that_was_slow_long_ago() -> None:
    slow = Sub(3.0, bytes_in_flight=0, min_rtt=0.06, last_progress=98.0)
    assert probe([Sub(0.01), slow]) is slow
    assert probe([Sub(0.01), replace(slow, srtt=0.065)]) is None
    assert probe([Sub(0.01), replace(slow, last_progress=99.95)]) is None
    assert probe([Sub(0.01), replace(slow, bytes_in_flight=9000)]) is None
    assert probe([Sub(0.01), replace(slow, peer_backup=True)]) is None


@pytest.mark.parametrize("name", ["default", "roundrobin", "backup"])
def test_backup_and_stale_subflows_come_last(name: str) -> None:
    reserve = Sub(0.001, room=9000, backup=True)
    asked = Sub(0.001, room=9000, peer_backup=True)
    stale = Sub(0.001, room=9000, stale=True)
    regular = Sub(0.5, room=9000)
    scheduler = create(name)
    assert ask(scheduler, [stale, reserve, asked, regular]) is regular
    assert ask(scheduler, [stale, reserve]) is reserve
    assert ask(scheduler, [stale]) is None


def test_a_full_regular_subflow_does_not_make_backup_ones_work() -> None:
    assert ask(create("default"), [Sub(0.5), Sub(0.001, room=9000, backup=True)]) is None


@pytest.mark.parametrize("name", ["default", "roundrobin", "redundant", "backup"])
def test_no_scheduler_sends_slivers_unless_that_is_all_there_is(name: str) -> None:
    sliver = Sub(0.01, room=100)
    assert ask(create(name), [sliver]) is None
    assert ask(create(name), [sliver], Conn(pending=100)) is sliver
    assert ask(create(name), [sliver], Conn(window_left=100)) is sliver


def test_roundrobin_takes_turns() -> None:
    one, two, three = (Sub(0.01 * n, room=9000) for n in (3, 1, 2))
    scheduler = create("roundrobin")
    taken = [ask(scheduler, [one, two, three]) for _ in range(6)]
    assert taken == [one, two, three, one, two, three]


def test_retransmissions_go_to_the_fastest_other_one() -> None:
    scheduler = create("default")
    fast, slow, stale = Sub(0.01, room=1), Sub(0.1, room=1), Sub(0.001, room=1, stale=True)
    reserve = Sub(0.001, room=1, backup=True)
    subs = [slow, fast, stale, reserve]
    assert scheduler.get_retrans(Conn(), subs, 1.0, None) is fast
    assert scheduler.get_retrans(Conn(), subs, 1.0, fast) is slow
    assert scheduler.get_retrans(Conn(), [reserve, fast], 1.0, fast) is reserve
    assert scheduler.get_retrans(Conn(), [fast], 1.0, fast) is None
