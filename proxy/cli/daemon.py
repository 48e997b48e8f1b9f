"""What the commands share that ask a running daemon: options, finding it, words, output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.config import RUNTIME_DIRECTORY
from proxy.control.client import ControlClient, NoDaemonError
from proxy.errors import MptcpProxyError

DEFAULT_SOCKETS = (
    Path(RUNTIME_DIRECTORY, "proxy.sock"),
    Path(RUNTIME_DIRECTORY, "gateway.sock"),
)
if TYPE_CHECKING:
    Subcommands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Subcommands = argparse._SubParsersAction


class UsageError(MptcpProxyError):
    """The words of a command make no sense."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--json`` and ``--socket``."""
    parser.add_argument("--json", "-j", action="store_true", help="output as JSON")
    add_socket_option(parser)


def add_socket_option(parser: argparse.ArgumentParser) -> None:
    """``--socket``."""
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="the daemon's control socket; without it the proxy or the gateway of this host is "
        f"asked ({DEFAULT_SOCKETS[0]}, {DEFAULT_SOCKETS[1].name})",
    )


@contextmanager
def asking(options: argparse.Namespace) -> Iterator[ControlClient]:
    """A connection to the daemon that is meant.

    NoDaemonError if none runs, UsageError if two do and ``--socket`` does not say which.
    """
    client = ControlClient(_choose(options.socket))
    with client:
        yield client


def ask(options: argparse.Namespace, command: str, **arguments: object) -> Any:
    """The result of one command."""
    with asking(options) as client:
        return client.request(command, **arguments)


def show_json(value: object) -> None:
    """One line."""
    print(json.dumps(value))


def clean(value: object) -> str:
    """Text that cannot drive a terminal."""
    return "".join(char if char.isprintable() else "?" for char in str(value))


def number(text: str, name: str, high: int) -> int:
    """A number from 0 to ``high``, or UsageError."""
    if not text.isascii() or not text.isdigit() or int(text) > high:
        raise UsageError(f'{name} "{text}" is wrong: a number from 0 to {high} is needed')
    return int(text)


def _choose(socket: Path | None) -> Path:
    if socket is not None:
        return socket
    running = []
    for path in DEFAULT_SOCKETS:
        try:
            ControlClient(path).close()
        except NoDaemonError:
            continue
        running.append(path)
    if not running:
        names = " or ".join(map(str, DEFAULT_SOCKETS))
        raise NoDaemonError(f"no daemon listens on {names} (start it with mptcp-proxy run)")
    if len(running) > 1:
        names = " or ".join(f"--socket {path}" for path in running)
        raise UsageError(f"a proxy and a gateway are running here: say {names}")
    return running[0]
