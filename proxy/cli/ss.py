"""``mptcp-proxy ss``: connections and subflows, as ``ss -M`` and ``ss -Mi`` show them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from proxy.cli.daemon import Subcommands, add_options, ask, clean, show_json

_HEAD = ("State", "Recv-Q", "Send-Q", "Local Address:Port", "Peer Address:Port")
_HEX = ("write_seq", "snd_una", "rcv_nxt")
_FLAGS = ("fallback", "remote_key")


def add_parser(commands: Subcommands) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "ss",
        help="show connections as ss -M does",
        description="Shows the MPTCP connection of each conversation, between proxy and gateway; "
        "with -i what struct mptcp_info has, and each subflow.",
    )
    parser.add_argument("-i", "--info", action="store_true", help="show details and subflows")
    add_options(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Prints what is open."""
    entries = ask(options, "sockets")
    if options.json:
        show_json(entries)
    else:
        print(render(entries, options.info))
    return 0


def render(entries: Sequence[Mapping[str, Any]], details: bool) -> str:
    """The table; details are lines below each connection, as in ss."""
    rows = [
        tuple(clean(entry.get(key)) for key in ("state", "recv-q", "send-q", "local", "remote"))
        for entry in entries
    ]
    widths = [max(len(row[column]) for row in (_HEAD, *rows)) for column in range(len(_HEAD))]
    lines = [_line(_HEAD, widths)]
    for entry, row in zip(entries, rows, strict=True):
        lines.append(_line(row, widths))
        if details:
            lines.append(f"\t {mptcp_words(entry)}")
            lines += [f"\t   {subflow_words(subflow)}" for subflow in entry.get("subflows") or []]
    return "\n".join(lines)


def mptcp_words(entry: Mapping[str, Any]) -> str:
    """``subflows:2 ... token:39e0f1c7 ...``: as ss, what is zero is left out."""
    words = [f"id:{entry.get('id')}"]
    if entry.get("scheduler"):
        words.append(f"scheduler:{entry['scheduler']}")
    info = entry.get("info")
    if not isinstance(info, Mapping):
        words.append("plain TCP")
        return clean(" ".join(words))
    for name, value in info.items():
        if name in _FLAGS:
            words += [name] if value else []
        elif name in _HEX:
            words.append(f"{name}:{value:x}")
        elif value:
            words.append(f"{name}:{int(value) if isinstance(value, bool) else value}")
    return clean(" ".join(words))


def subflow_words(subflow: Mapping[str, Any]) -> str:
    """One subflow: the words of ``ss -ti``."""
    mss = subflow.get("mss") or 1
    words: list[str] = [f"{subflow.get('local')} > {subflow.get('remote')}"]
    words += [str(subflow.get("state"))]
    if subflow.get("uplink"):
        words.append(f"dev:{subflow['uplink']}")
    words.append(str(subflow.get("cc")))
    words.append(f"rto:{_ms(subflow.get('rto'))}")
    if subflow.get("srtt"):
        words.append(f"rtt:{_ms(subflow['srtt'])}/{_ms(subflow.get('rttvar') or 0.0)}")
    words += [f"mss:{mss}", f"cwnd:{(subflow.get('cwnd') or 0) // mss}"]
    if subflow.get("ssthresh"):
        words.append(f"ssthresh:{subflow['ssthresh'] // mss}")
    words += _counts(subflow, ("bytes_sent", "bytes_retrans", "bytes_acked", "bytes_received"))
    if subflow.get("in_flight"):
        words.append(f"unacked:{-(-subflow['in_flight'] // mss)}")
    if subflow.get("delivery_rate"):
        words.append(f"delivery_rate {int(subflow['delivery_rate'] * 8)}bps")
    if subflow.get("min_rtt"):
        words.append(f"minrtt:{_ms(subflow['min_rtt'])}")
    if subflow.get("flags"):
        ids = f"id:{subflow.get('loc-id')}/{subflow.get('rem-id')}"
        words.append(f"tcp-ulp-mptcp flags:{subflow['flags']} {ids}")
    if subflow.get("stale"):
        words.append("stale")
    words += _counts(subflow, ("reinjected",))
    return clean(" ".join(words))


def _counts(subflow: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    return [f"{name}:{subflow[name]}" for name in names if subflow.get(name)]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.3f}".rstrip("0").rstrip(".")


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return " ".join(cells).rstrip()
