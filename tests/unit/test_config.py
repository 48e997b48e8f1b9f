"""Configuration files: what they mean, and what is refused with which key's path."""

from __future__ import annotations

import base64
import dataclasses
import os
import tomllib
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import config
from proxy.config import ClientConfig, EgressConfig, GatewayConfig, ProxyConfig, UplinkConfig
from proxy.errors import ConfigError
from proxy.mptcp.config import MptcpConfig
from proxy.tcp.config import TcpConfig

SECRET = bytes(range(32))
OTHER_SECRET = bytes(range(32, 64))

PROXY = """\
role = "proxy"
[lan]
interfaces = ["lan0"]
[[uplink]]
name = "fibre"
interface = "u1"
next_hop = "10.1.0.1"
[[uplink]]
name = "lte"
interface = "u2"
next_hop = "10.2.0.1"
backup = false
[gateway]
address = "203.0.113.10"
port = 8803
client = "home-1"
secret_file = "home-1.key"
"""

GATEWAY = """\
role = "gateway"
[listen]
addresses = ["203.0.113.10"]
port = 8803
[[client]]
name = "home-1"
secret_file = "home-1.key"
[egress]
allow = ["198.51.100.0/24"]
"""


def write_secret(file: Path, *secrets: bytes, mode: int = 0o600) -> None:
    file.write_text("".join(base64.b64encode(secret).decode() + "\n" for secret in secrets))
    file.chmod(mode)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_secret(tmp_path / "home-1.key", SECRET)
    write_secret(tmp_path / "home-2.key", OTHER_SECRET)
    return tmp_path


def load(home: Path, text: str) -> ProxyConfig | GatewayConfig:
    file = home / "config.toml"
    file.write_text(text)
    return config.load(file)


def load_proxy(home: Path, text: str = PROXY) -> ProxyConfig:
    loaded = load(home, text)
    assert isinstance(loaded, ProxyConfig)
    return loaded


def load_gateway(home: Path, text: str = GATEWAY) -> GatewayConfig:
    loaded = load(home, text)
    assert isinstance(loaded, GatewayConfig)
    return loaded


