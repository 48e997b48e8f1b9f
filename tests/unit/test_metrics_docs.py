"""docs/metrics.md has every metric and no other; dashboard and alerts name no other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.web.exposition import exposition
from tests.unit.test_web_metrics import gateway_report, proxy_report

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "mptcp-proxy.json"
_NAME = re.compile(r"\bmptcp_proxy_\w+")
_COUNTED = re.compile(r'"([A-Za-z][A-Za-z0-9-]+)"')


@cache
def families() -> set[str]:
    """Names of all metrics of both roles, as Prometheus has them; counters of nstat left out."""
    return {
        f"{family.name}_total" if family.type == "counter" else family.name
        for report in (proxy_report(), gateway_report())
        for family in text_string_to_metric_families(exposition(report).decode())
        if not family.name.startswith("mptcp_proxy_nstat_")
    }


@cache
def counted() -> set[str]:
    """All words of the source in quotes: names of counters are among them."""
    return {
        word for file in ROOT.glob("proxy/**/*.py") for word in _COUNTED.findall(file.read_text())
    }


def expressions(value: Any) -> Iterator[str]:
    """Every query in a dashboard."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in ("expr", "query", "definition") and isinstance(inner, str):
                yield inner
            else:
                yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)


def assert_there(text: str) -> None:
    names = set(_NAME.findall(text))
    assert names
    for name in names:
        nstat = re.fullmatch(r"mptcp_proxy_nstat_(\w+)_total", name)
        if nstat is not None:
            assert nstat[1] in counted(), name
        else:
            assert re.sub(r"_(bucket|sum|count)$", "", name) in families(), name


def test_every_metric_is_documented_and_no_other() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert rows - {"mptcp_proxy_nstat_NAME_total"} == families()


def test_the_dashboard_asks_for_what_is_there() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    queries = list(expressions(dashboard))
    assert len(queries) > len(dashboard["panels"]) / 2
    assert_there("\n".join(queries))
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)


def test_the_alerts_ask_for_what_is_there() -> None:
    assert_there((PROMETHEUS / "alerts.yml").read_text())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_promtool_takes_the_configuration() -> None:
    subprocess.run(["promtool", "check", "config", PROMETHEUS / "prometheus.yml"], check=True)
