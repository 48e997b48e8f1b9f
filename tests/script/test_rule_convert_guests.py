"""0-RTT Convert for clients that are not ours: known by their address, without a secret.

The script plays such a client, with messages that are built by hand.
"""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from proxy.config import ClientConfig
from proxy.wire.address import Address, format_ip
from proxy.wire.mptcp_options import MpCapable
from tests.convert_message import SUCCESS, connect, error, message
from tests.script.mptcp_harness import PEER_KEY, Leg, option_of
from tests.script.test_rule_convert import HERE, HOME, SERVER, Gateway
from tests.unit.test_relay_flow import FakeStream

INSIDE = Address(b"\xc6\x33\x64\x07", 40000)  # 198.51.100.7
GUESTS = ClientConfig("guests", networks=(ip_network("198.51.100.0/24"),), cookie=False)
WARY = ClientConfig("guests", networks=(ip_network("198.51.100.0/24"),))


def to(server: Address = SERVER, options: bytes = b"") -> tuple[int, bytes]:
    """A Connect TLV for ``server``."""
    return connect(format_ip(server.ip), server.port, options)


class Converter(Gateway):
    """The gateway and a client from one of its networks."""

    def __init__(self, guests: ClientConfig = GUESTS, late: bool = True) -> None:
        super().__init__(late, guests)
        self.guest = self.leg(HERE, INSIDE)

    def flush(self) -> None:
        """As in the base, with the relay's share."""
        for _ in range(4):
            while (event := self.stack.next_event()) is not None:
                self.relay.on_event(*event, self.now)
            super().flush()

    def syn(self, payload: bytes, mptcp: bool = False) -> Leg:
        """A SYN of the client with a message."""
        self.guest.inject("S", payload=payload, options=self.capable(b"") if mptcp else b"")
        self.guest.seq = 1 + len(payload)
        return self.guest

    def established(self, mptcp: bool = False) -> bytes:
        """Complete the handshake; what the gateway sends then."""
        answer = self.guest.next()
        assert answer.flags == 0x12
        assert answer.length == 0, "a kernel drops what a SYN+ACK carries"
        options = b""
        if mptcp:
            options = self.capable(PEER_KEY + option_of(answer, MpCapable).sender_key)
        self.guest.inject(options=options)
        return b"".join(bytes(seg.payload) for seg in self.guest.take())

    def told(self) -> tuple[int, bytes]:
        """The error that the client gets: code and what follows it."""
        return error(self.established())


def test_guests_are_served_and_others_meet_silence() -> None:
    gate = Converter()
    stranger = gate.leg(HERE, HOME)
    stranger.inject("S", payload=message(to()))
    assert stranger.quiet()
    leg = gate.syn(message(to()) + b"early")
    assert leg.quiet(), "the answer waits for the server"
    assert [dial.server for dial in gate.dials] == [SERVER]
    stream = FakeStream()
    gate.answered(stream)
    assert gate.established() == SUCCESS
    assert stream.outbox == b"early"
    leg.inject("PA", payload=b"more")
    assert stream.outbox == b"earlymore"


def test_guests_may_speak_mptcp_and_get_the_answer_as_mapped_bytes() -> None:
    gate = Converter()
    leg = gate.syn(message(to()), mptcp=True)
    gate.answered(FakeStream())
    gate.conn = next(iter(gate.stack.tokens.values()))
    answer = leg.next()
    leg.inject(options=gate.capable(PEER_KEY + option_of(answer, MpCapable).sender_key))
    (reply,) = [seg for seg in leg.take() if seg.length]
    assert bytes(reply.payload) == SUCCESS
    assert (reply.ssn, reply.dsn, reply.data_length) == (1, gate.data_ack(0), 4)


def test_without_data_in_the_syn_the_message_is_the_first_bytes() -> None:
    gate = Converter(WARY)
    leg = gate.guest
    leg.inject("S")
    answer = leg.next()
    assert gate.stack.next_timeout() is None, "nothing is kept"
    leg.inject("PA", payload=message(to()), ack=(answer.seq - leg.iss & 0xFFFFFFFF) + 1)
    assert [dial.server for dial in gate.dials] == [SERVER], "the handshake stands for a cookie"
    leg.take()
    gate.answered(FakeStream())
    assert b"".join(bytes(seg.payload) for seg in leg.take()) == SUCCESS


def test_without_late_convert_a_bare_syn_of_a_guest_meets_silence() -> None:
    gate = Converter(late=False)
    gate.guest.inject("S")
    assert gate.guest.quiet()


def test_a_cookie_is_asked_for_and_taken() -> None:
    gate = Converter(WARY)
    gate.syn(message(to()))
    code, detail = gate.told()
    assert (code, detail[0]) == (3, 0)
    assert gate.dials == []
    gate.guest = gate.leg(HERE, Address(INSIDE.ip, 40001))
    gate.syn(message(to(), (22, bytes(2) + detail[1:])))
    assert [dial.server for dial in gate.dials] == [SERVER]
    gate.guest = gate.leg(HERE, Address(b"\xc6\x33\x64\x08", 40001))
    gate.syn(message(to(), (22, bytes(2) + detail[1:])))
    assert gate.told()[0] == 32, "a cookie is for one address"
    assert len(gate.dials) == 1


