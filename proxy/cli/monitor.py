"""``mptcp-proxy monitor``: events as they happen, as ``ip mptcp monitor``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from proxy.cli.daemon import Subcommands, add_options, asking, clean, show_json
from proxy.control.schema import EVENTS

# As iproute2 calls them.
_NAMES = {
    "sub-established": "SF_ESTABLISHED",
    "sub-closed": "SF_CLOSED",
    "sub-priority": "SF_PRIO",
}
_ATTRIBUTES = (
    ("token", "token"),
    ("rem-id", "remid"),
    ("loc-id", "locid"),
    ("saddr4", "saddr4"),
    ("saddr6", "saddr6"),
    ("daddr4", "daddr4"),
    ("daddr6", "daddr6"),
    ("sport", "sport"),
    ("dport", "dport"),
    ("backup", "backup"),
    ("error", "error"),
    ("reset-reason", "reset_reason"),
    ("reset-flags", "reset_flags"),
    ("server-side", "server_side"),
    ("uplink", "uplink"),
    ("interface", "interface"),
    ("waits-for", "waits_for"),
    ("lost", "lost"),
)


def add_parser(commands: Subcommands) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "monitor",
        help="show connections, subflows and addresses as they come and go",
        description="Prints events, one line each, until interrupted, in the words of ip mptcp "
        "monitor. As long as it runs, connections of the userspace path manager take joins.",
    )
    parser.add_argument(
        "events", nargs="*", metavar="EVENT", help=f"only these: {', '.join(EVENTS)}"
    )
    parser.add_argument("--no-time", action="store_true", help="without the time of day")
    parser.add_argument("--count", type=int, metavar="N", help="leave after N events")
    add_options(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Prints until interrupted; ControlError when the daemon ends."""
    left = options.count
    with asking(options) as client:
        for event in client.events(*options.events):
            if options.json:
                show_json(event)
            else:
                print(text_form(event, not options.no_time))
            _flush()
            if left is not None:
                left -= 1
                if left <= 0:
                    break
    return 0


def text_form(event: Mapping[str, Any], timed: bool = False) -> str:
    """One line, as ``ip mptcp monitor`` prints it."""
    name = str(event.get("event", "?"))
    words = [f"[{_NAMES.get(name, name.upper().replace('-', '_')):>14}]"]
    for attribute, label in _ATTRIBUTES:
        value = event.get(attribute)
        if value is None or (attribute == "server-side" and not value):
            continue
        words.append(f"{label}=0x{value:x}" if label == "reset_flags" else f"{label}={value}")
    if timed and isinstance(event.get("time"), float | int):
        clock = datetime.fromtimestamp(event["time"])  # the reader's own time of day
        words.insert(0, clock.isoformat(" ", "milliseconds"))
    return clean(" ".join(words))


def _flush() -> None:
    print(end="", flush=True)
