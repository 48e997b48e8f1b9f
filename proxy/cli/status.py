"""``mptcp-proxy status``: what a running daemon is doing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from proxy.cli import EXIT_NO_DAEMON, report
from proxy.cli.daemon import DEFAULT_SOCKETS
from proxy.cli.status_text import render
from proxy.control.client import ControlClient, NoDaemonError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "status",
        help="show the uplinks and connections of a running daemon",
        description="Shows uplinks, connections and their subflows of the daemon that is running "
        "on this host; of both, if a proxy and a gateway are.",
    )
    parser.add_argument(
        "--json", action="store_true", help="one line of JSON per daemon instead of tables"
    )
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="the daemon's control socket, if it is not at the default place "
        f"({DEFAULT_SOCKETS[0]} or {DEFAULT_SOCKETS[1].name} there)",
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Prints the status of each daemon that answers."""
    sockets = (options.socket,) if options.socket is not None else DEFAULT_SOCKETS
    answers = []
    for path in sockets:
        try:
            with ControlClient(path) as client:
                answers.append(client.status())
        except NoDaemonError:
            continue
    if not answers:
        report(f"no daemon listens on {' or '.join(str(path) for path in sockets)}")
        return EXIT_NO_DAEMON
    if options.json:
        print("\n".join(json.dumps(answer) for answer in answers))
    else:
        print("\n\n".join(render(answer) for answer in answers))
    return 0
