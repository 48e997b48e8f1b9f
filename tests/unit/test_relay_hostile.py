"""What a relay must survive: clients, paths and peers that do not keep to the script."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

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
from proxy.convert.auth import NONCE_LENGTH, Client
from proxy.engine.stack import ACK, SYN, Stack
from proxy.relay.attempt import Attempt
from proxy.relay.flow import ByteStream
from proxy.relay.gateway import Cancellable, GatewayRelay
from proxy.relay.lan import LanRelay
from proxy.relay.opening import OPENING_TIMEOUT
from proxy.relay.uplinks import UplinkHealth
from proxy.seg import Segment, build_header, parse
from proxy.tcp.events import Event
from proxy.wire.address import Address
from proxy.wire.tcp_options import SynOptions

SECRET = bytes(range(32))
GATEWAY = Address(bytes((203, 0, 113, 10)), 8803)
PROXY = Address(bytes((10, 1, 0, 2)), 40000)
LAN_CLIENT = Address(bytes((192, 168, 77, 2)), 50000)
SERVER = Address(bytes((93, 184, 216, 34)), 80)
WALL = 1_900_000_000.0


class _Call:
    def cancel(self) -> None:
        """Nothing is under way."""


def _tun(prefix: str) -> TunConfig:
    from ipaddress import IPv4Network, IPv6Network

    return TunConfig("tun", 1500, IPv4Network(prefix), IPv6Network("fd00::/64"), True)


class Gateway:
    """A gateway relay on a stack, and the servers that it was asked to reach."""

    def __init__(self) -> None:
        self.stack = Stack(random.Random(1))
        self.dialled: list[Address] = []
        config = GatewayConfig(
            ListenConfig((GATEWAY.ip,), GATEWAY.port),
            (ClientConfig("home", SECRET),),
            EgressConfig(),
            _tun("198.18.93.0/24"),
            ControlConfig(Path("unused")),
        )
        self.relay = GatewayRelay(config, self.stack, self._dial, lambda: 1.0, lambda: WALL)

    def _dial(self, server: Address, done: Callable[[ByteStream | None, int], None]) -> Cancellable:
        self.dialled.append(server)
        return _Call()

    def receive(
        self, flags: int, seq: int, ack: int, options: bytes = b"", data: bytes = b""
    ) -> list[Segment]:
        """Give the stack a segment of the proxy's; what it answers."""
        self.stack.receive(packet(PROXY, GATEWAY, seq, ack, flags, options, data), 1.0)
        return answers(self.stack)


def packet(
    source: Address,
    target: Address,
    seq: int,
    ack: int,
    flags: int,
    options: bytes = b"",
    data: bytes = b"",
) -> bytes:
    head = build_header(
        source.ip, target.ip, source.port, target.port, seq, ack, flags, 65535, options,
        len(data), 0,
    )  # fmt: skip
    return head + data


def answers(stack: Stack, now: float = 1.0) -> list[Segment]:
    return [parse(b"".join(parts)) for parts in stack.poll_transmit(now)]


def syn_options(mss: int = 1460, ts_val: int = -1) -> bytes:
    return SynOptions(mss=mss, wscale=7, sack_permitted=True, ts_val=ts_val).build(b"")


def request() -> bytes:
    client = Client("home", SECRET)
    return client.request(SERVER, WALL + 1, bytes(NONCE_LENGTH))


@pytest.mark.parametrize("flags", [0, SYN | ACK, ACK])
def test_late_message_in_a_segment_that_completes_nothing_does_not_hang_the_gateway(
    flags: int,
) -> None:
    box = Gateway()
    knock = Client("home", SECRET).knock(1000)
    [syn_ack] = box.receive(SYN, 1000, 0, syn_options(ts_val=knock))
    box.receive(flags, 1001, syn_ack.seq + 1, data=request())
    # Only the ACK is the end of a handshake.
    assert box.dialled == ([SERVER] if flags == ACK else [])
    assert len(box.stack.demux) == len(box.dialled)


def test_client_that_is_refused_for_its_mss_leaves_nothing_at_the_gateway() -> None:
    box = Gateway()
    box.receive(SYN, 1000, 0, syn_options(mss=100), request())
    assert box.dialled == []
    assert len(box.stack.demux) == 0
    assert box.relay._owners == {}


def lan_relay(uplinks: int = 2) -> LanRelay:
    config = ProxyConfig(
        LanConfig(("lan0",)),
        tuple(UplinkConfig(f"uplink{i}", f"u{i}", slot=i) for i in range(uplinks)),
        GatewayPeer(GATEWAY.ip, GATEWAY.port, "home", SECRET),
        _tun("198.18.92.0/24"),
        ControlConfig(Path("unused")),
    )
    relay = LanRelay(config, Stack(random.Random(2)), lambda: WALL, 1.0)
    # The gateway is there, whoever is silent.
    relay.watch.suspect = lambda now, fresh=0.0: False  # type: ignore[method-assign]
    return relay


