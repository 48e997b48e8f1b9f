"""``mptcp-proxy why``: where the time of a connection goes, in words."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from proxy.cli.daemon import Subcommands, UsageError, add_options, asking, clean, show_json
from proxy.cli.status_text import human_time
from proxy.control.client import ControlClient

_SENDING = {
    "application": "{near} sends nothing more",
    "opening": "the connection was being opened",
    "scheduler": "the scheduler waits for a better subflow than the one that could send",
    "silent-path": "the path is silent: what was sent is repeated by time-out",
    "congestion": "the paths are full: congestion control lets no more go",
    "rate-limit": "the limit that is set for the uplink is reached",
    "peer-window": "the window of {box} is full: small for these paths, or it waits for what a "
    "slow subflow carries",
    "peer-reader": "{far} reads slowly: the window of {box} stays all but shut",
    "send-buffer": "the send buffer is full of what is on its way",
    "no-subflow": "there is no subflow that works",
}
_RECEIVING = {
    "gap": "what has arrived waits for bytes before it{late}",
    "reader": "{near} reads slowly",
    "lan": "the way to {near} is slow: its congestion window is full",
}
_WORDS = {
    "proxy": {"near": "the LAN client", "far": "the server", "box": "the gateway"},
    "gateway": {"near": "the server", "far": "the LAN client", "box": "the proxy"},
}
_WORTH_TELLING = 0.005  # of the time
_SECOND_THOUGHT = 0.1  # of the time, in the direction that carries less


def add_parser(commands: Subcommands) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "why",
        help="say where the time of a connection goes",
        description="Says what a connection waits for: congestion control, the peer's window, "
        "bytes that are missing, the programs at its ends; for the whole of it and for each "
        "subflow, as a share of the time since it began, or of the seconds to come.",
    )
    parser.add_argument(
        "connection", metavar="CONN", help="its number, from status or ss -i; or its token"
    )
    parser.add_argument(
        "-w", "--watch", type=float, metavar="SECONDS", help="watch it so long, and tell of that"
    )
    add_options(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Asks once, or before and after the time to watch."""
    which = connection(options.connection)
    if options.watch is not None and not 0.0 < options.watch <= 3600.0:
        raise UsageError("--watch: more than 0 and at most 3600 seconds")
    with asking(options) as client:
        why = _ask(client, which)
        if options.watch is not None:
            before = why
            time.sleep(options.watch)
            why = since(before, _ask(client, which))
    if options.json:
        show_json({**why, "verdict": verdict(why)})
    else:
        print(render(why))
    return 0


def connection(text: str) -> dict[str, object]:
    """What names it to the daemon: an id is a number, a token has eight hexadecimal digits."""
    if re.fullmatch(r"(?:0x)?[0-9a-fA-F]{8}", text):
        return {"token": text}
    if text.isascii() and text.isdigit():
        return {"conn": int(text)}
    raise UsageError(f'"{text}" is no connection: a number, or a token of eight digits')


def _ask(client: ControlClient, which: Mapping[str, object]) -> dict[str, Any]:
    return dict(client.request("why", **which))


