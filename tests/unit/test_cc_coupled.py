"""LIA, OLIA and BALIA against their formulas, computed in segments as the papers write them."""

from __future__ import annotations

import pytest

from proxy.cc.balia import Balia
from proxy.cc.base import UNLIMITED, create
from proxy.cc.coupling import Coupled, Coupling
from proxy.cc.lia import Lia
from proxy.cc.olia import Olia

MSS = 1000
INITIAL = 10 * MSS
NAMES = ["lia", "olia", "balia"]


def subflows(name: str, *windows_and_rtts: tuple[int, float]) -> list[Coupled]:
    """Siblings in congestion avoidance: windows in segments, round trips in seconds."""
    coupling = Coupling()
    members = []
    for window, rtt in windows_and_rtts:
        cc = create(name, MSS, INITIAL)
        assert isinstance(cc, Coupled)
        cc.couple(coupling)
        cc.take_over(window * MSS, window * MSS, rtt, rtt, 0.0)
        members.append(cc)
    return members


def growth(cc: Coupled, rounds: int = 100) -> float:
    """Segments per window's worth of ACKs, with the window held constant."""
    start = cc.cwnd
    total = 0
    for _ in range(rounds):
        for _ in range(start // MSS):
            cc.on_ack(MSS, cc.srtt, 1.0, start, False)
            total += cc.cwnd - start
            cc.cwnd = start
    return total / MSS / rounds


@pytest.mark.parametrize("name", NAMES)
def test_alone_it_adds_a_segment_per_window(name: str) -> None:
    (cc,) = subflows(name, (20, 0.05))
    assert growth(cc) == pytest.approx(1.0, rel=0.01)
    plain = create(name, MSS, INITIAL)
    assert isinstance(plain, Coupled)
    plain.take_over(20 * MSS, 20 * MSS, 0.05, 0.05, 0.0)
    assert growth(plain) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_slow_start_is_not_coupled(name: str) -> None:
    one, _ = subflows(name, (10, 0.05), (10, 0.05))
    one.ssthresh = UNLIMITED
    for _ in range(10):
        one.on_ack(MSS, 0.05, 1.0, INITIAL, False)
    assert one.cwnd == 20 * MSS


@pytest.mark.parametrize("name", NAMES)
def test_two_equal_subflows_grow_like_one_tcp(name: str) -> None:
    # The window of a TCP is as the root of its growth: a quarter each makes half the window each.
    for cc in subflows(name, (20, 0.05), (20, 0.05)):
        assert growth(cc) == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_never_faster_than_a_tcp_of_its_own(name: str) -> None:
    for cc in subflows(name, (2, 0.3), (200, 0.01)):
        assert growth(cc, 20) <= 1.0 + 1e-6


def test_lia_follows_rfc_6356() -> None:
    members = subflows("lia", (30, 0.02), (10, 0.1))
    total = 40.0
    rate = 30 / 0.02 + 10 / 0.1
    alpha = total * max(30 / 0.02**2, 10 / 0.1**2) / rate**2
    for cc, window in zip(members, (30, 10), strict=True):
        wanted = min(alpha / total, 1 / window) * window
        assert growth(cc) == pytest.approx(wanted, rel=0.02)


def test_olia_moves_towards_the_path_that_loses_less() -> None:
    good, bad = subflows("olia", (10, 0.05), (30, 0.05))
    assert isinstance(good, Olia)
    assert isinstance(bad, Olia)
    good._between, bad._between = 1_000_000, 100_000
    basic = [w / 0.05**2 / ((10 + 30) / 0.05) ** 2 for w in (10, 30)]
    # The good one is best and not the largest: it gets 1/2 more, the largest 1/2 less.
    assert growth(good, 20) == pytest.approx((basic[0] + 0.5 / 10) * 10, rel=0.02)
    start = bad.cwnd
    for _ in range(300):
        bad.on_ack(MSS, 0.05, 1.0, start, False)
    assert bad.cwnd < start + 300 * basic[1] * MSS - MSS


def test_olia_counts_bytes_between_losses() -> None:
    cc = Olia(MSS, INITIAL)
    cc.on_ack(5 * MSS, 0.1, 1.0, 0, True)
    cc.on_congestion(2.0)
    cc.on_ack(2 * MSS, 0.1, 3.0, 0, True)
    assert cc.quality() == pytest.approx((5 * MSS) ** 2 / 0.1)
    cc.on_ack(4 * MSS, 0.1, 4.0, 0, True)
    assert cc.quality() == pytest.approx((6 * MSS) ** 2 / 0.1)


def test_balia_follows_its_draft() -> None:
    members = subflows("balia", (30, 0.02), (10, 0.1))
    rates = [30 / 0.02, 10 / 0.1]
    for cc, window, rtt, rate in zip(members, (30, 10), (0.02, 0.1), rates, strict=True):
        alpha = max(rates) / rate
        each = rate / rtt / sum(rates) ** 2 * (1 + alpha) / 2 * (4 + alpha) / 5
        assert growth(cc) == pytest.approx(min(each, 1 / window) * window, rel=0.03)


def test_balia_gives_more_on_the_slower_path() -> None:
    fast, slow = subflows("balia", (40, 0.02), (40, 0.1))
    slow.on_congestion(1.0)
    assert slow.cwnd == 10 * MSS
    fast.on_congestion(1.0)
    assert fast.cwnd == 20 * MSS
    fast.on_undo()
    assert fast.cwnd == 40 * MSS


def test_a_subflow_that_has_sent_nothing_does_not_count() -> None:
    coupling = Coupling()
    members = [Lia(MSS, INITIAL) for _ in range(2)]
    for cc in members:
        cc.couple(coupling)
    members[0].take_over(20 * MSS, 20 * MSS, 0.05, 0.05, 0.0)
    assert growth(members[0]) == pytest.approx(1.0, rel=0.01)


def test_who_leaves_frees_the_others() -> None:
    one, other = subflows("lia", (20, 0.05), (20, 0.05))
    assert growth(one) < 0.3
    other.release()
    other.release()
    assert growth(one) == pytest.approx(1.0, rel=0.01)


def test_a_dissolved_coupling_keeps_nobody() -> None:
    one, other = subflows("olia", (20, 0.05), (20, 0.05))
    coupling = one._coupling
    assert coupling is not None
    coupling.dissolve()
    assert coupling.members == []
    assert one._coupling is other._coupling is None


def test_nothing_grows_without_use() -> None:
    one, _ = subflows("balia", (20, 0.05), (20, 0.05))
    for _ in range(1000):
        one.on_ack(MSS, 0.05, 1.0, 0, True)
    assert one.cwnd == 20 * MSS


def test_registry_has_them() -> None:
    assert isinstance(create("balia", MSS, INITIAL), Balia)
    assert isinstance(create("lia", MSS, INITIAL), Lia)
