"""Links x schedulers x congestion controls in virtual time, and the table of what they carry.

``python -m tests.pair.grid`` measures the cells that the tests compare and prints what differs
from ``grid.txt``; ``--full`` measures all cells, ``--write`` replaces the file's. A cell is one
download, from the first SYN to the end of the stream; everything is seeded.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import Pool
from pathlib import Path as FilePath
from typing import Any

from proxy.cc.base import names as congestion_controls
from proxy.mptcp.config import MptcpConfig
from proxy.sched.base import names as schedulers
from proxy.tcp.config import TcpConfig
from tests.pair.link import Link
from tests.pair.mptcp_harness import App, MptcpPair, Path, goodput

SNAPSHOT = FilePath(__file__).with_name("grid.txt")
COALESCE = 0.0005  # receivers take packets in batches of half a millisecond, as NICs give them
CONTROLS = ("cubic", "reno", "bbr", "lia", "olia", "balia")
QUICK_CONTROL = "cubic"
QUICK_SCHEDULER = "default"
ALONE = "best alone"
START = 1000.0  # when a pair begins


class BurstLink(Link):
    """Loss in bursts of about four packets (Gilbert and Elliott), ``loss`` of them in all."""

    _bad = False

    def _send_one(self, wire: bytes, now: float) -> list[tuple[float, bytes]]:
        share = self.loss
        enter = 0.25 * share / (1.0 - share)
        self._bad = self.rng.random() < (0.75 if self._bad else enter)
        self.loss = 1.0 if self._bad else 0.0
        try:
            return super()._send_one(wire, now)
        finally:
            self.loss = share


@dataclass(frozen=True)
class Uplink:
    """Mbit/s, milliseconds of round trip, of queue and of jitter; the share of packets lost."""

    mbit: float
    rtt: float
    queue: float = 100.0
    loss: float = 0.0
    jitter: float = 0.0
    bursts: bool = False

    def build(self, rng: random.Random) -> Path:
        """Both directions."""
        packets = max(10, int(self.mbit * 1e6 / 8 * self.queue / 1e3 / 1500))
        kind = BurstLink if self.bursts else Link
        down = kind(
            rng, rate=self.mbit * 1e6, delay=self.rtt / 2e3, queue=packets, loss=self.loss,
            jitter=self.jitter / 1e3, batch=COALESCE,
        )  # fmt: skip
        up = Link(rng, rate=self.mbit * 1e6, delay=self.rtt / 2e3, queue=packets, batch=COALESCE)
        return Path(up, down)

    def __str__(self) -> str:
        text = f"{self.mbit:g} Mbit/s {self.rtt:g} ms"
        if self.jitter:
            text += f" +-{self.jitter:g}"
        if self.queue != 100.0:
            text += f" queue {self.queue:g}"
        if self.loss:
            text += f" loss {self.loss:.0%}" + (" in bursts" if self.bursts else "")
        return text


@dataclass(frozen=True)
class Profile:
    """A set of uplinks, and how much is carried over them; lossy ones with several seeds."""

    uplinks: tuple[Uplink, ...]
    megabytes: float
    tolerance: float = 0.1

    @property
    def seeds(self) -> int:
        """A loss more or less moves a short transfer by a lot."""
        return 3 if any(u.loss for u in self.uplinks) else 1


PROFILES = {
    "fibre+lte": Profile((Uplink(300, 8), Uplink(30, 40)), 16),
    "cable+5g": Profile((Uplink(150, 30), Uplink(100, 50, jitter=20)), 16),
    "deep-buffers": Profile((Uplink(100, 10, queue=500), Uplink(10, 200, queue=1000)), 12),
    "lossy": Profile((Uplink(30, 40, loss=0.01), Uplink(30, 80, loss=0.03, bursts=True)), 3, 0.5),
    "satellite": Profile((Uplink(20, 60), Uplink(50, 300)), 8, 0.15),
    "dsl+lte": Profile((Uplink(50, 20), Uplink(20, 60)), 8),
    "equal": Profile((Uplink(20, 30), Uplink(20, 30)), 5),
    "policed": Profile((Uplink(50, 20, queue=5), Uplink(20, 50, queue=200)), 8, 0.15),
    "three": Profile((Uplink(40, 15), Uplink(20, 40), Uplink(10, 80)), 7),
}

ONE_PATH = {
    "50/20": Profile((Uplink(50, 20),), 10),
    "50/20 deep": Profile((Uplink(50, 20, queue=1000),), 10),
    "50/20 loss 1%": Profile((Uplink(50, 20, loss=0.01),), 4, 0.25),
    "20/100": Profile((Uplink(20, 100),), 6),
    "100/20 shallow": Profile((Uplink(100, 20, queue=5),), 16, 0.15),
}


@dataclass
class Table:
    """Named sections of rows and columns. A section's title says what its numbers are."""

    titles: dict[str, str] = field(default_factory=dict)
    cells: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def columns(self, section: str) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(c for s, _, c in self.cells if s == section))

    def rows(self, section: str) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(r for s, r, _ in self.cells if s == section))

    def __str__(self) -> str:
        lines = []
        for section, title in self.titles.items():
            columns = self.columns(section)
            if not columns:
                continue
            lines.append(f"[{section}] {title}")
            lines.append(" " * 16 + "".join(f"{c:>9}" for c in columns))
            for row in self.rows(section):
                values = [self.cells.get((section, row, c)) for c in columns]
                texts = ("-" if v is None else f"{v:.2f}" if v < 10 else f"{v:.1f}" for v in values)
                lines.append(f"{row:16}" + "".join(f"{t:>9}" for t in texts))
            lines.append("")
        return "\n".join(lines)

    @classmethod
    def parse(cls, text: str) -> Table:
        """The inverse of ``str``; lines before the first section are comments."""
        table = cls()
        section = ""
        columns: list[str] | None = None
        for line in text.splitlines():
            if line.startswith("["):
                section, _, title = line[1:].partition("] ")
                table.titles[section] = title
                columns = None
            elif section and line.strip():
                if columns is None:
                    columns = line.split()
                    continue
                for column, value in zip(columns, line[16:].split(), strict=True):
                    if value != "-":
                        table.cells[section, line[:16].strip(), column] = float(value)
        return table


