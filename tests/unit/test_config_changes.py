"""What a running daemon takes over of a changed file, and what it says of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy import config
from proxy.config import Changes, GatewayConfig, ProxyConfig
from proxy.errors import ConfigError
from tests.unit.test_config import SECRET, write_secret

PROXY = """
role = "proxy"
[lan]
interfaces = ["lan0"]
[[uplink]]
name = "fibre"
interface = "u1"
[[uplink]]
name = "lte"
interface = "u2"
[gateway]
address = "203.0.113.10"
client = "home-1"
secret_file = "home-1.key"
[tcp]
ecn = "on"
"""
GATEWAY = """
role = "gateway"
[listen]
addresses = ["203.0.113.10"]
[[client]]
name = "home-1"
secret_file = "home-1.key"
"""
DSL = '[[uplink]]\nname = "dsl"\ninterface = "u3"\n[gateway]'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_secret(tmp_path / "home-1.key", SECRET)
    write_secret(tmp_path / "other.key", bytes(reversed(SECRET)))
    return tmp_path


def read(home: Path, text: str) -> config.Config:
    file = home / "file.toml"
    file.write_text(text)
    return config.load(file)


def changes(home: Path, text: str, *edits: tuple[str, str]) -> Changes:
    edited = text
    for old, new in edits:
        assert old in edited
        edited = edited.replace(old, new, 1)
    return config.compare(read(home, text), read(home, edited))


def slots(configuration: config.Config) -> dict[str, int]:
    assert isinstance(configuration, ProxyConfig)
    return {uplink.name: uplink.slot for uplink in configuration.uplinks}


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("", "", []),
        ('"u2"', '"u7"', ["uplink[lte].interface"]),
        ('"u2"', '"u2"\nbackup = true\nweight = 3', ["uplink[lte].backup", "uplink[lte].weight"]),
        ("[gateway]", DSL, ["uplink[dsl]"]),
        ('name = "lte"', 'name = "dsl"', ["uplink[dsl]", "uplink[lte]"]),
        ("home-1.key", "other.key", ["gateway.secret_file"]),
        ('ecn = "on"', "", ["tcp.ecn"]),
        ('[tcp]\necn = "on"', '[mptcp]\nscheduler = "blest"', ["mptcp.scheduler", "tcp.ecn"]),
        ("[tcp]", '[log]\nlevel = "debug"\n[tcp]', ["log.level"]),
        ("[tcp]", '[metrics]\nlisten = "[::1]:9180"\n[tcp]', ["metrics.listen"]),
        ('"lan0"', '"lan0", "lan1"', ["lan.interfaces"]),
        ("203.0.113.10", "203.0.113.11", ["gateway.address"]),
    ],
)
def test_what_can_change_at_run_time(home: Path, old: str, new: str, changed: list[str]) -> None:
    found = changes(home, PROXY, (old, new))
    assert sorted(found.changed) == sorted(changed)
    assert found.need_restart == ()


@pytest.mark.parametrize(
    ("old", "new", "pending"),
    [
        ("[tcp]", "[tun]\nmtu = 1400\n[tcp]", ["tun.mtu"]),
        ("[tcp]", '[control]\nsocket = "/run/x.sock"\n[tcp]', ["control.socket"]),
        ("203.0.113.10", "2001:db8::1", ["gateway.address"]),
    ],
)
def test_what_needs_a_restart_keeps_its_value(
    home: Path, old: str, new: str, pending: list[str]
) -> None:
    found = changes(home, PROXY, (old, new))
    assert found.changed == ()
    assert list(found.need_restart) == pending
    running = read(home, PROXY)
    assert config.compare(running, found.config).need_restart == ()


def test_the_rest_is_taken_over_beside_what_needs_a_restart(home: Path) -> None:
    found = changes(home, PROXY, ("[tcp]", "[tun]\nmtu = 1400\n[tcp]"), ('"on"', '"off"'))
    assert (found.changed, found.need_restart) == (("tcp.ecn",), ("tun.mtu",))
    assert (found.config.tcp["ecn"], found.config.tun.mtu) == ("off", 1500)


def test_an_uplink_keeps_its_slot_wherever_it_stands(home: Path) -> None:
    fibre = '[[uplink]]\nname = "fibre"\ninterface = "u1"\n'
    without = changes(home, PROXY, (fibre, ""))
    assert slots(without.config) == {"lte": 1}
    both = changes(home, PROXY, (fibre, ""), ("[gateway]", DSL))
    assert slots(both.config) == {"lte": 1, "dsl": 2}
    back = config.compare(both.config, read(home, PROXY))
    assert slots(back.config) == {"fibre": 0, "lte": 1}


def test_slots_are_used_again_when_there_are_no_others(home: Path) -> None:
    eight = "".join(f'[[uplink]]\nname = "a{n}"\ninterface = "a{n}"\n' for n in range(6))
    full = read(home, PROXY.replace("[gateway]", f"{eight}[gateway]"))
    other = PROXY.replace("[gateway]", f"{eight}[gateway]").replace('name = "a3"', 'name = "b"')
    found = config.compare(full, read(home, other))
    assert slots(found.config)["b"] == slots(full)["a3"]


def test_a_gateways_clients_and_egress_can_change(home: Path) -> None:
    more = (
        '[[client]]\nname = "home-2"\nsecret_file = "other.key"\n[egress]\ndeny_ports = [25, 110]'
    )
    found = changes(
        home, GATEWAY + "#", ("#", more), ("addresses", "late_convert = false\naddresses")
    )
    assert set(found.changed) == {"client[home-2]", "egress.deny_ports", "listen.late_convert"}
    assert found.need_restart == ()
    moved = changes(home, GATEWAY, ("203.0.113.10", "203.0.113.11"))
    assert (moved.changed, moved.need_restart) == ((), ("listen.addresses",))
    assert isinstance(moved.config, GatewayConfig)


def test_a_role_cannot_change(home: Path) -> None:
    with pytest.raises(ConfigError, match="a running proxy cannot become") as caught:
        config.compare(read(home, PROXY), read(home, GATEWAY))
    assert caught.value.path == "role"
