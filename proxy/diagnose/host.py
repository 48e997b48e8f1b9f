"""Whether this host is as a box needs it; nothing is changed."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from proxy.config import Config, ProxyConfig
from proxy.diagnose.result import HOST, Result, finding, fine
from proxy.net import firewall
from proxy.net.links import look
from proxy.net.netlink import session
from proxy.net.routes import PROTOCOL
from proxy.net.setup import GatewaySetup, HostSetup
from proxy.net.sysctl import read_sysctl

_TUN = Path("/dev/net/tun")
_CONNTRACK = "net/netfilter/nf_conntrack_"
_FULL = 0.9  # of a table or of a limit
_FEW_DESCRIPTORS = {"proxy": 256, "gateway": 65536}


def running_daemon(config: Config) -> int:
    """The process id of the daemon that listens on the control socket; 0 if there is none."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(config.control.socket))
        except (FileNotFoundError, ConnectionRefusedError):
            return 0
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("3i", credentials)[0])


class HostExam:
    """The checks of one box. ``pid`` is the running daemon's, 0 without one."""

    def __init__(self, config: Config, pid: int) -> None:
        self._config = config
        self._pid = pid
        self._setup = HostSetup(config) if isinstance(config, ProxyConfig) else GatewaySetup(config)

    def results(self) -> Iterator[Result]:
        """One after the other."""
        checks: list[Callable[[], Iterator[Result]]] = [
            self._tools,
            self._interfaces,
            self._firewall,
            self._conntrack,
            self._descriptors,
        ]
        if self._pid:
            checks += [self._routes, self._forwarding, self._table]
        for check in checks:
            yield from check()

    def _tools(self) -> Iterator[Result]:
        if shutil.which("nft") is None:
            yield finding(HOST, "nft", "there is no nft command", "apt install nftables")
        else:
            yield fine(HOST, "nft", "is there")
        try:
            os.close(os.open(_TUN, os.O_RDWR))
        except OSError as error:
            text = f"{_TUN}: {error.strerror}"
            yield finding(HOST, "TUN", text, "modprobe tun (in a container: --device /dev/net/tun)")
        else:
            yield fine(HOST, "TUN", f"{_TUN} can be opened")

    def _interfaces(self) -> Iterator[Result]:
        if not isinstance(self._setup, HostSetup):
            return
        self._setup.missing()  # looks at the host
        for name in self._setup.waits_for:
            text = f'there is no LAN interface "{name}"'
            yield finding(HOST, "LAN", text, "lan.interfaces (ip link shows what there is)")
        for uplink in self._setup.uplinks:
            if uplink.waits_for:
                yield finding(
                    uplink.name,
                    "interface",
                    uplink.waits_for,
                    f"ip link set {uplink.dev} up; uplink.interface, uplink.next_hop",
                )

    def _firewall(self) -> Iterator[Result]:
        found = firewall.findings(self._setup.table, self._config.tun.name)
        for one in found:
            yield finding(HOST, "firewall", one.what, *one.mend)
        if not found:
            yield fine(HOST, "firewall", "no chain drops what is forwarded")

    def _conntrack(self) -> Iterator[Result]:
        count, most = read_sysctl(f"{_CONNTRACK}count"), read_sysctl(f"{_CONNTRACK}max")
        if not count or not most or int(most) == 0:
            return
        if int(count) > _FULL * int(most):
            yield finding(
                HOST,
                "conntrack",
                f"{count} of {most} entries are taken: new connections will be dropped",
                f"sysctl -w net.netfilter.nf_conntrack_max={4 * int(most)}",
            )
        else:
            yield fine(HOST, "conntrack", f"{count} of {most} entries are taken")

    def _descriptors(self) -> Iterator[Result]:
        used, most = self._descriptor_use()
        few = _FEW_DESCRIPTORS[self._config.role]
        mend = "LimitNOFILE=524288 in its systemd unit, or ulimit -n 524288 before it is started"
        if most < few:
            text = f"{most} at most; a {self._config.role} may need {few}"
            yield finding(HOST, "descriptors", text, mend)
        elif used > _FULL * most:
            yield finding(HOST, "descriptors", f"{used} of {most} are in use", mend)
        else:
            yield fine(HOST, "descriptors", f"{used} of {most} are in use")

    def _descriptor_use(self) -> tuple[int, int]:
        if not self._pid:
            return 0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        used = len(os.listdir(f"/proc/{self._pid}/fd"))
        return used, resource.prlimit(self._pid, resource.RLIMIT_NOFILE)[0]

    def _routes(self) -> Iterator[Result]:
        missing = self._setup.missing()
        if missing:
            yield finding(
                HOST,
                "routes",
                f"{len(missing)} of the daemon's routes and rules are gone",
                "mptcp-proxy reload",
                *missing,
            )
        else:
            yield fine(HOST, "routes", "the daemon's routes and rules are there")

    def _forwarding(self) -> Iterator[Result]:
        off = [name for name in self._forwarders() if _conf4(name, "forwarding") == "0"]
        for name in off:
            yield finding(
                HOST,
                "forwarding",
                f"is off for {name}",
                f"sysctl -w net/ipv4/conf/{name}/forwarding=1",
            )
        if not off:
            yield fine(HOST, "forwarding", "is on")
        tun = self._config.tun.name
        strict = max(_number(_conf4("all", "rp_filter")), _number(_conf4(tun, "rp_filter"))) == 1
        marked = "1" in (_conf4("all", "src_valid_mark"), _conf4(tun, "src_valid_mark"))
        if strict and not marked:
            yield finding(
                HOST,
                "rp_filter",
                f"is strict, and {tun} does not look at marks: its packets are dropped",
                f"sysctl -w net/ipv4/conf/{tun}/src_valid_mark=1",
            )
        else:
            yield fine(HOST, "rp_filter", "lets our packets pass")

    def _forwarders(self) -> list[str]:
        with session() as ipr:
            host = look(ipr, PROTOCOL)
        return [*self._setup.forwarders(host), self._config.tun.name]

    def _table(self) -> Iterator[Result]:
        table = self._setup.table
        command = ["nft", "list", "table", "inet", table]
        try:
            there = subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return  # said already: there is no nft
        if there:
            yield fine(HOST, "nft table", f"inet {table} is there")
        else:
            text = f"inet {table} is gone: packets are not translated"
            yield finding(HOST, "nft table", text, "restart the daemon")


def _conf4(name: str, key: str) -> str:
    return read_sysctl(f"net/ipv4/conf/{name}/{key}") or ""


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
