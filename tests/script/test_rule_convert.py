"""0-RTT Convert, RFC 8803: a gateway and a proxy against hand-made segments."""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from proxy.config import (
    ClientConfig,
    ControlConfig,
    EgressConfig,
    GatewayConfig,
    GatewayPeer,
    LanConfig,
    ListenConfig,
    ProxyConfig,
    TunConfig,
    UplinkConfig,
)
from proxy.convert.auth import Client, Door, Reply
from proxy.convert.tlv import (
    Connect,
    Cookie,
    Error,
    ErrorCode,
    Info,
    SupportedTcpExtensions,
    TcpOption,
    Unknown,
    build,
)
from proxy.engine.syncookies import SynCookies
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import Fallback
from proxy.pm.base import factory as path_manager
from proxy.relay.flow import ByteStream
from proxy.relay.gateway import GatewayRelay
from proxy.relay.lan import LanRelay
from proxy.seg import Segment
from proxy.wire.address import Address
from proxy.wire.icmp import parse_icmp
from proxy.wire.mptcp_options import AddAddr, MpCapable, MpJoinSynAck
from tests.script.mptcp_harness import PEER_KEY, Leg, MptcpScript, config, has_option, option_of
from tests.unit.test_relay_flow import FakeStream

SECRET = bytes(range(32))
HERE = Address(b"\xc6\x12\x5d\x02", 8803)
OTHER = b"\xc6\x12\x5d\x03"
HOME = Address(b"\xcb\x00\x71\x05", 40000)
SERVER = Address(b"\x08\x08\x08\x08", 443)
TUN = TunConfig("tun9", 1500, IPv4Network("198.18.93.0/24"), IPv6Network("fd6d:7074:6371::/64"))
CONTROL = ControlConfig(Path("/nonexistent"))


class Dial:
    """A connection attempt to a server, to be decided by the test."""

    def __init__(self, server: Address, done: Callable[[ByteStream | None, int], None]) -> None:
        self.server = server
        self.done = done
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Gateway(MptcpScript):
    """The gateway; the script plays a proxy."""

    def __init__(self, late: bool = True, *guests: ClientConfig, announce: bytes = b"") -> None:
        super().__init__(mptcp=config())
        self.dials: list[Dial] = []
        self.wall = 1_700_000_000.0
        self.relay = GatewayRelay(
            GatewayConfig(
                ListenConfig(
                    (HERE.ip, OTHER), HERE.port, late, announce=(announce,) if announce else ()
                ),
                (ClientConfig("home", SECRET), *guests),
                EgressConfig(),
                TUN,
                CONTROL,
            ),
            self.stack,
            self._dial,
            lambda: self.now,
            lambda: self.wall,
        )
        self.wall += 100.0  # what was made before the start is challenged
        self.client = Client("home", SECRET)
        self.first = self.leg(HERE, HOME)
        self.request = b""

    def _dial(self, server: Address, done: Callable[[ByteStream | None, int], None]) -> Dial:
        self.dials.append(Dial(server, done))
        return self.dials[-1]

    def ask(self, destination: Address = SERVER, nonce: int = 1, data: bytes = b"") -> Leg:
        """A SYN with a request of the client."""
        self.request = self.client.request(destination, self.wall, nonce.to_bytes(12, "big"))
        self.first.inject("S", options=self.capable(b""), payload=self.request + data)
        self.first.seq = 1 + len(self.request + data)
        return self.first

    def ask_with(self, *tlvs: Any) -> None:
        """A SYN with these TLVs and the client's proof."""
        token = self.client.request(SERVER, self.wall, bytes(12))[4 + 20 + 4 : -16]
        message = build((*tlvs, Cookie(token + bytes(16))))
        self.request = message[:-16] + self.client._key.request_tag(message)
        self.first.inject("S", options=self.capable(b""), payload=self.request)

    def answered(self, stream: ByteStream | None, code: int = 0) -> None:
        """The server's answer to the newest attempt."""
        self.dials[-1].done(stream, code)
        self.flush()

    def reply(self, payload: bytes) -> Reply:
        return self.client.check_reply(self.request, payload, self.wall)


