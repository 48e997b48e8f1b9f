"""Each mode of the emulator's middlebox does what it says, seen by two kernels.

Each test fails if its mode does nothing: it asserts what a kernel noticed, not what the emulator
counted.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.lab.capture import capturing
from tests.lab.kernel import (
    IPPROTO_MPTCP,
    PORT,
    SERVER4,
    SERVER6,
    KernelLab,
    KernelServer,
    Talk,
    converse,
    host_address,
    kernel_address,
    kernel_lab,
)
from tests.lab.link import LinkSpec, Shape
from tests.lab.middlebox import MPTCP, NAT_PATTERN, NO_BOX, Middlebox
from tests.lab.namespaces import LabError, Namespace
from tests.lab.waiting import wait_for

pytestmark = pytest.mark.lab("tcpdump", "tshark")
DATA = bytes(range(256)) * 1200
FAMILIES = pytest.mark.parametrize("server", [SERVER4, SERVER6], ids=["v4", "v6"])
OPTION_TIMESTAMPS, OPTION_SACK = 1, 2  # linux/tcp.h: TCPI_OPT_*
SPEC = LinkSpec.symmetric(50, 4, queue_ms=400)


@pytest.fixture(scope="module")
def network() -> Iterator[KernelLab]:
    with kernel_lab(SPEC, SPEC) as lab:
        for namespace in (lab.engine, lab.kernel):
            namespace.sysctl("net.mptcp.blackhole_timeout", 0)
            namespace.sysctl("net.ipv4.tcp_no_metrics_save", 1)
        yield lab


@pytest.fixture
def lab(network: KernelLab) -> Iterator[KernelLab]:
    """The kernels as they were, and no middlebox in either link."""
    yield network
    for link in network.links:
        link.shape(up=SPEC.up, down=SPEC.down)
    for namespace in (network.engine, network.kernel):
        namespace.sysctl("net.mptcp.checksum_enabled", 0)
        namespace.sysctl("net.mptcp.syn_retrans_before_tcp_fallback", 2)
        namespace.run("ip", "mptcp", "endpoint", "flush")
        for command in (["ip", "route", "flush", "cache"], ["ip", "-6", "route", "flush", "cache"]):
            namespace.run(*command)


class Ends:
    """One connection from the kernel on the near side to the one on the far side, and what both
    have counted since."""

    def __init__(
        self, lab: KernelLab, data: bytes = DATA, *, server: str = SERVER4, mptcp: bool = True
    ) -> None:
        self.lab = lab
        self.before = [namespace.nstat() for namespace in (lab.engine, lab.kernel)]
        self.listener = KernelServer(lab.kernel, data, address=server, mptcp=mptcp)
        protocol = IPPROTO_MPTCP if mptcp else 0
        self.sock = lab.engine.connect(server, PORT, protocol=protocol)

    def close(self) -> None:
        self.sock.close()
        self.listener.close()

    def talk(self, data: bytes = DATA) -> tuple[Talk, Talk]:
        """Data both ways to a clean end; what client and server received."""
        here = converse(self.sock, data).wait()
        return here, self.listener.talk()

    def options(self) -> int:
        """What the client negotiated (TCPI_OPT_*)."""
        return self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[5]

    def _since(self, index: int, namespace: Namespace) -> dict[str, int]:
        before = self.before[index]
        return {
            name.removeprefix("MPTcpExt"): value - before.get(name, 0)
            for name, value in namespace.nstat().items()
        }

    @property
    def client(self) -> dict[str, int]:
        return self._since(0, self.lab.engine)

    @property
    def server(self) -> dict[str, int]:
        return self._since(1, self.lab.kernel)


def arrives(ends: Ends) -> None:
    here, there = ends.talk()
    assert here.received == there.received == len(DATA)
    assert here.digest == there.digest


def test_no_box_leaves_mptcp_alone(lab: KernelLab) -> None:
    with closing(Ends(lab)) as ends:
        arrives(ends)
        assert ends.client["MPCapableFallbackSYNACK"] == ends.server["DssFallback"] == 0


@FAMILIES
def test_all_options_stripped(lab: KernelLab, server: str) -> None:
    lab.links[0].set(box=Middlebox(strip=MPTCP))
    with closing(Ends(lab, server=server)) as ends:
        arrives(ends)
        assert ends.client["MPCapableFallbackSYNACK"] == 1
        assert ends.server["MPCapableSYNRX"] == 0


def test_options_stripped_from_the_syn_alone(lab: KernelLab) -> None:
    lab.links[0].shape(up=Shape(box=Middlebox(strip=MPTCP, strip_on="syn")))
    with closing(Ends(lab)) as ends:
        arrives(ends)
        assert ends.client["MPCapableFallbackSYNACK"] == 1
        assert ends.server["MPCapableSYNRX"] == ends.server["MPCapableFallbackACK"] == 0


def test_options_stripped_from_the_syn_ack_alone(lab: KernelLab) -> None:
    lab.links[0].set(box=Middlebox(strip=MPTCP, strip_on="synack"))
    with closing(Ends(lab)) as ends:
        arrives(ends)
        assert ends.server["MPCapableSYNRX"] >= 1
        assert ends.client["MPCapableFallbackSYNACK"] == 1
        assert ends.server["MPCapableFallbackACK"] == 1


def test_options_stripped_from_all_but_syns(lab: KernelLab) -> None:
    lab.links[0].set(box=Middlebox(strip=MPTCP, strip_on="rest"))
    with closing(Ends(lab)) as ends:
        arrives(ends)
        assert ends.client["MPCapableSYNACKRX"] == 1
        assert ends.server["MPCapableACKRX"] == 0
        assert ends.server["MPCapableFallbackACK"] == 1


def test_options_stripped_after_some_packets(lab: KernelLab) -> None:
    lab.links[0].shape(up=Shape(box=Middlebox(strip=MPTCP, strip_after=20)))
    with closing(Ends(lab)) as ends:
        arrives(ends)
        assert ends.server["MPCapableACKRX"] == 1
        assert ends.server["DssFallback"] == 1


def test_syns_with_mp_capable_vanish(lab: KernelLab) -> None:
    lab.engine.sysctl("net.mptcp.syn_retrans_before_tcp_fallback", 0)
    lab.links[0].set(box=Middlebox(drop_capable=True))
    with closing(Ends(lab)) as ends:
        arrives(ends)
        assert ends.client["MPCapableSYNTXDrop"] == 1
        assert ends.server["MPCapableSYNRX"] == 0
        assert lab.links[0].statistics()["up"]["lost_box"] >= 1


@pytest.mark.parametrize("stripped", [False, True], ids=["untouched", "stripped"])
def test_joins_stripped(lab: KernelLab, stripped: bool) -> None:
    lab.links[1].set(box=Middlebox(strip=("join",) if stripped else ()))
    lab.endpoint(lab.engine, host_address(2), "dev", "e2", "subflow")
    with closing(Ends(lab)) as ends:
        wait_for(
            lambda: ends.client["MPRstTx"] if stripped else ends.server["MPJoinAckRx"],
            "the end of the join",
        )
        arrives(ends)
        assert ends.client["MPJoinSynTx"] == 1
        assert ends.server["MPJoinAckRx"] == (not stripped)
        assert ends.server["MPCapableACKRX"] == 1


@pytest.mark.parametrize("stripped", [False, True], ids=["untouched", "stripped"])
def test_announcements_stripped(lab: KernelLab, stripped: bool) -> None:
    lab.links[0].set(box=Middlebox(strip=("add_addr",) if stripped else ()))
    lab.endpoint(lab.kernel, kernel_address(2), "signal")
    with closing(Ends(lab)) as ends:
        arrives(ends)
        assert ends.server["AddAddrTx"] >= 1
        assert ends.client["AddAddr"] == (not stripped)


def test_sequence_numbers_shifted_both_ways_with_sack(lab: KernelLab, tmp_path: Path) -> None:
    shifts = (0x9ABCDEF0, 0x12345678)
    for mptcp in (False, True):
        link = lab.links[0]
        link.shape(
            up=Shape(rate=50e6, loss=0.02, seed=1, box=Middlebox(shift=shifts[0])),
            down=Shape(rate=50e6, loss=0.02, seed=2, box=Middlebox(shift=shifts[1])),
        )
        near, far = tmp_path / f"near{mptcp}", tmp_path / f"far{mptcp}"
        with (
            capturing(lab.engine, "e1", near) as here,
            capturing(lab.kernel, "k1", far) as there,
            closing(Ends(lab, mptcp=mptcp)) as ends,
        ):
            arrives(ends)
            assert ends.client["TcpExtTCPSackRecovery"] + ends.server["TcpExtTCPSackRecovery"] > 0
            assert ends.client["MPCapableFallbackSYNACK"] == ends.server["DssFallback"] == 0
        for syn, shift, turn in (
            ("tcp.flags==2", shifts[0], 1),
            ("tcp.flags==0x12", shifts[1], -1),
        ):
            numbers = [
                int(capture.fields(f"{syn} && tcp.port=={PORT}", "tcp.seq_raw")[0][0])
                for capture in (here, there)[::turn]
            ]
            assert (numbers[1] - numbers[0]) & 0xFFFFFFFF == shift


def test_segments_split_with_their_options(lab: KernelLab, tmp_path: Path) -> None:
    lab.links[0].set(box=Middlebox(split=500))
    with (
        capturing(lab.kernel, "k1", tmp_path / "pcap", "tcp and src net 10.81") as capture,
        closing(Ends(lab)) as ends,
    ):
        arrives(ends)
        assert ends.client["MPCapableFallbackSYNACK"] == ends.server["DssFallback"] == 0
    pieces = capture.fields("tcp.len > 0", "tcp.len", "tcp.options.mptcp.datalvllen")
    sizes = [int(size) for size, _ in pieces]
    assert max(sizes) == 500
    assert sum(1 for size, mapped in pieces if mapped and int(mapped) > int(size)) > 100
    assert capture.faults() == []


def test_segments_coalesced(lab: KernelLab, tmp_path: Path) -> None:
    """With plain TCP: where two mappings meet in one segment the kernel itself loses bytes."""
    lab.links[0].shape(up=Shape(rate=20e6, queue=1 << 20, box=Middlebox(coalesce=4000)))
    with (
        capturing(lab.kernel, "k1", tmp_path / "pcap", "tcp and src net 10.81") as capture,
        closing(Ends(lab, mptcp=False)) as ends,
    ):
        arrives(ends)
    sizes = [int(size) for (size,) in capture.fields("tcp.len > 0", "tcp.len")]
    assert 1460 < max(sizes) <= 4000
    assert capture.faults() == []


def test_a_byte_changed_under_a_valid_checksum(lab: KernelLab) -> None:
    lab.links[0].shape(up=Shape(box=Middlebox(corrupt=2)))
    data = bytes(6000)
    with closing(Ends(lab, b"", mptcp=False)) as ends:
        ends.sock.sendall(data)
        here, there = ends.talk(b"")
        assert here.received == 0
        assert there.received == len(data)
        assert there.digest != Talk.of(data)
        assert ends.server["TcpInCsumErrors"] == 0


def test_a_changed_byte_is_found_by_the_dss_checksum(lab: KernelLab) -> None:
    for namespace in (lab.engine, lab.kernel):
        namespace.sysctl("net.mptcp.checksum_enabled", 1)
    lab.links[0].shape(up=Shape(rate=50e6, box=Middlebox(corrupt=100)))
    with closing(Ends(lab)) as ends:
        converse(ends.sock, 4 * DATA)
        wait_for(lambda: ends.server["MPFailTx"] == 1, "MP_FAIL")
        assert ends.server["DataCsumErr"] == 1


@pytest.mark.parametrize(
    ("name", "bit"), [("timestamps", OPTION_TIMESTAMPS), ("sack_permitted", OPTION_SACK)]
)
def test_options_of_tcp_stripped(lab: KernelLab, name: str, bit: int) -> None:
    lab.links[0].set(box=Middlebox(strip=(name,)))
    with closing(Ends(lab, mptcp=False)) as ends:
        assert not ends.options() & bit
        assert ends.options() & (OPTION_TIMESTAMPS + OPTION_SACK - bit)
        arrives(ends)
    lab.links[0].set(box=NO_BOX)
    with closing(Ends(lab, mptcp=False)) as ends:
        assert ends.options() & bit
        arrives(ends)


def test_sack_blocks_stripped(lab: KernelLab, tmp_path: Path) -> None:
    lab.links[0].shape(
        up=Shape(rate=50e6, loss=0.02, seed=3),
        down=Shape(rate=50e6, box=Middlebox(strip=("sack",))),
    )
    blocks = "tcp.options.sack_le"
    with (
        capturing(lab.engine, "e1", tmp_path / "near") as near,
        capturing(lab.kernel, "k1", tmp_path / "far") as far,
        closing(Ends(lab, mptcp=False)) as ends,
    ):
        assert ends.options() & OPTION_SACK
        arrives(ends)
    assert far.count(blocks) > 0
    assert near.count(blocks) == 0


@FAMILIES
def test_reset_that_fits(lab: KernelLab, server: str) -> None:
    lab.links[0].shape(up=Shape(box=Middlebox(rst_after=10)))
    with closing(Ends(lab, server=server, mptcp=False)) as ends:
        converse(ends.sock, DATA)
        with pytest.raises(ConnectionResetError):
            ends.listener.talk()
        assert ends.server["TcpExtTCPChallengeACK"] == 0


def test_reset_in_the_window_is_challenged(lab: KernelLab) -> None:
    lab.links[0].shape(up=Shape(box=Middlebox(rst_after=10, rst_offset=1)))
    with closing(Ends(lab, mptcp=False)) as ends:
        arrives(ends)
        assert ends.server["TcpExtTCPChallengeACK"] >= 1


def test_resets_on_demand_end_both_sides(lab: KernelLab) -> None:
    lab.links[0].set(box=Middlebox(rst_after=1 << 30))  # so that flows are watched
    with lab.kernel.listen(SERVER4, PORT) as listener, lab.engine.connect(SERVER4, PORT) as client:
        accepted, _ = listener.accept()
        with accepted:
            lab.links[0].reset()
            for sock in (client, accepted):
                sock.settimeout(5)
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)


@FAMILIES
def test_nat_translates_ports_and_rebinding_ends_the_connection(
    lab: KernelLab, server: str
) -> None:
    link = lab.links[0]
    link.shape(up=Shape(box=Middlebox(nat=NAT_PATTERN)))
    with lab.kernel.listen(server, PORT) as listener, lab.engine.connect(server, PORT) as client:
        accepted, peer = listener.accept()
        with accepted:
            assert peer[1] == client.getsockname()[1] ^ NAT_PATTERN
            client.sendall(b"before")
            assert accepted.recv(100) == b"before"
            accepted.sendall(b"answer")
            assert client.recv(100) == b"answer"
            link.shape(up=Shape(box=Middlebox(nat=NAT_PATTERN << 1)))
            client.sendall(b"after")
            with pytest.raises(ConnectionResetError):
                client.recv(100)
            accepted.settimeout(0.0)
            with pytest.raises(BlockingIOError):
                accepted.recv(100)
            accepted.sendall(b"lost")
            wait_for(lambda: link.statistics()["down"]["lost_box"], "the old port is dead")


@FAMILIES
@pytest.mark.parametrize("icmp", [False, True], ids=["silent", "icmp"])
def test_mtu_falls_in_mid_transfer(lab: KernelLab, server: str, icmp: bool) -> None:
    lab.engine.sysctl("net.ipv4.tcp_mtu_probing", 1)
    lab.engine.sysctl("net.ipv4.tcp_retries1", 1)
    with closing(Ends(lab, b"", server=server, mptcp=False)) as ends:
        ends.sock.sendall(DATA)
        wait_for(lambda: ends.listener.talks, "the connection")
        wait_for(lambda: ends.listener.talks[0].received == len(DATA), "the first part")
        lab.links[0].set(max_packet=1300, icmp=icmp)
        here, there = ends.talk()
        assert here.received == 0
        assert there.received == 2 * len(DATA)
        six = ":" in server
        told = ends.client["Icmp6InPktTooBigs" if six else "IcmpInDestUnreachs"]
        assert bool(told) == icmp
        assert lab.links[0].statistics()["up"]["lost_mtu"] > 0


def test_a_box_that_does_not_exist_is_refused(lab: KernelLab) -> None:
    with pytest.raises(LabError, match="unknown key or value"):
        lab.links[0].set(box=Middlebox(strip=("mptpc",)))