# -- one cell ---------------------------------------------------------------------------------


def watch_queues(pair: MptcpPair, links: Iterable[Link]) -> list[float]:
    """Milliseconds of data that wait in the longest of the queues, every 10 ms."""
    waits: list[float] = []
    watched = list(links)

    def look() -> None:
        waits.append(max(0.0, *(link._free_at - pair.now for link in watched)) * 1e3)
        if not pair.finished:
            pair.after(0.01, look)

    pair.after(0.01, look)
    return waits


@lru_cache(maxsize=1000)
def download(
    uplinks: tuple[Uplink, ...], size: int, control: str, scheduler: str, seed: int
) -> tuple[float, float]:
    """Mbit/s, and the mean queue in milliseconds."""
    tcp = TcpConfig(congestion_control=control)
    mptcp = MptcpConfig(scheduler=scheduler)
    pair = MptcpPair(
        lambda rng: [u.build(rng) for u in uplinks], App(), App(bytes(size)),
        seed=seed, client_tcp=tcp, server_tcp=tcp, client=mptcp, server=mptcp,
    )  # fmt: skip
    waits = watch_queues(pair, [p.down for p in pair.paths])
    pair.run(120.0)
    end = pair.client_app.finished_at
    assert end is not None, f"{control}, {scheduler}, seed {seed}: not finished"
    assert len(pair.client_app.received) == size
    return size * 8 / (end - START) / 1e6, sum(waits) / max(len(waits), 1)


def mean(
    profile: Profile, uplinks: tuple[Uplink, ...], control: str, scheduler: str, which: int
) -> float:
    """The mean over the seeds of one of ``download``'s results."""
    size = int(profile.megabytes * 1e6)
    runs = [download(uplinks, size, control, scheduler, s)[which] for s in range(profile.seeds)]
    return sum(runs) / len(runs)


