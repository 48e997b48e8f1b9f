"""What the status page is told: rates second by second, health and events in words."""

from __future__ import annotations

import json
from typing import Any

from proxy.config import MetricsConfig
from proxy.control.metrics import Report
from proxy.relay.usage import Usage
from proxy.web.history import MINUTES, SECONDS, History
from proxy.web.server import MetricsServer
from proxy.web.watch import EVERYBODY, MAX_EVENTS, Watch
from tests.unit.test_web_http import ask, get
from tests.unit.test_web_metrics import gateway_report, proxy_report, uplink


def test_a_rate_each_second() -> None:
    history = History()
    for second, total in enumerate((0, 1000, 1500, 1500)):
        history.add(100.5 + second, {"fibre": (total, 0)})
    assert list(history.tracks["fibre"].seconds) == [(1000, 0), (500, 0), (0, 0)]
    assert history.latest("fibre") == (0, 0)


def test_seconds_that_nobody_measured_have_the_mean() -> None:
    history = History()
    history.add(100.0, {"fibre": (0, 0)})
    history.add(104.0, {"fibre": (4000, 400)})
    assert list(history.tracks["fibre"].seconds) == [(1000, 100)] * 4


def test_minutes_are_means_and_both_are_bounded() -> None:
    history = History()
    for second in range(2 * 86400 // 10):
        history.add(float(10 * second), {"fibre": (600 * second, 0)})
    track = history.tracks["fibre"]
    assert (len(track.seconds), len(track.minutes)) == (SECONDS, MINUTES)
    assert set(track.minutes) == {(60, 0)}


def test_a_long_sleep_is_no_long_work() -> None:
    history = History()
    history.add(0.0, {"fibre": (0, 0)})
    history.add(1e9, {"fibre": (10, 10)})
    assert len(history.tracks["fibre"].seconds) == SECONDS


def test_uplinks_that_come_go_or_count_anew() -> None:
    history = History()
    history.add(1.0, {"fibre": (5000, 0)})
    history.add(2.0, {"fibre": (1000, 0), "lte": (700, 0)})
    assert history.latest("fibre") == (0, 0)
    assert history.latest("lte") == (0, 0)
    history.add(3.0, {"lte": (900, 0)})
    assert list(history.tracks) == ["lte"]
    assert history.latest("lte") == (200, 0)
    assert history.latest("fibre") == (0, 0)


def report(*uplinks: dict[str, Any], **fields: Any) -> Report:
    status = {"role": "proxy", "gateway_reachable": True, "counters": {}, "uplinks": list(uplinks)}
    return Report({**status, **fields}, Usage(2))


def texts(entries: Any) -> list[str]:
    return [entry["text"] for entry in entries]


def test_health_in_words() -> None:
    watch = Watch()
    assert watch.status() == {}
    watch.add(report(uplink("fibre", 1), uplink("lte", 1, backup=True)), 1.0, 1.0)
    (well,) = watch.status()["health"]  # type: ignore[misc]
    assert well["good"]
    bad = report(
        uplink("fibre", 1, up=False, waits_for="there is no interface u1"),
        uplink("lte", 1, up=False),
        uplink("dsl", 1, gateway="silent"),
        gateway_reachable=False,
        waits_for=["lan0"],
    )
    watch.add(bad, 2.0, 2.0)
    health: Any = watch.status()["health"]
    assert not any(entry["good"] for entry in health)
    assert texts(health) == [
        "The gateway does not answer.",
        "The LAN interface lan0 is not there.",
        "fibre: there is no interface u1.",
        "lte: does not answer.",
        "dsl: the gateway is silent on it.",
    ]


def test_what_happened_the_newest_first() -> None:
    watch = Watch()
    watch.add(report(uplink("fibre", 1)), 1.0, 11.0)
    watch.add(report(uplink("fibre", 2)), 2.0, 12.0)
    assert watch.status()["events"] == []
    watch.add(report(uplink("fibre", 2, up=False), gateway_reachable=False), 3.0, 13.0)
    watch.add(report(uplink("lte", 2), counters={"WorkerRestarts": 1}), 4.0, 14.0)
    events: Any = watch.status()["events"]
    assert [(entry["time"], entry["text"]) for entry in events] == [
        (14.0, "a worker had to be started again"),
        (14.0, "fibre: it is not configured any more"),
        (14.0, "lte: works"),
        (14.0, "the gateway answers again"),
        (13.0, "fibre: does not answer"),
        (13.0, "the gateway does not answer any more"),
    ]
    for turn in range(300):
        watch.add(report(uplink("lte", 2, up=bool(turn % 2))), 5.0 + turn, 15.0 + turn)
    assert len(watch.status()["events"]) == MAX_EVENTS  # type: ignore[arg-type]


def test_a_gateway_has_one_line() -> None:
    watch = Watch()
    before = gateway_report()
    watch.add(before, 1.0, 1.0)
    before.usage.account("home-1").add(100, 2000, 0)
    watch.add(before, 2.0, 2.0)
    (line,) = watch.status()["lines"]  # type: ignore[misc]
    assert (line["name"], line["down"], line["up"]) == (EVERYBODY, 2000, 100)
    assert watch.history()[EVERYBODY]["seconds"] == [(2000, 100)]  # type: ignore[index]


async def test_the_page_has_nothing_from_elsewhere() -> None:
    async def read(sample: bool) -> Report:
        return proxy_report()

    server = MetricsServer(read)
    await server.configure(MetricsConfig(("127.0.0.1", 0)))
    port = server.port
    assert port is not None
    for path, kind in (("/", "html"), ("/page.css", "css"), ("/page.js", "javascript")):
        status, headers, body = await ask(port, get(path))
        assert status == 200
        assert kind in headers["Content-Type"]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert b"unsafe" not in headers["Content-Security-Policy"].encode()
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text
        assert "innerHTML" not in text
    for path in ("/status.json", "/history.json"):
        status, headers, body = await ask(port, get(path))
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert isinstance(json.loads(body), dict)
        assert (await ask(port, get(path, "evil.example")))[0] == 421
    await server.stop()
