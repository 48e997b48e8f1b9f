"""Fixtures of the lab: a home with two uplinks, its servers, and both boxes running.

``LAB_DIRECT=1`` runs the same tests without the boxes, by plain forwarding: a test that then fails
is wrong itself (or asks for more than one path can give).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lab.daemons import Boxes, boxes
from tests.lab.debian import bootstrap
from tests.lab.link import LinkSpec
from tests.lab.servers import Nginx
from tests.lab.topology import Topology, topology

DIRECT = os.environ.get("LAB_DIRECT") == "1"
FIBRE = LinkSpec.symmetric(50, 20)
LTE = LinkSpec.symmetric(20, 60)

needs_boxes = pytest.mark.skipif(DIRECT, reason="LAB_DIRECT=1: there are no boxes")


@contextmanager
def running(lab: Topology, **options: Any) -> Iterator[Boxes]:
    """``boxes``, or none with LAB_DIRECT=1."""
    if DIRECT:
        yield Boxes(lab, **options)
    else:
        with boxes(lab, **options) as both:
            yield both


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    """50 Mbit/s with 20 ms and 20 Mbit/s with 60 ms."""
    with topology(FIBRE, LTE) as network:
        yield network


@pytest.fixture(scope="module")
def nginx(lab: Topology) -> Nginx:
    """nginx at the server."""
    return Nginx(lab.server, lab.namespaces.directory)


@pytest.fixture(scope="module")
def home(lab: Topology) -> Iterator[Boxes]:
    """Both boxes, started once a module; at its end they must leave nothing."""
    with running(lab) as both:
        yield both


@pytest.fixture(scope="session")
def debian() -> Iterator[Path]:
    """A bare Debian, made once a session; not to be changed."""
    directory = Path(tempfile.mkdtemp(prefix="mplab-debian-", dir="/var/tmp"))
    try:
        bootstrap(directory / "tree")
        yield directory / "tree"
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test shows what the boxes logged."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, Boxes):
                for box in value:
                    report.sections.append((f"log of {box.role}", box.log[-6000:]))
    return report
