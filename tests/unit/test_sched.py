"""Schedulers, asked with hand-made subflows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from proxy.errors import ConfigError
from proxy.pm.base import of_uplink_id, uplink_id
from proxy.sched.base import Scheduler, create, names, register

KB = 1000
ALL = [
    "default",
    "blest",
    "ecf",
    "roundrobin",
    "redundant",
    "backup",
    "weighted",
    "overflow",
]


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
    weight: int = 1
    priority: int = 0


@dataclass
class Conn:
    pending: int = 1000 * KB
    window_left: int = 100_000 * KB
    backlogged: bool = True


def ask(scheduler: Scheduler, subflows: list[Sub], conn: Conn | None = None) -> Sub | None:
    return scheduler.get_send(conn or Conn(), subflows, 100.0)


def test_all_names_of_the_registry_make_a_scheduler() -> None:
    assert names() == sorted(ALL)
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


@pytest.mark.parametrize("name", [name for name in ALL if name != "redundant"])
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


@pytest.mark.parametrize("name", ALL)
def test_no_scheduler_sends_slivers_unless_that_is_all_there_is(name: str) -> None:
    sliver = Sub(0.01, room=100)
    assert ask(create(name), [sliver]) is None
    assert ask(create(name), [sliver], Conn(pending=100)) is sliver
    assert ask(create(name), [sliver], Conn(window_left=100)) is sliver


@pytest.mark.parametrize("name", ["blest", "ecf", "weighted"])
def test_the_fastest_with_room_goes_first(name: str) -> None:
    fast, slow = Sub(0.01, room=9000), Sub(0.06, room=9000)
    assert ask(create(name), [slow, fast]) is fast


def test_blest_waits_only_when_the_slow_one_would_block_the_window() -> None:
    fast, slow = Sub(0.01), Sub(0.2, room=9000)
    assert ask(create("blest"), [fast, slow], Conn(window_left=500 * KB)) is None
    assert ask(create("blest"), [fast, slow], Conn(window_left=5000 * KB)) is slow


def test_blest_grows_more_careful_while_the_window_runs_short() -> None:
    fast, slow = Sub(0.01, cwnd=10 * KB), Sub(0.05, room=9000, bytes_in_flight=0)
    scheduler = create("blest")
    tight = Conn(window_left=20 * KB)
    assert ask(scheduler, [fast, slow], tight) is slow
    for turn in range(40):
        scheduler.get_send(Conn(window_left=0), [fast, slow], 200.0 + turn)
    assert scheduler.get_send(tight, [fast, slow], 240.001) is None


def test_ecf_waits_while_the_fast_one_is_done_sooner_alone() -> None:
    fast, slow = Sub(0.01), Sub(0.2, room=9000)
    scheduler = create("ecf")
    assert ask(scheduler, [fast, slow], Conn(pending=1000 * KB)) is None
    # It has begun to wait: now it takes a quarter more to give up.
    assert ask(scheduler, [fast, slow], Conn(pending=2200 * KB)) is None
    assert ask(scheduler, [fast, slow], Conn(pending=2600 * KB)) is slow
    assert ask(scheduler, [fast, slow], Conn(pending=2200 * KB)) is slow


def test_ecf_does_not_wait_where_the_slow_one_is_done_in_a_moment() -> None:
    fast, slow = Sub(0.01), Sub(0.03, room=9000, cwnd=1000 * KB)
    assert ask(create("ecf"), [fast, slow], Conn(pending=9 * KB)) is slow


def test_overflow_goes_by_the_order_of_the_uplinks() -> None:
    first, second = Sub(0.2, room=9000, priority=0), Sub(0.01, room=9000, priority=1)
    assert ask(create("overflow"), [second, first]) is first
    first.room = 0
    assert ask(create("overflow"), [second, first]) is second
    first.stale = True
    assert ask(create("overflow"), [second, first]) is second


def test_overflow_waits_while_the_first_uplink_has_not_found_its_limit() -> None:
    first, second = Sub(0.2, ssthresh=1 << 40), Sub(0.01, room=9000, priority=1)
    assert ask(create("overflow"), [second, first]) is None


def shares(subs: list[Sub], rounds: int) -> list[int]:
    """Bytes that each gets when all always have room; the first is not faster than the rest."""
    scheduler = create("weighted")
    sent = dict.fromkeys(map(id, subs), 0)
    for _ in range(rounds):
        free = list(subs)
        for sub in subs:
            sub.room = 9000
        while free:
            chosen = ask(scheduler, subs)
            if chosen is None:
                break
            sent[id(chosen)] += chosen.room
            chosen.room = 0
            free.remove(chosen)
    return [sent[id(sub)] for sub in subs]


def test_weighted_holds_a_light_uplink_to_its_share() -> None:
    heavy, light, feather = Sub(0.05, weight=6), Sub(0.01, weight=3), Sub(0.02, weight=1)
    sent = shares([heavy, light, feather], 600)
    assert sent[0] == 600 * 9000
    assert sent[1] / sent[0] == pytest.approx(1 / 2, rel=0.02)
    assert sent[2] / sent[0] == pytest.approx(1 / 6, rel=0.03)


def test_weighted_uses_all_of_uplinks_that_weigh_the_same() -> None:
    assert shares([Sub(0.05, weight=3), Sub(0.01, weight=3)], 100) == [900_000, 900_000]


def test_weighted_lets_the_light_one_work_alone_when_the_heavy_one_is_gone() -> None:
    heavy, light = Sub(0.05, weight=6), Sub(0.01, weight=1)
    assert sum(shares([light], 100)) == 900_000
    heavy.stale = True
    assert shares([heavy, light], 100) == [0, 900_000]


@pytest.mark.parametrize(("position", "weight"), [(0, 1), (7, 1), (0, 31), (7, 31), (2, 9)])
def test_an_address_id_tells_position_and_weight(position: int, weight: int) -> None:
    made = uplink_id(position, weight)
    assert 1 <= made <= 255
    assert of_uplink_id(made) == (position, weight)


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
