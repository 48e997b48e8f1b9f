"""The table of links, schedulers and congestion controls stays what ``grid.txt`` says.

Worse than the tolerance fails, better warns; either way the lines are printed. Where a change is
meant, ``python -m tests.pair.grid --write`` (or ``--full --write``, for all cells) renews the file.
"""

from __future__ import annotations

import warnings

import pytest

from tests.pair import grid

SNAPSHOT = grid.load()


@pytest.mark.parametrize("section", grid.sections())
def test_a_download_is_as_fast_as_the_snapshot_says(section: str) -> None:
    lines = []
    worse = 0
    for key in grid.cells(full=False):
        wanted = SNAPSHOT.cells.get(key)
        if key[0] != section or wanted is None:
            continue
        got = grid.measure(key)
        result = grid.compare(key, wanted, got)
        if result:
            lines.append(grid.difference(key, wanted, got))
        worse += result < 0
    print("\n".join(lines))
    if lines and not worse:
        warnings.warn(f"renew {grid.SNAPSHOT.name}:\n" + "\n".join(lines), stacklevel=1)
    assert not worse, "\n" + "\n".join(lines)


@pytest.mark.parametrize("control", grid.CONTROLS)
@pytest.mark.parametrize("profile", ["fibre+lte", "cable+5g", "deep-buffers", "lossy", "satellite"])
def test_default_is_never_slower_than_the_best_uplink_alone(profile: str, control: str) -> None:
    # A second uplink may be of no use, but it must not hurt. 1 %: what the joins themselves cost.
    alone = grid.measure((profile, grid.ALONE, control))
    assert grid.measure((profile, grid.QUICK_SCHEDULER, control)) >= 0.99 * alone


def test_the_snapshot_has_every_section_and_control() -> None:
    assert list(SNAPSHOT.titles) == list(grid.sections())
    for section in grid.sections():
        assert set(grid.CONTROLS) <= set(SNAPSHOT.columns(section)), section


def test_the_table_survives_its_file() -> None:
    again = grid.Table.parse("a comment\n\n" + str(SNAPSHOT))
    assert again == SNAPSHOT
    assert str(again) == str(SNAPSHOT)


@pytest.mark.parametrize("name", ["lia", "olia", "balia"])
def test_coupled_subflows_take_the_share_of_one_tcp(name: str) -> None:
    # CC-02: two subflows and one TCP on one bottleneck.
    share = grid.measure_fairness(grid.SHARE_OF_TWO, name)
    assert 0.36 <= share <= 0.6


def test_uncoupled_subflows_take_a_share_each() -> None:
    assert grid.measure_fairness(grid.SHARE_OF_TWO, "reno") >= 0.57
