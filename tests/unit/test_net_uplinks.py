"""Which routes and rules follow from the configuration and from what the host has."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from proxy.config import UplinkConfig
from proxy.errors import DeviceError
from proxy.net import nft
from proxy.net.links import DefaultRoute, Host, Link
from proxy.net.nft import Forwarding
from proxy.net.routes import MARK, Route, Rule
from proxy.net.sysctl import StateFile, Sysctls
from proxy.net.uplinks import Uplink, resolve

V4, V6 = socket.AF_INET, socket.AF_INET6
PREFIX4, PREFIX6 = ip_network("198.18.92.0/24"), ip_network("fd6d:7074:6370::/64")


def router(last: int) -> bytes:
    return bytes((10, 0, 0, last))


def host(*defaults: DefaultRoute) -> Host:
    links = {
        name: Link(name, index, 1500, up=True, carrier=True, loopback=False)
        for index, name in enumerate(("u1", "u2"), 3)
    }
    addresses = tuple((index, router(index)) for index in (3, 4))
    return Host(links, defaults, (), (), (), addresses)


def found(host: Host, *uplinks: UplinkConfig) -> tuple[Uplink, ...]:
    return resolve(host, uplinks, PREFIX4, PREFIX6)


def test_the_next_hop_is_that_of_the_interfaces_own_default_route() -> None:
    routes = (
        DefaultRoute(V4, 3, router(1), 100, 254),
        DefaultRoute(V4, 4, router(2), 50, 254),
        DefaultRoute(V6, 4, bytes(16), 0, 254),
    )
    one, two = found(host(*routes), UplinkConfig("a", "u1"), UplinkConfig("b", "u2", slot=1))
    assert (one.next_hop4, two.next_hop4) == (router(1), router(2))
    assert (one.addr6, two.addr6) == (None, PREFIX6[11].packed)
    assert (one.addr4, two.addr4) == (PREFIX4[10].packed, PREFIX4[11].packed)
    assert (one.table, two.table) == (8810, 8811)


def test_the_main_table_goes_before_others_and_low_metrics_before_high() -> None:
    routes = (
        DefaultRoute(V4, 3, router(1), 0, 77),
        DefaultRoute(V4, 3, router(2), 200, 254),
        DefaultRoute(V4, 3, router(3), 100, 254),
    )
    (one,) = found(host(*routes), UplinkConfig("a", "u1"))
    assert one.next_hop4 == router(3)


def test_a_configured_next_hop_wins() -> None:
    (one,) = found(host(DefaultRoute(V4, 3, router(1), 0, 254)), UplinkConfig("a", "u1", router(9)))
    assert one.next_hop4 == router(9)


def test_a_point_to_point_uplink_needs_no_router() -> None:
    (one,) = found(host(DefaultRoute(V4, 3, None, 0, 254)), UplinkConfig("a", "u1"))
    assert (one.addr4, one.next_hop4) == (PREFIX4[10].packed, None)


NAMED = UplinkConfig("a", "u1", router(1))
ROUTED = UplinkConfig("a", "u1")
DEFAULT = DefaultRoute(V4, 3, router(1), 0, 254)


@pytest.mark.parametrize(
    ("uplink", "change", "waits_for"),
    [
        (NAMED, {}, ""),
        (ROUTED, {"defaults": (DEFAULT,)}, ""),
        (ROUTED, {"defaults": (DEFAULT,), "addresses": ()}, ""),  # borrowed from another interface
        (NAMED, {"links": {}}, 'there is no interface "u1"'),
        (NAMED, {"links": {"u1": Link("u1", 3, 1500, False, False, False)}}, "u1 is down"),
        (NAMED, {"links": {"u1": Link("u1", 3, 1500, True, False, False)}}, "u1 has no carrier"),
        (NAMED, {"addresses": ()}, "u1 has no address"),
        (ROUTED, {}, "u1 has no default route, and no next_hop is configured"),
    ],
)
def test_an_uplink_says_what_it_waits_for(
    uplink: UplinkConfig, change: dict[str, Any], waits_for: str
) -> None:
    (one,) = found(replace(host(), **change), uplink)
    assert one.waits_for == waits_for
    without_way_out = bool(waits_for) and "carrier" not in waits_for
    assert (one.addr4 is None) == without_way_out


def test_routes_and_rules_read_as_commands() -> None:
    assert str(Route(V4, 8810, "default", "u1", 3, "10.0.0.1")) == (
        "ip -4 route add default via 10.0.0.1 dev u1 table 8810 proto 88"
    )
    assert str(Route(V6, 8810, "default", metric=9)) == (
        "ip -6 route add unreachable default table 8810 metric 9 proto 88"
    )
    assert str(Rule(V4, 8852, 8803, iif="lan0", mark=MARK)) == (
        "ip -4 rule add priority 8852 from all iif lan0 fwmark 0x10000000/0x10000000 "
        "lookup 8803 protocol 88"
    )
    assert str(Rule(V4, 8850, 254, iif="tun", specific=True)).endswith(
        "lookup main suppress_prefixlength 0 protocol 88"
    )


def table(forwarding: Forwarding) -> str:
    uplinks = found(
        host(), UplinkConfig("a", "u1", router(1)), UplinkConfig("b", "u2", router(2), slot=1)
    )
    prefixes = (PREFIX4, PREFIX6)
    return nft.proxy_table("t", "tun0", ["lan0"], uplinks, prefixes, (router(9), 1), forwarding)


def test_each_uplinks_address_is_masqueraded_on_that_uplink_alone() -> None:
    script = table(Forwarding())
    assert 'ip saddr 198.18.92.10 oifname "u1" masquerade' in script
    assert 'ip saddr 198.18.92.11 oifname "u2" masquerade' in script
    assert script.count("masquerade") == 2


def test_forwarding_is_guarded_only_where_it_was_switched_on() -> None:
    assert "ct state new,invalid counter name unwanted" not in table(Forwarding())
    script = table(Forwarding(interfaces4=("lan0", "u2")))
    assert 'iifname { "u2" } meta nfproto ipv4 ct state new,invalid' in script
    assert "meta nfproto ipv6 ct state new,invalid" not in script


def test_a_name_that_nft_would_misread_is_refused() -> None:
    with pytest.raises(DeviceError, match="cannot be written"):
        nft.proxy_table("t", "tun0", ['x" }'], (), (PREFIX4, PREFIX6), (router(9), 1), Forwarding())


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sysctl tree of files."""
    for name, value in (("net/a", "0"), ("net/b", "1"), ("net/c", "7")):
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")
    monkeypatch.setattr("proxy.net.sysctl._ROOT", tmp_path / "sys")
    return tmp_path / "sys/net"


