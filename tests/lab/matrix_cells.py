"""The matrix: {who begins} x {v4, v6} x {checksums} x {middlebox} x {ending}.

The peer is the kernel's MPTCP, or a second engine. In each cell the stream arrives intact, or
fails loudly, as the table in ``modes`` says after RFC 8684; never in silence, never altered.
``OPEN`` names the cells that may fail, each with the reason.
``LAB_LANES`` cells run at once (4). One cell: ``pytest tests/lab/matrix_cells.py -k <its name>``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import pytest

from tests.lab.kernel import COMPLAINTS
from tests.lab.lane import SIZE
from tests.lab.matrix import Ending, Lanes, Peer, Played, Setting
from tests.lab.modes import MODES, OPEN, Mode, Role

LOUD = ("reset", "timed-out")
# What may be counted when a subflow, or the connection, dies.
DEATHS = ("MPRstTx", "MPRstRx", "MPFastcloseTx", "MPFastcloseRx", "MPJoinNoTokenFound",
          "MPJoinRejected", "FallbackFailed")  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One test."""

    name: str
    setting: Setting

    @property
    def mode(self) -> Mode:
        return MODES[self.name]

    def __str__(self) -> str:
        setting = self.setting
        family, checksum = "v6" if setting.six else "v4", "sum" if setting.checksum else "nosum"
        return f"{self.name}-{setting.ending.value}-{setting.peer.value}-{family}-{checksum}"


def cells() -> list[Cell]:
    """With the kernel every combination; between engines each mode and ending, twice."""
    found = []
    for name, mode in MODES.items():
        for ending in mode.endings:
            for peer in Peer:
                for six in (False, True):
                    for checksum in (False, True):
                        if peer is Peer.ENGINE_LISTENS and six is not checksum:
                            continue
                        found.append(Cell(name, Setting(peer, six, checksum, ending)))
    return found


@pytest.fixture(scope="module")
def matrix(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Cell, Future[Played]]]:
    """All cells that were selected, begun in the order of the tests."""
    chosen = [
        item.callspec.params["cell"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path
    ]
    count = min(len(chosen), int(os.environ.get("LAB_LANES", "4")))
    lanes = Lanes(count, tmp_path_factory.mktemp("matrix"))
    try:
        yield {cell: lanes.play(cell.mode.middle, cell.setting, cell.mode.joins) for cell in chosen}
    finally:
        lanes.close()


def marks(cell: Cell) -> list[pytest.MarkDecorator]:
    """An open cell may fail."""
    reasons = [o.reason for o in OPEN if o.holds(cell.name, cell.setting)]
    return [pytest.mark.xfail(strict=False, reason=reason) for reason in reasons]


@pytest.mark.parametrize("cell", [pytest.param(c, marks=marks(c), id=str(c)) for c in cells()])
def test_cell(matrix: dict[Cell, Future[Played]], cell: Cell) -> None:
    played = matrix[cell].result()
    print(played)
    if cell.name not in ("none", "joined", "announced"):
        assert played.changed > 0, "the middlebox did nothing"
    if cell.mode.joins or lives(cell):
        assert played.joined is cell.mode.joins or cell.mode.fails
    check_ends(cell, played)
    for index, role in enumerate((cell.mode.initiator, cell.mode.listener)):
        check_role(cell, role, played, index)


def lives(cell: Cell) -> bool:
    """Whether the connection can come to a clean end."""
    if cell.setting.ending is Ending.FASTCLOSE or cell.mode.fails:
        return False
    return cell.setting.ending is not Ending.RST or cell.mode.joins


def check_ends(cell: Cell, played: Played) -> None:
    """Intact, or loud; what did arrive is right."""
    altered = cell.mode.altered[cell.setting.checksum]
    most = altered
    if not cell.setting.checksum:  # the box may change a byte of each subflow
        most *= 1 + played.counters[1].get("MPJoinAckRx", 0)
    for outcome, allowed in zip(played.outcomes, (0, most), strict=True):
        assert outcome.wrong <= allowed, "the stream was altered in silence"
        if lives(cell) or outcome.end == "closed":
            assert outcome.end == "closed"
            assert outcome.received == SIZE, "the stream ended early, in silence"
            assert outcome.eof
    if cell.mode.middle.box.corrupt and lives(cell) and cell.setting.ending is Ending.CLEAN:
        assert played.outcomes[1].wrong == altered
    if lives(cell):
        return
    ends = [outcome.end for outcome in played.outcomes]
    if cell.setting.ending is Ending.FASTCLOSE:
        assert ends == ["aborted", "reset"]
    else:
        # An initiator may come back with a new subflow in time, and who has all may have closed.
        assert set(ends) <= {*LOUD, "closed"}


def check_role(cell: Cell, role: Role, played: Played, index: int) -> None:
    """The counters of one end, and how far it fell back if it is an engine."""
    outcome, values = played.outcomes[index], played.counters[index]
    ending, checksum = cell.setting.ending, cell.setting.checksum
    moves = (*role.moves, *(role.sum_moves if checksum else ()))
    allowed = {name for group in (*moves, *role.may) for name in group.split("|")}
    if ending is not Ending.CLEAN:
        allowed.update(DEATHS)
    unexpected = {n: values[n] for n in COMPLAINTS if values.get(n) and n not in allowed}
    assert unexpected == {}
    assert values.get("InternalErrors", 0) == 0
    if not lives(cell):
        return  # what takes a while may not have come to pass
    for group in moves:
        assert any(values.get(name) for name in group.split("|")), f"{group} did not move"
    if outcome.fallback:
        assert outcome.fallback in role.fallback.split("|")
