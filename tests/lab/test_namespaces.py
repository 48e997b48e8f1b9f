"""The lab leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.lab.link import LinkSpec
from tests.lab.namespaces import Namespaces, clean_stale
from tests.lab.probe import reachable, round_trips
from tests.lab.reaper import NETNS_DIR
from tests.lab.topology import SERVER4, SERVER6, topology
from tests.lab.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
VICTIM = """
import sys, time
from tests.lab.namespaces import Namespaces
lab = Namespaces()
box = lab.create("box")
sleeper = box.start("sleep", "1000")
print(box.name, sleeper.pid, lab.directory, flush=True)
time.sleep(1000)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_killed_lab_is_cleared_up() -> None:
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert victim.stdout is not None
    name, sleeper, directory = victim.stdout.readline().split()
    assert os.path.exists(f"{NETNS_DIR}/{name}")
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    wait_for(lambda: not os.path.exists(f"{NETNS_DIR}/{name}"), "the namespace is gone")
    wait_for(lambda: not os.path.exists(directory), "the directory is gone")
    wait_for(lambda: not alive(int(sleeper)), "the process is gone")


def test_namespace_of_a_dead_process_is_stale() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    name = f"mplab{done.pid}a-left"
    subprocess.run(["ip", "netns", "add", name], check=True)
    assert name in clean_stale()
    assert not os.path.exists(f"{NETNS_DIR}/{name}")


def test_close_ends_processes_and_files() -> None:
    with Namespaces() as lab:
        process = lab.create("box").start("sleep", "1000")
        directory = lab.directory
    assert process.returncode == -signal.SIGKILL
    assert not directory.exists()


def test_client_reaches_server_by_each_uplink() -> None:
    links = (LinkSpec.symmetric(50, 20), LinkSpec.symmetric(20, 60))
    with topology(*links) as lab:
        for index, rtt in ((1, 0.02), (2, 0.06)):
            lab.direct_via(index)
            for address in (SERVER4, SERVER6):
                reachable(lab.client, address)
                best = min(round_trips(lab.client, address, count=5))
                assert rtt <= best < rtt + 0.02


def test_carrier_loss_is_seen_at_the_proxy() -> None:
    with topology(LinkSpec.symmetric(50, 20), None) as lab:
        reachable(lab.client, SERVER4)
        lab.carrier(1, False)
        operstate = ("cat", "/sys/class/net/u1/operstate")
        wait_for(lambda: "down" in lab.proxy.run(*operstate).stdout, "the uplink is down")
        lab.carrier(1, True)
        reachable(lab.client, SERVER4)
        reachable(lab.client, SERVER6)
        lab.direct_via(2)
        reachable(lab.client, SERVER6)
