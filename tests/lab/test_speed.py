"""``mptcp-proxy bench`` measures what the emulated lines have, and more on all of them together."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.conftest import needs_boxes
from tests.lab.daemons import Boxes, edit
from tests.lab.link import LinkSpec
from tests.lab.topology import topology
from tests.lab.waiting import wait_for

pytestmark = [pytest.mark.lab, needs_boxes]
RATE, RTT = 10e6, 0.02
SPEC = LinkSpec.symmetric(RATE / 1e6, RTT * 1e3, queue_ms=50)


@pytest.fixture(scope="module")
def boxes() -> Iterator[Boxes]:
    """The gateway runs, the proxy does not."""
    with topology(SPEC, SPEC) as lab:
        both = Boxes(lab)
        both.gateway.start()
        yield both
        both.stop()


def bench(boxes: Boxes, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit status and what ``--json`` says, by name, after the share."""
    argv = ["bench", "-c", str(boxes.proxy.config_file), "--json", *options]
    done = boxes.proxy.command(*argv, check=False)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    return done.returncode, {**told, **{speed["name"]: speed for speed in told["speeds"]}}


def test_the_bond_is_faster_than_the_best_line_alone(boxes: Boxes) -> None:
    status, told = bench(boxes, "--seconds", "4")
    assert status == 0
    assert [speed["name"] for speed in told["speeds"]] == ["fibre", "lte", "bonded"]
    for direction in ("down", "up"):
        alone = [told[name][direction] for name in ("fibre", "lte")]
        assert 0 < max(alone) < 1.2 * RATE  # no line gives more than it has
        assert told["bonded"][direction] > 1.2 * max(alone)
        assert told["share"][direction] == pytest.approx(
            told["bonded"][direction] / sum(alone), rel=1e-6
        )
    for speed in told["speeds"]:
        assert speed["rtt_idle"] >= RTT
        assert speed["rtt_loaded"] >= RTT
        assert 0 <= speed["loss"] < 1
    assert boxes.leftovers("proxy") == []


def test_a_line_that_is_dead_is_told_of_and_the_others_are_measured(boxes: Boxes) -> None:
    boxes.lab.link(2).cut()
    try:
        status, told = bench(boxes, "--seconds", "1")
    finally:
        boxes.lab.link(2).restore()
    assert status == 1
    assert "doctor" in told["lte"]["error"]
    assert told["lte"]["down"] is None
    assert told["fibre"]["down"] > 0
    assert "bonded" not in told


def test_beside_a_running_proxy_one_line_can_be_measured(boxes: Boxes) -> None:
    boxes.proxy.start()
    try:
        status, told = bench(boxes, "--seconds", "1", "--uplink", "lte")
    finally:
        assert boxes.proxy.stop() == 0
    assert status == 0
    assert [speed["name"] for speed in told["speeds"]] == ["lte"]
    assert told["lte"]["down"] > 0
    assert told["lte"]["up"] > 0


def test_a_limit_of_the_configuration_holds(boxes: Boxes) -> None:
    limit = 'interface = "u2"\nlimit_up = 2'
    edit(boxes.proxy, 'interface = "u2"', limit)
    try:
        _, told = bench(boxes, "--seconds", "2", "--uplink", "lte")
    finally:
        edit(boxes.proxy, limit, 'interface = "u2"')
    assert 0 < told["lte"]["up"] < 1.2 * 2e6


def test_an_interrupted_bench_leaves_nothing(boxes: Boxes) -> None:
    argv = ["bench", "-c", str(boxes.proxy.config_file), "--seconds", "100"]
    process = boxes.proxy.start_command(*argv)
    try:
        wait_for(busy(boxes), "its traffic", within=30.0)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
        process.wait()
    assert boxes.leftovers("proxy") == []
    wait_for(lambda: not boxes.gateway.status()["connections"], "the gateway's last trial ended")


def busy(boxes: Boxes) -> Callable[[], bool]:
    """Whether the gateway serves a trial now."""
    return lambda: any(
        connection["destination"].startswith("[100::8803]")
        for connection in boxes.gateway.status()["connections"]
    )
