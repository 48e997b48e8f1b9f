"""The path manager ``kernel`` beside the kernel's own: the same situation, the same subflows.

In each situation both connect from address 1 to the same listener of the kernel, one after the
other, with the same endpoints and limits. What the listener's kernel sees of either is compared.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.kernel import (
    IPPROTO_MPTCP,
    PORT,
    SERVER4,
    TUN,
    Engine,
    KernelLab,
    counters,
    engine_address,
    host_address,
    kernel_address,
    kernel_lab,
    silence,
)
from tests.lab.namespaces import Namespace
from tests.lab.sockets import reset
from tests.lab.waiting import wait_for

FIRST = 0.15  # seconds; ten round trips
SETTLED = 0.8  # seconds without a new subflow; the links have 10 ms
FLAGS = {"signal": 1, "subflow": 2, "backup": 4, "fullmesh": 8, "laminar": 32}
WATCHED = ("AddAddr", "MPJoinSynRx", "MPJoinSynBackupRx", "MPJoinAckRx", "MPPrioRx", "MPRstRx")
# iproute2 of today does not know all flags yet.
ADD_ENDPOINT = """
import sys
from pyroute2.netlink.generic.mptcp import MPTCP
with MPTCP() as mptcp:
    mptcp.endpoint("add", addr=sys.argv[1], id=int(sys.argv[2]), flags=int(sys.argv[3]))
"""

Endpoints = dict[int, str]
"""Flags, with commas between, by the number of the address."""


@dataclass(frozen=True)
class Situation:
    """What is set at the initiator (``ours``) and at the listener (``theirs``)."""

    ours: Endpoints
    theirs: Endpoints
    limits: tuple[int, int] = (2, 2)
    denied: bool = False
    any_source: bool = False
    """Routes choose where the kernel joins from; the engine has none, and takes address 1."""


SITUATIONS = {
    "nothing": Situation({}, {}),
    "subflow": Situation({2: "subflow"}, {}),
    "no room": Situation({2: "subflow"}, {}, (0, 0)),
    "backup": Situation({2: "subflow,backup"}, {}),
    "both, one is the initial": Situation({1: "subflow", 2: "subflow"}, {}),
    "the initial is backup": Situation({1: "subflow,backup"}, {}),
    "signal": Situation({2: "signal"}, {}),
    "signal and subflow": Situation({2: "signal,subflow"}, {}),
    "the initial is signalled": Situation({1: "signal"}, {}),
    "announced": Situation({}, {2: "signal"}, (2, 1), any_source=True),
    "announced, none accepted": Situation({}, {2: "signal"}, (2, 0)),
    "announced twice, one accepted": Situation(
        {}, {1: "signal", 2: "signal"}, (4, 1), any_source=True
    ),
    "announced to a subflow endpoint": Situation(
        {2: "subflow"}, {2: "signal"}, (1, 1), any_source=True
    ),
    "mesh": Situation({1: "subflow,fullmesh", 2: "subflow,fullmesh"}, {2: "signal"}, (8, 8)),
    "mesh without room": Situation(
        {1: "subflow,fullmesh", 2: "subflow,fullmesh"}, {2: "signal"}, (2, 8)
    ),
    "mesh of announced ones": Situation({1: "fullmesh", 2: "fullmesh"}, {2: "signal"}, (8, 8)),
    "laminar": Situation({2: "laminar"}, {2: "signal"}, (8, 8)),
    "laminar and subflow": Situation({2: "laminar,subflow"}, {2: "signal"}, (8, 8)),
    "flag C": Situation({2: "subflow"}, {2: "signal"}, (2, 0), denied=True),
    "flag C, accepted": Situation(
        {2: "subflow"}, {2: "signal"}, (2, 2), denied=True, any_source=True
    ),
}


@dataclass
class Seen:
    """Subflows as (number of the initiator's address, the listener's, flags), and counters."""

    subflows: list[tuple[int, str, str]]
    counts: dict[str, int]


@pytest.fixture(scope="module")
def lab() -> Iterator[KernelLab]:
    with kernel_lab() as network:
        yield network


@pytest.fixture(scope="module")
def listener(lab: KernelLab) -> Iterator[Any]:
    """Accepts, and waits for the other's end."""
    sock = lab.kernel.listen("0.0.0.0", PORT, protocol=IPPROTO_MPTCP)
    yield sock
    sock.close()


