"""The bonding demo of ``docker-compose.yml``, on a real Docker engine.

Slow (some minutes, most of it making the images), so it is one story told in order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.docker import TOOLS, Engine, engine
from tests.lab.namespaces import Namespaces
from tests.lab.waiting import wait_for

FIBRE = 50  # Mbit/s, as in docker-compose.yml

pytestmark = [pytest.mark.lab(*TOOLS), pytest.mark.timeout(900)]


class Demo:
    """The running containers."""

    def __init__(self, docker: Engine) -> None:
        self.docker = docker

    def said(self, service: str) -> str:
        """All that a service has printed."""
        return self.docker.compose("logs", "--no-color", service).stdout

    def rates(self) -> list[int]:
        """What the client has measured so far, Mbit/s."""
        return [int(rate) for rate in re.findall(r"client: (\d+) Mbit/s", self.said("client"))]

    def whole(self) -> int:
        """How many downloads have arrived whole."""
        said = self.said("client")
        assert "FAILED" not in said, said
        assert "CHANGED" not in said, said
        return said.count("arrived whole")

    def received(self, uplink: str) -> int:
        """Bytes that came over an uplink, as the proxy says."""
        answer = self.docker.compose("exec", "-T", "proxy", "mptcp-proxy", "status", "--json")
        status: dict[str, Any] = json.loads(answer.stdout)
        return next(int(u["bytes_received"]) for u in status["uplinks"] if u["name"] == uplink)


@pytest.fixture(scope="module")
def demo(debian: Path) -> Iterator[Demo]:
    with engine() as docker, Namespaces() as namespaces:
        with docker.running():
            docker.import_base(debian)
            docker.build()
        with docker.running(namespaces.create("docker")):
            try:
                docker.compose("up", "-d", "--no-build")
                yield Demo(docker)
            finally:
                docker.compose("down", "-v", "-t", "2", check=False)


def test_a_download_uses_both_lines(demo: Demo) -> None:
    rates = wait_for(lambda: demo.rates()[3:8], "a download", within=120, every=1)
    assert max(rates) > FIBRE, rates
    for uplink in ("fibre", "lte"):
        assert demo.received(uplink) > 1_000_000


def test_a_cut_breaks_nothing_and_the_line_is_used_again(demo: Demo) -> None:
    before = demo.whole()
    demo.docker.compose("stop", "-t", "0", "lte")
    wait_for(lambda: demo.whole() > before + 1, "a download without LTE", within=120, every=1)
    idle = demo.received("lte")
    demo.docker.compose("start", "lte")
    wait_for(lambda: demo.received("lte") > idle + 1_000_000, "LTE in use", within=30, every=0.5)
    before = demo.whole()
    wait_for(lambda: demo.whole() > before, "a whole download", within=60, every=1)


def test_boxes_have_one_capability_and_a_read_only_root(demo: Demo) -> None:
    for box in ("proxy", "gateway"):
        refused = demo.docker.compose("exec", "-T", box, "touch", "/opt/x", check=False)
        assert refused.returncode != 0
        assert "Read-only" in refused.stdout + refused.stderr
        status = demo.docker.compose("exec", "-T", box, "cat", "/proc/1/status").stdout
        match = re.search(r"CapEff:\s*([0-9a-f]+)", status)
        assert match
        assert int(match[1], 16) == 1 << 12  # CAP_NET_ADMIN


def test_the_image_of_a_box_has_no_compiler(demo: Demo) -> None:
    for tool in ("cc", "gcc", "pip"):
        found = demo.docker.compose("exec", "-T", "gateway", "which", tool, check=False)
        assert found.returncode != 0, found.stdout
