"""Annexes: network namespaces beside the host whose TCP the proxy takes, as that of a LAN host.

An annex hangs on a veth pair. The daemon knows the host's end by its name, so nothing is agreed
upon and nothing has to be cleaned: with the last process in the namespace the kernel removes the
pair, and the daemon, which follows its host's interfaces, forgets it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any

from pyroute2.netlink.exceptions import NetlinkError

from proxy.errors import DeviceError
from proxy.net.links import Host, look
from proxy.net.netlink import session
from proxy.net.routes import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_ANNEXES", "Annex", "annexes", "bind_mount", "enter_annex", "far_addresses"]

MAX_ANNEXES = 64
_PREFIX4 = IPv4Network("198.18.94.0/24")  # RFC 2544, as those of the TUN devices: nobody's
_PREFIX6 = IPv6Network("fd6d:7074:6372::/64")
_NAME = re.compile(r"mptcpx(\d|[1-5]\d|6[0-3])")
_INSIDE = "eth0"
_IFA_F_NODAD = 0x02
_CLONE_NEWNS, _CLONE_NEWNET = 0x0002_0000, 0x4000_0000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x8_0000
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Annex:
    """Number ``slot``, 0 to 63. Each has a network of four addresses in each family."""

    slot: int

    @property
    def name(self) -> str:
        """The host's end of its veth pair."""
        return f"mptcpx{self.slot}"

    def near(self, family: int) -> str:
        """The host's address, the annex's router."""
        return str(_prefix(family)[4 * self.slot + 1])

    def far(self, family: int) -> str:
        """The address that the programs inside have, and that path rules see."""
        return str(_prefix(family)[4 * self.slot + 2])


def annexes(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the interfaces ``names`` that are an annex's, sorted."""
    return tuple(sorted(name for name in names if _NAME.fullmatch(name)))


def far_addresses(name: str) -> tuple[bytes, bytes]:
    """The addresses, packed, of what is behind an annex's interface."""
    annex = Annex(int(name.removeprefix("mptcpx")))
    return ip_address(annex.far(socket.AF_INET)).packed, ip_address(
        annex.far(socket.AF_INET6)
    ).packed


def enter_annex(ready: Callable[[Annex], None]) -> Annex:
    """Move this thread into a new annex of the network namespace that it is in.

    ``ready`` is called while the thread is still outside, when the pair is up; what it raises
    passes, and then nothing remains. IPv6 is there if the host has a default route for it.
    Raises DeviceError.
    """
    with _opened("/proc/thread-self/ns/net") as host_fd:
        _call("unshare", _CLONE_NEWNET)
        with _opened("/proc/thread-self/ns/net") as annex_fd:
            _call("setns", host_fd, _CLONE_NEWNET)
            with session() as ipr:
                host = look(ipr, PROTOCOL)
                annex = _attach(ipr, annex_fd)
                try:
                    families = _families(host)
                    _check_free(host, annex, families)
                    _configure(ipr, annex.name, [annex.near(family) for family in families])
                    _call("setns", annex_fd, _CLONE_NEWNET)
                    _furnish(annex, families)
                    _call("setns", host_fd, _CLONE_NEWNET)
                    ready(annex)
                except BaseException:
                    # The namespace goes when its descriptor is closed, the pair a moment later;
                    # whoever tries again at once shall find the name free.
                    for index in ipr.link_lookup(ifname=annex.name):
                        ipr.link("del", index=index)
                    raise
            _call("setns", annex_fd, _CLONE_NEWNET)
    return annex


def bind_mount(source: str, target: str) -> None:
    """Show ``source`` at ``target`` to this process and its children alone. Raises DeviceError."""
    _call("unshare", _CLONE_NEWNS)
    # What is mounted here shall not reach the host; what the host mounts shall still come here.
    _call("mount", b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None)
    paths = (os.fsencode(source), os.fsencode(target))
    _call("mount", *paths, None, ctypes.c_ulong(_MS_BIND), None)


def _attach(ipr: Any, annex_fd: int) -> Annex:
    """Make the veth pair of a free slot; the kernel sees to it that only one of us gets it."""
    for annex in map(Annex, range(MAX_ANNEXES)):
        peer = {"ifname": _INSIDE, "net_ns_fd": annex_fd}
        try:
            ipr.link("add", ifname=annex.name, kind="veth", peer=peer)
        except NetlinkError as error:
            if error.code == errno.EEXIST:
                continue
            raise DeviceError(f"{annex.name}: cannot make it: {error.args[-1]}") from error
        return annex
    raise DeviceError(f"{MAX_ANNEXES} are running already (ip link show type veth)")


def _families(host: Host) -> list[int]:
    has6 = any(route.family == socket.AF_INET6 for route in host.defaults)
    return [socket.AF_INET, socket.AF_INET6] if has6 else [socket.AF_INET]


def _check_free(host: Host, annex: Annex, families: list[int]) -> None:
    for family in families:
        wanted = ip_network((annex.near(family), _length(family)), strict=False)
        for network in host.routed:
            if network.version == wanted.version and network.overlaps(wanted):
                raise DeviceError(f"{wanted} is in use on this host (ip route show {network})")


def _furnish(annex: Annex, families: list[int]) -> None:
    """Addresses and routes of the inside."""
    with session() as ipr:
        ipr.link("set", index=ipr.link_lookup(ifname="lo")[0], state="up")
        _configure(ipr, _INSIDE, [annex.far(family) for family in families])
        index = ipr.link_lookup(ifname=_INSIDE)[0]
        for family in families:
            router = annex.near(family)
            ipr.route("add", family=family, dst="default", gateway=router, oif=index)


def _configure(ipr: Any, name: str, addresses: list[str]) -> None:
    index = ipr.link_lookup(ifname=name)[0]
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        flags = {"flags": _IFA_F_NODAD} if family == socket.AF_INET6 else {}
        ipr.addr("add", index=index, address=address, prefixlen=_length(family), **flags)
    ipr.link("set", index=index, state="up")


def _prefix(family: int) -> IPv4Network | IPv6Network:
    return _PREFIX4 if family == socket.AF_INET else _PREFIX6


def _length(family: int) -> int:
    return 30 if family == socket.AF_INET else 126


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _call(name: str, *arguments: object) -> None:
    if getattr(_LIBC, name)(*arguments) != 0:
        raise DeviceError(f"{name}: {os.strerror(ctypes.get_errno())}")
