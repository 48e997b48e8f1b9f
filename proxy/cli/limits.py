"""``mptcp-proxy limits``: how many subflows and announced addresses, as ``ip mptcp limits``."""

from __future__ import annotations

import argparse

from proxy.cli.daemon import Subcommands, UsageError, add_options, ask, number, show_json

_SET = "[subflows NR] [add_addr_accepted NR]"
_NAMES = {"subflows": "subflows", "add_addr_accepted": "rcv_add_addrs"}


def add_parser(commands: Subcommands) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "limits",
        help="show and set the limits of subflows and announced addresses",
        description="Additional subflows of one connection, both directions counted, and "
        "announced addresses that may be joined; in the words of ip mptcp limits. For live and new "
        "connections; what is open stays open.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("show", help="show them")
    show.set_defaults(execute=_show)
    change = actions.add_parser(
        "set", help="set one or both", usage=f"mptcp-proxy limits set {_SET}"
    )
    change.add_argument("words", nargs="*", metavar="WORD", help=_SET)
    change.set_defaults(execute=_set)
    for action in (show, change):
        add_options(action)


def _show(options: argparse.Namespace) -> int:
    limits = ask(options, "get-limits")
    accepted, subflows = limits["rcv-add-addrs"], limits["subflows"]
    if options.json:
        show_json({"add_addr_accepted": accepted, "subflows": subflows})
    else:
        print(f"add_addr_accepted {accepted} subflows {subflows}")
    return 0


def _set(options: argparse.Namespace) -> int:
    words = list(options.words)
    if not words or len(words) % 2:
        raise UsageError(f"words are missing: limits set {_SET}")
    wanted: dict[str, object] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        if name not in _NAMES:
            raise UsageError(f'"{name}" is neither of {", ".join(_NAMES)}')
        wanted[_NAMES[name]] = number(value, name, 0xFFFFFFFF)
    ask(options, "set-limits", **wanted)
    return 0
