"""``mptcp-proxy run``: be a proxy or a gateway until told to stop."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from proxy import config
from proxy.cli import log


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "run",
        help="run a proxy or a gateway",
        description="Runs the role that the configuration file names, in the foreground, until "
        "SIGTERM or SIGINT. Prints one line, 'ready ...', when traffic may flow, and tells "
        "systemd. Logs go to stderr.",
    )
    parser.add_argument(
        "-c", "--config", type=Path, required=True, metavar="FILE", help="configuration file (TOML)"
    )
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        help="overrides log.level of the file",
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Returns the exit status of the daemon."""
    settings = config.load(options.config)
    level = options.log_level
    log.set_up(level or settings.log.level)
    # Late: the other commands need neither the engine nor its event loop.
    from proxy.cli.policies import check_policies
    from proxy.engine import runtime_daemon

    def load() -> config.Config:
        read = config.load(options.config)
        check_policies(read)
        return read if level is None else replace(read, log=settings.log)

    check_policies(settings)
    return runtime_daemon.run(settings, load)
