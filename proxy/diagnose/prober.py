"""An engine for a while, beside a running proxy or without one, that talks with the gateway.

It has its own TUN device, addresses, routing tables and nft table, and sends on each uplink as the
proxy does: what it sees is what the proxy's connections meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from proxy.config import LanConfig, ProxyConfig, TunConfig
from proxy.config.proxy import BYTES_PER_MBIT
from proxy.convert.auth import NONCE_LENGTH, Client, Reply
from proxy.convert.tlv import Error, ErrorCode
from proxy.engine.runtime import Runtime
from proxy.engine.stack import Application, Stack
from proxy.mptcp.config import MptcpConfig
from proxy.net.setup import ProbeSetup
from proxy.net.uplinks import Uplink
from proxy.pm.base import factory as path_manager
from proxy.relay.attempt import Answer, Attempt
from proxy.relay.trials import TrialPort
from proxy.relay.uplink_table import endpoint_of, uplinks_of
from proxy.relay.uplinks import UplinkHealth
from proxy.tcp.config import TcpConfig
from proxy.tcp.events import Event
from proxy.tun.device import TunDevice
from proxy.wire.address import Address

TUN = "mptcp-probe"
"""The device while a proxy runs; without one it has the name of the proxy's, which the rules of a
firewall may know."""


def device_name(config: ProxyConfig, running: bool) -> str:
    """What the device is to be called while the proxy of ``config`` is ``running``, or not."""
    return TUN if running else config.tun.name


_PREFIXES = (
    (IPv4Network("198.18.94.0/24"), IPv6Network("fd6d:7074:6372::/64")),
    (IPv4Network("100.127.254.0/24"), IPv6Network("fd70:726f:6265::/64")),
)
_LOOK_AGAIN = 0.05  # seconds: not everything that is waited for raises an event
_ENDINGS = (Event.RESET, Event.UNREACHABLE, Event.TIMED_OUT, Event.CLOSED)


class Verdict(enum.Enum):
    """What became of a request."""

    SERVED = "served"
    DENIED = "denied"
    SILENT = "no answer"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    FORGED = "somebody else answers"


class Talk:
    """One conversation with the gateway on one uplink.

    ``ate_syn_data``: the path dropped what the SYN carried. ``rtt``: least one until the answer
    came, in seconds; 0 if unknown.
    """

    def __init__(self, prober: Prober, attempt: Attempt) -> None:
        self.stream = attempt.stream
        self.attempt = attempt
        self.answer: Answer | None = None
        self.ended: Event | None = None
        self.ate_syn_data = False
        self.rtt = 0.0
        self._prober = prober
        self._changed = asyncio.Event()

    def on_event(self, kind: Event) -> None:
        """Something happened to the connection."""
        if self.answer is None:
            self._listen(kind)
        if kind in _ENDINGS:
            self.ended = kind
        self._changed.set()

    def _listen(self, kind: Event) -> None:
        self.answer = self.attempt.on_event(kind)
        if self.answer is not None:
            # Now: a connection that is closed has forgotten its subflows.
            self.ate_syn_data = self.attempt.syn_data_eaten()
            rtt = self.attempt.rtt()
            self.rtt = rtt if rtt < math.inf else 0.0

    @property
    def reply(self) -> Reply | None:
        """The gateway's proven answer."""
        return None if self.answer is None else self.answer.reply

    @property
    def error(self) -> Error | None:
        """What the gateway said no with."""
        return None if self.reply is None else self.reply.error

    @property
    def verdict(self) -> Verdict:
        """What became of the request, as far as is known."""
        if self.answer is not None:
            if self.answer.reply is None:
                return Verdict.FORGED
            return Verdict.SERVED if self.error is None else Verdict.DENIED
        if self.ended is Event.RESET:
            return Verdict.REFUSED
        return Verdict.UNREACHABLE if self.ended is Event.UNREACHABLE else Verdict.SILENT

    @property
    def unserved(self) -> bool:
        """Whether the gateway has no trials for us."""
        return self.error is not None and self.error.code == ErrorCode.NOT_AUTHORIZED

    def is_decided(self) -> bool:
        """Whether there is an answer, or none is to come."""
        return self.answer is not None or self.ended is not None

    async def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Wait for ``condition``; False if it is not true after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._changed.clear()
            # Not wait_for(): before Python 3.12 it loses a cancellation that comes together with
            # the event, and then Ctrl-C would do nothing.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LOOK_AGAIN)):
                    await self._changed.wait()
        return True

    def send(self, chunk: bytes | memoryview) -> None:
        """Queue a chunk, and write what may be written."""
        self.stream.send(chunk)
        self._prober.runtime.turn()

    def receive(self, limit: int = 1 << 20) -> bytes:
        """What has come, up to ``limit`` bytes."""
        rest = b""
        if self.answer is not None and self.answer.rest:
            rest, self.answer = self.answer.rest, Answer(self.answer.reply)
        data = b"".join((rest, *self.stream.receive(limit)))
        self._prober.runtime.turn()
        return data

    def take(self) -> int:
        """Drop what has come; how many bytes that was."""
        count = len(self.receive(0))
        while chunks := self.stream.receive(1 << 20):
            count += sum(map(len, chunks))
        self._prober.runtime.turn()
        return count

    def close(self) -> None:
        """Reset it."""
        self._prober.drop(self)


