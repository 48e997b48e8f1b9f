"""``mptcp-proxy reload``: have a running daemon read its configuration file again."""

from __future__ import annotations

import argparse

from proxy.cli.daemon import Subcommands, add_options, ask, clean, show_json


def add_parser(commands: Subcommands) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "reload",
        help="have a running daemon read its configuration file again",
        description="The daemon checks the whole file first: if anything is wrong with it, nothing "
        "is changed and the key is named. Connections stay open. Keys that cannot change while it "
        "runs keep their old values, and are named. SIGHUP does the same.",
    )
    add_options(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Prints what was changed."""
    result = ask(options, "reload")
    if options.json:
        show_json(result)
        return 0
    changed = ", ".join(map(clean, result["changed"]))
    print(f"changed: {changed}" if changed else "nothing has changed")
    if result["needs-restart"]:
        print(f"needs a restart: {', '.join(map(clean, result['needs-restart']))}")
    return 0
