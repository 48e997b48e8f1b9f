"""Switching IP forwarding on for our interfaces and for no others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from proxy.net.nft import Forwarding
from proxy.net.sysctl import Sysctls, read_sysctl

__all__ = ["enable", "has_ipv6", "wanted"]

_ALL6 = "net/ipv6/conf/all"


def has_ipv6(interface: str = "all") -> bool:
    """Whether the kernel speaks IPv6 (on that interface)."""
    return read_sysctl(f"net/ipv6/conf/{interface}/disable_ipv6") == "0"


def enable(sysctls: Sysctls, interfaces: Sequence[str], everyone: Sequence[str]) -> Forwarding:
    """Let packets that enter ``interfaces`` be forwarded; returns where that was not so before.

    ``everyone`` are all interfaces of the host. Raises DeviceError.
    """
    wanted4 = {f"net/ipv4/conf/{name}/forwarding" for name in interfaces}
    # An interface that is ours no more must not stay a way in. (IPv6's per-interface "forwarding"
    # is a trace of the switch for all.)
    sysctls.release(
        lambda name: (
            (name.startswith("net/ipv4/conf/") and name not in wanted4)
            or (name.endswith("/force_forwarding") and name not in map(_force, interfaces))
        )
    )
    # IPv4 asks the incoming interface alone (IN_DEV_FORWARD), so ip_forward can stay as it is.
    for name in interfaces:
        sysctls.set(f"net/ipv4/conf/{name}/forwarding", "1")
    everywhere6 = False
    if has_ipv6() and read_sysctl(f"{_ALL6}/force_forwarding") is None:
        everywhere6 = _enable6_everywhere(sysctls, everyone)
    elif has_ipv6() and read_sysctl(f"{_ALL6}/forwarding") != "1":
        for name in filter(has_ipv6, interfaces):
            sysctls.set(_force(name), "1")  # since 6.17: for the incoming interface alone
    return Forwarding(
        tuple(name for name in interfaces if sysctls.changed(f"net/ipv4/conf/{name}/forwarding")),
        tuple(name for name in interfaces if sysctls.changed(_force(name))),
        everywhere6,
    )


def _enable6_everywhere(sysctls: Sysctls, everyone: Iterable[str]) -> bool:
    """Older kernels forward IPv6 for all interfaces or for none (ip6_forward()).

    That also makes a router of every interface, and a router that has accept_ra = 1 forgets the
    default routes which it learnt by router advertisements (addrconf_fixup_forwarding()); 2 means
    to listen nevertheless, and has to be there first.
    """
    if read_sysctl(f"{_ALL6}/forwarding") != "1":
        for name in ("default", *everyone):
            base = f"net/ipv6/conf/{name}"
            forwards = read_sysctl(f"{base}/forwarding")
            if forwards == "0" and read_sysctl(f"{base}/accept_ra") == "1":
                sysctls.set(f"{base}/accept_ra", "2")
            # Taking "all" back sets these to 0 too; then the operator's own 1 has to return.
            sysctls.remember(f"{base}/forwarding", "0" if forwards == "1" else "1")
        sysctls.set(f"{_ALL6}/forwarding", "1")
    return sysctls.changed(f"{_ALL6}/forwarding")


def _force(name: str) -> str:
    return f"net/ipv6/conf/{name}/force_forwarding"


def wanted(interfaces: Sequence[str]) -> list[str]:
    """What ``enable`` would change, for the operator to read."""
    lines = []
    for name in interfaces:
        if read_sysctl(f"net/ipv4/conf/{name}/forwarding") == "0":
            lines.append(f"sysctl -w net/ipv4/conf/{name}/forwarding=1")
    if not has_ipv6() or read_sysctl(f"{_ALL6}/forwarding") == "1":
        return lines
    if read_sysctl(f"{_ALL6}/force_forwarding") is None:
        return [
            *lines,
            "sysctl -w net/ipv6/conf/all/forwarding=1 (after accept_ra=2 where it is 1)",
        ]
    return [
        *lines,
        *(f"sysctl -w {_force(name)}=1" for name in interfaces if read_sysctl(_force(name)) == "0"),
    ]