class Prober:
    """Talks with the gateway; the relay of its runtime.

    ``uplinks`` are all of the configuration, as the host has them.
    """

    def __init__(self, config: ProxyConfig, runtime: Runtime, uplinks: tuple[Uplink, ...]) -> None:
        self.config = config
        self.runtime = runtime
        self.stack = runtime.stack
        self.uplinks = uplinks
        self.gateway = Address(config.gateway.address, config.gateway.port)
        peer = config.gateway
        self.client = Client(peer.client, peer.secret, peer.service)
        self._settings = self.stack.mptcp_config
        self._talks: dict[Application, Talk] = {}
        self._health = {health.name: health for health in uplinks_of(config)}
        self.stack.local_addresses = [
            endpoint_of(self._health[uplink.name]) for uplink in uplinks if self.local_ip(uplink)
        ]
        for settings in config.uplinks:
            self.stack.set_limit(settings.name, settings.limit_up * BYTES_PER_MBIT)

    def local_ip(self, uplink: Uplink) -> bytes:
        """The engine's address towards the gateway; empty if there is no way out."""
        return (uplink.addr6 if self.gateway.is_v6 else uplink.addr4) or b""

    async def ask(
        self,
        uplink: Uplink,
        port: TrialPort | None,
        *,
        early: bool = True,
        patience: float = 4.0,
        challenge: bytes = b"",
        bond: frozenset[str] = frozenset(),
        **settings: Any,
    ) -> Talk:
        """Ask the gateway for a service (None: only for an answer) and wait for what it says.

        ``early``: in the SYN, else after the handshake. ``settings``: of ``MptcpConfig``. With a
        ``challenge`` of one's own making the gateway tells the time. ``bond``: names of uplinks
        that the connection may be joined on.
        """
        health = self._health[uplink.name]
        while True:
            answering = challenge or health.challenge_at(time.monotonic())
            talk = self._connect(health, port, early, answering, settings)
            talk.stream.use_uplinks(bond)
            self.runtime.turn()
            await talk.until(talk.is_decided, patience)
            wanted = b"" if talk.reply is None else talk.reply.challenge
            if not wanted or answering:
                return talk
            health.challenged(wanted, time.monotonic())
            talk.close()

    def on_event(self, stream: Application, kind: Event, now: float) -> None:
        """See ``Runtime``."""
        talk = self._talks.get(stream)
        if talk is not None:
            talk.on_event(kind)

    def drop(self, talk: Talk) -> None:
        """End a talk."""
        if self._talks.pop(talk.stream, None) is not None:
            talk.stream.abort(time.monotonic())
            self.runtime.turn()

    def close(self, now: float) -> None:
        """End all talks."""
        for talk in list(self._talks.values()):
            self.drop(talk)

    def _connect(
        self,
        health: UplinkHealth,
        port: TrialPort | None,
        early: bool,
        challenge: bytes,
        settings: dict[str, Any],
    ) -> Talk:
        stack = self.stack
        request = self.client.request(
            None if port is None else port.address,
            time.time(),
            stack.rng.randbytes(NONCE_LENGTH),
            challenge,
            weight=health.weight,
        )
        stack.mptcp_config = replace(self._settings, **settings)
        stream = stack.connect_mptcp(
            health.local_ip,
            self.gateway,
            time.monotonic(),
            request if early else b"",
            health.name,
            self.client.knock,
        )
        if not early:
            stream.send(request)

        def check(reply: bytes) -> Reply:
            return self.client.check_reply(request, reply, time.time())

        talk = self._talks[stream] = Talk(self, Attempt(stream, health, check, challenge))
        return talk


@contextlib.asynccontextmanager
async def probing(config: ProxyConfig, name: str) -> AsyncIterator[Prober]:
    """A prober on a TUN device called ``name``; all of it is taken back at the end.

    Raises ConfigError or DeviceError when the host cannot be set up.
    """
    settings = replace(config, lan=LanConfig(()), tun=_tun(config, name), rules=(), workers=1)
    setup = ProbeSetup(settings)
    setup.clean_stale()
    try:
        device = TunDevice.open(name, mtu=config.tun.mtu, offload=config.tun.offload)
        try:
            setup.apply()
            stack = Stack(random.SystemRandom(), TcpConfig(**config.tcp), _mptcp(config))
            stack.path_manager = path_manager("kernel")
            runtime = Runtime(asyncio.get_running_loop(), device, stack)
            prober = Prober(settings, runtime, setup.uplinks)
            runtime.start(prober)
            try:
                yield prober
            finally:
                runtime.stop()
        finally:
            device.close()
    finally:
        setup.undo()


def _tun(config: ProxyConfig, name: str) -> TunConfig:
    own = config.tun
    prefix4, prefix6 = next(
        pair
        for pair in _PREFIXES
        if not pair[0].overlaps(own.prefix4) and not pair[1].overlaps(own.prefix6)
    )
    return replace(own, name=name, prefix4=prefix4, prefix6=prefix6)


def _mptcp(config: ProxyConfig) -> MptcpConfig:
    """As the operator has it, but for what would keep a path from being tried."""
    settings = {
        **config.mptcp,
        "enabled": True,
        "add_addr_timeout": MptcpConfig.add_addr_timeout,
        "blackhole_timeout": 0.0,
        "syn_retrans_before_tcp_fallback": 1,
        "subflows": len(config.uplinks),
    }
    return MptcpConfig(**settings)
