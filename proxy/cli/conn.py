"""``mptcp-proxy conn``: one live connection, by the id that ``status`` and ``ss -i`` show."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from proxy.cli.daemon import Subcommands, UsageError, add_options, ask, clean, show_json
from proxy.cli.ss import mptcp_words, subflow_words
from proxy.cli.status_text import human_bytes, human_time

_ACTIONS = "show | close | scheduler NAME | cc NAME"


def add_parser(commands: Subcommands) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "conn",
        help="show, close or change one connection",
        description="Acts on one live connection: 'show' tells all about it, 'close' resets both "
        "of its sides, 'scheduler' and 'cc' change how this box sends on it.",
        usage=f"mptcp-proxy conn ID {_ACTIONS}",
    )
    parser.add_argument("id", type=int, metavar="ID", help="its number, from status or ss -i")
    parser.add_argument("action", choices=("show", "close", "scheduler", "cc"))
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a scheduler or a congestion control"
    )
    add_options(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Does it; prints what the connection is like then."""
    arguments: dict[str, object] = {"action": options.action}
    if options.action in ("scheduler", "cc"):
        if options.name is None:
            raise UsageError(f"a name is needed: conn {options.id} {options.action} NAME")
        arguments["name"] = options.name
    elif options.name is not None:
        raise UsageError(f'"{options.name}" is too much: conn {options.id} {options.action}')
    entry = ask(options, "connection", conn=options.id, **arguments)
    if options.json:
        show_json(entry)
    elif entry is not None:
        print(render(entry))
    return 0


def render(entry: Mapping[str, Any]) -> str:
    """Who, how much, and each subflow."""
    sent, received = (human_bytes(entry.get(f"bytes_{way}")) for way in ("sent", "received"))
    lines = [
        f"connection {entry.get('id')}: {entry.get('source')} > {entry.get('destination')} "
        f"{entry.get('state')}",
        f"  sent {sent} received {received} age {human_time(entry.get('age'))}",
        f"  {mptcp_words(entry)}",
    ]
    if entry.get("fallback"):
        lines.append(f"  fallback: {entry['fallback']}")
    lines += [f"  {subflow_words(subflow)}" for subflow in entry.get("subflows") or []]
    return "\n".join(map(clean, lines))
