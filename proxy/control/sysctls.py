"""``net.mptcp.*`` of a running daemon: the kernel's names, meanings, ranges and refusals.

As in the kernel a change holds for connections that are opened afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from proxy.control.fields import CommandError, Request, word
from proxy.engine.stack import Stack
from proxy.errors import ConfigError
from proxy.pm import base as pm
from proxy.sched import base as sched

PREFIX = "net.mptcp."
_UINT = 0xFFFFFFFF
_FLAGS = ("enabled", "checksum_enabled", "allow_join_initial_addr_port")
# Time-outs in seconds and counts: the highest value.
_NUMBERS = {
    "add_addr_timeout": _UINT,
    "blackhole_timeout": _UINT,
    "close_timeout": _UINT,
    "stale_loss_cnt": _UINT,
    "syn_retrans_before_tcp_fallback": 255,
}
_PM_TYPES = ("kernel", "userspace")
_READ_ONLY = ("available_path_managers", "available_schedulers")
NAMES = tuple(sorted((*_FLAGS, *_NUMBERS, *_READ_ONLY, "path_manager", "pm_type", "scheduler")))


class Sysctls:
    """The settings of ``stack``; ``use`` puts a path manager into force for new connections."""

    def __init__(self, stack: Stack, manager: str, use: Callable[[str], None]) -> None:
        self._stack = stack
        self._manager = manager
        self._use = use

    def command(self, request: Request) -> object:
        """``sysctl``: all, or the one of ``name``; with ``value`` it is set first."""
        if request.get("name") is None:
            return {PREFIX + name: self._get(name) for name in NAMES}
        name = word(request, "name").replace("/", ".").removeprefix(PREFIX)
        if name not in NAMES:
            raise CommandError("ENOENT", f"there is no {PREFIX}{name}")
        if request.get("value") is not None:
            self._set(name, str(request["value"]).strip())
        return {PREFIX + name: self._get(name)}

    def _get(self, name: str) -> str:
        config = self._stack.mptcp_config
        if name == "available_path_managers":
            return " ".join(pm.names())
        if name == "available_schedulers":
            return " ".join(sched.names())
        if name == "path_manager":
            return self._manager
        if name == "pm_type":
            # As the kernel: what is neither has the number after the last one.
            known = self._manager in _PM_TYPES
            return str(_PM_TYPES.index(self._manager) if known else len(_PM_TYPES))
        if name == "scheduler":
            return config.scheduler
        value = getattr(config, name)
        return str(int(value) if value == int(value) else value)

    def _set(self, name: str, value: str) -> None:
        if name in _READ_ONLY:
            raise CommandError("EACCES", f"{PREFIX}{name} is read-only")
        if name == "path_manager":
            self._set_manager(value)
        elif name == "pm_type":
            self._set_manager(_PM_TYPES[self._number(name, value, 1)])
        elif name == "scheduler":
            if value not in sched.names():
                names = ", ".join(sched.names())
                raise CommandError("ENOENT", f"no scheduler {value}: there are {names}")
            self._stack.mptcp_config = replace(self._stack.mptcp_config, scheduler=value)
        elif name in _FLAGS:
            self._change(name, bool(self._number(name, value, 1)))
        else:
            self._change(name, self._number(name, value, _NUMBERS[name]))
            if name == "blackhole_timeout":
                self._stack.blackhole.reset(self._stack.mptcp_config.blackhole_timeout)

    def _change(self, name: str, value: object) -> None:
        self._stack.mptcp_config = replace(
            self._stack.mptcp_config,
            **{name: value},  # type: ignore[arg-type]
        )

    def _set_manager(self, name: str) -> None:
        try:
            self.set_manager(name)
        except ConfigError as error:
            raise CommandError(
                "ENOENT", f"no path manager {name}: there are {', '.join(pm.names())}"
            ) from error

    def set_manager(self, name: str) -> None:
        """New connections get the path manager ``name``; ConfigError if there is none."""
        self._use(name)
        self._manager = name

    @staticmethod
    def _number(name: str, value: str, high: int) -> int:
        if not value.isascii() or not value.isdigit() or int(value) > high:
            raise CommandError("EINVAL", f"{PREFIX}{name} must be a number from 0 to {high}")
        return int(value)
