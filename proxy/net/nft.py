"""The nft tables: one of our own per role, replaced as a whole in one transaction."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from proxy.errors import DeviceError
from proxy.net import bypass
from proxy.net.routes import MARK

if TYPE_CHECKING:
    from proxy.config import RuleConfig
    from proxy.net.uplinks import Uplink
    from proxy.toml_table import IpNetwork

__all__ = [
    "Forwarding",
    "Listener",
    "delete",
    "gateway_table",
    "load",
    "probe_table",
    "proxy_table",
    "sockets_table",
]

_COUNTERS = ("leaked", "strangers", "unwanted")


@dataclass(frozen=True, slots=True)
class Listener:
    """An address of the gateway and the engine's address that its connections are sent to."""

    address: bytes
    engine: bytes
    port: int


@dataclass(frozen=True, slots=True)
class Forwarding:
    """Where this process switched forwarding on: interfaces, or all of them (IPv6 only)."""

    interfaces4: tuple[str, ...] = ()
    interfaces6: tuple[str, ...] = ()
    everywhere6: bool = False


def load(script: str) -> None:
    """Give a script to the kernel: all of it takes effect, or nothing. Raises DeviceError."""
    command = ["nft", "-f", "-"]
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DeviceError("there is no nft command: install the package nftables") from None
    except OSError as error:
        raise DeviceError(f"nft: {error.strerror}") from None
    if done.returncode:
        first = done.stderr.strip().splitlines() or ["it failed without a message"]
        raise DeviceError(f"nft: {first[0]}")


def delete(table: str) -> None:
    """Remove one of our tables, if it is there. Raises DeviceError."""
    # The first line makes it exist, so that the second one cannot fail.
    load(f"table inet {table}\ndelete table inet {table}\n")


def proxy_table(
    table: str,
    tun: str,
    lan: Sequence[str],
    uplinks: Sequence[Uplink],
    prefixes: tuple[IpNetwork, IpNetwork],
    gateway: tuple[bytes, int],
    forwarding: Forwarding,
    rules: Sequence[RuleConfig] = (),
    annexes: Sequence[str] = (),
) -> str:
    """The script that replaces the proxy's table."""
    inside = [*lan, *annexes]
    devices = [uplink.dev for uplink in uplinks]
    chains = [
        "\tchain take {\n" + "".join(f"\t\t{line}\n" for line in _TAKE) + "\t}\n",
        _chain("pick", "filter hook prerouting priority -110", _pick(tun, inside, rules)),
        _chain("input", "filter hook input priority 0", _proxy_input(devices, gateway)),
        _chain(
            "forward",
            "filter hook forward priority 0",
            [
                _UNMARK,
                f'oifname "{tun}" iifname {_names(inside)} accept',
                f'oifname "{tun}" ct direction reply accept',
                f'oifname "{tun}" counter name unwanted drop',
                *_proxy_guard(tun, lan, devices, forwarding, annexes),
            ],
        ),
        # Before the operator's own (priority srcnat, 100), whose `masquerade` without an outgoing
        # interface would hide the LAN client from us: the null binding makes it too late.
        _chain(
            "source",
            "nat hook postrouting priority 90",
            [*_keep_source(tun), *_masquerade(uplinks), *_hide(annexes)],
        ),
        _chain("leak", "filter hook postrouting priority 300", _leak(tun, prefixes)),
    ]
    return _script(table, chains, bypass.counters(rules))


def probe_table(
    table: str,
    tun: str,
    uplinks: Sequence[Uplink],
    prefixes: tuple[IpNetwork, IpNetwork],
    gateway: tuple[bytes, int],
    forwarding: Forwarding,
) -> str:
    """The script that replaces the table of an engine that carries nothing of the LAN."""
    devices = [uplink.dev for uplink in uplinks]
    chains = [
        _chain("pick", "filter hook prerouting priority -110", [_mark_from(tun)]),
        _chain("input", "filter hook input priority 0", _proxy_input(devices, gateway)),
        _chain(
            "forward",
            "filter hook forward priority 0",
            [
                f'oifname "{tun}" ct direction reply accept',
                f'oifname "{tun}" counter name unwanted drop',
                *_proxy_guard(tun, (), devices, forwarding),
            ],
        ),
        _chain("source", "nat hook postrouting priority 90", _masquerade(uplinks)),
        _chain("leak", "filter hook postrouting priority 300", _leak(tun, prefixes)),
    ]
    return _script(table, chains)


