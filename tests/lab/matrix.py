"""Cells of the matrix: what is in the path, how the connection ends, and playing one in a lane."""

from __future__ import annotations

import enum
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.lab.cells import End, EngineEnd, KernelEnd, Outcome
from tests.lab.kernel import SERVER4, SERVER6, counters, engine_address
from tests.lab.lane import SECOND_GATE, Lane, far_address
from tests.lab.link import Link
from tests.lab.middlebox import NAT_PATTERN, NO_BOX, Middlebox
from tests.lab.namespaces import LabError
from tests.lab.waiting import wait_for

WITHIN = 30.0
"""Seconds that a cell may take; nothing in one needs more than a few."""
LOW_MTU = 1300


class Toward(enum.Enum):
    """Whose packets the box changes: those that go to ..."""

    BOTH = "both"
    LISTENER = "listener"
    INITIATOR = "initiator"


class Trouble(enum.Enum):
    """What the path does in mid-transfer, once all subflows are there."""

    NONE = "none"
    BOX = "box"  # the middlebox is not there before
    MTU_SILENT = "mtu-silent"
    MTU_ICMP = "mtu-icmp"
    REBIND = "rebind"


class Ending(enum.Enum):
    """How a cell ends: both finish; RSTs on the first link; the initiator aborts; the first link
    is dead (and comes back where it is the only one)."""

    CLEAN = "close"
    RST = "rst"
    FASTCLOSE = "fastclose"
    LOSS = "loss"


class Peer(enum.Enum):
    """Who the near engine talks to, and which of both begins."""

    KERNEL_LISTENS = "initiator"
    KERNEL_CONNECTS = "listener"
    ENGINE_LISTENS = "engines"


@dataclass(frozen=True)
class Middle:
    """What is between the ends. ``paths``: 1, or 2 if the initiator joins from (``endpoints``
    subflow) or to (signal) a second address; ``links`` have the box."""

    box: Middlebox = NO_BOX
    toward: Toward = Toward.BOTH
    links: tuple[int, ...] = (1,)
    paths: int = 1
    endpoints: str = "subflow"
    trouble: Trouble = Trouble.NONE


@dataclass(frozen=True)
class Setting:
    """All of a cell but its path."""

    peer: Peer
    six: bool
    checksum: bool
    ending: Ending


@dataclass
class Played:
    """What came of a cell: outcomes and counters (without the prefix MPTcpExt), the initiator's
    first."""

    outcomes: tuple[Outcome, Outcome]
    counters: tuple[dict[str, int], dict[str, int]]
    joined: bool
    changed: int
    """Packets that the emulator has changed, dropped, made or joined."""


