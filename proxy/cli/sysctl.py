"""``mptcp-proxy sysctl``: net.mptcp.* of the running daemon, as sysctl(8)."""

from __future__ import annotations

import argparse

from proxy.cli.daemon import Subcommands, UsageError, add_options, asking, clean, show_json


def add_parser(commands: Subcommands) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "sysctl",
        help="show and set net.mptcp.* of the running daemon",
        description="Shows all settings, or those named; NAME=VALUE sets one, for connections "
        "that are opened afterwards and until the daemon stops (the configuration file has the "
        "same names in its section mptcp).",
    )
    parser.add_argument("settings", nargs="*", metavar="NAME[=VALUE]")
    add_options(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Sets and prints, in the order given."""
    shown: dict[str, str] = {}
    with asking(options) as client:
        if not options.settings:
            shown = client.request("sysctl")
        for setting in options.settings:
            name, separator, value = setting.partition("=")
            if not name or (separator and not value):
                raise UsageError(f'"{setting}" is neither NAME nor NAME=VALUE')
            wanted = {"value": value} if separator else {}
            shown |= client.request("sysctl", name=name.strip(), **wanted)
    if options.json:
        show_json(shown)
    else:
        for name, value in shown.items():
            print(clean(f"{name} = {value}"))
    return 0
