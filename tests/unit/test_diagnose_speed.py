"""What ``bench`` says."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from proxy.cli import main
from proxy.cli.bench import Report, _seconds
from proxy.diagnose.measured import Direction, Speed, share
from tests.unit.test_config import GATEWAY, PROXY, SECRET, write_secret

FIBRE = Speed("fibre", (), 5e6, 4e6, 0.02, 0.03, 0.005)
LTE = Speed("lte", (), 2.5e6, 1e6, 0.06, 0.1, 0.0)
BONDED = Speed("bonded", ("fibre", "lte"), 6e6, 4.5e6, 0.06, 0.1, 0.01)
FAILED = Speed("dsl", error="no answer (mptcp-proxy doctor)")
TABLE = """\
        down         up           RTT idle  loaded  loss up
fibre   40.0 Mbit/s  32.0 Mbit/s  20 ms     30 ms   0.50%
lte     20.0 Mbit/s  8.0 Mbit/s   60 ms     100 ms  0.00%
dsl     -            -            -         -       -
bonded  48.0 Mbit/s  36.0 Mbit/s  60 ms     100 ms  1.00%
bonded: 80% down and 90% up of the sum of its uplinks
dsl: no answer (mptcp-proxy doctor)
"""


def report(*speeds: Speed, as_json: bool = False) -> None:
    made = Report(as_json)
    for speed in speeds:
        made.progress(speed.name, Direction.UP, 0.5, 1e6)
        made.add(speed)
    made.close()


def test_the_table_has_a_row_each_and_the_share_of_the_sum(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report(FIBRE, LTE, FAILED, BONDED)
    captured = capsys.readouterr()
    assert captured.out == TABLE
    assert captured.err == ""  # no terminal, no progress


def test_progress_is_shown_on_a_terminal_and_leaves_the_table_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    report(FIBRE, LTE, FAILED, BONDED)
    captured = capsys.readouterr()
    assert captured.out == TABLE
    assert "\rfibre up 50% 8.0 Mbit/s" in captured.err
    assert captured.err.count("\n") == 4  # a line for each that is done


def test_json_has_bits_a_second_and_the_share(capsys: pytest.CaptureFixture[str]) -> None:
    report(FIBRE, LTE, BONDED, FAILED, as_json=True)
    [line] = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told["share"] == {"down": 0.8, "up": 0.9}
    assert [speed["down"] for speed in told["speeds"]] == [40e6, 20e6, 48e6, None]
    assert told["speeds"][2]["bond"] == ["fibre", "lte"]
    assert told["speeds"][3]["error"] == FAILED.error


def test_without_a_bond_there_is_no_share() -> None:
    assert share([FIBRE, LTE], Direction.DOWN) is None
    assert share([FIBRE, Speed("bonded", ("fibre",))], Direction.DOWN) is None
    # An uplink may have any name.
    assert share([FIBRE, Speed("bonded", (), 1e6, 1e6)], Direction.UP) is None


@pytest.mark.parametrize("text", ["0", "301", "nan", "long"])
def test_a_length_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        _seconds(text)


@pytest.mark.parametrize(
    ("text", "options", "complaint"),
    [
        (PROXY, ["--uplink", "dsl"], 'has no uplink "dsl"'),
        (GATEWAY, [], "give the proxy's file"),
        (PROXY, ["--seconds", "0"], "a number from 1 to 300"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    options: list[str],
    complaint: str,
) -> None:
    file = tmp_path / "box.toml"
    file.write_text(text)
    write_secret(tmp_path / "home-1.key", SECRET)
    try:
        status = main(["bench", "-c", str(file), *options])
    except SystemExit as left:
        status = int(left.code or 0)
    assert status == 2
    assert complaint in capsys.readouterr().err
