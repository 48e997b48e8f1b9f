"""What other firewalls of the host would do to our packets: found by reading their rules.

An ``accept`` in one nft table does not overrule a ``drop`` in another (nft(8), on verdicts): who
forwards nothing by default has to let us pass himself.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

__all__ = ["Finding", "findings"]

_TERMINAL = ("drop", "reject")


@dataclass(frozen=True, slots=True)
class Finding:
    """``what`` is wrong, and commands that ``mend`` it."""

    what: str
    mend: tuple[str, ...]


def findings(own_table: str, tun: str) -> list[Finding]:
    """Chains of others that drop what is forwarded and say nothing of the device ``tun``.

    Empty as well where nft is missing or may not be asked.
    """
    command = ["nft", "-j", "list", "ruleset"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return judge(json.loads(done.stdout)["nftables"], own_table, tun)
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError):
        return []


def judge(entries: list[dict[str, Any]], own_table: str, tun: str) -> list[Finding]:
    """As ``findings``, from what ``nft -j list ruleset`` says."""
    rules: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        if "rule" in entry:
            rule = entry["rule"]
            key = (rule["family"], rule["table"], rule["chain"])
            rules.setdefault(key, []).append(rule)
    found = []
    for entry in entries:
        chain = entry.get("chain", {})
        if chain.get("hook") != "forward" or chain.get("type") != "filter":
            continue
        family, table, name = chain["family"], chain["table"], chain["name"]
        mine = rules.get((family, table, name), [])
        mentioned = f'"{tun}"' in json.dumps(
            [r for k, r in rules.items() if k[:2] == (family, table)]
        )
        if table == own_table or mentioned or not _drops(chain, mine):
            continue
        jumps = json.dumps(mine)
        what = f"the chain {name} of the nft table {family} {table} drops what it does not know"
        found.append(Finding(what, _mend(family, table, name, jumps, tun)))
    return found


def _drops(chain: dict[str, Any], rules: list[dict[str, Any]]) -> bool:
    """By its policy, or by a last rule without any condition."""
    if chain.get("policy") == "drop":
        return True
    last = rules[-1]["expr"] if rules else []
    steps = [step for step in last if "counter" not in step and "log" not in step]
    return len(steps) == 1 and any(verdict in steps[0] for verdict in _TERMINAL)


def _mend(family: str, table: str, chain: str, jumps: str, tun: str) -> tuple[str, ...]:
    if "DOCKER" in jumps:
        tool = "ip6tables" if family == "ip6" else "iptables"
        return tuple(
            f"{tool} -I DOCKER-USER {direction} {tun} -j ACCEPT" for direction in ("-i", "-o")
        )
    if table == "firewalld":
        return (
            f"firewall-cmd --permanent --zone=trusted --add-interface={tun}",
            "firewall-cmd --reload",
        )
    if "ufw" in jumps:
        return (f"ufw route allow in on {tun}", f"ufw route allow out on {tun}")
    return tuple(
        f"nft insert rule {family} {table} {chain} {direction} {tun} accept"
        for direction in ("iifname", "oifname")
    )