def refusal(home: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(home, text)
    return str(caught.value)


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


def test_the_least_proxy_has_all_defaults(home: Path) -> None:
    loaded = load_proxy(home)
    assert loaded.role == "proxy"
    assert loaded.lan.interfaces == ("lan0",)
    assert loaded.uplinks == (
        UplinkConfig("fibre", "u1", bytes([10, 1, 0, 1])),
        UplinkConfig("lte", "u2", bytes([10, 2, 0, 1]), slot=1),
    )
    assert loaded.gateway.address == bytes([203, 0, 113, 10])
    assert (loaded.gateway.port, loaded.gateway.client) == (8803, "home-1")
    assert loaded.gateway.secret == SECRET
    assert (loaded.tun.name, loaded.tun.mtu) == ("mptcp-proxy", 1500)
    assert str(loaded.control.socket) == "/run/mptcp-proxy/proxy.sock"
    assert loaded.tcp == {}
    assert loaded.mptcp == {}
    assert loaded.log.level == "info"


def test_the_least_gateway_has_all_defaults(home: Path) -> None:
    loaded = load_gateway(home)
    assert loaded.role == "gateway"
    assert loaded.listen.addresses == (bytes([203, 0, 113, 10]),)
    assert loaded.listen.late_convert
    assert loaded.clients == (ClientConfig("home-1", SECRET),)
    assert loaded.egress == EgressConfig((ip_network("198.51.100.0/24"),), (), (25,))
    assert loaded.tun.name == "mptcp-gateway"
    assert str(loaded.control.socket) == "/run/mptcp-proxy/gateway.sock"


def test_both_families_everywhere(home: Path) -> None:
    text = changed(PROXY, 'next_hop = "10.1.0.1"', 'next_hop6 = "fe80::1"')
    text = changed(text, "203.0.113.10", "2001:db8::10")
    loaded = load_proxy(home, text)
    assert loaded.uplinks[0].next_hop is None
    assert loaded.uplinks[0].next_hop6 is not None
    assert loaded.uplinks[0].next_hop6[0] == 0xFE
    assert len(loaded.gateway.address) == 16
    text = changed(GATEWAY, '["203.0.113.10"]', '["203.0.113.10", "2001:db8::10"]')
    assert [len(address) for address in load_gateway(home, text).listen.addresses] == [4, 16]


def test_optional_tables_are_read(home: Path) -> None:
    text = PROXY + (
        '[tun]\nname = "mp0"\nmtu = 9000\nprefix4 = "10.99.0.0/24"\nprefix6 = "fd00::/64"\n'
        'offload = false\n[control]\nsocket = "/tmp/p.sock"\n'
        '[tcp]\ncongestion_control = "reno"\nmin_rto = 1\npacing = false\n'
        '[mptcp]\nscheduler = "redundant"\nchecksum_enabled = true\n[log]\nlevel = "debug"\n'
    )
    loaded = load_proxy(home, text)
    assert (loaded.tun.name, loaded.tun.mtu, loaded.tun.offload) == ("mp0", 9000, False)
    assert str(loaded.tun.prefix4) == "10.99.0.0/24"
    assert str(loaded.control.socket) == "/tmp/p.sock"
    assert loaded.tcp == {"congestion_control": "reno", "min_rto": 1.0, "pacing": False}
    assert loaded.mptcp == {"scheduler": "redundant", "checksum_enabled": True}
    assert loaded.log.level == "debug"


@pytest.mark.parametrize("text", ["127.0.0.1:9180", "[2001:db8::1]:65535"])
def test_where_metrics_are_served(home: Path, text: str) -> None:
    found = load_proxy(home, PROXY + f'[metrics]\nlisten = "{text}"\n').metrics.listen
    assert found is not None
    assert f"[{found[0]}]:{found[1]}".replace("[127.0.0.1]", "127.0.0.1") == text
    assert load_proxy(home).metrics.listen is None


def test_every_setting_is_one_of_the_engine(home: Path) -> None:
    lines = ["[tcp]"]
    for field in dataclasses.fields(TcpConfig):
        if field.name in config.TCP_KEYS and field.default is not None:
            lines.append(f"{field.name} = {_toml(field.default)}")
    lines.append("[mptcp]")
    for key in config.MPTCP_KEYS:
        lines.append(f"{key} = {_toml(getattr(MptcpConfig(), key))}")
    loaded = load_proxy(home, PROXY + "\n".join(lines))
    assert TcpConfig(**loaded.tcp) == TcpConfig()
    assert MptcpConfig(**loaded.mptcp) == MptcpConfig()
    assert set(config.TCP_KEYS) <= {field.name for field in dataclasses.fields(TcpConfig)}


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('role = "proxy"', "", "role: missing key"),
        ('role = "proxy"', 'role = "prxy"', 'role: "prxy" is not one of "proxy", "gateway"'),
        ('role = "proxy"', 'rolle = "proxy"', "rolle: unknown key: did you mean role?"),
        ("[lan]", "[lann]", "lann: unknown key: did you mean lan?"),
        ("interfaces =", "interface =", "lan.interface: unknown key: did you mean interfaces?"),
        ('interfaces = ["lan0"]', "", "lan.interfaces: missing key"),
        (
            '["lan0"]',
            "[]",
            "lan.interfaces: must be an array with at least one string, not an empty",
        ),
        ('["lan0"]', '"lan0"', "lan.interfaces: must be an array with at least one string"),
        ('["lan0"]', "[1]", "lan.interfaces[0]: must be a string, not 1"),
        ('["lan0"]', '["lan0", "lan0"]', 'lan.interfaces[1]: "lan0" is listed twice'),
        ('["lan0"]', '["lan0/x"]', "lan.interfaces[0]: "),
        ('["lan0"]', '["u1"]', 'uplink[0].interface: "u1" is in lan.interfaces too'),
        ('"10.2.0.1"', '"10.2"', 'uplink[1].next_hop: "10.2" is not an IP address'),
        ('"10.2.0.1"', '"fe80::1"', "uplink[1].next_hop: "),
        ('"10.2.0.1"', '"224.0.0.1"', "uplink[1].next_hop: "),
        ('"10.2.0.1"', '"0.0.0.0"', "uplink[1].next_hop: "),
        ('"10.2.0.1"', "10", "uplink[1].next_hop: must be a string, not 10"),
        ("next_hop", "next_hops", "uplink[0].next_hops: unknown key: did you mean next_hop?"),
        ("backup = false", 'backup = "no"', "uplink[1].backup: must be true or false"),
        ("backup = false", "weight = 0", "uplink[1].weight: must be an integer from 1 to 31"),
        ("backup = false", "weight = 32", "uplink[1].weight: must be an integer from 1 to 31"),
        ("backup = false", "limit_up = -1", "uplink[1].limit_up: must be a number from 0 to 1"),
        ("backup = false", 'limit_up = "5M"', "uplink[1].limit_up: must be a number from 0 to 1"),
        ("backup = false", "backup = 0", "uplink[1].backup: must be true or false, not 0"),
        ('"u2"', '"u1"', "uplink[1].interface: uplink[0] uses that interface already"),
        ('"lte"', '"fibre"', "uplink[1].name: uplink[0] has that name already"),
        ('"lte"', '"l te"', "uplink[1].name: "),
        ('"u2"', '"a-name-that-is-too-long"', "uplink[1].interface: "),
        ('"203.0.113.10"', '"gw.example.org"', "gateway.address: "),
        ('"203.0.113.10"', '"127.0.0.1"', "gateway.address: "),
        ('"203.0.113.10"', '"::ffff:1.2.3.4"', "gateway.address: "),
        ('"203.0.113.10"', '"fe80::1%eth0"', "gateway.address: "),
        ('"203.0.113.10"', '"fe80::1"', "gateway.address: "),
        ("8803", "0", "gateway.port: must be an integer from 1 to 65535, not 0"),
        ("8803", "65536", "gateway.port: "),
        ("8803", "true", "gateway.port: "),
        ("8803", '"8803"', "gateway.port: "),
        ('"home-1.key"', '"none.key"', "gateway.secret_file: cannot read "),
        ('"home-1.key"', '""', "gateway.secret_file: must name a file"),
        ('"home-1.key"', '"."', "gateway.secret_file: "),
        ('client = "home-1"', "", "gateway.client: missing key"),
    ],
)
def test_what_is_wrong_in_a_proxy_is_named_by_its_path(
    home: Path, old: str, new: str, message: str
) -> None:
    text = refusal(home, changed(PROXY, old, new))
    assert text.startswith(message)
    assert "\n" not in text


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("[listen]\nport = 1", 'listen: unknown key: it belongs to role = "gateway"'),
        ("[tun]\nmtu = 100", "tun.mtu: must be an integer from 1280 to 65535, not 100"),
        ('[tun]\nname = "u1"', 'tun.name: "u1" is a LAN or uplink interface'),
        ('[tun]\nprefix4 = "10.0.0.1/24"', "tun.prefix4: "),
        ('[tun]\nprefix4 = "10.0.0.0/28"', "tun.prefix4: "),
        ('[tun]\nprefix6 = "10.0.0.0/24"', "tun.prefix6: "),
        ('[control]\nsocket = "p.sock"', "control.socket: "),
        (f'[control]\nsocket = "/{"x" * 107}"', "control.socket: longer than 107 bytes"),
        ("[tcp]\ncongestion = 1", "tcp.congestion: unknown key: did you mean congestion_control?"),
        ("[tcp]\nmin_rto = 100", "tcp.min_rto: must be a number from 0.01 to 10, not 100"),
        ("[tcp]\nmin_rto = nan", "tcp.min_rto: "),
        ("[tcp]\nmin_rto = 5\nmax_rto = 2", "tcp.min_rto: must not be above tcp.max_rto"),
        (f"[tcp]\nretries = 0x{'f' * 5000}", "tcp.retries: "),
        ("[mptcp]\nsyn_retrans_before_tcp_fallback = 256", "mptcp.syn_retrans"),
        ("[mptcp]\nscheduler = ''", "mptcp.scheduler: must be the name of a policy"),
        ('[log]\nlevel = "trace"', 'log.level: "trace" is not one of "debug", '),
        ("log = 3", "gateway.log: unknown key"),
        ("[metrics]", "metrics.listen: missing key"),
        ('[metrics]\nlisten = "9180"', "metrics.listen: must be an IP address and a port"),
        ('[metrics]\nlisten = "localhost:9180"', "metrics.listen: must be an IP"),
        ('[metrics]\nlisten = "::1:9180"', "metrics.listen: must be an IP"),
        ('[metrics]\nlisten = "[127.0.0.1]:9180"', "metrics.listen: must be an IP"),
        ('[metrics]\nlisten = "[fe80::1%lan0]:9180"', "metrics.listen: must be an IP"),
        ('[metrics]\nlisten = "127.0.0.1:0"', "metrics.listen: must be an IP"),
        ('[metrics]\nlisten = "127.0.0.1:+80"', "metrics.listen: must be an IP"),
    ],
)
def test_what_is_wrong_in_optional_tables_is_named(home: Path, added: str, message: str) -> None:
    assert refusal(home, PROXY + added).startswith(message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[listen]", "[lan]\n[listen]", 'lan: unknown key: it belongs to role = "proxy"'),
        ('"203.0.113.10"', '"0.0.0.0"', "listen.addresses[0]: "),
        ('"203.0.113.10"', '"1.1.1.1", "x"', 'listen.addresses[1]: "x" is not an IP address'),
        ('["203.0.113.10"]', '["fd00::1", "fd00:0::1"]', "listen.addresses[1]: "),
        ("port = 8803", "port = -1", "listen.port: "),
        ("[[client]]", "[client]", "client: must be an array of tables: [[client]], not a table"),
        ('"home-1"', '"home 1"', 'client[0].name: must be 1 to 32 letters, digits, - or _, not "'),
        ('"198.51.100.0/24"', '"198.51.100.1/24"', "egress.allow[0]: "),
        ('"198.51.100.0/24"', '"everything"', "egress.allow[0]: "),
        ("allow =", "alow =", "egress.alow: unknown key: did you mean allow?"),
        ('allow = ["198.51.100.0/24"]', "deny_ports = [0]", "egress.deny_ports[0]: "),
    ],
)
def test_what_is_wrong_in_a_gateway_is_named_by_its_path(
    home: Path, old: str, new: str, message: str
) -> None:
    assert refusal(home, changed(GATEWAY, old, new)).startswith(message)


