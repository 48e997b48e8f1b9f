"""docs/configuration.md has every key and no other; the examples are valid."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from proxy import config
from proxy.config.load import ROLE_KEYS
from proxy.engine.runtime_role import PROXY_MPTCP
from proxy.sched import base as sched
from proxy.tcp.config import TcpConfig
from tests.unit.test_config import SECRET, write_secret

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "configuration.md").read_text()
ROWS = dict(re.findall(r"^\| `([a-z0-9_.\[\]]+)` \| (.*?) \|", TEXT, re.MULTILINE))


def keys_of_the_reader() -> set[str]:
    """Every key path that the source names, so that none can be added without its line."""
    source = "".join(file.read_text() for file in (ROOT / "proxy" / "config").glob("*.py"))
    tables = re.findall(r'table\(\s*"(\w+)",\s*\(([^)]*)\)', source)
    keys = {f"{table}.{key}" for table, body in tables for key in re.findall(r'"(\w+)"', body)}
    lists = {
        "uplink": re.search(r"known = \(([^)]*)\)", source),
        "rule": re.search(r"RULE_KEYS = \(([^)]*)\)", source),
        "client": re.search(r'root\.tables\("client", \(([^)]*)\)', source),
    }
    for table, match in lists.items():
        assert match is not None
        keys |= {table} | {f"{table}[].{key}" for key in re.findall(r'"(\w+)"', match[1])}
    keys |= {f"tcp.{key}" for key in config.TCP_KEYS}
    keys |= {f"mptcp.{key}" for key in config.MPTCP_KEYS}
    return keys | {"role", "workers"}


def test_every_key_is_documented_and_no_other() -> None:
    assert set(ROWS) == keys_of_the_reader()
    for table in {key for keys in ROLE_KEYS.values() for key in keys}:
        assert any(key.split(".")[0].removesuffix("[]") == table for key in ROWS)


@pytest.mark.parametrize(("prefix", "settings"), [("tcp", TcpConfig()), ("mptcp", PROXY_MPTCP)])
def test_documented_defaults_are_those_of_the_engine(prefix: str, settings: object) -> None:
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        default = getattr(settings, field.name)
        documented = ROWS.get(f"{prefix}.{field.name}")
        if documented is None or documented == "off":
            assert documented is None or default is None
        elif isinstance(default, bool):
            assert documented == f"`{str(default).lower()}`"
        elif isinstance(default, str):
            assert documented == f'`"{default}"`'
        else:
            assert float(documented) == default, field.name


def test_every_scheduler_of_ours_is_named() -> None:
    assert all(f'`"{name}"`' in TEXT for name in sched.names())


@pytest.mark.parametrize("role", ["proxy", "gateway"])
def test_the_examples_are_valid(tmp_path: Path, role: str) -> None:
    file = tmp_path / f"{role}.toml"
    file.write_text((ROOT / "deploy" / f"{role}.toml.example").read_text())
    write_secret(tmp_path / "home-1.key", SECRET)
    assert config.load(file).role == role


@pytest.mark.parametrize(
    "home", sorted((ROOT / "deploy" / "homes").glob("*.toml")), ids=lambda f: f.stem
)
def test_the_files_of_typical_homes_are_valid(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text(home.read_text())
    write_secret(tmp_path / "home-1.key", SECRET)
    assert isinstance(config.load(file), config.ProxyConfig)
