"""What Prometheus reads: it parses, every name is right, and counters only grow."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.config import MetricsConfig
from proxy.control.metrics import Report
from proxy.control.worker_metrics import WorkerReports
from proxy.control.workers import WorkerError
from proxy.errors import DeviceError
from proxy.relay.usage import OTHER, Usage
from proxy.web.exposition import exposition
from proxy.web.server import MetricsServer
from tests.unit.test_web_http import ask, get

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def uplink(name: str, sent: int, **fields: Any) -> dict[str, Any]:
    return {
        "name": name, "interface": "u1", "address": "198.18.92.10", "backup": False, "up": True,
        "subflows": 1, "bytes_sent": sent, "bytes_received": 2 * sent, "srtt": 0.02,
        "gateway": "answers", **fields,
    }  # fmt: skip


def proxy_report() -> Report:
    usage = Usage(2)
    usage.account("192.0.2.1").add(10, 20, 3)
    usage.account("2001:db8::1").add(1, 2, 1)
    usage.account("2001:db8::1").open = 1
    usage.account(OTHER).add(7, 7, 7)
    usage.rtt_of("fibre").observe(0.02)
    usage.rtt_of("fibre").observe(7.0)
    usage.reinjected.observe(5000)
    lte = uplink("lte", 5, up=False, backup=True, srtt=None, gateway="unknown")
    status = {
        "role": "proxy", "gateway_reachable": True, "uplinks": [uplink("fibre", 100), lte],
        "counters": {"MPTcpExtMPCapableSYNTX": 4, "ConvertDrop-bad-tag": 1,
                     "MPTcpExtMPCurrEstab": 2},
    }  # fmt: skip
    return Report(status, usage)


def gateway_report() -> Report:
    usage = Usage(2)
    usage.account("home-1").add(10, 20, 3)
    usage.rtt_of("").observe(0.02)
    return Report({"role": "gateway", "uplinks": [], "counters": {"InErrs": 2}}, usage)


def parse(text: bytes) -> Samples:
    """Every sample; the parser itself refuses what is not of the format."""
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, "told twice"
            found[key] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[(f"mptcp_proxy_{name}", tuple(sorted(labels.items())))]


def test_what_a_proxy_tells() -> None:
    samples = parse(exposition(proxy_report()))
    assert value(samples, "uplink_sent_bytes_total", uplink="fibre") == 100
    assert value(samples, "uplink_received_bytes_total", uplink="lte") == 10
    assert value(samples, "uplink_up", uplink="lte") == 0
    assert value(samples, "uplink_backup", uplink="lte") == 1
    assert value(samples, "uplink_gateway_answers", uplink="fibre") == 1
    assert value(samples, "uplink_rtt_seconds", uplink="fibre") == 0.02
    assert value(samples, "gateway_reachable") == 1
    assert value(samples, "host_sent_bytes_total", host="192.0.2.1") == 10
    assert value(samples, "host_received_bytes_total", host="other") == 7
    assert value(samples, "host_connections_total", host="192.0.2.1") == 3
    assert value(samples, "host_open_connections", host="2001:db8::1") == 1
    assert value(samples, "rtt_seconds_bucket", uplink="fibre", le="0.02") == 1
    assert value(samples, "rtt_seconds_bucket", uplink="fibre", le="+Inf") == 2
    assert value(samples, "rtt_seconds_sum", uplink="fibre") == 7.02
    assert value(samples, "reinjected_bytes_count") == 1
    assert value(samples, "nstat_MPTcpExtMPCapableSYNTX_total") == 4
    assert value(samples, "nstat_ConvertDrop_bad_tag_total") == 1


def test_what_is_not_known_is_not_told() -> None:
    samples = parse(exposition(proxy_report()))
    lte = (("uplink", "lte"),)
    assert ("mptcp_proxy_uplink_rtt_seconds", lte) not in samples
    assert ("mptcp_proxy_uplink_gateway_answers", lte) not in samples


def test_how_many_there_are_now_is_a_gauge() -> None:
    (family,) = (
        family
        for family in text_string_to_metric_families(exposition(proxy_report()).decode())
        if "CurrEstab" in family.name
    )
    assert (family.name, family.type) == ("mptcp_proxy_nstat_MPTcpExtMPCurrEstab", "gauge")


def test_what_a_gateway_tells() -> None:
    samples = parse(exposition(gateway_report()))
    assert value(samples, "client_received_bytes_total", client="home-1") == 20
    assert value(samples, "rtt_seconds_count") == 1
    assert not [name for name, _ in samples if "uplink" in name or "host" in name]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
@pytest.mark.parametrize("report", [proxy_report, gateway_report])
def test_promtool_has_nothing_to_say(report: Any) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition(report()), capture_output=True
    )
    # The kernel's names are not in snake_case; those that node_exporter has are not either.
    complaints = [
        line
        for line in done.stderr.decode().splitlines()
        if not line.startswith("mptcp_proxy_nstat_") or not line.endswith("not 'camelCase'")
    ]
    assert complaints == []


class Worker:
    """A link to a worker that counts one byte more each time it is asked."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.open = True
        self.count = 0
        self.late: asyncio.Event | None = None

    async def request(self, fields: object, timeout: float) -> dict[str, Any]:
        if not self.open:
            raise WorkerError("gone")
        self.count += 1
        count, usage = self.count, Usage(2)
        usage.account("192.0.2.1").add(1, 2, 1)
        usage.account("192.0.2.1").open = 1
        usage.rtt_of("fibre").observe(0.02)
        if self.late is not None:
            await self.late.wait()
        counters = {"TCPOutRsts": count, "MPTcpExtMPCurrEstab": 1}
        status = {
            "role": "proxy", "gateway_reachable": True, "connections": [], "counters": counters,
            "uplinks": [uplink("fibre", count)],
        }  # fmt: skip
        return {"status": status, "usage": usage.take()}


