"""What differs between two configurations, and what of it a running daemon can take over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TypeVar

from proxy.config.gateway import GatewayConfig
from proxy.config.proxy import MAX_UPLINKS, ProxyConfig, UplinkConfig
from proxy.errors import ConfigError

Config = ProxyConfig | GatewayConfig
C = TypeVar("C", ProxyConfig, GatewayConfig)

# Fields that can change at run time; what is not listed needs a restart.
_LIVE = {
    "proxy": ("lan", "uplinks", "gateway", "rules", "tcp", "mptcp", "log", "metrics"),
    "gateway": ("clients", "egress", "tcp", "mptcp", "log", "metrics"),
}
_TABLES = {"uplinks": "uplink", "clients": "client", "rules": "rule"}
_KEYS = {"sources": "from", "secret": "secret_file", "previous_secrets": "secret_file"}
_IDENTITY = ("name", "slot")  # of a table in an array: no keys that can change
_NOT_IN_FILE = ("source", "role")


@dataclass(frozen=True, slots=True)
class Changes:
    """From one configuration to another: paths of keys, in the order of the file's tables.

    ``config`` is what the daemon goes by from now on: it has the old values of the keys that
    ``need_restart``.
    """

    config: Config
    changed: tuple[str, ...]
    need_restart: tuple[str, ...]


def compare(old: Config, new: Config) -> Changes:
    """What a daemon that runs by ``old`` can take over of ``new``.

    Raises ConfigError if it is for the other role, or for more uplinks than there is room for.
    """
    if isinstance(old, ProxyConfig) and isinstance(new, ProxyConfig):
        merged: Config = _merge(old, replace(new, uplinks=_keep_slots(old, new)))
    elif isinstance(old, GatewayConfig) and isinstance(new, GatewayConfig):
        merged = _merge(old, new)
    else:
        raise ConfigError("role", f'a running {old.role} cannot become "{new.role}"')
    changed = _differences(old, merged)
    pending = _differences(merged, new)
    return Changes(merged, tuple(changed), tuple(pending))


def _merge(old: C, new: C) -> C:
    live = {name: getattr(new, name) for name in _LIVE[old.role]}
    if isinstance(old, ProxyConfig) and isinstance(new, ProxyConfig):
        gateway = old.gateway
        if len(gateway.address) != len(new.gateway.address):
            # Live connections have engine addresses of one family, and the endpoints with them.
            live["gateway"] = replace(new.gateway, address=gateway.address, port=gateway.port)
    elif isinstance(old, GatewayConfig) and isinstance(new, GatewayConfig):
        listen = new.listen
        live["listen"] = replace(old.listen, late_convert=listen.late_convert, trials=listen.trials)
    return replace(old, source=new.source, **live)


def _keep_slots(old: ProxyConfig, new: ProxyConfig) -> tuple[UplinkConfig, ...]:
    """An uplink keeps its engine addresses, and with them its connections, wherever it stands."""
    slots = {uplink.name: uplink.slot for uplink in old.uplinks}
    taken = {slots[uplink.name] for uplink in new.uplinks if uplink.name in slots}
    # Those of uplinks that go come last: what is on its way to them shall find nobody.
    free = [slot for slot in range(MAX_UPLINKS) if slot not in slots.values()]
    free += [slot for slot in slots.values() if slot not in taken]
    return tuple(
        replace(uplink, slot=slots[uplink.name] if uplink.name in slots else free.pop(0))
        for uplink in new.uplinks
    )


def _differences(old: Config, new: Config) -> list[str]:
    before, after = dict(_flat(old)), dict(_flat(new))
    paths = [*after, *(path for path in before if path not in after)]
    differing = [path for path in paths if before.get(path, _flat) != after.get(path, _flat)]
    # A table that comes or goes is named, not each of its keys.
    whole = {path for path in differing if path.endswith("]")}
    kept = [path for path in differing if path in whole or path.rpartition(".")[0] not in whole]
    return list(dict.fromkeys(kept))


def _flat(config: Config) -> Iterator[tuple[str, object]]:
    for field in fields(config):
        value = getattr(config, field.name)
        name = _TABLES.get(field.name, field.name)
        if field.name in _NOT_IN_FILE:
            continue
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", item) for key, item in value.items())
        elif is_dataclass(value):
            yield from _flat_table(name, value)
        elif isinstance(value, tuple):
            for position, item in enumerate(value):
                path = f"{name}[{getattr(item, 'name', position)}]"
                yield path, True
                yield from _flat_table(path, item)
        else:
            yield name, value


def _flat_table(path: str, table: object) -> Iterator[tuple[str, object]]:
    merged: dict[str, list[object]] = {}
    for field in fields(table):  # type: ignore[arg-type]
        if field.name not in _IDENTITY:
            key = _KEYS.get(field.name, field.name)
            merged.setdefault(f"{path}.{key}", []).append(getattr(table, field.name))
    yield from merged.items()