@pytest.mark.parametrize("late", [False, True])
def test_cv_03_a_stranger_gets_silence(late: bool) -> None:
    gate = Gateway(late)
    gate.first.inject("S", options=gate.capable(b""))
    gate.first.inject("S", payload=b"GET / HTTP/1.1\r\n\r\n", options=gate.capable(b""))
    bad = bytearray(Client("home", bytes(32)).request(SERVER, gate.wall, bytes(12)))
    gate.first.inject("S", payload=bytes(bad), options=gate.capable(b""))
    assert gate.first.quiet()
    assert gate.dials == []
    assert gate.stack.tokens == {}


def test_cv_04_the_answer_waits_for_the_server() -> None:
    gate = Gateway()
    leg = gate.ask(data=b"hello")
    assert leg.quiet()
    assert gate.dials[0].server == SERVER
    stream = FakeStream()
    gate.answered(stream)
    answer = leg.next()
    assert answer.flags == 0x12
    assert (answer.ack - leg.isn) & 0xFFFFFFFF == 1 + len(gate.request) + 5
    assert gate.reply(bytes(answer.payload)).error is None
    assert stream.outbox == b"hello", "what came in the SYN goes on at once"


@pytest.mark.parametrize(
    ("number", "code"),
    [(111, ErrorCode.CONNECTION_RESET), (104, ErrorCode.CONNECTION_RESET),
     (110, ErrorCode.DESTINATION_UNREACHABLE), (113, ErrorCode.DESTINATION_UNREACHABLE),
     (101, ErrorCode.DESTINATION_UNREACHABLE), (13, ErrorCode.DESTINATION_UNREACHABLE),
     (24, ErrorCode.RESOURCE_EXCEEDED), (100, ErrorCode.NETWORK_FAILURE)],
)  # fmt: skip
def test_cv_07_what_the_server_says_is_told_and_never_followed_by_a_rst(
    number: int, code: ErrorCode
) -> None:
    gate = Gateway()
    leg = gate.ask()
    gate.answered(None, number)
    answer = leg.next()
    assert answer.flags == 0x12
    error = gate.reply(bytes(answer.payload)).error
    assert error is not None
    assert error.code == code
    leg.inject(options=gate.capable(PEER_KEY + option_of(answer, MpCapable).sender_key))
    gate.sleep(1.0)
    assert not any(seg.flags & 4 for seg in leg.take())


def test_cv_02_who_asks_what_is_supported_is_told() -> None:
    gate = Gateway()
    gate.ask_with(Info())
    message = gate.reply(bytes(gate.first.next().payload)).message
    told = message.find(SupportedTcpExtensions)
    assert told is not None
    assert 30 in told.kinds
    assert gate.dials == []


@pytest.mark.parametrize(
    ("tlvs", "code"),
    [
        ((Connect(SERVER), Connect(SERVER)), ErrorCode.MALFORMED_MESSAGE),
        ((Unknown(200, bytes(2)),), ErrorCode.UNSUPPORTED_MESSAGE),
        ((Connect(Address(b"\x7f\0\0\1", 80)),), ErrorCode.MALFORMED_MESSAGE),
        ((Connect(Address(b"\x0a\0\0\1", 80)),), ErrorCode.NOT_AUTHORIZED),
        ((Connect(HERE),), ErrorCode.NOT_AUTHORIZED),
    ],
    ids=["twice", "unknown", "loopback", "private", "itself"],
)
def test_cv_02_and_15_what_may_not_be_asked_for_is_refused(
    tlvs: tuple[Any, ...], code: ErrorCode
) -> None:
    gate = Gateway()
    gate.ask_with(*tlvs)
    error = gate.reply(bytes(gate.first.next().payload)).error
    assert error is not None
    assert error.code == code
    assert gate.dials == []


