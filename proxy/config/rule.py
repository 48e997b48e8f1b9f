"""Path rules: ``[[rule]]``, which way a conversation takes."""

from __future__ import annotations

import enum
import re
from collections.abc import Collection
from dataclasses import dataclass

from proxy.config.common import NAME, NAME_WANTED
from proxy.errors import ConfigError
from proxy.toml_table import IpNetwork, Table

MAX_RULES = 256
RULE_KEYS = (
    "name",
    "to",
    "ports",
    "from",
    "sni",
    "via",
    "uplinks",
    "scheduler",
    "redundant_bytes",
    "bulk_bytes",
)
_POLICY = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_SNI = re.compile(r"(\*\.)?[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_RANGE = re.compile(r"(\d{1,5})-(\d{1,5})")
_BYTES_MAX = 1 << 40


class Via(enum.Enum):
    """Where a conversation goes."""

    GATEWAY = "gateway"
    DIRECT = "direct"
    """MPTCP straight to the server, plain TCP if it does not take part."""
    BYPASS = "bypass"
    """Left to the kernel: it never enters the TUN."""


@dataclass(frozen=True, slots=True)
class RuleConfig:
    """What is empty matches everything. ``ports`` are ranges with both ends; ``sni`` names, or
    ``*.`` and a domain.

    ``uplinks``: the only ones that may be used; empty: all. ``scheduler``: of what this box sends;
    empty: that of ``[mptcp]``. The first ``redundant_bytes`` of a conversation go over all uplinks;
    after ``bulk_bytes`` it keeps off metered ones while another works (None: never).
    """

    name: str
    to: tuple[IpNetwork, ...] = ()
    ports: tuple[tuple[int, int], ...] = ()
    sources: tuple[IpNetwork, ...] = ()
    sni: tuple[str, ...] = ()
    via: Via = Via.GATEWAY
    uplinks: tuple[str, ...] = ()
    scheduler: str = ""
    redundant_bytes: int = 0
    bulk_bytes: int | None = None


def read_rules(root: Table, uplinks: Collection[str]) -> tuple[RuleConfig, ...]:
    """``[[rule]]``; ``uplinks`` are the names that there are."""
    if "rule" not in root:
        return ()
    rules: list[RuleConfig] = []
    looks_at_sni = ""
    for position, table in enumerate(root.tables("rule", RULE_KEYS, MAX_RULES)):
        rule = _rule(table, position, uplinks)
        for index, other in enumerate(rules):
            if other.name == rule.name:
                raise ConfigError(table.path_of("name"), f"rule[{index}] has that name already")
        if rule.via is Via.BYPASS and looks_at_sni:
            # Taken by then: to see the name, the connection has to be answered.
            message = f'"bypass" must stand before {looks_at_sni}, which looks at sni'
            raise ConfigError(table.path_of("via"), message)
        if rule.sni:
            looks_at_sni = looks_at_sni or f"rule[{position}]"
        rules.append(rule)
    return tuple(rules)


def _rule(table: Table, position: int, uplinks: Collection[str]) -> RuleConfig:
    rule = RuleConfig(
        name=table.name("name", NAME, NAME_WANTED) if "name" in table else f"rule-{position + 1}",
        to=table.networks("to"),
        ports=_ports(table),
        sources=table.networks("from"),
        sni=_names(table),
        via=Via(table.choice("via", [via.value for via in Via], Via.GATEWAY.value)),
        uplinks=_uplinks(table, uplinks),
        scheduler=_scheduler(table),
        redundant_bytes=table.integer("redundant_bytes", 0, _BYTES_MAX, 0),
        bulk_bytes=table.integer("bulk_bytes", 1, _BYTES_MAX) if "bulk_bytes" in table else None,
    )
    if rule.via is Via.BYPASS:
        for key in ("sni", "uplinks", "scheduler", "redundant_bytes", "bulk_bytes"):
            if key in table:
                raise ConfigError(table.path_of(key), 'makes no sense with via = "bypass"')
    return rule


def _ports(table: Table) -> tuple[tuple[int, int], ...]:
    found = []
    for index, item in enumerate(table.array("ports")):
        path = f"{table.path_of('ports')}[{index}]"
        if isinstance(item, int) and not isinstance(item, bool):
            low = high = item
        else:
            match = _RANGE.fullmatch(item) if isinstance(item, str) else None
            if match is None:
                raise ConfigError(path, 'must be a port or a range as "8000-8100"')
            low, high = int(match[1]), int(match[2])
        if not 1 <= low <= high <= 65535:
            raise ConfigError(path, "ports are 1 to 65535, the lower one first")
        found.append((low, high))
    return tuple(found)


def _names(table: Table) -> tuple[str, ...]:
    names = tuple(name.lower() for name in table.strings("sni", ()))
    for index, name in enumerate(names):
        if not _SNI.fullmatch(name):
            path = f"{table.path_of('sni')}[{index}]"
            raise ConfigError(path, 'must be a host name, or "*." and a domain')
    return names


def _uplinks(table: Table, known: Collection[str]) -> tuple[str, ...]:
    names = table.strings("uplinks", ())
    for index, name in enumerate(names):
        if name not in known:
            listed = ", ".join(known)
            path = f"{table.path_of('uplinks')}[{index}]"
            raise ConfigError(path, f'"{name}" is no uplink: there are {listed}')
    return names


def _scheduler(table: Table) -> str:
    return table.name("scheduler", _POLICY, "the name of a policy") if "scheduler" in table else ""