def since(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What happened between two answers."""
    old = {(s["local"], s["remote"]): s for s in before["subflows"]}
    subflows = []
    for subflow in after["subflows"]:
        known = old.get((subflow["local"], subflow["remote"]))
        subflows.append(subflow if known is None else _less(subflow, known))
    return {**_less(after, before), "subflows": subflows}


def _less(after: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers that grow become how much they grew; ids stay."""
    result: dict[str, Any] = {}
    for name, value in after.items():
        old = before.get(name)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            result[name] = _less(value, old)
        elif name != "id" and isinstance(value, int | float) and isinstance(old, int | float):
            result[name] = max(value - old, 0)
        else:
            result[name] = value
    return result


@dataclass(frozen=True, slots=True)
class Cause:
    """What holds up one direction, and for which share of the time; empty: nothing here does."""

    name: str
    share: float


def sending(why: Mapping[str, Any]) -> Cause:
    """The greatest cause on the way out of this box."""
    seconds = dict(why["sending"]["seconds"])
    seconds["congestion"] = seconds.pop("congestion-window") + seconds.pop("pacing")
    return _greatest(seconds, sum(seconds.values()))


def receiving(why: Mapping[str, Any]) -> Cause:
    """The greatest cause between what arrives here and whoever reads it."""
    seconds = dict(why["receiving"]["seconds"])
    cause = _greatest(seconds, sum(seconds.values()))
    local = why["local"]
    if cause.name == "peer":
        return Cause("", cause.share)
    if cause.name == "reader" and local is not None:
        spent = local["seconds"]
        path = sum(spent[name] for name in ("congestion-window", "pacing", "silent-path"))
        if path > spent["peer-reader"] + spent["peer-window"]:
            return Cause("lan", cause.share)
    return cause


def _greatest(seconds: Mapping[str, float], total: float) -> Cause:
    name = max(seconds, key=lambda name: seconds[name])
    return Cause(name, seconds[name] / total if total > 0.0 else 0.0)


def verdict(why: Mapping[str, Any]) -> dict[str, Any]:
    """The cause in the direction that carries more, as a name, a share and a sentence."""
    out, into = sending(why), receiving(why)
    outwards = why["bytes-sent"] >= why["bytes-received"]
    if why["bytes-sent"] == why["bytes-received"]:
        outwards = out.name != "application" or not into.name
    cause, other = (out, into) if outwards else (into, out)
    text = _sentence(why, cause, outwards)
    if other.name not in ("", "application") and other.share >= _SECOND_THOUGHT:
        text += f". The other way: {_sentence(why, other, not outwards)}"
    return {
        "direction": "sending" if outwards else "receiving",
        "cause": cause.name or "peer",
        "share": cause.share,
        "text": text,
    }


def _sentence(why: Mapping[str, Any], cause: Cause, outwards: bool) -> str:
    words = _WORDS["gateway" if why["role"] == "gateway" else "proxy"]
    if not outwards and not cause.name:
        there = f"; there: mptcp-proxy why {why['peer-token']}" if why["peer-token"] else ""
        return (
            f"{cause.share:.0%} of the time nothing that arrives is held up here: {words['box']} "
            f"knows more{there}"
        )
    pattern = (_SENDING if outwards else _RECEIVING).get(cause.name, cause.name)
    return f"{cause.share:.0%} of the time " + pattern.format(**words, late=_late(why))


def _late(why: Mapping[str, Any]) -> str:
    """The subflow that the others wait for most."""
    worst = max(why["subflows"], key=lambda s: float(s["awaited"]), default=None)
    return f", which {_name(worst)} is to bring" if worst is not None and worst["awaited"] else ""


def _name(subflow: Mapping[str, Any]) -> str:
    return str(subflow["uplink"] or subflow["remote"])


def render(why: Mapping[str, Any]) -> str:
    """The verdict, and a line for each side and each subflow."""
    total = sum(why["sending"]["seconds"].values())
    lines = [
        f"{verdict(why)['text']}.",
        f"connection {why['id']}, {human_time(total)}:",
        f"  sending: {_shares(why['sending']['seconds'], total)}; now {why['sending']['now']}",
        f"  receiving: {_shares(why['receiving']['seconds'], total)}; "
        f"now {why['receiving']['now']}",
    ]
    if why["local"] is not None:
        spell = why["local"]
        lines.append(f"  to the LAN: {_shares(spell['seconds'], total)}; now {spell['now']}")
    for subflow in why["subflows"]:
        busy = [("busy", subflow["busy"]), ("awaited by others", subflow["awaited"])]
        lines.append(
            f"  subflow {_name(subflow)} {subflow['local']} > {subflow['remote']} "
            f"{subflow['state']}: {_shares(dict(busy) | subflow['seconds'], total)}; "
            f"now {subflow['now']}"
        )
    return "\n".join(map(clean, lines))


def _shares(seconds: Mapping[str, float], total: float) -> str:
    """``congestion-window 80%, pacing 12%``: the greatest first."""
    if total <= 0.0:
        return "nothing yet"
    parts: Iterable[tuple[str, float]] = ((name, spent / total) for name, spent in seconds.items())
    told = sorted((part for part in parts if part[1] >= _WORTH_TELLING), key=lambda p: -p[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in told) or "nothing"
