"""Routes and rules of ours: what is wanted is compared with what is there, and made so."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from proxy.errors import DeviceError
from proxy.net.links import FAMILIES

__all__ = ["MARK", "PROTOCOL", "Route", "Rule", "Scope", "present", "reconcile"]

PROTOCOL = 88
"""The mark of our routes and rules (`ip route show proto 88`).

It must be nobody else's: 186 to 189, for example, are FRR's, whose zebra removes at its start
whatever carries them (zebra/rt_netlink.h, is_selfroute).
"""

MARK = 0x1000_0000
"""The one bit of the packet mark that says "to the TUN" between prerouting and routing."""

MAIN = 254
_UNICAST = 1
_UNREACHABLE = 7
_TO_TABLE = 1
_RTNH_F_ONLINK = 4
_NO_SUPPRESSION = 0xFFFFFFFF
_ABSENT = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})


@dataclass(frozen=True, slots=True)
class Route:
    """A route; ``destination`` is a network or ``default``, without ``dev`` it is unreachable."""

    family: int
    table: int
    destination: str
    dev: str = ""
    index: int = 0
    gateway: str = ""
    metric: int = 0

    def __str__(self) -> str:
        kind = "" if self.dev else "unreachable "
        via = f" via {self.gateway}" if self.gateway else ""
        dev = f" dev {self.dev}" if self.dev else ""
        metric = f" metric {self.metric}" if self.metric else ""
        return (
            f"ip {_flag(self.family)} route add {kind}{self.destination}{via}{dev}"
            f" table {self.table}{metric} proto {PROTOCOL}"
        )

    def arguments(self) -> dict[str, Any]:
        """For ``IPRoute.route``."""
        found: dict[str, Any] = {
            "family": self.family,
            "table": self.table,
            "dst": self.destination,
            "proto": PROTOCOL,
            "type": _UNICAST if self.dev else _UNREACHABLE,
        }
        if self.metric:
            found["priority"] = self.metric
        if self.dev:
            found["oif"] = self.index
        if self.gateway:
            # The operator knows that it is a neighbour, also where no network covers it (a /32
            # from a cloud, a link-local router).
            found.update(gateway=self.gateway, flags=_RTNH_F_ONLINK)
        return found


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy rule; ``specific`` ignores default routes of its table (suppress_prefixlength 0)."""

    family: int
    priority: int
    table: int
    source: str = ""
    destination: str = ""
    iif: str = ""
    mark: int = 0
    specific: bool = False

    def __str__(self) -> str:
        parts = [f"ip {_flag(self.family)} rule add priority {self.priority}"]
        parts.append(f"from {self.source or 'all'}")
        if self.destination:
            parts.append(f"to {self.destination}")
        if self.iif:
            parts.append(f"iif {self.iif}")
        if self.mark:
            parts.append(f"fwmark {self.mark:#x}/{self.mark:#x}")
        parts.append(f"lookup {'main' if self.table == MAIN else self.table}")
        if self.specific:
            parts.append("suppress_prefixlength 0")
        return " ".join([*parts, f"protocol {PROTOCOL}"])

    def arguments(self) -> dict[str, Any]:
        """For ``IPRoute.rule``."""
        found: dict[str, Any] = {
            "family": self.family,
            "priority": self.priority,
            "table": self.table,
            "action": _TO_TABLE,
            "protocol": PROTOCOL,
        }
        for key, network in (("src", self.source), ("dst", self.destination)):
            if network:
                address, _, length = network.partition("/")
                found[key] = address
                found[f"{key}_len"] = int(length)
        if self.iif:
            found["iifname"] = self.iif
        if self.mark:
            found.update(fwmark=self.mark, fwmask=self.mark)
        if self.specific:
            found["suppress_prefixlen"] = 0
        return found


@dataclass(frozen=True, slots=True)
class Scope:
    """The tables and rule priorities of one role: nothing outside is looked at or touched."""

    tables: range
    priorities: range


def present(ipr: Any, scope: Scope) -> tuple[set[Route], set[Rule]]:
    """The routes and rules in ``scope`` that carry our protocol number."""
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in ipr.get_links()}
    routes: set[Route] = set()
    rules: set[Rule] = set()
    for family in FAMILIES:
        for message in ipr.get_routes(family=family):
            if message["proto"] == PROTOCOL:
                route = _route(message, family, names)
                if route.table in scope.tables:
                    routes.add(route)
        for message in ipr.get_rules(family=family):
            if message.get_attr("FRA_PROTOCOL") == PROTOCOL:
                rule = _rule(message, family)
                if rule.priority in scope.priorities:
                    rules.add(rule)
    return routes, rules


def reconcile(
    ipr: Any, scope: Scope, wanted_routes: Iterable[Route], wanted_rules: Iterable[Rule]
) -> list[str]:
    """Make exactly the wanted routes and rules exist in ``scope``; returns what was changed.

    A table is filled before a rule points to it, and emptied after. Raises DeviceError.
    """
    routes, rules = present(ipr, scope)
    wanted, ruled = set(wanted_routes), set(wanted_rules)
    changes = []
    for route in sorted(wanted - routes, key=str):
        # "replace", for a changed next hop has the key of the old route.
        _change(ipr.route, "replace", route)
        changes.append(str(route))
    for rule in sorted(ruled - rules, key=lambda rule: rule.priority):
        _change(ipr.rule, "add", rule)
        changes.append(str(rule))
    for rule in sorted(rules - ruled, key=lambda rule: rule.priority):
        _change(ipr.rule, "del", rule)
        changes.append(str(rule).replace(" add ", " del ", 1))
    for route in sorted(routes - wanted, key=str):
        _change(ipr.route, "del", route)
        changes.append(str(route).replace(" add ", " del ", 1))
    return changes


def _change(request: Any, command: str, thing: Route | Rule) -> None:
    try:
        request(command, **thing.arguments())
    except NetlinkError as error:
        if command == "del" and error.code in _ABSENT:
            return
        if command == "add" and error.code == errno.EEXIST:
            return
        text = str(thing).replace(" add ", f" {command} ", 1)
        raise DeviceError(f"{text}: {error.args[-1]}") from error


def _route(message: Any, family: int, names: dict[int, str]) -> Route:
    address = message.get_attr("RTA_DST")
    index = message.get_attr("RTA_OIF") if message["type"] == _UNICAST else 0
    return Route(
        family=family,
        table=message.get_attr("RTA_TABLE") or message["table"],
        destination=f"{address}/{message['dst_len']}" if address else "default",
        dev=names.get(index, "?") if index else "",
        index=index or 0,
        gateway=message.get_attr("RTA_GATEWAY") or "",
        metric=message.get_attr("RTA_PRIORITY") or 0,
    )


def _rule(message: Any, family: int) -> Rule:
    source, destination = message.get_attr("FRA_SRC"), message.get_attr("FRA_DST")
    suppression = message.get_attr("FRA_SUPPRESS_PREFIXLEN")
    return Rule(
        family=family,
        priority=message.get_attr("FRA_PRIORITY") or 0,
        table=message.get_attr("FRA_TABLE") or message["table"],
        source=f"{source}/{message['src_len']}" if source else "",
        destination=f"{destination}/{message['dst_len']}" if destination else "",
        iif=message.get_attr("FRA_IIFNAME") or "",
        mark=message.get_attr("FRA_FWMARK") or 0,
        specific=suppression not in (None, _NO_SUPPRESSION),
    )


def _flag(family: int) -> str:
    return "-4" if family == socket.AF_INET else "-6"
