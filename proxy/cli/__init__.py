"""The command ``mptcp-proxy``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from proxy.errors import ConfigError, MptcpProxyError
from proxy.version import software_version

EXIT_FAILURE = 1  # something went wrong while running
EXIT_USAGE = 2  # the command line or the configuration is wrong
EXIT_NO_DAEMON = 3  # there is no daemon to ask

_COMMANDS = (
    "run",
    "check",
    "doctor",
    "bench",
    "exec",
    "keygen",
    "status",
    "ss",
    "conn",
    "why",
    "trace",
    "reload",
    "rule",
    "endpoint",
    "limits",
    "monitor",
    "capture",
    "nstat",
    "sysctl",
    "completion",
)
_EPILOG = """\
exit status: 0 success; 1 a failure while running; 2 a mistake in the command line or in the
configuration file; 3 there is no daemon to ask."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        """Complain and leave with EXIT_USAGE."""
        report(f"{message} (see {self.prog} --help)")
        sys.exit(EXIT_USAGE)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; each command adds its own part."""
    parser = Parser(
        prog="mptcp-proxy",
        description="Carries TCP over several uplinks at once as Multipath TCP: a proxy at home, "
        "a gateway on a public host.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"mptcp-proxy {software_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in _COMMANDS:
        importlib.import_module(f"proxy.cli.{name}").add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    options = make_parser().parse_args(arguments)
    try:
        status: int = options.execute(options)
        sys.stdout.flush()
    except ConfigError as error:
        file = getattr(options, "config", None)
        report(f"{file}: {error}" if file is not None else str(error))
        return EXIT_USAGE
    except MptcpProxyError as error:
        report(str(error))
        return _exit_status(error)
    except PermissionError as error:
        report(f"{error.filename or 'permission'}: {error.strerror} (are you root?)")
        return EXIT_FAILURE
    except BrokenPipeError:
        # Whoever reads our output has seen enough; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return 130
    return status


def _exit_status(error: MptcpProxyError) -> int:
    # Late: most commands ask no daemon.
    from proxy.cli.daemon import UsageError
    from proxy.control.client import NoDaemonError

    if isinstance(error, UsageError):
        return EXIT_USAGE
    return EXIT_NO_DAEMON if isinstance(error, NoDaemonError) else EXIT_FAILURE


def report(message: str) -> None:
    """One line on stderr, with what could disturb a terminal or a log replaced."""
    line = "".join(char if char.isprintable() else " " for char in message)
    print(f"mptcp-proxy: error: {line}", file=sys.stderr)
