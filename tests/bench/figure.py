"""A measured figure: printed as a line for people and as JSON for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from tests.lab.daemons import Boxes, boxes
from tests.lab.topology import Topology, topology

if TYPE_CHECKING:
    from tests.lab.link import LinkSpec


@dataclass
class Figure:
    """``value`` against ``target``; ``better`` says which side of the target is wanted."""

    name: str
    value: float
    unit: str
    target: float | None = None
    better: str = "higher"
    detail: dict[str, object] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        """The target is met, or there is none."""
        if self.target is None:
            return True
        return self.value >= self.target if self.better == "higher" else self.value <= self.target

    def show(self) -> Figure:
        """Prints it; returns itself."""
        if self.target is None:
            verdict = ""
        else:
            sign = ">=" if self.better == "higher" else "<="
            verdict = f"  ({'ok' if self.reached else 'MISSED'}: {sign} {self.target:g})"
        details = ", ".join(f"{key} {_short(value)}" for key, value in self.detail.items())
        print(f"{self.name}: {self.value:.2f} {self.unit}{verdict}  {details}")
        print(json.dumps({**asdict(self), "reached": self.reached}, default=str), flush=True)
        return self


def _short(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


class Load:
    """Processor time of both boxes between its making and ``share``."""

    def __init__(self, both: Boxes) -> None:
        self._both = both
        self._began = time.monotonic()
        self._before = {box.role: box.processor_seconds() for box in both}

    def share(self) -> dict[str, object]:
        """Percent of one processor by role."""
        took = time.monotonic() - self._began
        shares: dict[str, object] = {}
        for box in self._both:
            used = box.processor_seconds() - self._before[box.role]
            shares[f"{box.role}_cpu"] = f"{100 * used / took:.0f}%"
        return shares


@contextmanager
def running(
    *links: LinkSpec | None, **options: dict[str, object]
) -> Iterator[tuple[Topology, Boxes]]:
    """A lab with both boxes; the first connection, which warms them up, is the caller's."""
    with topology(*links) as lab, boxes(lab, **options) as both:
        yield lab, both