def gateway_table(
    table: str,
    tun: str,
    listeners: Sequence[Listener],
    prefixes: tuple[IpNetwork, IpNetwork],
    forwarding: Forwarding,
) -> str:
    """The script that replaces the gateway's table."""
    redirect, silence = _listen(listeners)
    guard = [
        f'iifname {{ {names} }} meta nfproto {family} oifname != "{tun}" '
        "ct state new,invalid counter name unwanted drop"
        for family, names in _switched_on(forwarding)
    ]
    if forwarding.everywhere6:
        guard.append(
            f'oifname != "{tun}" meta nfproto ipv6 ct state new,invalid counter name unwanted drop'
        )
    chains = [
        _chain("listen", "nat hook prerouting priority -110", redirect),
        # What conntrack did not send on (out of its window, say) would get a RST from the host's
        # own TCP, and that would end a subflow which is alive.
        _chain("input", "filter hook input priority 0", silence),
        _chain(
            "forward",
            "filter hook forward priority 0",
            [
                f'oifname "{tun}" ct status dnat accept',
                f'oifname "{tun}" ct direction reply accept',
                f'oifname "{tun}" counter name unwanted drop',
                *guard,
            ],
        ),
        _chain("source", "nat hook postrouting priority 90", _keep_source(tun)),
        _chain("leak", "filter hook postrouting priority 300", _leak(tun, prefixes)),
    ]
    return _script(table, chains)


def sockets_table(
    table: str,
    tun: str,
    uplinks: Sequence[Uplink],
    prefixes: tuple[IpNetwork, IpNetwork],
    listeners: Sequence[Listener],
    forwarding: Forwarding,
) -> str:
    """The script that replaces the table of an engine that a program calls and listens with."""
    devices = [uplink.dev for uplink in uplinks]
    redirect, silence = _listen(listeners)
    chains = [
        _chain("pick", "filter hook prerouting priority -110", [_mark_from(tun)]),
        _chain("listen", "nat hook prerouting priority -110", redirect),
        _chain("input", "filter hook input priority 0", [_UNMARK, *silence]),
        _chain(
            "forward",
            "filter hook forward priority 0",
            [
                f'oifname "{tun}" ct status dnat accept',
                f'oifname "{tun}" ct direction reply accept',
                f'oifname "{tun}" counter name unwanted drop',
                *_proxy_guard(tun, (), devices, forwarding),
            ],
        ),
        _chain(
            "source",
            "nat hook postrouting priority 90",
            [*_keep_source(tun), *_masquerade(uplinks)],
        ),
        _chain("leak", "filter hook postrouting priority 300", _leak(tun, prefixes)),
    ]
    return _script(table, chains)


_UNMARK = f"meta mark & {MARK:#x} != 0 meta mark set meta mark & {MARK ^ 0xFFFFFFFF:#x}"
_TAKE = (
    f"meta l4proto tcp meta mark set meta mark | {MARK:#x}",
    # A router in the LAN says that our segment is too big: the far server must not get that.
    "meta l4proto { 1, 58 } ct state related ct original protocol 6 "
    f"meta mark set meta mark | {MARK:#x}",
)


def _listen(listeners: Sequence[Listener]) -> tuple[list[str], list[str]]:
    """What sends connections to listeners, and what drops packets that it missed."""
    redirect, silence = [], []
    for listener in listeners:
        family = _family(listener.address)
        to = f"{family} daddr {_text(listener.address)} tcp dport {listener.port}"
        redirect.append(f"{to} dnat {family} to {_text(listener.engine)}")
        silence.append(f"{to} counter name strangers drop")
    return redirect, silence


def _mark_from(tun: str) -> str:
    """For the reverse path filter alone (src_valid_mark on the TUN)."""
    return f'iifname "{tun}" meta mark set meta mark | {MARK:#x}'


def _pick(tun: str, lan: Sequence[str], rules: Sequence[RuleConfig]) -> list[str]:
    """Mark what the policy rules shall send to the TUN."""
    return [
        _mark_from(tun),
        f"iifname != {_names(lan)} return",
        # Answers to a connection from outside (a port forward, IPv6) belong to that connection.
        "ct direction reply return",
        # Masqueraded by the operator before we came: a connection of the kernel, not of ours.
        "ct status snat return",
        *bypass.lines(rules, "take"),
        "jump take",
    ]