class Workers:
    """Two workers, and the reports of their daemon."""

    def __init__(self) -> None:
        self.links = [Worker(0), Worker(1)]
        self.restarts = 0
        self.reports = WorkerReports(
            "proxy",
            2,
            lambda: [link for link in self.links if link.open],  # type: ignore[misc]
            lambda: {"WorkerRestarts": self.restarts},
        )

    async def read(self) -> Samples:
        return parse(exposition(await self.reports.report()))

    def end(self, index: int) -> None:
        self.links[index].open = False
        self.links[index] = Worker(index)
        self.restarts += 1
        self.reports.ended(index)


def counters(samples: Samples) -> Samples:
    ends = ("_total", "_bucket", "_sum", "_count")
    return {key: value for key, value in samples.items() if key[0].endswith(ends)}


def assert_grown(before: Samples, after: Samples) -> None:
    for key, count in counters(before).items():
        assert after[key] >= count, key


async def test_workers_are_told_as_one() -> None:
    samples = await Workers().read()
    assert value(samples, "nstat_TCPOutRsts_total") == 2
    assert value(samples, "uplink_sent_bytes_total", uplink="fibre") == 2
    assert value(samples, "host_received_bytes_total", host="192.0.2.1") == 4
    assert value(samples, "host_open_connections", host="192.0.2.1") == 2
    assert value(samples, "rtt_seconds_count", uplink="fibre") == 2


async def test_nothing_shrinks_when_a_worker_ends() -> None:
    workers = Workers()
    before = await workers.read()
    workers.links[1].open = False
    between = await workers.read()
    assert_grown(before, between)
    workers.end(1)
    after = await workers.read()
    assert_grown(between, after)
    assert value(after, "nstat_WorkerRestarts_total") == 1
    assert value(after, "nstat_TCPOutRsts_total") == 3 + 1 + 1
    assert value(after, "nstat_MPTcpExtMPCurrEstab") == 2, "the dead one has none"
    assert value(after, "host_open_connections", host="192.0.2.1") == 2


async def test_nothing_shrinks_while_all_have_ended() -> None:
    workers = Workers()
    before = await workers.read()
    for index in (0, 1):
        workers.end(index)
        workers.links[index].open = False
    between = await workers.read()
    assert_grown(before, between)
    workers.links = [Worker(0), Worker(1)]
    after = await workers.read()
    assert_grown(between, after)
    assert value(after, "uplink_sent_bytes_total", uplink="fibre") == 4


async def test_a_worker_that_is_late_is_told_as_before_and_counts_when_it_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.control.worker_metrics._PATIENCE", 0.05)
    workers = Workers()
    before = await workers.read()
    workers.links[1].late = asyncio.Event()
    late = await workers.read()
    assert_grown(before, late)
    assert value(late, "host_sent_bytes_total", host="192.0.2.1") == 3
    workers.links[1].late.set()
    await asyncio.sleep(0)
    after = await workers.read()
    assert workers.links[1].count == 3
    assert value(after, "host_sent_bytes_total", host="192.0.2.1") == 6, "nothing is lost"


async def test_an_answer_of_a_worker_that_has_ended_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.control.worker_metrics._PATIENCE", 0.05)
    workers = Workers()
    await workers.read()
    late = workers.links[1].late = asyncio.Event()
    before = await workers.read()
    workers.end(1)
    late.set()
    await asyncio.sleep(0)
    after = await workers.read()
    assert_grown(before, after)
    assert value(after, "host_open_connections", host="192.0.2.1") == 2


async def test_the_listener_follows_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.web.server._FRESH", 1000.0)
    asked: list[bool] = []

    async def report(sample: bool) -> Report:
        asked.append(sample)
        return proxy_report()

    server = MetricsServer(report)
    await server.configure(MetricsConfig())
    assert server.port is None
    await server.configure(MetricsConfig(("127.0.0.1", 0)))
    port = server.port
    assert port is not None
    status, headers, body = await ask(port, get("/metrics"))
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert parse(body) == parse(exposition(proxy_report()))
    for _ in range(5):
        assert (await ask(port, get("/metrics")))[2] == body
    assert asked.count(False) == 1, "reading costs: not for each who asks at once"
    assert (await ask(port, get("/metrics", method="POST")))[0] == 405
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(DeviceError, match=r"metrics\.listen: .* in use"),
    ):
        await server.configure(MetricsConfig(other.getsockname()))
    assert server.port is not None
    assert (await ask(server.port, get("/metrics")))[0] == 200, "as before"
    port = server.port
    await server.configure(MetricsConfig())
    with pytest.raises(ConnectionRefusedError):
        await ask(port, get("/metrics"))
