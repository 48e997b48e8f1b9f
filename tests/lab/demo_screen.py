"""What the demo shows: a block that is redrawn in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from typing import TextIO

BAR = 28
PLAIN_EVERY = 1.0  # seconds between progress lines when the output is not a terminal


@dataclass
class Reading:
    """One uplink's figures at one moment; ``rtt`` in seconds, rates in bit/s."""

    name: str
    rate: float
    rtt: float | None
    capacity: float
    note: str = ""


def mbit(rate: float) -> str:
    """``  48.2 Mbit/s``."""
    return f"{rate / 1e6:6.1f} Mbit/s"


def percent(part: float, whole: float) -> str:
    """`` 94 %``, of nothing: blank."""
    return f"{100 * part / whole:3.0f} %" if whole else "     "


def bar(part: float, whole: float) -> str:
    """A bar of fixed width."""
    filled = round(BAR * min(part / whole, 1.0)) if whole else 0
    return "█" * filled + "░" * (BAR - filled)


class Screen:
    """Writes headings, live progress and results."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self.live = self._stream.isatty()
        self._drawn = 0
        self._last_plain = 0.0

    def say(self, text: str = "") -> None:
        """A line that stays, as does what was drawn last."""
        self._drawn = 0
        self._last_plain = 0.0
        self._write(text)

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def heading(self, text: str) -> None:
        """A line that begins a part."""
        self.say()
        self.say(f"\033[1m{text}\033[0m" if self.live else text)

    def progress(self, seconds: float, readings: list[Reading], label: str = "") -> None:
        """The state ``seconds`` into a download; redrawn in place, or a line now and then."""
        if self.live:
            self._draw(self._block(seconds, readings, label))
        elif time.monotonic() - self._last_plain >= PLAIN_EVERY:
            self._last_plain = time.monotonic()
            self._write(self._line(seconds, readings, label))

    def _draw(self, lines: list[str]) -> None:
        width = shutil.get_terminal_size().columns
        up = f"\033[{self._drawn}A" if self._drawn else ""
        text = "".join(f"\r\033[K{line[: width - 1]}\n" for line in lines)
        self._stream.write(up + text)
        self._stream.flush()
        self._drawn = len(lines)

    @staticmethod
    def _block(seconds: float, readings: list[Reading], label: str) -> list[str]:
        total = sum(reading.rate for reading in readings)
        capacity = sum(reading.capacity for reading in readings)
        lines = []
        for one in readings:
            rtt = f"{one.rtt * 1e3:5.0f} ms" if one.rtt else "       –"
            lines.append(
                f"  {one.name:<7} {bar(one.rate, one.capacity)} {mbit(one.rate)}"
                f"   RTT {rtt}   share {percent(one.rate, total)}   {one.note}"
            )
        lines.append(
            f"  {'total':<7} {bar(total, capacity)} {mbit(total)}"
            f"   {percent(total, capacity)} of {capacity / 1e6:.1f}   {seconds:5.1f} s  {label}"
        )
        return lines

    @staticmethod
    def _line(seconds: float, readings: list[Reading], label: str) -> str:
        total = sum(reading.rate for reading in readings)
        parts = []
        for one in readings:
            rtt = f"RTT {one.rtt * 1e3:.0f} ms" if one.rtt else "RTT –"
            parts.append(
                f"{one.name} {mbit(one.rate)} {rtt} share {percent(one.rate, total)} {one.note}"
            )
        return f"  {seconds:5.1f} s  {' | '.join(parts)} | total {mbit(total)}  {label}"


def table(rows: list[list[str]]) -> list[str]:
    """Columns as wide as their widest cell; the first row is a heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  "
        + "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "  " + "  ".join("─" * width for width in widths))
    return lines
