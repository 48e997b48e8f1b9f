"""``mptcp-proxy nstat``: the counters, or what they grew by since the last time, as nstat(8)."""

from __future__ import annotations

import argparse
import json
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from proxy.cli.daemon import Subcommands, add_options, asking, clean, show_json
from proxy.errors import MptcpProxyError


def add_parser(commands: Subcommands) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "nstat",
        help="show the counters",
        description="Shows what the counters grew by since the last call; their names are the "
        "kernel's (MPTcpExt..., Tcp...). What was seen last is kept per user and daemon.",
    )
    parser.add_argument(
        "patterns", nargs="*", metavar="PATTERN", help="only these names, like 'MPTcpExtMPJoin*'"
    )
    parser.add_argument("-a", "--ignore", action="store_true", help="count from the daemon's start")
    parser.add_argument(
        "-s", "--noupdate", action="store_true", help="do not remember what is shown"
    )
    parser.add_argument(
        "-r", "--reset", action="store_true", help="forget what was remembered before"
    )
    parser.add_argument("-z", "--zeros", action="store_true", help="show those at zero as well")
    add_options(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Prints the counters that match."""
    with asking(options) as client:
        status = client.status()
        counters: dict[str, int] = client.request("counters")
    file = _history_file(str(status.get("role")))
    # A daemon that was started since counts from zero.
    run = status.get("pid")
    before = {} if options.ignore or options.reset else _remembered(file, run)
    if not options.noupdate:
        _remember(file, run, counters)
    shown = {
        name: count - before.get(name, 0)
        for name, count in sorted(counters.items())
        if not options.patterns or any(fnmatchcase(name, p) for p in options.patterns)
    }
    if not options.zeros:
        shown = {name: count for name, count in shown.items() if count}
    if options.json:
        show_json({str(status.get("role")): shown})
        return 0
    print(f"#{clean(status.get('role'))}")
    for name, count in shown.items():
        print(f"{clean(name):<32}{count:<16}{0.0:6.1f}")
    return 0


def _history_file(role: str) -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base, "mptcp-proxy", f"nstat-{'gateway' if role == 'gateway' else 'proxy'}.json")


def _remembered(file: Path, run: object) -> dict[str, int]:
    try:
        history: Any = json.loads(file.read_text())
        if history["run"] != run:
            return {}
        return {str(name): int(count) for name, count in history["counters"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # there is none, or not one of ours


def _remember(file: Path, run: object, counters: dict[str, int]) -> None:
    text = json.dumps({"run": run, "counters": counters})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(file)
    except OSError as error:
        raise MptcpProxyError(
            f"{file}: {error.strerror} (use --noupdate, or set XDG_STATE_HOME)"
        ) from error
