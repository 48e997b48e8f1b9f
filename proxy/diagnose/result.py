"""What a check found, and how to mend it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

HOST = "host"


class Level(enum.Enum):
    """Whether it is as it should be."""

    OK = "ok"
    FINDING = "finding"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Result:
    """``check`` is its name, ``text`` what was seen, ``mend`` keys to change or commands to run.

    ``where`` is an uplink's name, or ``host``.
    """

    where: str
    check: str
    level: Level
    text: str
    mend: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "where": self.where,
            "check": self.check,
            "level": self.level.value,
            "text": self.text,
            "mend": list(self.mend),
        }


def fine(where: str, check: str, text: str) -> Result:
    """It is as it should be."""
    return Result(where, check, Level.OK, text)


def finding(where: str, check: str, text: str, *mend: str) -> Result:
    """It is not; ``mend``: what to do."""
    return Result(where, check, Level.FINDING, text, mend)


def skipped(where: str, check: str, text: str) -> Result:
    """It could not be looked at; ``text`` says why."""
    return Result(where, check, Level.SKIPPED, text)
