"""``mptcp-proxy rule``: the path rules of a running proxy."""

from __future__ import annotations

import argparse
import re
from ipaddress import ip_address
from typing import Any

from proxy.cli.daemon import Subcommands, UsageError, add_options, ask, clean, show_json

_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^]]+)\]|(?P<v4>[0-9.]+)):(?P<port>\d{1,5})")


def add_parser(commands: Subcommands) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "rule",
        help="show the path rules, or which one a conversation would fall under",
        description="Path rules ([[rule]] in the configuration) say which way a conversation "
        "takes. The first one that matches counts.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    show = verbs.add_parser("show", help="list the rules, with how many conversations each took")
    add_options(show)
    show.set_defaults(execute=execute_show)
    test = verbs.add_parser("test", help="say which rule would match")
    test.add_argument(
        "destination", metavar="DST[:PORT]", help="an IPv6 address with port as [a]:p"
    )
    test.add_argument("--from", dest="source", metavar="HOST", help="address of the LAN host")
    test.add_argument("--sni", metavar="NAME", default="", help="server name in the ClientHello")
    add_options(test)
    test.set_defaults(execute=execute_test)


def execute_show(options: argparse.Namespace) -> int:
    """One rule a line."""
    result = ask(options, "rules")
    if options.json:
        show_json(result)
        return 0
    for rule in result["rules"]:
        print(f"{rule['hits']:>8}  {_line(rule)}")
    print(f"{result['others']:>8}  (no rule): via gateway")
    return 0


def execute_test(options: argparse.Namespace) -> int:
    """The rule that would match."""
    destination, port = _destination(options.destination)
    fields: dict[str, Any] = {"destination": destination, "port": port, "sni": options.sni}
    if options.source is not None:
        fields["source"] = options.source
    result = ask(options, "rule-test", **fields)
    if options.json:
        show_json(result)
        return 0
    rule = result["rule"]
    print(_line(rule) if rule else "no rule matches: via gateway")
    for note in result["notes"]:
        print(clean(note))
    return 0


def _destination(text: str) -> tuple[str, int]:
    match = _WITH_PORT.fullmatch(text)
    host, port = (match["v6"] or match["v4"], int(match["port"])) if match else (text, 443)
    try:
        ip_address(host)
    except ValueError:
        raise UsageError(f'"{text}" is no IP address with or without a port') from None
    if not 1 <= port <= 65535:
        raise UsageError(f"port {port} is not 1 to 65535")
    return host, port


def _line(rule: dict[str, Any]) -> str:
    return clean(f"{rule['name']}: {rule['text']}")
