"""Path rules: which one matches, what becomes of it in nft, and what is wrong with one."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from proxy import config
from proxy.config import RuleConfig, Via
from proxy.errors import ConfigError
from proxy.net import bypass
from proxy.relay.rules import RuleBook, describe
from proxy.wire.address import Address, parse_ip
from tests.unit.test_config import SECRET, write_secret
from tests.unit.test_config_changes import PROXY

HOST = parse_ip("192.168.1.7")
NETWORK = ip_network("192.0.2.0/24")


def find(rules: list[RuleConfig], to: str, port: int = 443, sni: str = "") -> str | None:
    rule = RuleBook(rules).find(HOST, Address(parse_ip(to), port), sni)
    return rule.name if rule else None


def test_the_first_rule_that_matches_counts() -> None:
    rules = [
        RuleConfig("a", to=(NETWORK,), ports=((22, 22), (80, 90))),
        RuleConfig("b", to=(NETWORK,)),
        RuleConfig("c", sources=(ip_network("192.168.1.7/32"),), ports=((25, 25),)),
        RuleConfig("d", sources=(ip_network("192.168.9.0/24"),)),
    ]
    assert find(rules, "192.0.2.1", 22) == "a"
    assert find(rules, "192.0.2.1", 85) == "a"
    assert find(rules, "192.0.2.1", 91) == "b"
    assert find(rules, "198.51.100.1", 25) == "c"
    assert find(rules, "198.51.100.1", 26) is None
    assert find(rules, "2001:db8::1", 25) == "c"


def test_a_name_matches_exactly_or_below_a_domain() -> None:
    rules = [RuleConfig("a", sni=("www.example.org", "*.example.com"))]
    found = {
        name: find(rules, "192.0.2.1", 443, name)
        for name in ("www.example.org", "x.www.example.org", "a.b.example.com", "example.com", "")
    }
    assert [name for name, rule in found.items() if rule] == ["www.example.org", "a.b.example.com"]
    assert find(rules, "192.0.2.1", 8443, "www.example.org") is None, "443 unless ports are named"


def test_a_name_is_only_waited_for_where_it_decides() -> None:
    book = RuleBook([RuleConfig("a", to=(NETWORK,)), RuleConfig("b", sni=("example.org",))])
    assert not book.needs_sni(HOST, Address(parse_ip("192.0.2.1"), 443))
    assert book.needs_sni(HOST, Address(parse_ip("198.51.100.1"), 443))
    assert not book.needs_sni(HOST, Address(parse_ip("198.51.100.1"), 22))


def test_rules_of_the_same_name_go_on_counting() -> None:
    book = RuleBook([RuleConfig("a"), RuleConfig("b")])
    book.count(book.rules[0])
    book.count(None)
    book.replace([RuleConfig("c"), RuleConfig("a", to=(NETWORK,))])
    assert (book.hits, book.others) == ({"c": 0, "a": 1}, 1)


def test_bypass_is_decided_in_nft_in_the_order_of_the_rules() -> None:
    six = ip_network("2001:db8::/32")
    rules = [
        RuleConfig("first", ports=((22, 22),)),
        RuleConfig("past", to=(NETWORK, six), ports=((80, 90), (85, 100)), via=Via.BYPASS),
        RuleConfig("host", sources=(ip_network("192.168.1.7/32"),), via=Via.BYPASS),
        RuleConfig("rest", via=Via.DIRECT),
    ]
    verdict = f"ct mark set ct mark | {bypass.BYPASS:#x} return"
    assert bypass.lines(rules, "take") == [
        f"ct mark & {bypass.BYPASS:#x} != 0 return",
        "ct state new tcp dport { 22 } goto take",
        "ct state new ip daddr { 192.0.2.0/24 } tcp dport { 80-100 } "
        f'counter name "rule-past" {verdict}',
        "ct state new ip6 daddr { 2001:db8::/32 } tcp dport { 80-100 } "
        f'counter name "rule-past" {verdict}',
        "ct state new ip saddr { 192.168.1.7/32 } meta l4proto tcp "
        f'counter name "rule-host" {verdict}',
    ]
    assert bypass.counters(rules) == ["rule-past", "rule-host"]


def test_a_rule_reads_as_a_sentence() -> None:
    rule = RuleConfig("a", to=(NETWORK,), ports=((22, 22),), uplinks=("lte",), bulk_bytes=5)
    assert describe(rule) == (
        "to 192.0.2.0/24 port 22, via gateway, uplinks lte, off metered uplinks after 5 bytes"
    )
    assert describe(RuleConfig("b", via=Via.DIRECT)) == "everything, via direct"


def load(home: Path, rules: str) -> Any:
    write_secret(home / "home-1.key", SECRET)
    file = home / "proxy.toml"
    file.write_text(PROXY + rules)
    return config.load(file)


def test_rules_are_read(tmp_path: Path) -> None:
    text = """
[[rule]]
to = ["192.0.2.0/24"]
ports = [22, "80-90"]
from = ["192.168.1.7"]
via = "bypass"
[[rule]]
name = "x"
sni = ["*.Example.org"]
uplinks = ["lte"]
scheduler = "redundant"
redundant_bytes = 1
bulk_bytes = 2
"""
    one, two = load(tmp_path, text).rules
    source = (ip_network("192.168.1.7/32"),)
    assert one == RuleConfig("rule-1", (NETWORK,), ((22, 22), (80, 90)), source, via=Via.BYPASS)
    assert two == RuleConfig(
        "x",
        sni=("*.example.org",),
        uplinks=("lte",),
        scheduler="redundant",
        redundant_bytes=1,
        bulk_bytes=2,
    )


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("ports = [0]", "rule[0].ports[0]", "1 to 65535"),
        ('ports = ["9-8"]', "rule[0].ports[0]", "the lower one first"),
        ('ports = ["http"]', "rule[0].ports[0]", "must be a port"),
        ('sni = ["a b"]', "rule[0].sni[0]", "host name"),
        ('via = "nowhere"', "rule[0].via", "is not one of"),
        ('uplinks = ["dsl"]', "rule[0].uplinks[0]", "there are fibre, lte"),
        ('via = "bypass"\nsni = ["a"]', "rule[0].sni", "makes no sense"),
        ('sni = ["a"]\n[[rule]]\nvia = "bypass"', "rule[1].via", "must stand before rule"),
        ('name = "a"\n[[rule]]\nname = "a"', "rule[1].name", "has that name already"),
        ("colour = 1", "rule[0].colour", "unknown key"),
    ],
)
def test_what_is_wrong_in_a_rule_is_named(
    tmp_path: Path, text: str, path: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, f"[[rule]]\n{text}\n")
    assert caught.value.path == path
