"""A report as Prometheus reads it (text format 0.0.4).

Each kernel counter is a metric of its own, ``mptcp_proxy_nstat_MPTcpExtMPCapableSYNRX_total``, as
node_exporter has those of the kernel (``node_netstat_MPTcpExt_MPCapableSYNRX``). As values of a
label they would be one metric whose sum means nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from proxy.control.metrics import Report
from proxy.engine.counters import GAUGES
from proxy.relay.usage import Account, Histogram
from proxy.version import software_version

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "mptcp_proxy"
_VERSION = software_version()
_NO_NAME = re.compile(r"[^A-Za-z0-9_]")

FROM_THE_START = ("InternalErrors", "ListenOverflows", "MPTcpExtMPCapableFallbackSYNACK")
"""Counters of which the first one matters: without a zero before it, increase() is none."""

Value = Callable[[Mapping[str, Any]], float | None]
"""Of an uplink's status; None: not known."""

_UPLINK_COUNTERS: tuple[tuple[str, str, Value], ...] = (
    ("sent_bytes", "Payload bytes sent by an uplink", lambda u: u["bytes_sent"]),
    ("received_bytes", "Payload bytes received by an uplink", lambda u: u["bytes_received"]),
)
_UPLINK_GAUGES: tuple[tuple[str, str, Value], ...] = (
    ("up", "1 while an uplink can be used", lambda u: u["up"]),
    ("backup", "1 while an uplink is for when no other works", lambda u: u["backup"]),
    (
        "gateway_answers",
        "1 while the gateway answers on an uplink",
        lambda u: {"answers": 1.0, "silent": 0.0}.get(u.get("gateway", "")),
    ),
    ("subflows", "Subflows by an uplink", lambda u: u["subflows"]),
    ("rtt_seconds", "Least smoothed round-trip time among its subflows", lambda u: u.get("srtt")),
)
_ACCOUNT_COUNTERS: tuple[tuple[str, str, Callable[[Account], int]], ...] = (
    ("sent_bytes", "Payload bytes sent by a {who}", lambda a: a.sent),
    ("received_bytes", "Payload bytes received by a {who}", lambda a: a.received),
    ("connections", "Connections of a {who} that its server accepted", lambda a: a.opened),
)


def exposition(report: Report) -> bytes:
    """All of it."""
    return generate_latest(_Families(report))


class _Families:
    """What ``generate_latest`` asks."""

    def __init__(self, report: Report) -> None:
        self._status = report.status
        self._usage = report.usage

    def collect(self) -> Iterator[Metric]:
        """Each family once."""
        yield self._info()
        if "gateway_reachable" in self._status:
            yield _gauge(
                "gateway_reachable",
                "0 while the gateway answers on no uplink",
                self._status["gateway_reachable"],
            )
        yield from self._uplinks()
        yield from self._accounts()
        yield from self._histograms()
        counters = {**dict.fromkeys(FROM_THE_START, 0), **self._status["counters"]}
        for name, count in sorted(counters.items()):
            metric = f"{PREFIX}_nstat_{_NO_NAME.sub('_', name)}"
            kind = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
            yield kind(metric, f"{name} of nstat", count)

    def _info(self) -> Metric:
        family = GaugeMetricFamily(
            f"{PREFIX}_build_info", "1, with what is running", labels=("version", "role")
        )
        family.add_metric((_VERSION, self._status["role"]), 1)
        return family

    def _uplinks(self) -> Iterator[Metric]:
        uplinks = self._status["uplinks"]
        if not uplinks:
            return
        for name, text, value in _UPLINK_COUNTERS:
            yield _of_each(CounterMetricFamily, name, text, value, uplinks)
        for name, text, value in _UPLINK_GAUGES:
            yield _of_each(GaugeMetricFamily, name, text, value, uplinks)

    def _accounts(self) -> Iterator[Metric]:
        who, label = ("LAN host", "host") if self._is_proxy else ("client", "client")
        accounts = self._usage.accounts.items()
        for name, text, value in _ACCOUNT_COUNTERS:
            counter = CounterMetricFamily(
                f"{PREFIX}_{label}_{name}", text.format(who=who), labels=(label,)
            )
            for owner, account in accounts:
                counter.add_metric((owner,), value(account))
            yield counter
        gauge = GaugeMetricFamily(
            f"{PREFIX}_{label}_open_connections", f"Open connections of a {who}", labels=(label,)
        )
        for owner, account in accounts:
            gauge.add_metric((owner,), account.open)
        yield gauge

    def _histograms(self) -> Iterator[Metric]:
        labels = ("uplink",) if self._is_proxy else ()
        rtt = HistogramMetricFamily(
            f"{PREFIX}_rtt_seconds",
            "Smoothed round-trip times of the subflows in use, read every second",
            labels=labels,
        )
        for label, histogram in self._usage.rtt.items():
            _add(rtt, (label,) if labels else (), histogram)
        yield rtt
        reinjected = HistogramMetricFamily(
            f"{PREFIX}_reinjected_bytes",
            "Bytes that a connection, ended by now, sent again on another subflow",
            labels=(),
        )
        _add(reinjected, (), self._usage.reinjected)
        yield reinjected

    @property
    def _is_proxy(self) -> bool:
        return bool(self._status["role"] == "proxy")


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, float(value))


def _of_each(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    text: str,
    value: Value,
    uplinks: list[Mapping[str, Any]],
) -> Metric:
    family = kind(f"{PREFIX}_uplink_{name}", text, labels=("uplink",))
    for uplink in uplinks:
        number = value(uplink)
        if number is not None:
            family.add_metric((uplink["name"],), float(number))
    return family


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    bounds = [*map(str, histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    family.add_metric(labels, buckets, histogram.total)
