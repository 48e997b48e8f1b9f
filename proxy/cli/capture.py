"""``mptcp-proxy capture``: the packets of a running daemon, decoded live or as pcapng."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from proxy.cli.daemon import Subcommands, add_options, asking, clean, show_json
from proxy.control.client import ControlClient, ControlError
from proxy.errors import MptcpProxyError

_LAN = "lan"


def add_parser(commands: Subcommands) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "capture",
        help="show or record the packets of the LAN side and of every uplink",
        description="Shows each packet that the engine of a running daemon sends or takes, one "
        "line each in tcpdump's manner with MPTCP in words, until interrupted; or writes them as "
        "pcapng, with an interface per uplink and one for the LAN side. Packets are as the engine "
        "sees them: super-segments are not split. Who cannot keep up loses packets, and is told "
        "how many.",
    )
    parser.add_argument(
        "filter",
        nargs="*",
        metavar="FILTER",
        help="only packets for which all of this holds: [not] [src|dst] host ADDRESS, net NETWORK, "
        "port NUMBER; syn, fin, rst; mp_capable, mp_join, dss, add_addr, remove_addr, mp_prio, "
        "mp_fail, mp_fastclose, mp_tcprst",
    )
    parser.add_argument(
        "-w", "--write", metavar="FILE", help="write pcapng to FILE, or to stdout (-)"
    )
    parser.add_argument(
        "--uplink",
        action="append",
        default=[],
        metavar="NAME",
        help="only this uplink (repeatable)",
    )
    parser.add_argument("--lan", action="store_true", help="only the LAN side (and --uplink)")
    parser.add_argument("-c", "--count", type=int, metavar="N", help="leave after N packets")
    parser.add_argument(
        "-s",
        "--snap-length",
        type=int,
        metavar="BYTES",
        help="of each packet at most so much, from its IP header on (256)",
    )
    add_options(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Shows or writes until interrupted; ControlError when the daemon ends."""
    interfaces = [*options.uplink, *([_LAN] if options.lan else [])]
    arguments: dict[str, object] = {"filter": options.filter, "interfaces": interfaces}
    if options.snap_length is not None:
        arguments["snap_length"] = options.snap_length
    with asking(options) as client, _printer(options) as begin:
        reply = client.request("capture", **arguments)
        take = begin(reply["interfaces"])
        names = clean(", ".join(reply["interfaces"]))
        _note(f"capturing on {names}, {reply['snap-length']} bytes of a packet")
        count = lost = 0
        try:
            for event in client.follow():
                if event["event"] == "packets-lost":
                    lost += event["lost"]
                elif event["event"] == "packet":
                    take(event)
                    count += 1
                    if count == options.count:
                        break
        except KeyboardInterrupt:
            pass
        at_end = _end(client)
    known = f"{lost + at_end}" if at_end is not None else f"at least {lost}"
    _note(f"{count} packets captured, {known} lost")
    return 0


Take = Callable[[dict[str, Any]], None]
Begin = Callable[[list[str]], Take]


@contextmanager
def _printer(options: argparse.Namespace) -> Iterator[Begin]:
    """What is done with each packet, once the interfaces are known."""
    if options.write is None:
        yield lambda interfaces: show_packet if options.json else print_packet
        return
    from proxy.cli.capture_file import CaptureFile

    with _open(options.write) as file:
        yield lambda interfaces: CaptureFile(file, interfaces).write


@contextmanager
def _open(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdout.buffer
        return
    try:
        with Path(name).open("wb") as file:
            yield file
    except OSError as error:
        raise MptcpProxyError(f"{name}: {error.strerror}") from error


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _end(client: ControlClient) -> int | None:
    """How many packets were lost at the end; None if an interrupted line hides it."""
    try:
        return int(client.request("capture-stop")["lost"])
    except ControlError:
        return None


def print_packet(event: dict[str, Any]) -> None:
    """One line."""
    # Late, as everything that only a capture needs.
    from proxy.cli.capture_file import text_of

    clock = datetime.fromtimestamp(event["time"] / 1e9).strftime("%H:%M:%S.%f")
    direction = "In " if event["direction"] == "in" else "Out"
    print(clean(f"{clock} {event['interface']} {direction} {text_of(event)}"), flush=True)


def show_packet(event: dict[str, Any]) -> None:
    """One line of JSON, with the packet in words."""
    from proxy.cli.capture_file import text_of

    show_json({**event, "text": str(text_of(event))})
    print(end="", flush=True)