def connect(relay: LanRelay, now: float = 1.0, mss: int = 1460, port: int = 50000) -> list[Segment]:
    client = Address(LAN_CLIENT.ip, port)
    relay.stack.receive(packet(client, SERVER, 7000, 0, SYN, syn_options(mss)), now)
    return answers(relay.stack, now)


def run_until(relay: LanRelay, end: float) -> None:
    """Time passes and nobody answers."""
    stack = relay.stack
    while True:
        due = stack.next_timeout()
        if due is None or due > end:
            return
        stack.handle_timeout(due)
        while (event := stack.next_event()) is not None:
            relay.on_event(event[0], event[1], due)
        stack.poll_transmit(due)


def nothing_left(relay: LanRelay) -> bool:
    return (
        not relay._owners
        and not relay._openings
        and relay._opening == 0
        and not relay.flows
        and len(relay.stack.demux) == 0
    )


def test_lan_client_that_is_refused_for_its_mss_leaves_nothing() -> None:
    relay = lan_relay()
    [rst] = connect(relay, mss=100)
    assert rst.flags & 4
    assert nothing_left(relay)


def test_client_is_told_and_forgotten_when_no_local_port_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relay = lan_relay()

    def none_free(local_ip: bytes, remote: Address) -> Address:
        raise OSError("no free local port")

    monkeypatch.setattr(relay.stack, "open_local_port", none_free)
    relay.stack.receive(packet(LAN_CLIENT, SERVER, 7000, 0, SYN, syn_options()), 1.0)
    assert len(relay.stack.poll_transmit(1.0)) == 1  # an ICMP error
    assert nothing_left(relay)


def test_one_lan_host_cannot_use_up_what_all_may_have_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.relay.lan.MAX_OPENING_PER_HOST", 3)
    relay = lan_relay()
    for port in range(5):
        connect(relay, port=40000 + port)
    assert relay._opening == 3
    assert relay.stack.counters["ListenOverflows"] == 2
    other = Address(bytes((192, 168, 77, 3)), 50000)
    relay.stack.receive(packet(other, SERVER, 7000, 0, SYN, syn_options()), 1.0)
    assert relay._opening == 4
    relay.close(1.0)
    answers(relay.stack)
    assert nothing_left(relay)


def test_silence_while_the_server_is_slow_does_not_make_an_uplink_suspect() -> None:
    relay = lan_relay()
    connect(relay)
    run_until(relay, 1.0 + 3.0)
    assert [uplink.attempts for uplink in relay.uplinks] == [1, 1]
    assert [uplink.suspect_until for uplink in relay.uplinks] == [0.0, 0.0]


def test_uplink_whose_silence_another_one_broke_is_suspect() -> None:
    relay = lan_relay()
    connect(relay)
    run_until(relay, 1.0 + 1.5)
    opening = next(iter(relay._owners.values()))
    late = opening.attempts[1]  # type: ignore[union-attr]
    opening._suspect_earlier(late, 2.5)  # type: ignore[union-attr]
    assert [uplink.suspect_until > 2.5 for uplink in relay.uplinks] == [True, False]


def test_peer_that_accepts_and_stays_mute_is_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    relay = lan_relay(uplinks=1)
    connect(relay)
    [attempt] = next(iter(relay._owners.values())).attempts  # type: ignore[union-attr]
    local = attempt.stream.local
    syn = attempt.stream.initial
    assert syn is not None
    # A transparent proxy in the path: it answers the handshake, without MPTCP or payload.
    relay.stack.receive(packet(GATEWAY, local, 99, syn.iss + 1, SYN | ACK, syn_options()), 1.1)
    run_until(relay, OPENING_TIMEOUT - 1.0)
    assert not nothing_left(relay)
    run_until(relay, OPENING_TIMEOUT + 200.0)
    assert not relay._owners
    assert relay._opening == 0


def test_peer_that_finishes_without_an_answer_is_no_gateway() -> None:
    class Ended:
        syn_ack_payload = b""
        eof = True

        def receive(self, limit: int) -> list[bytes]:
            return []

    stream = Ended()
    health = UplinkHealth("one", "u1", bytes(4))

    def check(reply: bytes) -> object:
        raise AssertionError("there is nothing to check")

    attempt = Attempt(stream, health, check, challenge=b"")  # type: ignore[arg-type]
    answer = attempt.on_event(Event.EOF)
    assert answer is not None
    assert answer.reply is None
