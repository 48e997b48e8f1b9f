"""The Debian package and its units, installed in a Debian that boots its own systemd."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.debian import run

TOOLS = ("debootstrap", "systemd-nspawn", "systemd-analyze", "dpkg-deb")
ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).with_name("package")
UNITS = ("mptcp-gateway", "mptcp-proxy")

pytestmark = [pytest.mark.lab(*TOOLS), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def host(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Debian with the package installed and configured for both roles, not booted."""
    directory = tmp_path_factory.mktemp("package")
    tree = directory / "tree"
    run("cp", "-a", str(debian), str(tree))
    run(str(ROOT / "deploy" / "debian" / "build.sh"), str(directory))
    package = next(directory.glob("*.deb"))
    shutil.copy(package, tree / "root" / "package.deb")
    shutil.copytree(HERE, tree / "root" / "package")
    run("chroot", str(tree), "sh", "/root/package/install.sh")
    yield tree
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def story(host: Path) -> dict[str, Any]:
    """What the units did on a booted host; ``package/story.sh`` tells it."""
    command = ["systemd-nspawn", "-q", "-D", str(host), "--register=no", "--keep-unit"]
    command += ["--private-network", "--bind=/dev/net/tun", "--console=pipe", "--boot"]
    log = host / "root" / "story.log"
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    said = log.read_text() if log.exists() else done.stdout + done.stderr
    print(said)
    found = {}
    for line in said.splitlines():
        if line.startswith("{"):
            found.update(json.loads(line))
    return found


@pytest.mark.parametrize("unit", UNITS)
def test_unit_runs_as_its_own_user_with_one_capability(story: dict[str, Any], unit: str) -> None:
    assert story[f"{unit} started"] == "active"
    assert story[f"{unit} user"] == "mptcp-proxy"
    assert int(story[f"{unit} capabilities"], 16) == 1 << 12  # CAP_NET_ADMIN
    assert story[f"{unit} device"] == "yes"


@pytest.mark.parametrize("unit", UNITS)
def test_unit_comes_back_after_a_crash_and_leaves_nothing_when_stopped(
    story: dict[str, Any], unit: str
) -> None:
    assert story[f"{unit} after kill"] == "active"
    assert story[f"{unit} new process"] == "yes"
    assert story[f"{unit} left behind"] == ""


def test_purge_leaves_nothing(story: dict[str, Any]) -> None:
    assert story["files after purge"] == ""


def test_units_are_closed_up() -> None:
    daemon = (ROOT / "deploy" / "systemd" / "daemon.conf").read_text()
    for unit in UNITS:
        text = (ROOT / "deploy" / "systemd" / f"{unit}.service").read_text()
        path = Path("/run", f"{unit}-test.service")
        path.write_text(text + daemon)
        try:
            # In tenths; 20 is "OK".
            run("systemd-analyze", "security", "--offline=true", "--threshold=20", str(path))
        finally:
            path.unlink()
