"""Which rule a conversation falls under: the first one that matches."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

from proxy.config import IpNetwork, RuleConfig
from proxy.wire.address import Address

DEFAULT_SNI_PORTS = ((443, 443),)
"""Where a rule that looks at SNI looks for it, if it names no ports."""


class RuleBook:
    """The rules in their order, and how many conversations each one took."""

    def __init__(self, rules: Iterable[RuleConfig] = ()) -> None:
        self.rules = tuple(rules)
        self.hits = {rule.name: 0 for rule in self.rules}
        self.others = 0
        """Conversations that no rule took."""

    def replace(self, rules: Iterable[RuleConfig]) -> None:
        """Other rules from now on; those of the same name go on counting."""
        self.rules = tuple(rules)
        self.hits = {rule.name: self.hits.get(rule.name, 0) for rule in self.rules}

    def needs_sni(self, source: bytes, destination: Address) -> bool:
        """Whether the rule can only be told by the server name that the client sends first."""
        ips = ip_address(source), ip_address(destination.ip)
        for rule in self.rules:
            if _matches(rule, *ips, destination.port):
                return bool(rule.sni)
        return False

    def find(self, source: bytes, destination: Address, sni: str = "") -> RuleConfig | None:
        """The first rule that matches; None if none does."""
        ips = ip_address(source), ip_address(destination.ip)
        for rule in self.rules:
            if _matches(rule, *ips, destination.port) and _names(rule, sni):
                return rule
        return None

    def count(self, rule: RuleConfig | None) -> None:
        """A conversation goes by ``rule``."""
        if rule is None:
            self.others += 1
        elif rule.name in self.hits:
            self.hits[rule.name] += 1


def describe(rule: RuleConfig) -> str:
    """A rule in words, on a line."""
    words = []
    if rule.sources:
        words.append(f"from {_list(rule.sources)}")
    if rule.to:
        words.append(f"to {_list(rule.to)}")
    ports = rule.ports or (DEFAULT_SNI_PORTS if rule.sni else ())
    if ports:
        words.append(f"port {_list(str(a) if a == b else f'{a}-{b}' for a, b in ports)}")
    if rule.sni:
        words.append(f"sni {_list(rule.sni)}")
    words = [" ".join(words) or "everything", f"via {rule.via.value}"]
    if rule.uplinks:
        words.append(f"uplinks {_list(rule.uplinks)}")
    if rule.scheduler:
        words.append(f"scheduler {rule.scheduler}")
    if rule.redundant_bytes:
        words.append(f"redundant for the first {rule.redundant_bytes} bytes")
    if rule.bulk_bytes is not None:
        words.append(f"off metered uplinks after {rule.bulk_bytes} bytes")
    return ", ".join(words)


def _list(items: Iterable[object]) -> str:
    return " ".join(map(str, items))


def _matches(
    rule: RuleConfig,
    source: IPv4Address | IPv6Address,
    destination: IPv4Address | IPv6Address,
    port: int,
) -> bool:
    ports = rule.ports or (DEFAULT_SNI_PORTS if rule.sni else ())
    if ports and not any(low <= port <= high for low, high in ports):
        return False
    return _within(destination, rule.to) and _within(source, rule.sources)


def _within(ip: IPv4Address | IPv6Address, networks: tuple[IpNetwork, ...]) -> bool:
    return not networks or any(ip in network for network in networks)


def _names(rule: RuleConfig, sni: str) -> bool:
    if not rule.sni:
        return True
    return any(
        sni.endswith(name[1:]) if name.startswith("*.") else sni == name for name in rule.sni
    )