def _proxy_input(devices: Sequence[str], gateway: tuple[bytes, int]) -> list[str]:
    address, port = gateway
    return [
        _UNMARK,
        # From the gateway but not translated back (a flushed or full conntrack table, a packet
        # out of its window): the host's own TCP would answer with a RST and end the subflow.
        f"iifname {_names(devices)} {_family(address)} saddr {_text(address)} tcp sport {port} "
        "ct state new,invalid counter name strangers drop",
    ]


def _keep_source(tun: str) -> list[str]:
    return [
        f'oifname "{tun}" meta nfproto ipv4 snat ip to ip saddr',
        f'oifname "{tun}" meta nfproto ipv6 snat ip6 to ip6 saddr',
    ]


def _masquerade(uplinks: Sequence[Uplink]) -> list[str]:
    return [
        f'{_family(address)} saddr {_text(address)} oifname "{uplink.dev}" masquerade'
        for uplink in uplinks
        for address in (uplink.addr4, uplink.addr6)
        if address is not None
    ]


def _hide(annexes: Sequence[str]) -> list[str]:
    """Nobody outside knows the way to an annex."""
    return [f"iifname {_names(annexes)} masquerade"] if annexes else []


def _leak(tun: str, prefixes: tuple[IpNetwork, IpNetwork]) -> list[str]:
    """No address of the engine is seen outside: what was not translated is dropped.

    It also leaves no conntrack entry then (they are confirmed later): after a flush, the next
    packet from outside makes the one with the translation again.
    """
    return [
        f'oifname != "{tun}" ip saddr {prefixes[0]} counter name leaked drop',
        f'oifname != "{tun}" ip6 saddr {prefixes[1]} counter name leaked drop',
    ]


def _proxy_guard(
    tun: str,
    lan: Sequence[str],
    devices: Sequence[str],
    forwarding: Forwarding,
    annexes: Sequence[str] = (),
) -> list[str]:
    """Where forwarding was off until we came, it is on for this alone: LAN to TUN and to uplinks,
    TUN and annexes to anywhere, and answers. A host that was no router must not become an open
    one."""
    unwanted = "ct state new,invalid counter name unwanted drop"
    rules = []
    for family, interfaces in (("ipv4", forwarding.interfaces4), ("ipv6", forwarding.interfaces6)):
        inside = [name for name in interfaces if name in lan]
        outside = [name for name in interfaces if name in devices]
        if inside:
            rules.append(
                f"iifname {_names(inside)} meta nfproto {family} "
                f"oifname != {_names([tun, *devices])} {unwanted}"
            )
        if outside:
            rules.append(f"iifname {_names(outside)} meta nfproto {family} {unwanted}")
    if forwarding.everywhere6:
        rules.append(f"iifname != {_names([tun, *lan, *annexes])} meta nfproto ipv6 {unwanted}")
    if forwarding.everywhere6 and lan:
        rules.append(
            f"iifname {_names(lan)} meta nfproto ipv6 "
            f"oifname != {_names([tun, *devices])} {unwanted}"
        )
    return rules


def _switched_on(forwarding: Forwarding) -> Iterable[tuple[str, str]]:
    for family, names in (("ipv4", forwarding.interfaces4), ("ipv6", forwarding.interfaces6)):
        if names:
            yield family, ", ".join(f'"{name}"' for name in names)


def _script(table: str, chains: list[str], more: Sequence[str] = ()) -> str:
    counters = "".join(f"\tcounter {name} {{ }}\n" for name in (*_COUNTERS, *more))
    body = "".join(chains)
    return (
        f"table inet {table}\ndelete table inet {table}\n"
        f"table inet {table} {{\n{counters}{body}}}\n"
    )


def _chain(name: str, hook: str, rules: Sequence[str]) -> str:
    lines = "".join(f"\t\t{rule}\n" for rule in rules)
    return f"\tchain {name} {{\n\t\ttype {hook}; policy accept;\n{lines}\t}}\n"


def _names(names: Sequence[str]) -> str:
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_.@:-]{1,15}", name):
            raise DeviceError(f"{name!r} cannot be written in an nft rule")
    return "{ " + ", ".join(f'"{name}"' for name in names) + " }"


def _family(address: bytes) -> str:
    return "ip" if len(address) == 4 else "ip6"


def _text(address: bytes) -> str:
    return str(ip_address(address))
