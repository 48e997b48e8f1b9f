"""Which destinations a client may reach."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from proxy.config import EgressConfig
from proxy.convert.destination import DestinationPolicy, unwrap
from proxy.convert.tlv import ErrorCode
from proxy.wire.address import Address

OWN = ("203.0.113.10", "8.8.4.4", "2a00::10")


def policy(allow: str = "", deny: str = "") -> DestinationPolicy:
    egress = EgressConfig(
        allow=tuple(map(ip_network, allow.split())), deny=tuple(map(ip_network, deny.split()))
    )
    return DestinationPolicy(egress, 8803, [ip_address(text).packed for text in OWN])


def is_allowed(text: str, port: int = 443, allow: str = "", deny: str = "") -> bool:
    return policy(allow, deny).check(Address(ip_address(text).packed, port)) is None


# What ipaddress.is_global takes for global though it is not.
FALSE_GLOBALS = (
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "::127.0.0.1",
    "fec0::1",
    "ff02::1",
    "224.0.0.1",
    "168.63.129.16",
    "192.0.0.192",
    "192.88.99.1",
    "3fff::1",
    "5f00::1",
)

REFUSED = (
    *FALSE_GLOBALS,
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "1::1",
    "4000::1",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2001:1ff:ffff::1",
    "2002::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "febf::1",
    "ff0e::1",
    *OWN,
)


@pytest.mark.parametrize("address", REFUSED)
def test_special_purpose_addresses_are_refused(address: str) -> None:
    assert not is_allowed(address)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.1",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "2606:4700::1111",
        "2001:200::1",
        "2a00::1",
        "::ffff:1.1.1.1",
        "64:ff9b::1.1.1.1",
    ],
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(address)


@pytest.mark.parametrize(
    ("address", "allow"),
    [
        ("10.1.2.3", "10.1.0.0/16"),
        ("::ffff:10.1.2.3", "10.1.0.0/16"),
        ("64:ff9b::10.1.2.3", "10.1.0.0/16"),
        ("64:ff9b::10.1.2.3", "64:ff9b::a01:203"),
        ("198.51.100.7", "198.51.100.0/24"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("169.254.169.254", "169.254.169.254/32"),
        ("fd00::1", "fd00::/8"),
        ("240.0.0.1", "0.0.0.0/0"),
    ],
)
def test_what_the_operator_lists_is_allowed(address: str, allow: str) -> None:
    assert is_allowed(address, allow=allow)


@pytest.mark.parametrize("address", ["0.0.0.0", "0.0.0.1", "::", "224.0.0.1", "ff02::1"])
def test_no_listing_opens_what_is_no_unicast_destination(address: str) -> None:
    assert not is_allowed(address, allow="0.0.0.0/0 ::/0")
    assert not is_allowed("255.255.255.255", allow="0.0.0.0/0")


def test_listing_one_network_does_not_open_another() -> None:
    assert not is_allowed("10.2.0.1", allow="10.1.0.0/16")
    assert not is_allowed("2002:a01:203::", allow="10.1.0.0/16")


def test_a_network_in_the_list_does_not_open_the_gateway_itself() -> None:
    assert is_allowed("203.0.113.11", allow="203.0.113.0/24")
    assert not is_allowed("203.0.113.10", allow="203.0.113.0/24")
    assert is_allowed("203.0.113.10", allow="203.0.113.10/32")
    assert not is_allowed("203.0.113.10", port=8803, allow="203.0.113.10/32")
    assert not is_allowed("127.0.0.1", port=8803, allow="127.0.0.0/8")
    assert is_allowed("127.0.0.1", allow="127.0.0.0/8")


def test_deny_wins_over_allow_and_over_public() -> None:
    assert not is_allowed("10.1.0.1", allow="10.0.0.0/8", deny="10.1.0.0/16")
    assert is_allowed("10.2.0.1", allow="10.0.0.0/8", deny="10.1.0.0/16")
    assert not is_allowed("1.1.1.1", deny="1.1.1.1")
    assert not is_allowed("64:ff9b::1.1.1.1", deny="1.1.1.1")


@pytest.mark.parametrize("port", [0, 25])
def test_ports_that_are_refused(port: int) -> None:
    assert not is_allowed("1.1.1.1", port=port)


def test_the_error_says_loopback_and_multicast_are_malformed_and_others_not_authorised() -> None:
    codes = {}
    for text in ("127.0.0.1", "::1", "224.0.0.1", "10.0.0.1", "fe80::1"):
        denial = policy().check(Address(ip_address(text).packed, 80))
        assert denial is not None
        codes[text] = denial.error.code
    assert codes["127.0.0.1"] == codes["::1"] == ErrorCode.MALFORMED_MESSAGE
    assert codes["224.0.0.1"] == ErrorCode.MALFORMED_MESSAGE
    assert codes["10.0.0.1"] == codes["fe80::1"] == ErrorCode.NOT_AUTHORIZED


def test_unwrapping_ends_at_ipv4() -> None:
    mapped = ip_address("::ffff:1.2.3.4").packed
    translated = ip_address("64:ff9b::1.2.3.4").packed
    assert unwrap(mapped) == (bytes([1, 2, 3, 4]),)
    assert unwrap(translated) == (translated, bytes([1, 2, 3, 4]))
    assert unwrap(bytes([1, 2, 3, 4])) == (bytes([1, 2, 3, 4]),)