def test_host_bits_in_a_network_get_a_proposal(home: Path) -> None:
    text = refusal(home, changed(GATEWAY, "198.51.100.0/24", "198.51.100.1/24"))
    assert 'did you mean "198.51.100.0/24"?' in text


def test_an_empty_egress_is_as_good_as_none(home: Path) -> None:
    text = changed(GATEWAY, '[egress]\nallow = ["198.51.100.0/24"]', "")
    assert load_gateway(home, text).egress.allow == ()
    assert load_gateway(home, text + "[egress]\ndeny_ports = []").egress.deny_ports == ()


def test_clients_have_names_and_secrets_of_their_own(home: Path) -> None:
    second = '[[client]]\nname = "home-2"\nsecret_file = "home-2.key"\n'
    text = changed(GATEWAY, "[egress]", second + "[egress]")
    assert [client.name for client in load_gateway(home, text).clients] == ["home-1", "home-2"]
    twice = changed(text, '"home-2"', '"home-1"')
    assert refusal(home, twice).startswith("client[1].name: client[0] has that name already")
    shared = changed(text, "home-2.key", "home-1.key")
    assert refusal(home, shared) == "client[1].secret_file: client[0] has the same secret"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('networks = ["192.0.2.0/24"]\nsecret_file = "home-1.key"', "client[0].networks: a client"),
        ("networks = []", "client[0].networks: must have at least one network"),
        ('networks = ["0.0.0.0/0"]', "client[0].networks[0]: would make an open relay"),
        ('networks = ["192.0.2.1/24"]', "client[0].networks[0]: "),
        ('secret_file = "home-1.key"\ncookie = false', "client[0].cookie: is for clients"),
    ],
)
def test_a_client_has_a_secret_or_networks(home: Path, keys: str, message: str) -> None:
    text = GATEWAY.replace('secret_file = "home-1.key"', keys, 1)
    assert refusal(home, text).startswith(message)


