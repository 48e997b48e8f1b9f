"""All checks of the uplinks, in turn, and the waiting for NATs beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

from proxy.config import ProxyConfig
from proxy.diagnose.nat import NatTimeout
from proxy.diagnose.path import PathExam
from proxy.diagnose.prober import Prober, device_name, probing
from proxy.diagnose.result import HOST, Result, finding, skipped
from proxy.errors import DeviceError
from proxy.mptcp.config import MptcpConfig
from proxy.net import firewall
from proxy.net.setup import ProbeSetup

_NAT_SECONDS = 30.0  # where there is no keep-alive to go by


async def examine_paths(
    config: ProxyConfig, names: Collection[str], running: bool, nat_seconds: float | None
) -> AsyncIterator[Result]:
    """What the paths of the uplinks called ``names`` do; results as they come.

    ``running``: a proxy with this configuration runs on the host. ``nat_seconds``: how long a
    silent connection shall live; None: as long as the keep-alive needs. Raises ConfigError.
    """
    name = device_name(config, running)
    for one in firewall.findings(ProbeSetup.table, name):
        text = f"{one.what}, so that no uplink can be tested"
        if not running:
            yield skipped(HOST, "uplinks", text)  # it was found for the proxy's own packets
        else:
            yield finding(HOST, "uplinks", text, *one.mend, "or stop the proxy meanwhile")
        return
    keepalive: float = config.mptcp.get("subflow_keepalive", MptcpConfig.subflow_keepalive)
    nat = NatTimeout(keepalive or _NAT_SECONDS if nat_seconds is None else nat_seconds, keepalive)
    try:
        async with probing(config, name) as prober:
            async for result in _examine(prober, names, nat):
                yield result
    except DeviceError as error:
        yield finding(HOST, "uplinks", f"cannot be tested: {error}")


async def _examine(
    prober: Prober, names: Collection[str], nat: NatTimeout
) -> AsyncIterator[Result]:
    try:
        for uplink in prober.uplinks:
            if uplink.name not in names or uplink.waits_for:
                continue
            if not prober.local_ip(uplink):
                text = f"has no way out in the family of the gateway ({prober.gateway})"
                yield finding(uplink.name, "interface", text, "uplink.next_hop, uplink.next_hop6")
                continue
            async for result in PathExam(prober, uplink, nat).results():
                yield result
        async for result in nat.results():
            yield result
    finally:
        nat.cancel()
