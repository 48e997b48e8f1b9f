"""The gateway as a converter for the kernel's own TCP and MPTCP: no proxy, no secret (RFC 8803).

The client is a plain socket of the router namespace, whose network the gateway's file lists.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.convert_message import SUCCESS, connect, cookie, error, info, length, message
from tests.lab.conftest import needs_boxes
from tests.lab.daemons import PORT, Daemon, gateway_config
from tests.lab.servers import echo, serving
from tests.lab.sockets import echo_through
from tests.lab.topology import GATEWAY4, GATEWAY6, SERVER4, SERVER6, Topology, topology

pytestmark = needs_boxes

GUESTS = """
[[client]]
name = "guests"
networks = ["172.31.1.0/24", "2001:db8:f1::/64"]
"""
ENDS = [(GATEWAY4, SERVER4), (GATEWAY6, SERVER6)]
FAMILIES = pytest.mark.parametrize(("gateway", "server"), ENDS, ids=["v4", "v6"])
PROTOCOLS = pytest.mark.parametrize("protocol", [0, socket.IPPROTO_MPTCP], ids=["tcp", "mptcp"])


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    """The gateway alone, which serves the network of the first router."""
    with topology(None, None) as network:
        directory = network.namespaces.directory
        secret = directory / "home-1.key"
        secret.write_text("QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=\n")
        secret.chmod(0o600)
        for router in network.routers:
            router.sysctl("net.ipv4.tcp_fastopen", 5)  # data in SYNs, without a cookie of TCP
        addresses = (GATEWAY4, GATEWAY6)
        text = gateway_config(directory, addresses=addresses, extra=GUESTS)
        gateway = Daemon(network.gateway, "gateway", directory, text)
        gateway.start()
        yield network
        assert gateway.stop() == 0
        assert "Traceback" not in gateway.log, gateway.log


class Client:
    """A socket that has sent ``request``: in its SYN if ``early``, else after the handshake."""

    def __init__(
        self, lab: Topology, gateway: str, request: bytes, early: bool, protocol: int = 0
    ) -> None:
        family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
        self.sock = lab.routers[0].socket(family, protocol=protocol)
        self.sock.settimeout(10)
        if early:
            self.sock.sendto(request, socket.MSG_FASTOPEN, (gateway, PORT))
        else:
            self.sock.connect((gateway, PORT))
            self.sock.sendall(request)

    def exactly(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            assert more, f"the stream ended after {data.hex()}"
            data += more
        return data

    def reply(self) -> bytes:
        """The converter's message."""
        start = self.exactly(4)
        return start + self.exactly(length(start) - 4)

    def is_mptcp(self) -> bool:
        """Whether the kernel did not fall back."""
        try:
            self.sock.getsockopt(284, 1, 256)  # SOL_MPTCP, MPTCP_INFO
        except OSError:
            return False
        return True


def ask(
    lab: Topology, gateway: str, *tlvs: tuple[int, bytes], early: bool = True, protocol: int = 0
) -> bytes:
    """What the gateway answers."""
    client = Client(lab, gateway, message(*tlvs), early, protocol)
    with client.sock:
        return client.reply()


def fetch_cookie(lab: Topology, gateway: str) -> bytes:
    """The cookie that the gateway sends to a client which has none (§6.2.7)."""
    code, detail = error(ask(lab, gateway, info()))
    assert (code, detail[0]) == (3, 0)
    return detail[1:]


@FAMILIES
@PROTOCOLS
def test_with_a_cookie_the_message_in_the_syn_opens_the_way(
    lab: Topology, gateway: str, server: str, protocol: int
) -> None:
    token = cookie(fetch_cookie(lab, gateway))
    with serving(lab.server, echo, address=server) as far:
        request = message(connect(server, far.port), token)
        client = Client(lab, gateway, request, early=True, protocol=protocol)
        with client.sock:
            assert client.reply() == SUCCESS
            assert client.is_mptcp() == bool(protocol)
            assert echo_through(client.sock, 300_000)


@FAMILIES
@PROTOCOLS
def test_without_fast_open_the_message_is_the_first_bytes(
    lab: Topology, gateway: str, server: str, protocol: int
) -> None:
    with serving(lab.server, echo, address=server) as far:
        request = message(connect(server, far.port))
        client = Client(lab, gateway, request, early=False, protocol=protocol)
        with client.sock:
            assert client.reply() == SUCCESS
            assert client.is_mptcp() == bool(protocol)
            assert echo_through(client.sock, 300_000)


def test_what_is_supported_is_told(lab: Topology) -> None:
    token = cookie(fetch_cookie(lab, GATEWAY4))
    assert ask(lab, GATEWAY4, info(), token) == bytes.fromhex("01032263 15020000 1e000000")


@pytest.mark.parametrize("early", [True, False], ids=["syn", "stream"])
def test_errors_are_told(lab: Topology, early: bool) -> None:
    token = cookie(fetch_cookie(lab, GATEWAY4))
    wishes = {
        96: connect(SERVER4, 9),
        33: connect(SERVER4, 80, b"\x1e\x02"),
        32: connect("10.0.0.1", 80),
        1: connect("224.0.0.1", 80),
        2: (199, bytes(2)),
    }
    for code, wish in wishes.items():
        assert error(ask(lab, GATEWAY4, wish, token, early=early))[0] == code, code
    forged = ask(lab, GATEWAY4, connect(SERVER4, 9), cookie(bytes(16)), early=early)
    assert error(forged)[0] == 32


@FAMILIES
def test_an_unreachable_server_is_told_by_its_icmp_code(
    lab: Topology, gateway: str, server: str
) -> None:
    nobody = server.rpartition(".")[0] + ".77" if "." in server else "2001:db8:51::77"
    reply = ask(lab, gateway, connect(nobody, 80), cookie(fetch_cookie(lab, gateway)))
    assert error(reply)[0] == 97


def test_a_network_that_is_not_listed_gets_silence(lab: Topology) -> None:
    sock = lab.routers[1].socket(socket.AF_INET)
    sock.settimeout(1.5)
    with sock, pytest.raises(TimeoutError):
        sock.connect((GATEWAY4, PORT))
