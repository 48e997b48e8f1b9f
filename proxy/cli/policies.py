"""Checks the names of policies in a configuration against what is registered."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from proxy.cc import base as cc
from proxy.errors import ConfigError
from proxy.pm import base as pm
from proxy.sched import base as sched

if TYPE_CHECKING:
    from proxy import config


def check_policies(settings: config.ProxyConfig | config.GatewayConfig) -> None:
    """Raises ConfigError if a congestion control, a path manager or a scheduler does not exist.

    The configuration cannot do this by itself: third parties bring policies of their own.
    """
    _check("tcp.congestion_control", settings.tcp.get("congestion_control"), cc.names())
    _check("mptcp.path_manager", settings.mptcp.get("path_manager"), pm.names())
    _check("mptcp.scheduler", settings.mptcp.get("scheduler"), sched.names())
    for index, rule in enumerate(getattr(settings, "rules", ())):
        _check(f"rule[{index}].scheduler", rule.scheduler or None, sched.names())


def _check(path: str, name: str | None, known: list[str]) -> None:
    if name is None or name in known:
        return
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}"
    raise ConfigError(path, f'"{name}" does not exist: {hint}')
