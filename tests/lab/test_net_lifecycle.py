"""How the proxy's host set-up comes and goes: undone, killed, started twice, failing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.errors import ConfigError, DeviceError
from proxy.net import nft
from proxy.net.setup import HostSetup
from proxy.tun.device import TunDevice
from tests.lab.namespaces import Namespace, Namespaces
from tests.lab.net_host import (
    PATIENCE,
    PROXY_TUN,
    SERVER4,
    Home,
    applied,
    assert_unchanged,
    proxy_config,
    snapshot,
    tun,
)
from tests.lab.waiting import wait_for

pytestmark = pytest.mark.lab("nft", "conntrack")


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with Namespaces() as namespaces:
        yield Home(namespaces)


@pytest.fixture
def ready(home: Home, tmp_path: Path) -> Iterator[tuple[HostSetup, TunDevice]]:
    with applied(home, tmp_path) as both:
        yield both


def test_apply_and_undo_may_be_repeated(home: Home, ready: tuple[HostSetup, TunDevice]) -> None:
    setup, _ = ready
    with home.host.entered():
        once = snapshot(home.host)
        setup.apply()
        assert_unchanged(home.host, once)
        setup.undo()
        setup.undo()


def test_plan_changes_nothing_and_names_what_apply_does(home: Home, tmp_path: Path) -> None:
    before = snapshot(home.host)
    with home.host.entered():
        lines = HostSetup(proxy_config(), tmp_path).plan()
    assert_unchanged(home.host, before)
    assert "ip -4 route add default via 10.1.0.1 dev u1 table 8810 proto 88" in lines
    with applied(home, tmp_path):
        rules = home.host.run("ip", "rule").stdout
    for line in lines:
        if line.startswith("ip -4 rule add priority"):
            assert f"{line.split()[5]}:" in rules


def kill_after_apply(namespace: Namespace, state: Path) -> None:
    """A daemon's life and sudden death, in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            with namespace.entered():
                setup = HostSetup(proxy_config(), state)
                setup.clean_stale()
                device = TunDevice.open(PROXY_TUN.name)
                setup.apply()
                assert device.fileno() >= 0
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_the_next_start_cleans_up_after_a_kill(home: Home, tmp_path: Path) -> None:
    before = snapshot(home.host)
    kill_after_apply(home.host, tmp_path)
    assert "mptcp_proxy" in snapshot(home.host)
    with home.host.entered():
        setup = HostSetup(proxy_config(), tmp_path)
        setup.clean_stale()
        assert_unchanged(home.host, before)
        setup.undo()
    assert not list(tmp_path.iterdir())


def test_native_routing_goes_on_after_a_kill(home: Home, tmp_path: Path) -> None:
    kill_after_apply(home.host, tmp_path)
    with home.routers[0].listen(SERVER4) as listener:
        home.client.connect(SERVER4, listener.getsockname()[1], timeout=PATIENCE).close()
    with home.host.entered():
        setup = HostSetup(proxy_config(), tmp_path)
        setup.clean_stale()
        setup.undo()


def test_a_second_start_is_refused_while_one_runs(
    home: Home, ready: tuple[HostSetup, TunDevice], tmp_path: Path
) -> None:
    during = snapshot(home.host)
    with home.host.entered():
        with pytest.raises(DeviceError, match="another mptcp-proxy runs as proxy"):
            HostSetup(proxy_config(), tmp_path).clean_stale()
        with pytest.raises(DeviceError, match="another process uses"):
            TunDevice.open(PROXY_TUN.name)
    assert_unchanged(home.host, during)


@pytest.mark.parametrize("fails", [1, 2])
def test_a_set_up_that_fails_half_way_is_undone(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    before, real, calls = snapshot(home.host), nft.load, 0

    def load(script: str) -> None:
        nonlocal calls
        calls += 1
        if calls == fails:
            raise DeviceError("nft: no")
        real(script)

    with tun(home.host, PROXY_TUN), home.host.entered():
        setup = HostSetup(proxy_config(), tmp_path)
        monkeypatch.setattr(nft, "load", load)
        with pytest.raises(DeviceError, match="nft: no"):
            setup.apply()
    assert_unchanged(home.host, before)
    assert not list(tmp_path.iterdir())


def test_an_interface_that_is_missing_is_waited_for(home: Home, tmp_path: Path) -> None:
    home.host.run("ip", "link", "set", "u2", "down")
    home.host.run("ip", "link", "set", "u2", "name", "renamed")
    try:
        with home.host.entered():
            setup = HostSetup(proxy_config(), tmp_path)
            lines = setup.plan()
        assert [uplink.waits_for for uplink in setup.uplinks] == ["", 'there is no interface "u2"']
        assert not any("dev u2" in line for line in lines)
    finally:
        home.host.run("ip", "link", "set", "renamed", "name", "u2")
        home.host.run("ip", "link", "set", "u2", "up")
        home.host.run("ip", "addr", "add", "2001:db8:2::2/64", "dev", "u2", "nodad")
        wait_for(home.has_settled, "link-local addresses of the host")


def test_a_prefix_in_use_is_refused(home: Home, tmp_path: Path) -> None:
    home.host.run("ip", "route", "add", "198.18.0.0/15", "via", "10.1.0.1")
    try:
        with (
            tun(home.host, PROXY_TUN),
            home.host.entered(),
            pytest.raises(ConfigError, match="in use") as caught,
        ):
            HostSetup(proxy_config(), tmp_path).apply()
        assert caught.value.path == "tun.prefix4"
    finally:
        home.host.run("ip", "route", "del", "198.18.0.0/15")


def test_without_a_tun_nothing_is_left(home: Home, tmp_path: Path) -> None:
    before = snapshot(home.host)
    with home.host.entered(), pytest.raises(DeviceError, match="not open"):
        HostSetup(proxy_config(), tmp_path).apply()
    assert_unchanged(home.host, before)
