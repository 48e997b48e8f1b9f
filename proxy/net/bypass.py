"""Path rules in nft: what is bypassed never comes to the TUN."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from ipaddress import collapse_addresses
from typing import TYPE_CHECKING

from proxy.config import RuleConfig, Via

if TYPE_CHECKING:
    from proxy.toml_table import IpNetwork

__all__ = ["BYPASS", "counters", "hits", "lines"]

BYPASS = 0x2000_0000
"""The one bit of the mark of a connection that is bypassed.

Kept with the connection, so that other rules from now on leave those that are open alone; and
another one than that of packets, for operators copy marks from packets to connections.
"""


def counters(rules: Sequence[RuleConfig]) -> list[str]:
    """The named counters that ``lines`` need."""
    return [_counter(rule) for rule in rules if rule.via is Via.BYPASS]


def lines(rules: Sequence[RuleConfig], taken: str) -> list[str]:
    """For a base chain before routing; ``taken`` is the chain for what another rule has first."""
    last = max((n for n, rule in enumerate(rules) if rule.via is Via.BYPASS), default=-1)
    found = [f"ct mark & {BYPASS:#x} != 0 return"]
    for rule in rules[: last + 1]:
        for match in _matches(rule):
            if rule.via is Via.BYPASS:
                found.append(
                    f'ct state new {match} counter name "{_counter(rule)}" '
                    f"ct mark set ct mark | {BYPASS:#x} return"
                )
            else:
                found.append(f"ct state new {match} goto {taken}")
    return found


def hits(table: str) -> dict[str, int]:
    """How many connections each rule has bypassed, as its nft table counts; empty without one."""
    command = ["nft", "-j", "list", "counters", "table", "inet", table]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        entries = json.loads(done.stdout)["nftables"]
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError):
        return {}
    found = [entry["counter"] for entry in entries if "counter" in entry]
    return {
        counter["name"].removeprefix("rule-"): counter["packets"]
        for counter in found
        if counter["name"].startswith("rule-")
    }


def _counter(rule: RuleConfig) -> str:
    return f"rule-{rule.name}"


def _matches(rule: RuleConfig) -> Iterable[str]:
    ports = f"tcp dport {_set(_ranges(rule.ports))}" if rule.ports else "meta l4proto tcp"
    if not rule.to and not rule.sources:
        yield ports
        return
    for version, family in ((4, "ip"), (6, "ip6")):
        to, sources = _networks(rule.to, version), _networks(rule.sources, version)
        if (rule.to and not to) or (rule.sources and not sources):
            continue
        words = [f"{family} saddr {_set(sources)}"] if sources else []
        words += [f"{family} daddr {_set(to)}"] if to else []
        yield " ".join([*words, ports])


def _networks(networks: Iterable[IpNetwork], version: int) -> list[str]:
    mine = [network for network in networks if network.version == version]
    return [str(network) for network in collapse_addresses(mine)]  # type: ignore[type-var]


def _ranges(ports: Iterable[tuple[int, int]]) -> list[str]:
    """Without overlaps, which a set may not have."""
    merged: list[list[int]] = []
    for low, high in sorted(ports):
        if merged and low <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], high)
        else:
            merged.append([low, high])
    return [f"{low}-{high}" if low != high else str(low) for low, high in merged]


def _set(items: Iterable[str]) -> str:
    return "{ " + ", ".join(items) + " }"
