"""A third party's policies, installed as a distribution of their own, and changed while data flows.

The scheduler and the congestion control are the examples of the guides.
"""

from __future__ import annotations

import importlib
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path as FilePath

import pytest

from proxy.cc import base as cc
from proxy.cli.policies import check_policies
from proxy.config import load
from proxy.mptcp.config import MptcpConfig
from proxy.pm import base as pm
from proxy.sched import base as sched
from proxy.tcp.config import TcpConfig
from tests.pair.mptcp_harness import App, MptcpPair, Path, path, payload
from tests.unit.test_config import PROXY, write_secret

DOCS = FilePath(__file__).parents[2] / "docs"
PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "others-policies"
version = "1.0"

[project.entry-points."mptcp_proxy.schedulers"]
spread = "others_scheduler:SpreadScheduler"

[project.entry-points."mptcp_proxy.congestion_controls"]
double = "others_control:Double"

[project.entry-points."mptcp_proxy.path_managers"]
twins = "others_manager:Twins"

[tool.setuptools]
py-modules = ["others_scheduler", "others_control", "others_manager"]
"""
MANAGER = '''\
"""A second subflow from the same address, as soon as that is allowed."""

from proxy.pm.base import PathManager


class Twins(PathManager):
    name = "twins"

    def on_fully_established(self, conn, now):
        local = conn.host.open_local_port(conn.local.ip, conn.remote)
        conn.open_subflow(local, conn.remote, now)
'''


def example(guide: str) -> str:
    """The first piece of Python of a guide."""
    found = re.search(r"```python\n(.*?)```", (DOCS / guide).read_text(), re.S)
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> FilePath:
    """The directory into which pip has put the distribution."""
    source = tmp_path_factory.mktemp("source")
    target = tmp_path_factory.mktemp("target")
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "others_scheduler.py").write_text(example("schedulers.md"))
    (source / "others_control.py").write_text(example("congestion.md"))
    (source / "others_manager.py").write_text(MANAGER)
    words = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *words, str(source)], check=True)
    return target


@pytest.fixture
def plugins(installed: FilePath, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """They can be found; nobody remembers them afterwards."""
    monkeypatch.syspath_prepend(installed)
    importlib.invalidate_caches()
    registries = (sched._registry, pm._registry, cc._registry)
    before = [dict(registry) for registry in registries]
    yield
    for registry, old in zip(registries, before, strict=True):
        registry.clear()  # type: ignore[attr-defined]
        registry.update(old)  # type: ignore[arg-type]


def two(rng: random.Random) -> list[Path]:
    return [path(rng, 20, 20), path(rng, 20, 25)]


@pytest.mark.usefixtures("plugins")
def test_they_are_found_by_name(tmp_path: FilePath) -> None:
    assert "spread" in sched.names()
    assert "double" in cc.names()
    assert "twins" in pm.names()
    write_secret(tmp_path / "home-1.key", bytes(range(32)))
    file = tmp_path / "proxy.toml"
    chosen = '[tcp]\ncongestion_control = "double"\n[mptcp]\nscheduler = "spread"\n'
    file.write_text(PROXY + chosen + 'path_manager = "twins"\n')
    check_policies(load(file))


def test_without_them_there_are_none() -> None:
    assert "spread" not in sched.names()
    assert "double" not in cc.names()
    assert "twins" not in pm.names()


@pytest.mark.usefixtures("plugins")
def test_all_of_them_carry_a_stream() -> None:
    tcp = TcpConfig(congestion_control="double")
    mptcp = MptcpConfig(scheduler="spread")
    pair = MptcpPair(
        lambda rng: [path(rng, 20, 20)], App(), App(payload(3_000_000)),
        client_tcp=tcp, server_tcp=tcp, client=mptcp, server=mptcp, client_manager="twins",
    )  # fmt: skip
    pair.run(60.0)
    pair.check_streams()
    assert pair.client_host.counters["MPTcpExtMPJoinSynAckRx"] == 1


@pytest.mark.usefixtures("plugins")
def test_they_take_over_a_connection_that_lives_and_give_it_back() -> None:
    pair = MptcpPair(two, App(), App(payload(20_000_000)))

    def change(scheduler: str, control: str) -> None:
        assert pair.server is not None
        pair.server.set_scheduler(scheduler)
        pair.server.set_congestion_control(control)
        assert pair.server.scheduler.name == scheduler
        assert {s.congestion.name for s in pair.server.subflows} == {control}

    names = [*sched.names(), "default"]
    controls = [*cc.names(), "cubic"]
    for turn, scheduler in enumerate(names):
        control = controls[turn % len(controls)]
        pair.at(1000.5 + 0.25 * turn, lambda s=scheduler, c=control: change(s, c))  # type: ignore[misc]
    pair.run(60.0)
    pair.check_streams()
    assert pair.client_app.finished_at is not None
    assert pair.client_app.finished_at > 1000.5 + 0.25 * len(names), "all had their turn"
