"""Waiting for a condition in real time, with an end to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from tests.lab.namespaces import LabError

T = TypeVar("T")


def wait_for(
    condition: Callable[[], T | None], what: str, *, within: float = 10.0, every: float = 0.02
) -> T:
    """Asks until ``condition()`` is true and returns that; LabError naming ``what`` if never."""
    deadline = time.monotonic() + within
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {within:g} s")
        time.sleep(every)