def test_clients_without_a_secret_are_known_by_their_networks(home: Path) -> None:
    keys = 'networks = ["192.0.2.0/24", "2001:db8::/48"]'
    config = load(home, GATEWAY.replace('secret_file = "home-1.key"', keys, 1))
    assert isinstance(config, GatewayConfig)
    (client,) = config.clients[:1]
    assert [str(network) for network in client.networks] == ["192.0.2.0/24", "2001:db8::/48"]
    assert (client.secret, client.cookie) == (b"", True)


def test_an_old_secret_may_follow_the_new_one(home: Path) -> None:
    text = base64.b64encode(OTHER_SECRET) + b"\n\n# until May\n  " + base64.b64encode(SECRET)
    (home / "home-1.key").write_bytes(text)
    assert load_gateway(home).clients == (ClientConfig("home-1", OTHER_SECRET, (SECRET,)),)
    assert load_proxy(home).gateway.secret == OTHER_SECRET


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620, 0o602, 0o601])
def test_a_secret_that_others_can_get_at_is_refused(home: Path, mode: int) -> None:
    (home / "home-1.key").chmod(mode)
    assert refusal(home, PROXY).startswith("gateway.secret_file: ")
    assert refusal(home, GATEWAY).startswith("client[0].secret_file: ")
    assert f"{mode:04o}" in refusal(home, GATEWAY)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_secret_of_its_owner_alone_is_taken(home: Path, mode: int) -> None:
    (home / "home-1.key").chmod(mode)
    assert load_proxy(home).gateway.secret == SECRET


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_secret_of_another_user_is_refused(home: Path) -> None:
    os.chown(home / "home-1.key", 12345, 0)
    assert "belongs to another user" in refusal(home, PROXY)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# nothing\n",
        b"hunter2-hunter2\n",
        base64.b64encode(bytes(16)),
        base64.b64encode(bytes(33)),
        SECRET,
        base64.b64encode(SECRET) + b"\nhunter2-hunter2",
        (base64.b64encode(SECRET) + b"\n") * 5,
    ],
)
def test_what_is_no_secret_is_refused_and_never_quoted(home: Path, content: bytes) -> None:
    (home / "home-1.key").write_bytes(content)
    text = refusal(home, PROXY)
    assert text.startswith("gateway.secret_file: ")
    assert "hunter2" not in text