def test_cv_05_options_towards_the_server_are_refused() -> None:
    gate = Gateway()
    gate.ask_with(Connect(SERVER, (TcpOption(30),)))
    error = gate.reply(bytes(gate.first.next().payload)).error
    assert error is not None
    assert (error.code, error.detail[:1]) == (ErrorCode.UNSUPPORTED_TCP_OPTION, b"\x1e")
    assert gate.dials == []


def test_cv_10_requests_that_wait_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.relay.admission.MAX_OPENING", 3)
    gate = Gateway()
    for number in range(3):
        gate.first = gate.leg(HERE, Address(HOME.ip, 41000 + number))
        assert gate.ask(nonce=number).quiet()
    gate.first = gate.leg(HERE, Address(HOME.ip, 42000))
    answer = gate.ask(nonce=99).next()
    error = gate.reply(bytes(answer.payload)).error
    assert error is not None
    assert error.code == ErrorCode.RESOURCE_EXCEEDED
    assert len(gate.dials) == 3


def test_cv_11_a_replayed_request_opens_nothing() -> None:
    gate = Gateway()
    gate.ask()
    repeated = gate.request
    gate.first.inject("S", options=gate.capable(b""), payload=repeated, seq=0)
    other = gate.leg(HERE, Address(b"\xcb\x00\x71\x06", 1234))
    other.inject("S", options=gate.capable(b""), payload=repeated)
    assert len(gate.dials) == 1


def test_cv_13_the_message_is_outside_the_data_sequence_space() -> None:
    gate = Gateway()
    leg = gate.ask()
    stream = FakeStream()
    gate.answered(stream)
    answer = leg.next()
    gate.conn = next(iter(gate.stack.tokens.values()))
    leg.inject(options=gate.capable(PEER_KEY + gate.conn.local_key.key))
    leg.inject(payload=b"data", options=gate.dss(at=0, ssn=1, length=4, ack=0))
    assert stream.outbox == b""
    while (event := gate.stack.next_event()) is not None:
        gate.relay.on_event(event[0], event[1], gate.now)
    assert gate.read() == b"data" or stream.outbox == b"data"
    gate.send(b"back")
    back = leg.last()
    assert (back.ssn, back.dsn) == (1, gate.data_ack(0))
    assert answer.length > 0


def test_heu_06_what_the_file_says_is_announced_by_its_public_address() -> None:
    gate = Gateway(announce=OTHER)
    gate.stack.path_manager = path_manager("kernel")
    leg = gate.ask()
    gate.answered(FakeStream())
    leg.next()
    gate.conn = next(iter(gate.stack.tokens.values()))
    leg.inject(options=gate.capable(PEER_KEY + gate.conn.local_key.key))
    told = [option_of(seg, AddAddr) for seg in leg.take() if has_option(seg, AddAddr)]
    assert [(option.ip, option.address_id) for option in told] == [(OTHER, 1)]
    behind = gate.relay.config.engine_addresses[OTHER]
    joining = gate.leg(Address(behind, HERE.port), Address(HOME.ip, 41000))
    joining.inject("S", options=gate.join_syn())
    assert option_of(joining.last(), MpJoinSynAck).address_id == 1


class Stateless(MptcpScript):
    """Answers each SYN without state, and takes what completes a handshake of its own."""

    def on_syn(self, syn: Segment, now: float) -> None:
        self.cookies.answer(syn, now)

    def on_stray(self, segment: Segment, now: float) -> bool:
        made = self.cookies.restore(segment, now, lambda data: data == b"good")
        if made is not None:
            self.accepted.append(made)
        return made is None

    @property
    def cookies(self) -> SynCookies:
        return SynCookies(self.stack)