def test_sysctls_return_to_what_they_were(tree: Path, tmp_path: Path) -> None:
    state = StateFile("proxy", tmp_path)
    state.lock()
    sysctls = Sysctls(state)
    assert sysctls.set("net/a", "1")
    assert not sysctls.set("net/b", "1")
    assert (tree / "a").read_text() == "1"
    assert (sysctls.changed("net/a"), sysctls.changed("net/b")) == (True, False)
    sysctls.restore()
    assert (tree / "a").read_text() == "0"
    state.unlock()


def test_what_somebody_changed_meanwhile_stays(tree: Path, tmp_path: Path) -> None:
    state = StateFile("proxy", tmp_path)
    state.lock()
    sysctls = Sysctls(state)
    sysctls.set("net/c", "8")
    (tree / "c").write_text("9")
    sysctls.restore()
    assert (tree / "c").read_text() == "9"
    state.unlock()


def test_another_process_can_restore_after_a_crash(tree: Path, tmp_path: Path) -> None:
    crashed = StateFile("proxy", tmp_path)
    crashed.lock()
    Sysctls(crashed).set("net/a", "1")
    heir = Sysctls(StateFile("proxy", tmp_path))
    heir.recover()
    heir.restore()
    assert (tree / "a").read_text() == "0"
    crashed.unlock()


def test_a_state_file_of_another_boot_is_ignored(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateFile("proxy", tmp_path)
    state.lock()
    Sysctls(state).set("net/a", "1")
    monkeypatch.setattr("proxy.net.sysctl._boot", lambda: "another")
    assert state.load() == []
    state.unlock()


def test_a_damaged_state_file_is_ignored(tmp_path: Path) -> None:
    state = StateFile("proxy", tmp_path)
    state.lock()
    state.save([("net/a", "0", "1")])
    (file,) = tmp_path.glob("*.json")
    file.write_text("{")
    assert state.load() == []
    state.unlock()


def test_a_role_is_locked_until_it_is_given_back(tmp_path: Path) -> None:
    one, two = StateFile("proxy", tmp_path), StateFile("proxy", tmp_path)
    one.lock()
    one.lock()
    with pytest.raises(DeviceError, match="another mptcp-proxy runs as proxy"):
        two.lock()
    StateFile("gateway", tmp_path).lock()
    one.unlock()
    two.lock()
    two.unlock()
    assert not list(tmp_path.glob("proxy*"))


def test_a_changed_uplink_is_a_new_value() -> None:
    (one,) = found(host(), UplinkConfig("a", "u1", router(1)))
    assert one.addr(V4) == one.addr4
    assert one.next_hop(V4) == router(1)
    assert replace(one, up=False) != one
