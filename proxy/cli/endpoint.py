"""``mptcp-proxy endpoint``: the addresses of the path manager, as ``ip mptcp endpoint``."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

from proxy.cli.daemon import (
    Subcommands,
    UsageError,
    add_options,
    ask,
    asking,
    clean,
    number,
    show_json,
)

FLAGS = ("signal", "subflow", "backup", "fullmesh", "laminar")
_CHANGES = ("backup", "nobackup", "fullmesh", "nofullmesh")
_ADD = "ADDRESS [dev UPLINK] [id ID] [port NR] [" + " | ".join(FLAGS) + "]..."
_DELETE = "id ID [ADDRESS]"
_CHANGE = "[id ID] [ADDRESS] " + " | ".join(_CHANGES)
_WORDS: dict[str, tuple[str, str]] = {
    "add": (_ADD, "add an endpoint: live connections use it at once"),
    "delete": (_DELETE, "delete one: its subflows end, the peer is told"),
    "change": (_CHANGE, "change priority or mesh of one: the peers of live connections are told"),
    "show": ("[id ID]", "show all endpoints, or one"),
    "flush": ("", "delete all endpoints"),
}


def add_parser(commands: Subcommands) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "endpoint",
        help="show and change the addresses that connections use",
        description="The endpoints of the kernel-like path manager, in the words of ip mptcp "
        "endpoint. ADDRESS is one of the engine's addresses (see status); 'dev UPLINK' alone "
        "stands for that uplink's. Changes last until the daemon stops.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, (words, text) in _WORDS.items():
        action = actions.add_parser(
            name, help=text, description=text, usage=f"mptcp-proxy endpoint {name} {words}"
        )
        if words:
            action.add_argument("words", nargs="*", metavar="WORD", help=words)
        add_options(action)
        action.set_defaults(execute=_EXECUTE[name])


def parse(words: list[str], flags: tuple[str, ...]) -> dict[str, Any]:
    """The attribute nest ``addr`` that ``words`` describe; UsageError."""
    nest: dict[str, Any] = {}
    given: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in ("id", "port", "dev"):
            value = next(rest, None)
            if value is None:
                raise UsageError(f'"{word}" needs a value')
            high = {"id": 255, "port": 65535}
            nest[word] = value if word == "dev" else number(value, word, high[word])
        elif word in flags:
            given.append(word)
        else:
            nest[_family(word, flags)] = word
    return {**nest, "flags": given} if flags else nest


def _family(word: str, flags: tuple[str, ...]) -> str:
    try:
        return f"addr{ipaddress.ip_address(word).version}"
    except ValueError:
        known = ", ".join(("id", "port", "dev", *flags))
        raise UsageError(f'"{word}" is neither an address nor one of {known}') from None


def _add(options: argparse.Namespace) -> int:
    nest = parse(options.words, FLAGS)
    if not {"addr4", "addr6", "dev"} & set(nest):
        raise UsageError(f"an address is needed: endpoint add {_ADD}")
    if {"signal", "fullmesh"} <= set(nest["flags"]):
        raise UsageError("flags mustn't have both signal and fullmesh")
    if "port" in nest and ("signal" not in nest["flags"] or "subflow" in nest["flags"]):
        raise UsageError("flags must have signal and not subflow when using port")
    made = ask(options, "add-addr", addr=nest)
    if options.json:
        show_json([json_form(made["addr"])])
    return 0


def _delete(options: argparse.Namespace) -> int:
    nest = parse(options.words, ())
    if "id" not in nest:
        raise UsageError(f"an id is needed: endpoint delete {_DELETE} (see endpoint show)")
    if nest["id"] == 0 and not {"addr4", "addr6"} & set(nest):
        raise UsageError("address is needed for deleting id 0 address")
    ask(options, "del-addr", addr=nest)
    return 0


def _change(options: argparse.Namespace) -> int:
    nest = parse(options.words, _CHANGES)
    wanted = nest.pop("flags")
    if not wanted or not {"id", "addr4", "addr6", "dev"} & set(nest):
        raise UsageError(f"words are missing: endpoint change {_CHANGE}")
    with asking(options) as client:
        # The kernel's command sets both flags; what is not named stays.
        flags = set(_find(client.request("get-addr"), nest))
        for change in wanted:
            if change.startswith("no"):
                flags.discard(change[2:])
            else:
                flags.add(change)
        client.request("set-flags", addr={**nest, "flags": sorted(flags)})
    return 0


def _find(entries: list[dict[str, Any]], nest: Mapping[str, Any]) -> list[str]:
    name = next(name for name in ("id", "addr4", "addr6", "dev") if name in nest)
    for entry in entries:
        if entry["addr"].get(name) == nest[name]:
            return [flag for flag in entry["addr"]["flags"] if flag in ("backup", "fullmesh")]
    return []  # the daemon says that there is none


def _show(options: argparse.Namespace) -> int:
    nest = parse(options.words, ())
    entries = [ask(options, "get-addr", addr=nest)] if nest else ask(options, "get-addr")
    if options.json:
        show_json([json_form(entry["addr"]) for entry in entries])
        return 0
    for entry in entries:
        print(text_form(entry["addr"]))
    return 0


def _flush(options: argparse.Namespace) -> int:
    ask(options, "flush-addrs")
    return 0


def json_form(addr: Mapping[str, Any]) -> dict[str, Any]:
    """As ``ip -j mptcp endpoint show`` has it."""
    form: dict[str, Any] = {"address": addr.get("addr4") or addr.get("addr6")}
    if addr.get("port"):
        form["port"] = addr["port"]
    form["id"] = addr["id"]
    form |= dict.fromkeys(addr["flags"], True)
    if addr.get("dev"):
        form["dev"] = addr["dev"]
    return form


def text_form(addr: Mapping[str, Any]) -> str:
    """As ``ip mptcp endpoint show`` has it."""
    words: list[object] = [addr.get("addr4") or addr.get("addr6")]
    if addr.get("port"):
        words += ["port", addr["port"]]
    words += ["id", addr["id"], *addr["flags"]]
    if addr.get("dev"):
        words += ["dev", addr["dev"]]
    return clean(" ".join(map(str, words)))


_EXECUTE: dict[str, Callable[[argparse.Namespace], int]] = {
    "add": _add,
    "delete": _delete,
    "change": _change,
    "show": _show,
    "flush": _flush,
}