def measure_profile(name: str, row: str, control: str) -> float:
    """Mbit/s of a cell of a profile."""
    profile = PROFILES[name]
    if row == ALONE:
        return max(mean(profile, (u,), control, QUICK_SCHEDULER, 0) for u in profile.uplinks)
    return mean(profile, profile.uplinks, control, row, 0)


def measure_one_path(which: int, row: str, control: str) -> float:
    """Mbit/s or milliseconds of queue on one path."""
    profile = ONE_PATH[row]
    return mean(profile, profile.uplinks, control, QUICK_SCHEDULER, which)


# -- fairness ---------------------------------------------------------------------------------

BOTTLENECK = Uplink(10, 40)
SETTLE = 4.0
FAIR_TIME = 12.0
FAIR_RUNS = 3
SHARE_OF_TWO = "2 subflows / 1"
EQUALS = "1 / 1"


def together(pairs: list[MptcpPair], seconds: float) -> None:
    """Step connections that share a link in the order of their events."""
    end = START + seconds
    while True:
        due, _, pair = min((next_event(p), i, p) for i, p in enumerate(pairs))
        if due >= end:
            return
        pair.step()


def next_event(pair: MptcpPair) -> float:
    """When ``step`` would go to."""
    due = [t for t in (pair.client_host.next_timeout(), pair.server_host.next_timeout()) if t]
    due += [queue[0][0] for queue in (pair._arrivals, pair._timers) if queue]
    return max(min(due, default=1e12), pair.now)


@lru_cache(maxsize=100)
def measure_share(row: str, control: str, seed: int) -> float:
    """The share that the first of two connections takes of one bottleneck.

    With several subflows the rival is what coupling is defined by, NewReno, or of the same kind
    where the control is no relative of it.
    """
    subflows = 2 if row == SHARE_OF_TWO else 1
    rival = control if control in ("cubic", "bbr") else "reno"
    shared = BOTTLENECK.build(random.Random(seed + 7)).down

    def paths(count: int) -> Callable[[random.Random], list[Path]]:
        return lambda rng: [
            # A little noise on the ACKs' way, or the queue drops by a rhythm.
            Path(Link(rng, delay=0.02, jitter=0.002), shared)
            for _ in range(count)
        ]

    pairs = []
    for number, (count, name) in enumerate(((subflows, control), (1, rival))):
        tcp = TcpConfig(congestion_control=name)
        mptcp = MptcpConfig(scheduler=QUICK_SCHEDULER)
        size = int(BOTTLENECK.mbit * 1e6 / 8 * (SETTLE + FAIR_TIME) * 1.2)
        pairs.append(
            MptcpPair(
                paths(count),
                App(),
                App(bytes(size)),
                seed=number + 2 * seed + 1,
                client_tcp=tcp,
                server_tcp=tcp,
                client=mptcp,
                server=mptcp,
            )
        )
    together(pairs, SETTLE + FAIR_TIME)
    rates = [goodput(p.client_app, START + SETTLE, START + SETTLE + FAIR_TIME) for p in pairs]
    return rates[0] / sum(rates)


def measure_fairness(row: str, control: str) -> float:
    """The mean of ``measure_share`` over some seeds: drop-tail queues have rhythms."""
    return sum(measure_share(row, control, seed) for seed in range(FAIR_RUNS)) / FAIR_RUNS


# -- all cells --------------------------------------------------------------------------------

PATH_RATE = "one path"
PATH_QUEUE = "one path, queue"
FAIRNESS = "fairness"

Key = tuple[str, str, str]


