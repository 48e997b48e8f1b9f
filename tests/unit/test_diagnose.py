"""What ``doctor`` says, and what it makes of what it saw."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from pathlib import Path

import pytest

from proxy.cli import main
from proxy.cli.doctor import Report, _seconds
from proxy.diagnose.nat import NatTimeout
from proxy.diagnose.result import HOST, Level, Result, finding, fine, skipped
from tests.unit.test_config import GATEWAY, PROXY, SECRET, write_secret

RESULTS = [
    fine(HOST, "nft", "is there"),
    fine("fibre", "DSS", "passes both ways"),
    finding("lte", "MTU", "packets of more than 1396 bytes vanish", "ip link set wan1 mtu 1396"),
    skipped("lte", "ADD_ADDR", "needs a path that lets DSS pass"),
]
TEXT = """\
The proxy is running (pid 4711).
host:
  ok       nft: is there
fibre:
  ok       DSS: passes both ways
lte:
  FINDING  MTU: packets of more than 1396 bytes vanish
             mend: ip link set wan1 mtu 1396
  skipped  ADD_ADDR: needs a path that lets DSS pass
1 to mend:
  lte: MTU: packets of more than 1396 bytes vanish
"""


def report(results: list[Result], pid: int, as_json: bool) -> Report:
    made = Report("proxy", pid, as_json)
    for result in results:
        made.add(result)
    made.close()
    return made


def test_results_are_told_line_by_line_with_their_mends(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(report(RESULTS, 4711, False).findings) == 1
    assert capsys.readouterr().out == TEXT


def test_nothing_found_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert not report(RESULTS[:2], 0, False).findings
    out = capsys.readouterr().out
    assert out.startswith("The proxy is not running.\n")
    assert out.endswith("Nothing found.\n")


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    report(RESULTS, 0, True)
    [line] = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert (told["role"], told["pid"], told["findings"]) == ("proxy", None, 1)
    assert told["results"][2] == {
        "where": "lte",
        "check": "MTU",
        "level": "finding",
        "text": "packets of more than 1396 bytes vanish",
        "mend": ["ip link set wan1 mtu 1396"],
    }


def test_what_the_network_says_cannot_drive_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report([finding("lte", "DSS", "\x1b[2Jgone", "\x07beep")], 0, False)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", capsys.readouterr().out)


@pytest.mark.parametrize("text", ["-1", "7201", "soon", "nan"])
def test_a_nat_timeout_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        _seconds(text)


async def judged(outcomes: dict[float, bool | None], keepalive: float) -> Result:
    """What is made of silences that ended so."""
    nat = NatTimeout(max(outcomes), keepalive)

    async def ended(outcome: bool | None) -> bool | None:
        return outcome

    nat._waits["lte"] = [asyncio.create_task(ended(outcome)) for outcome in outcomes.values()]
    [result] = [result async for result in nat.results()]
    return result


async def test_all_silences_survived_is_said_as_a_lower_bound() -> None:
    result = await judged({7.5: True, 15.0: True, 30.0: True}, 30.0)
    assert result.level is Level.OK
    assert "at least 30 s" in result.text


async def test_a_mapping_that_goes_before_the_keepalive_is_a_finding_with_its_key() -> None:
    result = await judged({7.5: True, 15.0: False, 30.0: False}, 30.0)
    assert result.level is Level.FINDING
    assert "15 s is lost" in result.text
    assert result.mend == ("mptcp.subflow_keepalive = 7.5",)


async def test_a_mapping_that_goes_before_anything_was_tried_halves_the_least() -> None:
    result = await judged({7.5: False, 15.0: False, 30.0: False}, 30.0)
    assert result.mend == ("mptcp.subflow_keepalive = 3.75",)


async def test_a_mapping_that_the_keepalive_keeps_is_fine() -> None:
    result = await judged({30.0: True, 60.0: True, 120.0: False}, 30.0)
    assert result.level is Level.OK
    assert "120 s is lost" in result.text


async def test_without_keepalive_every_loss_is_a_finding() -> None:
    assert (await judged({30.0: True, 60.0: True, 120.0: False}, 0.0)).level is Level.FINDING


async def test_silences_that_could_not_begin_say_nothing() -> None:
    assert (await judged({1.0: None, 2.0: None, 4.0: None}, 30.0)).level is Level.SKIPPED


def test_an_uplink_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text(PROXY)
    write_secret(tmp_path / "home-1.key", SECRET)
    assert main(["doctor", "-c", str(file), "--uplink", "dsl"]) == 2
    assert 'has no uplink "dsl"' in capsys.readouterr().err


def test_a_gateways_file_has_no_uplinks_to_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(GATEWAY)
    write_secret(tmp_path / "home-1.key", SECRET)
    assert main(["doctor", "-c", str(file), "--uplink", "lte"]) == 2
    assert 'has no uplink "lte"' in capsys.readouterr().err