@pytest.mark.parametrize("what", ["good", "forged key", "forged number", "stale", "bad data"])
def test_cap_09_a_handshake_without_state_still_gives_mptcp(what: str) -> None:
    script = Stateless(mptcp=config())
    leg = script.leg(HERE, HOME)
    leg.inject("S", options=script.capable(b""))
    key = option_of(leg.next(), MpCapable).sender_key
    assert script.stack.tokens == {}
    assert script.stack.next_timeout() is None, "nothing is kept"
    if what == "stale":
        script.sleep(200.0)
    echo = bytes(8) if what == "forged key" else key
    data = b"evil" if what == "bad data" else b"good"
    leg.inject(
        options=script.capable(PEER_KEY + echo, length=4), payload=data,
        ack=2 if what == "forged number" else 1,
    )  # fmt: skip
    if what == "good":
        (conn,) = script.accepted
        assert isinstance(conn, MptcpConnection)
        assert conn.local_key.key == key
        assert conn.fallback is Fallback.NONE
        assert b"".join(bytes(piece) for piece in conn.receive(9)) == b"good"
    elif what == "forged key":
        assert not isinstance(script.accepted[0], MptcpConnection), "plain TCP"
    else:
        assert script.accepted == []
        assert leg.last().flags & 4


# -- the proxy -----------------------------------------------------------------------------------


class Proxy(MptcpScript):
    """The proxy; the script plays the LAN client and the gateway."""

    def __init__(self, require_mptcp: bool = False) -> None:
        super().__init__(mptcp=config())
        self.wall = 1_700_000_000.0
        peer = ClientConfig("home", SECRET)
        self.relay = LanRelay(
            ProxyConfig(
                LanConfig(("lan0",)),
                (UplinkConfig("u0", "wan0"),),
                GatewayPeer(b"\xcb\x00\x71\x01", 8803, "home", SECRET, "", require_mptcp),
                TUN,
                CONTROL,
            ),
            self.stack,
            lambda: self.wall,
            self.now,
        )
        # The gateway is there, whatever it says.
        self.relay.watch.suspect = lambda now, fresh=0.0: False  # type: ignore[method-assign]
        self.door = Door((peer,), bytes(32), self.wall - 100)
        self.lan = self.leg(SERVER, Address(b"\xc0\xa8\x01\x02", 50000))
        self.icmp: list[Any] = []

    def flush(self) -> None:
        """As in the base, with the relay's share; ICMP messages are kept apart."""
        for _ in range(5):
            while (event := self.stack.next_event()) is not None:
                self.relay.on_event(*event, self.now)
            packets = self.stack.poll_transmit(self.now)
            tcp = []
            for packet in packets:
                whole = b"".join(packet)
                if whole[19] == 1:
                    self.icmp.append(parse_icmp(whole))
                else:
                    tcp.append(packet)
            self._queue(tcp)
            if not packets:
                break

    def _queue(self, packets: list[Any]) -> None:
        poll = self.stack.poll_transmit
        self.stack.poll_transmit = lambda now: packets  # type: ignore[method-assign]
        try:
            super().flush()
        finally:
            self.stack.poll_transmit = poll  # type: ignore[method-assign]

    def uplink(self) -> Leg:
        """The leg of the attempt towards the gateway."""
        return next(leg for (_, theirs), leg in self.legs.items() if theirs.port == 8803)

    def asked_on(self) -> list[Leg]:
        """The legs of all attempts towards the gateway."""
        return [leg for (_, theirs), leg in self.legs.items() if theirs.port == 8803]

    def answer(self, error: Error | None, mptcp: bool = True) -> None:
        """The gateway's SYN+ACK with its proven answer."""
        leg = self.uplink()
        syn = leg.next()
        request = self.door.verify(bytes(syn.payload), b"\xcb\x00\x71\x05", self.wall)
        assert request.destination == SERVER
        reply = request.reply(random.Random(1).randbytes(16), error)
        leg.inject("SA", options=self.capable() if mptcp else b"", payload=reply)
        leg.seq = 1 + len(reply)
        self.flush()


def asked(require_mptcp: bool = False) -> Proxy:
    proxy = Proxy(require_mptcp)
    proxy.lan.inject("S")
    assert proxy.lan.quiet(), "the client waits for its server"
    return proxy


