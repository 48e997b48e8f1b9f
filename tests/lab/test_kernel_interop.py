"""Our engine and the Linux kernel's MPTCP understand each other, in both directions.

The judges are the kernel's own MPTcpExt counters, SHA-256 on both sides, and tshark.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.lab.engine_peer import pattern
from tests.lab.kernel import (
    IPPROTO_MPTCP,
    PORT,
    SERVER4,
    SERVER6,
    TUN,
    Engine,
    KernelLab,
    KernelServer,
    Talk,
    complaints,
    converse,
    counters,
    engine_address,
    kernel_address,
    kernel_lab,
)
from tests.lab.sockets import reset
from tests.lab.waiting import wait_for

if TYPE_CHECKING:
    from tests.lab.capture import Capture

pytestmark = pytest.mark.lab("tcpdump", "tshark")
SIZE = 3_000_000
DATA = bytes(range(256)) * 12_000
FAMILIES = pytest.mark.parametrize("six", [False, True], ids=["v4", "v6"])


@pytest.fixture
def lab() -> Iterator[KernelLab]:
    with kernel_lab() as network:
        yield network


def initiator(lab: KernelLab, log: Path, *options: str, six: bool = False) -> Engine:
    """Our engine, connecting from both its addresses to the kernel."""
    server = SERVER6 if six else SERVER4
    remote = f"[{server}]:{PORT}" if six else f"{server}:{PORT}"
    addresses = [word for i in (1, 2) for word in ("--local", engine_address(i, six))]
    words = ("connect", "--tun", TUN, *addresses, "--remote", remote, "--send", str(SIZE))
    return Engine(lab, *words, *options, log=log / "engine.log")


def listener(lab: KernelLab, log: Path, *options: str, six: bool = False) -> Engine:
    """Our engine, waiting for the kernel on its first address."""
    words = ("listen", "--tun", TUN, "--local", engine_address(1, six), "--port", str(PORT))
    return Engine(lab, *words, "--send", str(SIZE), *options, log=log / "engine.log")


def check_report(report: dict[str, object], *, mptcp: bool = True) -> None:
    assert report["end"] == "closed"
    assert report["sent"] == SIZE
    assert report["received"] == len(DATA)
    assert report["sha256"] == sha256(DATA).hexdigest()
    assert report["eof"] is True
    if mptcp:
        assert report["fallback"] in (None, "NONE")


def check_talk(talk: Talk) -> None:
    assert talk.received == SIZE
    assert talk.digest == sha256(pattern(SIZE)).hexdigest()


def check_wire(captures: list[Capture], *, both: bool = True) -> None:
    """Both links carried data, and tshark finds no fault in any packet."""
    carried = [capture.count("tcp.len > 0") for capture in captures]
    print(f"segments with data on each link: {carried}")
    assert (min(carried) > 50) is both
    for capture in captures:
        assert capture.faults() == []


@FAMILIES
@pytest.mark.parametrize("checksum", [False, True], ids=["plain", "checksum"])
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "packets"])
def test_engine_connects_to_the_kernel(
    lab: KernelLab, tmp_path: Path, six: bool, checksum: bool, offload: bool
) -> None:
    """Two subflows, data both ways, a clean close."""
    options = ["--no-offload"] if not offload else []
    if checksum:
        lab.kernel.sysctl("net.mptcp.checksum_enabled", 1)
    server = KernelServer(lab.kernel, DATA, address=SERVER6 if six else SERVER4)
    with lab.witnessed(tmp_path) as captures:
        engine = initiator(lab, tmp_path, *options, six=six)
        check_report(engine.report())
        check_talk(server.talk())
        engine.finish()
        values = lab.settled(lab.kernel)
    assert complaints(values) == {}
    assert values["MPCapableSYNRX"] >= values["MPCapableACKRX"] == 1  # a SYN may come again
    assert values["MPJoinSynRx"] >= values["MPJoinAckRx"] == 1
    check_wire(captures)
    server.close()


@FAMILIES
@pytest.mark.parametrize("checksum", [False, True], ids=["plain", "checksum"])
def test_kernel_connects_to_the_engine(
    lab: KernelLab, tmp_path: Path, six: bool, checksum: bool
) -> None:
    """Two subflows, data both ways, a clean close."""
    options = ["--checksum"] if checksum else []
    lab.endpoint(lab.kernel, kernel_address(2, six), "dev", "k2", "subflow")
    with lab.witnessed(tmp_path) as captures:
        engine = listener(lab, tmp_path, *options, six=six)
        sock = lab.kernel.connect(engine_address(1, six), PORT, protocol=IPPROTO_MPTCP)
        wait_for(lambda: counters(lab.kernel)["MPJoinSynAckRx"] == 1, "the second subflow")
        talk = converse(sock, DATA).wait()
        check_report(engine.report())
        check_talk(talk)
        engine.finish()
        values = lab.settled(lab.kernel)
    assert complaints(values) == {}
    assert values["MPCapableSYNTX"] == values["MPCapableSYNACKRX"] == 1
    assert values["MPJoinSynTx"] == values["MPJoinSynAckRx"] == 1
    check_wire(captures)


@pytest.mark.parametrize("how", ["plain socket", "MPTCP disabled", "options stripped"])
def test_engine_falls_back_with_a_peer_without_mptcp(
    lab: KernelLab, tmp_path: Path, how: str
) -> None:
    if how == "MPTCP disabled":
        lab.kernel.sysctl("net.mptcp.enabled", 0)
    if how == "options stripped":
        rule = "type filter hook prerouting priority -300; reset tcp option mptcp"
        lab.kernel.run("nft", f"table inet meddle {{ chain in {{ {rule}; }}; }}")
    server = KernelServer(lab.kernel, DATA, mptcp=how == "options stripped")
    with lab.witnessed(tmp_path) as captures:
        engine = initiator(lab, tmp_path)
        report = engine.report()
        check_report(report, mptcp=False)
        check_talk(server.talk())
        engine.finish()
    assert report["fallback"] not in (None, "NONE")
    check_wire(captures, both=False)
    server.close()


def test_kernel_without_mptcp_connects_to_the_engine(lab: KernelLab, tmp_path: Path) -> None:
    with lab.witnessed(tmp_path) as captures:
        engine = listener(lab, tmp_path)
        talk = converse(lab.kernel.connect(engine_address(1), PORT), DATA).wait()
        check_report(engine.report(), mptcp=False)
        check_talk(talk)
        engine.finish()
    check_wire(captures, both=False)


def test_kernel_falls_back_when_options_are_stripped_towards_the_engine(
    lab: KernelLab, tmp_path: Path
) -> None:
    rule = 'type filter hook prerouting priority -300; iifname "e1" reset tcp option mptcp'
    lab.engine.run("nft", f"table inet meddle {{ chain in {{ {rule}; }}; }}")
    engine = listener(lab, tmp_path)
    sock = lab.kernel.connect(engine_address(1), PORT, protocol=IPPROTO_MPTCP)
    check_talk(converse(sock, DATA).wait())
    check_report(engine.report(), mptcp=False)
    engine.finish()
    assert counters(lab.kernel)["MPCapableFallbackSYNACK"] == 1


def test_engine_joins_an_address_that_the_kernel_announces(lab: KernelLab, tmp_path: Path) -> None:
    """ADD_ADDR is echoed, and its address becomes the far end of a subflow."""
    lab.endpoint(lab.kernel, kernel_address(2), "signal")
    server = KernelServer(lab.kernel, DATA)
    engine = initiator(lab, tmp_path)
    check_report(engine.report())
    check_talk(server.talk())
    engine.finish()
    values = lab.settled(lab.kernel)
    assert complaints(values) == {}
    assert values["AddAddrTx"] >= values["EchoAdd"] >= 1
    assert values["MPJoinAckRx"] >= 1


def test_kernel_removes_an_endpoint_in_mid_transfer(lab: KernelLab, tmp_path: Path) -> None:
    """REMOVE_ADDR ends that subflow and loses nothing."""
    lab.endpoint(lab.kernel, kernel_address(2), "dev", "k2", "id", "7", "subflow")
    engine = listener(lab, tmp_path)
    sock = lab.kernel.connect(engine_address(1), PORT, protocol=IPPROTO_MPTCP)
    wait_for(lambda: counters(lab.kernel)["MPJoinSynAckRx"] == 1, "the second subflow")
    before = lab.kernel.interface_bytes("k2")[0]
    talk = converse(sock, DATA)
    wait_for(
        lambda: lab.kernel.interface_bytes("k2")[0] > before + 100_000, "data on the second link"
    )
    lab.kernel.run("ip", "mptcp", "endpoint", "delete", "id", "7")
    check_talk(talk.wait())
    check_report(engine.report())
    engine.finish()
    assert lab.settled(lab.kernel)["RmAddrTx"] == 1


def test_kernel_makes_a_subflow_backup_in_mid_transfer(lab: KernelLab, tmp_path: Path) -> None:
    """After MP_PRIO we send on the other subflow alone."""
    lab.endpoint(lab.kernel, kernel_address(2), "dev", "k2", "id", "7", "subflow")
    engine = listener(lab, tmp_path, "--connections", "1")
    sock = lab.kernel.connect(engine_address(1), PORT, protocol=IPPROTO_MPTCP)
    wait_for(lambda: counters(lab.kernel)["MPJoinSynAckRx"] == 1, "the second subflow")
    lab.kernel.run("ip", "mptcp", "endpoint", "change", "id", "7", "backup")
    wait_for(lambda: counters(lab.kernel)["MPPrioTx"] >= 1, "MP_PRIO is sent")
    before = lab.kernel.interface_bytes("k2")[0]
    talk = converse(sock, DATA).wait()
    check_talk(talk)
    check_report(engine.report())
    engine.finish()
    assert lab.kernel.interface_bytes("k2")[0] - before < SIZE // 10
    assert complaints(lab.settled(lab.kernel)) == {}


def test_kernel_abort_ends_the_engine_connection(lab: KernelLab, tmp_path: Path) -> None:
    """MP_FASTCLOSE from the kernel is a reset for our application."""
    engine = listener(lab, tmp_path)
    sock = lab.kernel.connect(engine_address(1), PORT, protocol=IPPROTO_MPTCP)
    assert sock.recv(1000)
    reset(sock)
    assert engine.report()["end"] == "reset"
    engine.finish()
    values = lab.settled(lab.kernel)
    assert values["MPFastcloseTx"] >= 1
    assert (
        complaints({k: v for k, v in values.items() if "Fastclose" not in k and "MPRst" not in k})
        == {}
    )


@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("role", ["connect", "listen"])
def test_transfer_survives_the_death_of_a_link(
    lab: KernelLab, tmp_path: Path, index: int, role: str
) -> None:
    lab.endpoint(lab.kernel, kernel_address(2), "dev", "k2", "subflow")
    if role == "connect":
        server = KernelServer(lab.kernel, DATA)
        engine = initiator(lab, tmp_path)
        wait_for(lambda: counters(lab.kernel)["MPJoinAckRx"] == 1, "the second subflow")
    else:
        engine = listener(lab, tmp_path)
        sock = lab.kernel.connect(engine_address(1), PORT, protocol=IPPROTO_MPTCP)
        wait_for(lambda: counters(lab.kernel)["MPJoinSynAckRx"] == 1, "the second subflow")
        talk = converse(sock, DATA)
    before = lab.kernel.interface_bytes(f"k{index}")[0]
    wait_for(
        lambda: lab.kernel.interface_bytes(f"k{index}")[0] > before + 50_000, "data on that link"
    )
    lab.links[index - 1].cut()
    try:
        check_report(engine.report())
        check_talk(server.talk() if role == "connect" else talk.wait())
    finally:
        lab.links[index - 1].restore()


@pytest.mark.parametrize("role", ["connect", "listen"])
def test_transfer_over_lossy_links(lab: KernelLab, tmp_path: Path, role: str) -> None:
    for number, link in enumerate(lab.links):
        link.set(loss=0.01, jitter=0.002, seed=8684 + number)
    lab.endpoint(lab.kernel, kernel_address(2), "dev", "k2", "subflow")
    if role == "connect":
        server = KernelServer(lab.kernel, DATA)
        engine = initiator(lab, tmp_path)
        check_report(engine.report())
        check_talk(server.talk())
    else:
        engine = listener(lab, tmp_path)
        sock = lab.kernel.connect(engine_address(1), PORT, protocol=IPPROTO_MPTCP)
        check_talk(converse(sock, DATA).wait())
        check_report(engine.report())
    values = lab.settled(lab.kernel)
    wrong = ("DSSNotMatching", "DSSCorruptionReset", "DSSNoMatchTCP", "DataCsumErr", "MPFailTx")
    assert {name: values[name] for name in wrong if values[name]} == {}


@pytest.mark.parametrize("role", ["connect", "listen"])
def test_ten_connections_at_once(lab: KernelLab, tmp_path: Path, role: str) -> None:
    options = ["--connections", "10"]
    lab.endpoint(lab.kernel, kernel_address(2), "dev", "k2", "subflow")
    if role == "connect":
        server = KernelServer(lab.kernel, DATA)
        engine = initiator(lab, tmp_path, *options)
        for number in range(10):
            check_talk(server.talk(number))
    else:
        engine = listener(lab, tmp_path, *options)
        socks = [
            lab.kernel.connect(engine_address(1), PORT, protocol=IPPROTO_MPTCP) for _ in range(10)
        ]
        for talk in [converse(sock, DATA) for sock in socks]:
            check_talk(talk.wait())
    for _ in range(10):
        check_report(engine.report())
    engine.finish()
    assert complaints(lab.settled(lab.kernel)) == {}


def test_refused_connection_is_reported(lab: KernelLab, tmp_path: Path) -> None:
    """Nobody listens at the kernel: the engine's application is told of the reset."""
    engine = initiator(lab, tmp_path)
    assert engine.report()["end"] == "reset"