class Play:
    """One cell in one lane."""

    def __init__(self, lane: Lane, middle: Middle, setting: Setting, joins: bool) -> None:
        self.lane = lane
        self.middle = middle
        self.setting = setting
        self.joins = joins

    def run(self) -> Played:
        """From a quiet lane to a quiet lane."""
        lane = self.lane
        lane.heal()
        lane.hush()
        for link in lane.links:
            link.statistics(reset=True)
        self._set_boxes()
        before = counters(lane.lab.kernel)
        near, far = self._open()
        try:
            self._reach(near, far)
            if self.middle.trouble is not Trouble.NONE:
                self._trouble()
                self._meet_trouble(near, far)
            self._end(near, far)
            deadline = time.monotonic() + WITHIN
            for end in (near, far):
                end.ended.wait(max(0.0, deadline - time.monotonic()))
        finally:
            lane.heal()
            lane.flush_routes()
            near_counters = _short(near.shut())
            far_engine = far.shut() if isinstance(far, EngineEnd) else None
            if isinstance(far, KernelEnd):
                far.shut()
            lane.hush()
        if far_engine is None:
            after = counters(lane.lab.kernel)
            far_counters = {name: after[name] - before[name] for name in after}
        else:
            far_counters = _short(far_engine)
        return self._sum_up(near, far, near_counters, far_counters)

    def _sum_up(
        self, near: End, far: End, near_counters: dict[str, int], far_counters: dict[str, int]
    ) -> Played:
        begins = self.setting.peer is not Peer.KERNEL_CONNECTS
        outcomes, values = (near.outcome, far.outcome), (near_counters, far_counters)
        return Played(
            outcomes=outcomes if begins else outcomes[::-1],
            counters=values if begins else values[::-1],
            joined=any(side.get("MPJoinAckRx") for side in values),
            changed=self._changed(),
        )

    # -- the steps --------------------------------------------------------------------------------

    def _each_box(self, box: Middlebox) -> None:
        for number in self.middle.links:
            self._set_box(self.lane.links[number - 1], box)

    def _set_box(self, link: Link, box: Middlebox) -> None:
        toward = self.middle.toward
        begins = self.setting.peer is not Peer.KERNEL_CONNECTS
        up = toward is Toward.BOTH or (toward is Toward.LISTENER) is begins
        down = toward is Toward.BOTH or (toward is Toward.LISTENER) is not begins
        link.shape(
            up=replace(link.spec.up, box=box) if up else None,
            down=replace(link.spec.down, box=box) if down else None,
        )

    def _set_boxes(self) -> None:
        # All flows are watched, so that a RST can be made for each.
        for link in self.lane.links:
            link.set(box=Middlebox(rst_after=1 << 30))
        if self.middle.trouble is not Trouble.BOX:
            self._each_box(self.middle.box)

    def _open(self) -> tuple[EngineEnd, KernelEnd | EngineEnd]:
        lane, setting, middle = self.lane, self.setting, self.middle
        port = lane.next_port()
        connects = setting.peer is not Peer.KERNEL_CONNECTS
        used_by = {"subflow": "initiator", "signal": "listener"}[middle.endpoints]

        def endpoints(role: str) -> str:
            return middle.endpoints if middle.paths == 2 and used_by == role else ""

        def near(remote: str = "") -> EngineEnd:
            return lane.engine_end(
                lane.near, far=False, six=setting.six, role="connect" if connects else "listen",
                port=port, remote=remote, checksum=setting.checksum,
                endpoints=endpoints("initiator" if connects else "listener"),
            )  # fmt: skip

        def far(remote: str = "") -> KernelEnd | EngineEnd:
            words: dict[str, Any] = {
                "six": setting.six, "role": "listen" if connects else "connect", "port": port,
                "remote": remote, "checksum": setting.checksum,
                "endpoints": endpoints("listener" if connects else "initiator"),
            }  # fmt: skip
            if setting.peer is Peer.ENGINE_LISTENS:
                return lane.engine_end(lane.far, far=True, **words)
            return lane.kernel_end(**words)

        if not connects:
            listening = near()
            return listening, far(engine_address(1, setting.six))
        there = far()
        if setting.peer is Peer.ENGINE_LISTENS:
            return near(far_address(1, setting.six)), there
        return near(SERVER6 if setting.six else SERVER4), there

    def _reach(self, near: EngineEnd, far: KernelEnd | EngineEnd) -> None:
        for end in (near, far):
            if not end.reached.wait(WITHIN):
                raise LabError(f"a quarter never arrived: near {near.outcome}, far {far.outcome}")
        if self.joins:
            wait_for(lambda: near.joined() or near.ended.is_set(), "the second subflow")

    def _trouble(self) -> None:
        match self.middle.trouble:
            case Trouble.MTU_SILENT | Trouble.MTU_ICMP:
                icmp = self.middle.trouble is Trouble.MTU_ICMP
                for number in self.middle.links:
                    self.lane.links[number - 1].set(max_packet=LOW_MTU, icmp=icmp)
            case Trouble.BOX:
                self._each_box(self.middle.box)
            case Trouble.REBIND:
                self._each_box(replace(self.middle.box, nat=NAT_PATTERN << 1))

    def _meet_trouble(self, near: EngineEnd, far: KernelEnd | EngineEnd) -> None:
        for end in (near, far):
            end.allow(SECOND_GATE)
        wait_for(lambda: self._changed() or near.ended.is_set(), "packets meet the trouble")

    def _changed(self) -> int:
        return sum(
            way[name]
            for link in self.lane.links
            for way in link.statistics().values()
            for name in ("changed", "made", "joined", "lost_box", "lost_mtu")
        )

    def _end(self, near: EngineEnd, far: KernelEnd | EngineEnd) -> None:
        ending, first = self.setting.ending, self.lane.links[0]
        if ending is Ending.FASTCLOSE:
            (far if self.setting.peer is Peer.KERNEL_CONNECTS else near).abort()
            return
        if ending is Ending.RST:
            first.reset()
        if ending is Ending.LOSS:
            first.cut()
        near.release()
        far.release()
        if ending is Ending.LOSS and not self.joins:
            # Nothing can go on without the path: it comes back once something was lost.
            wait_for(
                lambda: (
                    sum(way["lost_cut"] for way in first.statistics().values()) >= 2
                    or (near.ended.is_set() and far.ended.is_set())
                ),
                "packets are lost",
            )
            first.restore()


def _short(values: dict[str, int]) -> dict[str, int]:
    return {name.removeprefix("MPTcpExt"): value for name, value in values.items()}


class Lanes:
    """Plays cells in some lanes at once; a lane that a cell has broken is built anew."""

    def __init__(self, count: int, directory: Path) -> None:
        self._directory = directory
        self._pool = ThreadPoolExecutor(count)
        self._free: SimpleQueue[Lane | None] = SimpleQueue()
        self._all: list[Lane] = []
        self._lock = threading.Lock()
        for _ in range(count):
            self._free.put(None)

    def play(self, middle: Middle, setting: Setting, joins: bool) -> Future[Played]:
        """Plays a cell as soon as a lane is free."""
        return self._pool.submit(self._play, middle, setting, joins)

    def _play(self, middle: Middle, setting: Setting, joins: bool) -> Played:
        lane = self._free.get() or self._build()
        try:
            played = Play(lane, middle, setting, joins).run()
        except BaseException:
            lane.close()
            self._free.put(None)
            raise
        self._free.put(lane)
        return played

    def _build(self) -> Lane:
        with self._lock:  # namespaces are named by a counter
            lane = Lane(self._directory)
            self._all.append(lane)
            return lane

    def close(self) -> None:
        """Cells that were not begun are forgotten."""
        self._pool.shutdown(cancel_futures=True)
        for lane in self._all:
            lane.close()