def set_up(namespace: Namespace, endpoints: dict[str, str], limits: tuple[int, int]) -> None:
    namespace.run("ip", "mptcp", "endpoint", "flush")
    words = ("subflows", str(limits[0]), "add_addr_accepted", str(limits[1]))
    namespace.run("ip", "mptcp", "limits", "set", *words)
    for number, (address, flags) in enumerate(endpoints.items(), 1):
        bits = sum(FLAGS[flag] for flag in flags.split(","))
        namespace.run(sys.executable, "-c", ADD_ENDPOINT, address, str(number), str(bits))


def subflows(lab: KernelLab, names: dict[str, int]) -> list[tuple[int, str, str]]:
    """What the listener's kernel has established with the initiator of these addresses."""
    text = lab.kernel.run("ss", "-Htni", "state", "established", f"sport = :{PORT}").stdout
    ends = {SERVER4: "server"} | {kernel_address(i): f"announced {i}" for i in (1, 2)}
    found = []
    for line in text.replace("\n\t", " ").splitlines():
        here, there = (end.rpartition(":")[0] for end in line.split()[2:4])
        flags = re.search(r"tcp-ulp-mptcp flags:(\w*)", line)
        asked = "backup" if flags and "B" in flags[1] else ""
        if there in names:
            found.append((names[there], ends[here], asked))
    return sorted(found)


def observe(lab: KernelLab, listener: Any, names: dict[str, int], before: dict[str, int]) -> Seen:
    """Wait until nothing changes any more, then look."""
    peer, _ = listener.accept()
    try:
        # Announcements come first: which of two crossing packets is the first is chance.
        silence(FIRST)
        peer.sendall(b"x")  # so that the initiator is fully established
        last = subflows(lab, names)
        while True:
            silence(SETTLED)
            now = subflows(lab, names)
            if now == last:
                break
            last = now
        after = counters(lab.kernel)
    finally:
        reset(peer)  # nothing of it may be left that the next initiator would have to answer
    return Seen(last, {name: after.get(name, 0) - before.get(name, 0) for name in WATCHED})


def done(lab: KernelLab) -> None:
    wait_for(lambda: counters(lab.kernel)["MPCurrEstab"] == 0, "all are closed", within=20)


def kernels(lab: KernelLab, listener: Any, situation: Situation) -> Seen:
    """The kernel of the engine's namespace connects."""
    names = {host_address(i): i for i in (1, 2)}
    ours = {host_address(i): flags for i, flags in situation.ours.items()}
    set_up(lab.engine, ours, situation.limits)
    before = counters(lab.kernel)
    sock = lab.engine.socket(2, protocol=IPPROTO_MPTCP)
    with sock:
        sock.bind((host_address(1), 0))
        sock.settimeout(5)
        sock.connect((SERVER4, PORT))
        seen = observe(lab, listener, names, before)
    done(lab)
    return seen


def engines(lab: KernelLab, listener: Any, situation: Situation, log: Path) -> Seen:
    """Our engine connects."""
    names = {engine_address(i): i for i in (1, 2)}
    words = [word for i in (1, 2) for word in ("--local", engine_address(i))]
    for number, flags in situation.ours.items():
        words += ["--endpoint", f"{engine_address(number)}={flags}"]
    if not situation.ours:
        words += ["--endpoint", "10.91.9.9="]  # none with a flag
    words += ["--limits", *map(str, situation.limits), "--send", "0", "--hold"]
    before = counters(lab.kernel)
    engine = Engine(
        lab, "connect", "--tun", TUN, "--remote", f"{SERVER4}:{PORT}", *words, log=log / "log"
    )
    try:
        seen = observe(lab, listener, names, before)
    finally:
        engine.process.kill()
        engine.process.wait()
    done(lab)
    return seen


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_same_situation_leads_to_the_same_subflows(
    lab: KernelLab, listener: Any, tmp_path: Path, name: str
) -> None:
    situation = SITUATIONS[name]
    theirs = {kernel_address(i): flags for i, flags in situation.theirs.items()}
    set_up(lab.kernel, theirs, (8, 8))
    lab.kernel.sysctl("net.mptcp.allow_join_initial_addr_port", int(not situation.denied))
    wanted = kernels(lab, listener, situation)
    got = engines(lab, listener, situation, tmp_path)
    if situation.any_source:
        for seen in (wanted, got):
            seen.subflows = sorted((0 if b != "server" else a, b, c) for a, b, c in seen.subflows)
    print(wanted)
    assert got == wanted


def test_the_kernel_is_looked_at_rightly(lab: KernelLab, listener: Any) -> None:
    set_up(lab.kernel, {}, (8, 8))
    lab.kernel.sysctl("net.mptcp.allow_join_initial_addr_port", 1)
    seen = kernels(lab, listener, SITUATIONS["backup"])
    assert seen.subflows == [(1, "server", ""), (2, "server", "backup")]
