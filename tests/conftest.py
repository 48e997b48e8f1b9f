"""What every test directory shares: which tests this machine can run.

Tests under ``tests/lab`` need root, network namespaces, ``/dev/net/tun`` and some programs. Where
one of these is not there the test is skipped and the summary says what was missing; with
``CI=true`` it fails, so that a pipeline cannot grow green by running less.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

LAB = Path(__file__).parent / "lab"
SYSTEM_PATHS = "/usr/local/sbin:/usr/sbin:/sbin"


@cache
def _lacking_everywhere() -> tuple[str, ...]:
    """What no lab test can do without and this machine has not."""
    lacking = []
    if os.geteuid() != 0:
        lacking.append("root")
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        lacking.append(f"/dev/net/tun ({error.strerror})")
    return tuple(lacking)


@cache
def find_program(name: str) -> str | None:
    """Path of a program, also where only root's PATH has it."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATHS}")


def _lacking(programs: Iterable[str]) -> list[str]:
    wanted = ["ip", *programs]
    return [*_lacking_everywhere(), *(name for name in wanted if find_program(name) is None)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything under tests/lab is a lab test."""
    for item in items:
        if LAB in item.path.parents and item.get_closest_marker("lab") is None:
            item.add_marker(pytest.mark.lab)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """``@pytest.mark.lab("nginx", "curl")`` names the programs that a test needs."""
    markers = list(item.iter_markers("lab"))
    if not markers:
        return
    lacking = _lacking(name for marker in markers for name in marker.args)
    if not lacking:
        return
    message = f"this machine lacks {', '.join(dict.fromkeys(lacking))}"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{message}; with CI=true nothing may be skipped")
    pytest.skip(message)
