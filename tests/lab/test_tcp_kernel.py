"""Our TCP against the kernel's where packets are too large, or marked, on the way."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.lab.engine_peer import pattern
from tests.lab.kernel import (
    PORT,
    SERVER4,
    TUN,
    Engine,
    KernelLab,
    KernelServer,
    converse,
    engine_address,
    kernel_lab,
)

pytestmark = pytest.mark.lab("nft")
SIZE = 3_000_000
DATA = bytes(range(256)) * 12_000


@pytest.fixture
def lab() -> Iterator[KernelLab]:
    with kernel_lab() as network:
        yield network


def rule(lab: KernelLab, text: str) -> None:
    """An nft rule on what arrives at the kernel's end."""
    lab.kernel.run("nft", "add", "table", "inet", "way")
    chain = "{ type filter hook prerouting priority -300; }"
    lab.kernel.run("nft", f"add chain inet way arriving {chain}")
    lab.kernel.run("nft", f"add rule inet way arriving {text}")


def check(report: dict[str, object], talk_digest: str) -> dict[str, int]:
    assert report["end"] == "closed"
    assert report["received"] == len(DATA)
    assert report["sha256"] == sha256(DATA).hexdigest()
    assert talk_digest == sha256(pattern(SIZE)).hexdigest()
    counters = report["counters"]
    assert isinstance(counters, dict)
    return counters


@pytest.mark.parametrize("links", [("k1",), ("k1", "k2")], ids=["one", "both"])
def test_paths_that_drop_large_packets_are_found(
    lab: KernelLab, tmp_path: Path, links: tuple[str, ...]
) -> None:
    names = ", ".join(links)
    rule(lab, f"iifname {{ {names} }} tcp dport {PORT} meta length > 1400 counter drop")
    server = KernelServer(lab.kernel, DATA)
    addresses = [word for i in (1, 2) for word in ("--local", engine_address(i))]
    engine = Engine(
        lab, "connect", "--tun", TUN, *addresses, "--remote", f"{SERVER4}:{PORT}",
        "--send", str(SIZE), log=tmp_path / "engine.log",
    )  # fmt: skip
    report = engine.report()
    counters = check(report, server.talk().digest)
    engine.finish()
    server.close()
    assert counters["TCPMTUBlackHole"] >= 1


def test_marks_of_both_directions_are_understood(lab: KernelLab, tmp_path: Path) -> None:
    lab.kernel.sysctl("net.ipv4.tcp_ecn", 1)
    rule(lab, f"tcp sport {PORT} ip ecn ect0 limit rate 20/second counter ip ecn set ce")
    lab.kernel.run("nft", f"add rule inet way arriving tcp dport {PORT} ip ecn ect0 accept")
    chain = "{ type filter hook postrouting priority 300; }"
    lab.kernel.run("nft", f"add chain inet way leaving {chain}")
    lab.kernel.run(
        "nft",
        f"add rule inet way leaving tcp dport {PORT} ip ecn ect0 limit rate 20/second"
        " counter ip ecn set ce",
    )
    engine = Engine(
        lab, "listen", "--tun", TUN, "--local", engine_address(1), "--port", str(PORT),
        "--send", str(SIZE), log=tmp_path / "engine.log",
    )  # fmt: skip
    sock = lab.kernel.connect(engine_address(1), PORT)
    talk = converse(sock, DATA).wait()
    counters = check(engine.report(), talk.digest)
    engine.finish()
    assert counters["InCEPkts"] > 0
    assert counters["TCPECNReductions"] > 0
    assert lab.kernel.nstat()["TcpExtTCPDeliveredCE"] > 0