def sections() -> dict[str, str]:
    """All sections with their titles, in the order of the file."""
    titles = {
        name: f"{' + '.join(map(str, p.uplinks))}: {p.megabytes:g} MB, Mbit/s, +-{p.tolerance:.0%}"
        for name, p in PROFILES.items()
    }
    titles[PATH_RATE] = "rate/round trip: Mbit/s"
    titles[PATH_QUEUE] = "rate/round trip: mean queue, ms"
    titles[FAIRNESS] = f"{BOTTLENECK}: share of the first (fair: 0.5), +-0.15; rivals: see grid.py"
    return titles


def cells(full: bool) -> Iterator[Key]:
    """What there is to measure; not ``full``: what the tests compare."""
    controls = [*CONTROLS, *sorted(set(congestion_controls()) - set(CONTROLS))]
    rows = [QUICK_SCHEDULER, *(n for n in schedulers() if n != QUICK_SCHEDULER)]
    for name in PROFILES:
        for row in (ALONE, *rows):
            if not full and name == "lossy" and row in (ALONE, "backup"):
                continue  # slow, for losses leave little of one path
            for control in controls:
                if full or control == QUICK_CONTROL or row == QUICK_SCHEDULER:
                    yield name, row, control
    for section in (PATH_RATE, PATH_QUEUE):
        for row in ONE_PATH:
            for control in controls:
                # On one path the coupled ones are one and the same.
                if full or control not in ("olia", "balia"):
                    yield section, row, control
    for row in (SHARE_OF_TWO, EQUALS):
        for control in controls:
            if full or (row == SHARE_OF_TWO and control not in ("cubic", "bbr")):
                yield FAIRNESS, row, control


def measure(key: Key) -> float:
    """One cell."""
    section, row, control = key
    if section in PROFILES:
        return measure_profile(section, row, control)
    if section == FAIRNESS:
        return measure_fairness(row, control)
    return measure_one_path(0 if section == PATH_RATE else 1, row, control)


def compare(key: Key, wanted: float, got: float) -> int:
    """-1: worse than the tolerance allows, 0: as it was, 1: better than that."""
    section, row, _ = key
    if section == FAIRNESS:
        return 0 if abs(got - wanted) <= 0.15 else -1
    if section == PATH_QUEUE:
        margin = max(0.25 * wanted, 3.0)
        return -1 if got > wanted + margin else 1 if got < wanted - margin else 0
    profile = PROFILES.get(section) or ONE_PATH[row]
    margin = profile.tolerance * wanted
    return -1 if got < wanted - margin else 1 if got > wanted + margin else 0


def load() -> Table:
    """The snapshot."""
    return Table.parse(SNAPSHOT.read_text()) if SNAPSHOT.exists() else Table()


def difference(key: Key, wanted: float, got: float) -> str:
    """One readable line."""
    word = {-1: "WORSE", 0: "", 1: "better"}[compare(key, wanted, got)]
    return f"[{key[0]}] {key[1]:16}{key[2]:8}{wanted:9.2f} -> {got:8.2f} {word}"


HEADER = """\
What links, schedulers and congestion controls make of a download in virtual time.
Written by: python -m tests.pair.grid --full --write

"""


def write(results: dict[Key, float], full: bool) -> None:
    """Replace what was measured; a full run also forgets what is no more."""
    old = load().cells
    table = Table(sections())
    for key in cells(True):
        value = results.get(key, None if full else old.get(key))
        if value is not None:
            table.cells[key] = value
    SNAPSHOT.write_text(HEADER + str(table))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all cells")
    parser.add_argument("--write", action="store_true", help="replace the snapshot's cells")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="", help="the section of that name alone")
    options: Any = parser.parse_args()
    keys = [k for k in cells(options.full) if options.only in ("", k[0])]
    with Pool(options.jobs) as pool:
        results = dict(zip(keys, pool.imap(measure, keys, chunksize=1), strict=True))
    snapshot = load().cells
    for key, got in results.items():
        wanted = snapshot.get(key)
        if wanted is not None and compare(key, wanted, got):
            print(difference(key, wanted, got))
    if options.write:
        write(results, options.full and not options.only)
    else:
        print(Table(sections(), results))


if __name__ == "__main__":
    main()
