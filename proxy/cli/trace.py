"""``mptcp-proxy trace``: what the engine decides and why, as JSON lines."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from proxy.cli.daemon import Subcommands, UsageError, add_options, asking, number, show_json
from proxy.cli.why import connection
from proxy.control.client import ControlClient, ControlError, NoDaemonError

_WORDS = "start [CONN] [--size MB] | stop | dump | -f [CONN]"
_EVERY = 0.2  # seconds between two looks


def add_parser(commands: Subcommands) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "trace",
        help="record what is decided for each burst, and why",
        description="Records which subflow each burst went to and why, why bytes were sent again, "
        "and what happened to subflows, in a ring that holds the newest events. 'dump' prints what "
        "is in it as JSON lines, also after 'stop'; '-f' prints events as they come, and records "
        "them itself if nobody does. The daemon does some more work while it records.",
        usage=f"mptcp-proxy trace {_WORDS}",
    )
    parser.add_argument(
        "words", nargs="*", metavar="start|stop|dump", help="what to do; CONN: one connection"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="print events as they come")
    parser.add_argument("--size", metavar="MB", help="megabytes that the ring holds (4, up to 64)")
    add_options(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Starts, stops, or prints."""
    action, which = _parse(options)
    with asking(options) as client:
        if action == "follow":
            _follow(options, client, which)
        elif action == "start":
            _report(options, client.request("trace-start", **which))
        elif action == "stop":
            _report(options, client.request("trace-stop"))
        else:
            for event in _pages(client, []):
                show_json(event)
    return 0


def _parse(options: argparse.Namespace) -> tuple[str, dict[str, object]]:
    words = list(options.words)
    action = "follow" if options.follow else words.pop(0) if words else ""
    starts = action in ("start", "follow")
    if action not in ("start", "stop", "dump", "follow") or len(words) > starts:
        raise UsageError(f"trace {_WORDS}")
    which = connection(words[0]) if words else {}
    if options.size is not None:
        if not starts:
            raise UsageError("--size goes with start or -f")
        which["size"] = number(options.size, "--size", 64)
    return action, which


def _report(options: argparse.Namespace, answer: dict[str, Any]) -> None:
    if options.json:
        show_json(answer)
    elif "events" in answer:
        print(f"{answer['events']} events were recorded: trace dump shows the newest")
    else:
        what = f"connection {answer['token']}" if answer["token"] else "all connections"
        print(f"recording {what}: trace dump shows the events, {answer['size']} MB at most")


def _pages(client: ControlClient, cursor: list[int]) -> Iterator[dict[str, Any]]:
    """All events from ``cursor`` on, which is moved behind them; and how many were lost."""
    while True:
        page = client.request("trace-dump", **({"cursor": list(cursor)} if cursor else {}))
        if page["lost"]:
            yield {"event": "events-lost", "lost": page["lost"]}
        yield from page["events"]
        cursor[:] = page["cursor"]
        if not page["more"]:
            return


def _follow(options: argparse.Namespace, client: ControlClient, which: dict[str, object]) -> None:
    try:
        client.request("trace-start", **which)
        ours = True
    except ControlError as error:
        if error.errno_name != "EBUSY" or which:
            raise
        ours = False
    cursor: list[int] = []
    try:
        while True:
            for event in _pages(client, cursor):
                show_json(event)
            print(end="", flush=True)
            time.sleep(_EVERY)
    except KeyboardInterrupt:
        pass
    finally:
        if ours:
            # On another connection: on this one an answer may have been cut short.
            with suppress(NoDaemonError), asking(options) as other:
                other.request("trace-stop")
