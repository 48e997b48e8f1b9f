"""Figures: samples by chain, what is promised of them, the table for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.chains import OURS, PEERS, TWO_WORKERS, Chain
from tests.lab.namespaces import LabError


@dataclass(frozen=True)
class Goal:
    """A value, or with ``of`` that multiple of another chain's median."""

    value: float
    of: str | None = None

    def __str__(self) -> str:
        return f"{self.value:g} x {self.of}" if self.of else f"{self.value:g}"


@dataclass
class Figure:
    """Samples by chain. ``higher``: more is better."""

    name: str
    unit: str
    higher: bool = True
    least: Goal | None = None
    aim: Goal | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, chain: str, value: float) -> None:
        """One more sample."""
        self.samples.setdefault(chain, []).append(value)

    def median(self, chain: str = OURS) -> float:
        """Of the chain's samples."""
        return statistics.median(self.samples[chain])

    def ratio(self, chain: str) -> float:
        """Our median by the other chain's."""
        other = self.median(chain)
        return self.median() / other if other else float("inf")

    def reached(self, goal: Goal | None) -> bool | None:
        """None: there is no such goal, or nothing to compare with."""
        if goal is None or OURS not in self.samples:
            return None
        if goal.of is None:
            bar = goal.value
        elif goal.of in self.samples:
            bar = goal.value * self.median(goal.of)
        else:
            return None
        return self.median() >= bar if self.higher else self.median() <= bar

    def cell(self, chain: str) -> str:
        """The median, and our multiple of it."""
        if chain not in self.samples:
            return ""
        text = f"{self.median(chain):.4g}"
        if chain == OURS or OURS not in self.samples:
            return text
        return f"{text} (x{self.ratio(chain):.2f})"

    def verdicts(self) -> list[str]:
        """What is promised and aimed at, and whether it is reached."""
        sign = ">=" if self.higher else "<="
        return [
            f"{sign} {goal}: {_VERDICTS[self.reached(goal)]}" if goal else ""
            for goal in (self.least, self.aim)
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        others = [chain for chain in self.samples if chain != OURS]
        compared = others if OURS in self.samples else []
        return {
            "figure": self.name,
            "unit": self.unit,
            "better": "higher" if self.higher else "lower",
            "medians": {chain: self.median(chain) for chain in self.samples},
            "ratios": {chain: self.ratio(chain) for chain in compared},
            "at_least": str(self.least) if self.least else None,
            "aim": str(self.aim) if self.aim else None,
            "reached": self.reached(self.least),
            "aim_reached": self.reached(self.aim),
            "samples": self.samples,
        }


class Report:
    """What one run measures: how often, with what progress, and all its figures."""

    def __init__(self, *, rounds: int, quick: bool, peers: Sequence[str] | None = None) -> None:
        self.rounds = rounds
        self.quick = quick
        self.figures: list[Figure] = []
        self.failures: dict[str, str] = {}
        self._peers = peers
        self._began = time.monotonic()

    def chains(self, *wanted: str) -> list[str]:
        """Of these, ours and the peers that shall be measured."""
        return [n for n in wanted if n == OURS or self._peers is None or n in self._peers]

    def seconds(self, full: float, quick: float) -> float:
        """How long one measurement takes."""
        return quick if self.quick else full

    def say(self, text: str) -> None:
        """Progress, with the time since the start."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        print(f"{minutes:2d}:{seconds:02d}  {text}", file=sys.stderr, flush=True)

    def interleaved(
        self,
        figures: Sequence[Figure],
        chains: Sequence[Chain],
        measure: Callable[[Chain], Sequence[float | None]],
        *,
        rounds: int | None = None,
    ) -> None:
        """``measure`` gives one sample for each figure (None: none); all chains in turns."""
        rounds = rounds or self.rounds
        for number in range(1, rounds + 1):
            for chain in chains:
                values = measure(chain)
                said = []
                for figure, value in zip(figures, values, strict=True):
                    if value is not None:
                        figure.add(chain.name, value)
                        said.append(f"{figure.name} {value:.4g} {figure.unit}")
                self.say(f"{number}/{rounds}  {chain.name:<12} {', '.join(said)}")
        self.figures += [figure for figure in figures if figure.samples]

    def table(self) -> str:
        """All figures as a Markdown table: medians, and how many times each other's ours is."""
        order = [OURS, TWO_WORKERS, *PEERS]
        chains = [name for name in order if any(name in f.samples for f in self.figures)]
        rows = [["figure", "unit", *chains, "promised", "aim"]]
        rows += [[f.name, f.unit, *map(f.cell, chains), *f.verdicts()] for f in self.figures]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        rows.insert(1, ["-" * width for width in widths])
        lines = [
            "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
            for row in rows
        ]
        lines += [f"{name}: FAILED: {why}" for name, why in self.failures.items()]
        return "\n".join(lines)

    @property
    def missed(self) -> list[str]:
        """Figures below what is promised, and benches that failed."""
        missed = [f.name for f in self.figures if f.reached(f.least) is False]
        return missed + list(self.failures)

    def write(self, path: Path) -> None:
        """The JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}",
            "rounds": self.rounds,
            "quick": self.quick,
            "figures": [figure.as_json() for figure in self.figures],
            "failures": self.failures,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")

    def run(self, name: str, bench: Callable[[Report], None]) -> None:
        """One bench; a lab that fails is noted and the next goes on."""
        self.say(f"--- {name}: {(bench.__doc__ or '').splitlines()[0]}")
        try:
            bench(self)
        except LabError as error:
            self.failures[name] = str(error)
            self.say(f"{name}: FAILED: {error}")


_VERDICTS = {True: "yes", False: "NO", None: "?"}
