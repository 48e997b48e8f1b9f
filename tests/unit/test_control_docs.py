"""docs/control.md has every command of the socket and of the command line, and every event."""

from __future__ import annotations

import re
from pathlib import Path

from proxy.cli import _COMMANDS
from proxy.control.capture import CapturePeer
from proxy.control.schema import EVENTS
from tests.unit.test_control_commands import Plane

TEXT = (Path(__file__).parents[2] / "docs" / "control.md").read_text()
LOCAL = {"run", "check", "doctor", "bench", "keygen", "completion"}  # these ask no daemon


def first_cells(title: str) -> set[str]:
    """The words in code style of the first column of the table under ``title``."""
    section = TEXT.partition(f"{title}\n")[2].partition("\n#")[0]
    rows = [row.partition(" | ")[0] for row in section.splitlines() if row.startswith("| `")]
    return {word for row in rows for word in re.findall(r"`([a-z-]+)", row)}


def test_every_command_of_the_socket_is_documented_and_no_other() -> None:
    commands = set(Plane().plane.commands()) | {
        "status",
        "subscribe",
        "unsubscribe",
        "reload",
        "lan",
        "rules",
        "rule-test",
        *CapturePeer.NAMES,
    }
    assert first_cells("## The protocol") == commands


def test_every_event_is_documented_and_no_other() -> None:
    assert first_cells("### Events") == {*EVENTS, "overrun", "packet", "packets-lost"}


def test_every_command_that_asks_a_daemon_is_documented() -> None:
    assert first_cells("## Commands") >= set(_COMMANDS) - LOCAL