@pytest.mark.parametrize(
    ("sent", "code", "detail"),
    [
        (b"\x02" + message(to())[1:], 0, b"\x01"),
        (message(to(), to()), 1, b"\0" + message(to(), to())[:1]),
        (message((10, bytes(4))), 1, b"\0\x01"),
        (message(to(Address(b"\xe0\0\0\1", 80))), 1, b"\0\x01"),
        (message(to(Address(b"\x7f\0\0\1", 80))), 1, b"\0"),
        (message(), 1, b"\0\x01"),
        (message((0, bytes(2))), 2, b"\0\x01"),
        (message((199, bytes(2))), 2, b"\0\x01"),
        (message(to(), (20, bytes(2))), 2, b"\0\x01"),
        (message(to(), (22, bytes(18))), 32, b"\0"),
        (message(to(Address(b"\x0a\0\0\1", 80))), 32, b"\0"),
        (message(to(options=b"\x1e\x02\x22\x02")), 33, b"\x1e\x22"),
    ],
    ids=[
        "version", "twice", "short", "multicast", "loopback", "nothing", "type 0", "unknown",
        "not a client's", "cookie", "private", "options",
    ],
)  # fmt: skip
def test_what_a_guest_does_wrong_it_is_told(sent: bytes, code: int, detail: bytes) -> None:
    gate = Converter()
    gate.syn(sent)
    told, more = gate.told()
    assert told == code
    assert more.startswith(detail)
    assert gate.dials == []
    gate.sleep(1.0)
    assert not any(seg.flags & 4 for seg in gate.guest.take()), "never a RST after an error"


def test_options_that_are_each_connections_own_ask_for_nothing() -> None:
    gate = Converter()
    gate.syn(message(to(options=b"\x02\x02\x03\x02\x05\x02")))
    assert len(gate.dials) == 1


def test_a_message_of_length_0_is_reset_and_other_bytes_meet_silence() -> None:
    gate = Converter()
    gate.syn(b"\x01\x00\x22\x63")
    assert gate.guest.next().flags & 4
    gate.guest = gate.leg(HERE, Address(INSIDE.ip, 40001))
    gate.syn(b"GET / HTTP/1.1\r\n\r\n")
    assert gate.guest.quiet()


@pytest.mark.parametrize(
    ("number", "code", "detail"),
    [(111, 96, 0), (104, 96, 0), (113, 97, 1), (101, 97, 0), (110, 97, 1), (13, 97, 13),
     (24, 64, 1), (100, 65, 1)],
)  # fmt: skip
def test_what_the_server_says_a_guest_is_told(number: int, code: int, detail: int) -> None:
    gate = Converter()
    gate.syn(message(to()))
    gate.answered(None, number)
    told, more = gate.told()
    assert (told, more[0]) == (code, detail)


def test_who_asks_what_is_supported_is_told() -> None:
    gate = Converter()
    gate.syn(message((1, bytes(2))))
    # One word of 21 | 2 | 0 0, one with the kind 30 (MPTCP), padded.
    assert gate.established() == bytes.fromhex("01032263 15020000 1e000000")
    assert gate.dials == []


def test_one_address_cannot_have_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.relay.admission.MAX_OPENING_PER_SOURCE", 2)
    gate = Converter()
    for port in range(41000, 41003):
        gate.guest = gate.leg(HERE, Address(INSIDE.ip, port))
        gate.syn(message(to()))
    assert gate.told()[0] == 64
    gate.guest = gate.leg(HERE, Address(b"\xc6\x33\x64\x08", 41000))
    gate.syn(message(to()))
    assert len(gate.dials) == 3, "another address is not hurt"


def test_one_address_asks_so_often_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.relay.admission.SOURCE_RATE", 2.0)
    gate = Converter()
    for port in range(41000, 41005):
        gate.guest = gate.leg(HERE, Address(INSIDE.ip, port))
        gate.syn(message(to()))
    assert len(gate.dials) == 2
    assert gate.guest.quiet()
    assert gate.stack.counters["ConvertDrop-too-many-requests"] == 3


def test_nothing_is_left_of_a_guest_that_goes_away() -> None:
    gate = Converter()
    gate.syn(message(to()))
    gate.guest.inject("R")
    assert gate.dials[0].cancelled
    gate.guest = gate.leg(HERE, Address(INSIDE.ip, 40001))
    gate.syn(message(to(Address(b"\x0a\0\0\1", 80))))
    gate.sleep(400.0)
    assert gate.relay._owners == {}
    assert all(account.opening == 0 for account in gate.relay._admission._clients.values())
    assert gate.stack.next_timeout() is None
