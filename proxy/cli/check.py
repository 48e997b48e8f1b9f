"""``mptcp-proxy check``: is the configuration good, and what would ``run`` do to this host?"""

from __future__ import annotations

import argparse
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from proxy import config
from proxy.relay.rules import describe
from proxy.wire.address import Address, format_ip

if TYPE_CHECKING:
    from proxy.net.setup import HostSetup


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "check",
        help="check a configuration file and show what would be done",
        description="Checks the configuration file and the secrets it names, says in words what "
        "it means, and lists what 'run' would set up on this host. Changes nothing.",
    )
    parser.add_argument(
        "-c", "--config", type=Path, required=True, metavar="FILE", help="configuration file (TOML)"
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Prints the summary and the plan."""
    settings = config.load(options.config)
    # Late: the other commands need neither policies nor netlink.
    from proxy.cli.policies import check_policies
    from proxy.net.firewall import findings
    from proxy.net.setup import GatewaySetup, HostSetup, Setup

    check_policies(settings)
    setup: Setup
    if isinstance(settings, config.ProxyConfig):
        summary = describe_proxy(settings)
        setup = HostSetup(settings)
    else:
        summary = describe_gateway(settings)
        setup = GatewaySetup(settings)
    print(f"{options.config} is well-formed.\n")
    print("\n".join(summary), flush=True)
    plan = setup.plan()
    if isinstance(setup, HostSetup):
        print("".join(f"\n{line}" for line in _waiting(setup)), flush=True)
    for finding in findings(setup.table, settings.tun.name):
        print(f"\n{finding.what}; to let this box's packets pass:")
        print("\n".join(f"  {command}" for command in finding.mend), flush=True)
    print("\n'run' would do this, and undo it when it stops:")
    print("\n".join(f"  {step}" for step in plan))
    return 0


def _waiting(setup: HostSetup) -> list[str]:
    lines = [f'waits for the LAN: there is no interface "{name}"' for name in setup.waits_for]
    return lines + [
        f"waits for uplink {uplink.name}: {uplink.waits_for}"
        for uplink in setup.uplinks
        if uplink.waits_for
    ]


def describe_proxy(settings: config.ProxyConfig) -> list[str]:
    """The meaning of a proxy's configuration, in lines."""
    peer = settings.gateway
    lines = [
        f"Proxy: TCP that enters {_join(settings.lan.interfaces)} is carried over "
        f"{_count(settings.uplinks, 'uplink')} to the gateway",
        f"{Address(peer.address, peer.port)}, where this proxy is known as {peer.client}.",
    ]
    for uplink in settings.uplinks:
        hops = [format_ip(hop) for hop in (uplink.next_hop, uplink.next_hop6) if hop is not None]
        way = f"next hop {_join(hops)}" if hops else "its own default route"
        backup = ", backup: only used when no other uplink works" if uplink.backup else ""
        lines.append(f"  uplink {uplink.name}: interface {uplink.interface}, {way}{backup}")
    if settings.rules:
        lines.append("The first rule that matches says which way a conversation takes:")
        lines += [f"  {rule.name}: {describe(rule)}" for rule in settings.rules]
        lines.append("  otherwise: via gateway")
    if any(rule.sni for rule in settings.rules):
        lines.append(
            "  Clients that a rule with sni may be for are answered before their server is."
        )
    direct = settings.gateway.when_unreachable == "direct"
    lines.append(
        "While the gateway does not answer, new conversations "
        + ("go to their servers directly." if direct else "are refused.")
    )
    return lines + _describe_common(settings)


def describe_gateway(settings: config.GatewayConfig) -> list[str]:
    """The meaning of a gateway's configuration, in lines."""
    listen = settings.listen
    places = [str(Address(address, listen.port)) for address in listen.addresses]
    names = [client.name for client in settings.clients]
    egress = settings.egress
    guests = [client for client in settings.clients if client.networks]
    lines = [
        f"Gateway: listens on {_join(places)} for {_count(names, 'client')}: {_join(names)}.",
        "Clients may reach public addresses"
        + (f" and {_join(list(map(str, egress.allow)))}" if egress.allow else "")
        + "; private, link-local, loopback and metadata addresses are refused otherwise.",
    ]
    for guest in guests:
        where = _join(list(map(str, guest.networks)))
        how = "that shows a cookie" if guest.cookie else "without cookie"
        lines.append(f"  {guest.name}: any RFC 8803 client in {where}, {how}")
    if egress.deny:
        lines.append(f"  refused as well: {_join(list(map(str, egress.deny)))}")
    if egress.deny_ports:
        lines.append(f"  refused ports: {_join(list(map(str, egress.deny_ports)))}")
    return lines + _describe_common(settings)


def _describe_common(settings: config.ProxyConfig | config.GatewayConfig) -> list[str]:
    tun = settings.tun
    lines = [
        f"  TUN device {tun.name}: MTU {tun.mtu}, engine addresses from {tun.prefix4} and "
        f"{tun.prefix6}",
        f"  control socket {settings.control.socket}",
    ]
    if settings.metrics.listen is not None:
        lines += _describe_metrics(*settings.metrics.listen)
    if settings.workers > 1:
        lines.append(f"  {settings.workers} workers share the work")
    for name, values in (("tcp", settings.tcp), ("mptcp", settings.mptcp)):
        if values:
            pairs = ", ".join(f"{key} = {value}" for key, value in values.items())
            lines.append(f"  {name}: {pairs}")
    return lines


def _describe_metrics(host: str, port: int) -> list[str]:
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"  status page at http://{place}/, metrics for Prometheus at http://{place}/metrics"]
    if not ip_address(host).is_loopback:
        lines.append("    whoever can reach that sees who in the LAN moves how much")
    return lines


def _join(words: list[str] | tuple[str, ...]) -> str:
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]


def _count(things: list[str] | tuple[object, ...], noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"
