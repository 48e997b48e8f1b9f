"""Foreign chains that would drop what is forwarded are found, with their mend."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.net.firewall import judge

TUN = "mptcp-proxy"
DROP: dict[str, Any] = {"drop": None}
REJECT: dict[str, Any] = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
COUNTER: dict[str, Any] = {"counter": {"packets": 1, "bytes": 60}}


def chain(table: str, name: str, policy: str = "accept", hook: str = "forward") -> dict[str, Any]:
    fields = {"family": "ip", "table": table, "name": name, "type": "filter", "hook": hook}
    return {"chain": {**fields, "policy": policy}}


def rule(table: str, name: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"rule": {"family": "ip", "table": table, "chain": name, "expr": list(steps)}}


def jump(target: str) -> dict[str, Any]:
    return {"jump": {"target": target}}


def by(name: str, device: str) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": name}}, "right": device}}


@pytest.mark.parametrize(
    ("entries", "mend"),
    [
        ([chain("filter", "FORWARD")], None),
        ([chain("filter", "INPUT", "drop", "input")], None),
        ([chain("mptcp_proxy", "forward", "drop")], None),
        (
            [chain("filter", "FORWARD", "drop"), rule("filter", "FORWARD", jump("DOCKER-USER"))],
            "iptables -I DOCKER-USER -i mptcp-proxy -j ACCEPT",
        ),
        (
            [chain("filter", "FORWARD", "drop"), rule("filter", "FORWARD", jump("ufw-x"))],
            "ufw route allow in on mptcp-proxy",
        ),
        (
            [chain("firewalld", "filter_FORWARD"), rule("firewalld", "filter_FORWARD", REJECT)],
            "firewall-cmd --permanent --zone=trusted --add-interface=mptcp-proxy",
        ),
        (
            [chain("mine", "f"), rule("mine", "f", COUNTER, DROP)],
            "nft insert rule ip mine f iifname mptcp-proxy accept",
        ),
        ([chain("mine", "f"), rule("mine", "f", by("iifname", "eth9"), DROP)], None),
        (
            [chain("mine", "f", "drop"), rule("mine", "f", by("iifname", TUN), {"accept": None})],
            None,
        ),
    ],
)
def test_a_chain_that_drops_is_found_with_its_mend(
    entries: list[dict[str, Any]], mend: str | None
) -> None:
    found = judge(entries, "mptcp_proxy", TUN)
    assert [finding.mend[0] for finding in found] == ([mend] if mend else [])