def test_cv_04_the_client_is_answered_when_the_server_has() -> None:
    proxy = asked()
    proxy.answer(None)
    assert proxy.lan.next().flags == 0x12


REFUSED = "rst"
SILENCE = "silence"
SEEN = {
    ErrorCode.UNSUPPORTED_VERSION: REFUSED,
    ErrorCode.MALFORMED_MESSAGE: REFUSED,
    ErrorCode.UNSUPPORTED_MESSAGE: REFUSED,
    ErrorCode.NOT_AUTHORIZED: (3, 13),
    ErrorCode.UNSUPPORTED_TCP_OPTION: REFUSED,
    ErrorCode.RESOURCE_EXCEEDED: SILENCE,
    ErrorCode.NETWORK_FAILURE: (3, 0),
    ErrorCode.CONNECTION_RESET: REFUSED,
    ErrorCode.DESTINATION_UNREACHABLE: (3, 0),
}


@pytest.mark.parametrize("code", SEEN)
def test_cv_07_every_error_becomes_what_a_client_would_see_without_a_proxy(
    code: ErrorCode,
) -> None:
    proxy = asked()
    proxy.answer(Error(code, bytes(3)))
    came = proxy.lan.take()
    if SEEN[code] == REFUSED:
        assert [seg.flags for seg in came] == [0x14]
        assert proxy.icmp == []
    elif SEEN[code] == SILENCE:
        assert (came, proxy.icmp) == ([], []), "the client's own time-out, or a better answer"
    else:
        assert came == []
        assert [(error.type, error.code) for error in proxy.icmp] == [SEEN[code]]
    assert proxy.relay.flows == {}


def test_cv_07_an_answer_without_proof_is_believed_by_nobody() -> None:
    proxy = asked()
    leg = proxy.uplink()
    leg.take()
    leg.inject("SA", options=proxy.capable(), payload=build((Error(ErrorCode.CONNECTION_RESET),)))
    proxy.flush()
    assert any(seg.flags & 4 for seg in leg.take())
    assert proxy.lan.quiet(), "no RST that the gateway did not prove"
    assert [(error.type, error.code) for error in proxy.icmp] == [(3, 1)]


def test_the_proxy_speaks_mptcp_to_its_gateway_alone() -> None:
    proxy = asked()
    proxy.answer(None)
    assert not proxy.lan.next().has_mptcp
    assert all(isinstance(conn, MptcpConnection) for conn in proxy.stack.tokens.values())


def test_cv_10_a_gateway_without_room_is_left_alone_as_long_as_it_says() -> None:
    proxy = asked()
    proxy.answer(Error(ErrorCode.RESOURCE_EXCEEDED, b"\5"))
    proxy.sleep(4.0)
    other = proxy.leg(SERVER, Address(b"\xc0\xa8\x01\x03", 50001))
    other.inject("S")
    assert len(proxy.asked_on()) == 1
    proxy.sleep(2.0)
    proxy.lan.inject("S", seq=0)
    assert len(proxy.asked_on()) == 2, "the client's own repetition finds room"


@pytest.mark.parametrize("required", [False, True])
def test_sec_07_plain_tcp_to_the_gateway_is_refused_if_mptcp_is_required(required: bool) -> None:
    proxy = asked(required)
    proxy.answer(None, mptcp=False)
    if not required:
        assert proxy.lan.next().flags == 0x12
        return
    assert proxy.lan.quiet()
    assert [(error.type, error.code) for error in proxy.icmp] == [(3, 1)]
    assert proxy.stack.counters["FallbackRefused"] == 1


@pytest.mark.parametrize("required", [False, True])
def test_sec_07_so_is_a_fall_back_in_mid_life(required: bool) -> None:
    proxy = asked(required)
    proxy.answer(None)
    leg = proxy.uplink()
    proxy.lan.next()
    proxy.lan.inject()
    leg.inject(payload=b"plain")
    assert bool(proxy.relay.flows) != required
    assert any(seg.flags & 4 for seg in proxy.lan.take()) == required