def test_secrets_do_not_show_in_a_repr(home: Path) -> None:
    for text in (repr(load_proxy(home)), repr(load_gateway(home))):
        assert "secret=" not in text
        assert repr(SECRET)[2:-1] not in text


def test_a_file_that_cannot_be_read_is_an_error_of_the_configuration(home: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load(home / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        config.load(home)


@pytest.mark.parametrize(
    "text", ["role", "role = ", "\0", "a = " + "[" * 5000, "a = " + "9" * 5000]
)
def test_what_is_no_toml_is_an_error_of_the_configuration(home: Path, text: str) -> None:
    assert refusal(home, text)


def test_bytes_that_are_no_text_are_an_error_of_the_configuration(home: Path) -> None:
    (home / "config.toml").write_bytes(b'role = "\xff"')
    with pytest.raises(ConfigError, match="UTF-8"):
        config.load(home / "config.toml")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3)
    ),
    max_leaves=6,
)
_PATHS = [
    (table, key)
    for text in (PROXY, GATEWAY)
    for table, keys in tomllib.loads(text).items()
    for key in (keys if isinstance(keys, dict) else [""])
]


@given(where=st.sampled_from(_PATHS), value=_VALUES)
def test_no_value_of_any_type_breaks_the_reader(where: tuple[str, str], value: object) -> None:
    table, key = where
    for text in (PROXY, GATEWAY):
        data = tomllib.loads(text)
        if key and isinstance(data.get(table), dict):
            data[table][key] = value
        else:
            data[table] = value
        with pytest.raises(ConfigError) as caught:
            config.parse(data, Path("/nonexistent/config.toml"))
        assert str(caught.value).isprintable()


def test_mptcp_cannot_be_required_and_off(home: Path) -> None:
    text = changed(PROXY, "port = 8803", "port = 8803\nrequire_mptcp = true")
    assert load_proxy(home, text).gateway.require_mptcp
    assert refusal(home, text + "[mptcp]\nenabled = false\n").startswith("gateway.require_mptcp")


def test_only_addresses_of_the_gateway_are_announced(home: Path) -> None:
    two = changed(GATEWAY, '["203.0.113.10"]', '["203.0.113.10", "203.0.113.11"]')
    text = changed(two, "port = 8803", 'port = 8803\nannounce = ["203.0.113.11"]')
    assert load_gateway(home, text).listen.announce == (b"\xcb\x00\x71\x0b",)
    bad = changed(text, 'announce = ["203.0.113.11"]', 'announce = ["203.0.113.12"]')
    assert refusal(home, bad).startswith('listen.announce[0]: "203.0.113.12" is not one of')
