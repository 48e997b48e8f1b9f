"""The home role: TCP from the LAN becomes MPTCP to the gateway.

A LAN client's SYN is answered when the gateway says that the real server answered (RFC 8803 §4.2):
until then its connection is held back, so that a refusal is a RST and an unreachable destination an
ICMP error, as without a proxy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeGuard

from proxy.config import ProxyConfig, UplinkConfig
from proxy.config.proxy import BYTES_PER_MBIT
from proxy.convert.auth import NONCE_LENGTH, Client, Reply
from proxy.engine.stack import Application, Stack
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import Fallback
from proxy.pm.base import factory as path_manager
from proxy.relay.attempt import Attempt, DirectAttempt
from proxy.relay.flow import ByteStream, Flow, FlowNumbers
from proxy.relay.opening import Opening
from proxy.relay.reach import GatewayWatch, Probe
from proxy.relay.rules import RuleBook
from proxy.relay.shared import share_uplinks
from proxy.relay.treatment import Treatment
from proxy.relay.uplink_table import UplinkTable
from proxy.relay.uplinks import HostUplink, UplinkHealth
from proxy.relay.usage import MAX_HOSTS, Meters
from proxy.seg import Segment
from proxy.tcp.connection import TcpConnection
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.address import Address, format_ip
from proxy.wire.icmp import Unreachable

log = logging.getLogger(__name__)

# Conversations that wait for their server, and all that are open: SYN floods from the LAN end here.
MAX_OPENING = 4096
# Of these for one LAN host, so that a scanner does not shut out the others.
MAX_OPENING_PER_HOST = 1024
MAX_FLOWS = 65536


class LanRelay:
    """Owns all conversations of a proxy."""

    def __init__(
        self, config: ProxyConfig, stack: Stack, wall_clock: Callable[[], float], now: float
    ) -> None:
        self.config = config
        self.stack = stack
        self.gateway = Address(config.gateway.address, config.gateway.port)
        self.client = Client(config.gateway.client, config.gateway.secret, config.gateway.service)
        self.table = UplinkTable(config, stack, self._uplink_lost)
        for uplink in config.uplinks:
            self._limit(uplink)
        self.flows: dict[Flow, Treatment] = {}
        self.meters = Meters(MAX_HOSTS)
        self.rules = RuleBook(config.rules)
        self.watch = GatewayWatch(self, now)
        self.wall_clock = wall_clock
        self._owners: dict[ByteStream, Opening | Flow | Probe] = {}
        self._openings: dict[bytes, int] = {}
        self._opening = 0
        self._numbers = FlowNumbers(stack.token_share)
        self._closed_until = 0.0
        self.started = now
        self._share()
        if stack.handover is not None:
            stack.handover.noted["hold-off"] = self._hear_hold_off
        stack.listener = self
        stack.path_manager = path_manager(config.mptcp.get("path_manager", "kernel"))

    @property
    def uplinks(self) -> list[UplinkHealth]:
        """All of them, in the order of the configuration."""
        return self.table.uplinks

    def reconfigure(self, config: ProxyConfig, now: float) -> None:
        """Go by ``config`` from now on; what is open stays open."""
        before = self.config
        peer, old = config.gateway, before.gateway
        self.rules.replace(config.rules)
        self.config = config
        self.gateway = Address(peer.address, peer.port)
        if (peer.client, peer.secret, peer.service) != (old.client, old.secret, old.service):
            offset = self.client.clock_offset
            self.client = Client(peer.client, peer.secret, peer.service)
            self.client.clock_offset = offset
        self.table.reconfigure(config, now)
        limits = {uplink.name: uplink.limit_up for uplink in before.uplinks}
        for uplink in config.uplinks:
            if uplink.limit_up != limits.get(uplink.name, 0.0):
                self._limit(uplink)
        self._share()
        if replace(peer, when_unreachable="") != replace(old, when_unreachable=""):
            self.watch.reset(now)

    def follow(self, host: Sequence[HostUplink], now: float) -> None:
        """The host's interfaces, addresses or routes are such now."""
        self.table.follow(host, now)
        self.watch.start()

    def lose_host(self, ip: bytes, now: float) -> None:
        """A LAN host is gone for good, and cannot say so: its conversations end."""
        for flow in list(self.flows):
            if isinstance(flow.near, TcpConnection) and flow.near.remote.ip == ip:
                flow.abort(now)

    # -- Listener -------------------------------------------------------------------------------

    def on_syn(self, syn: Segment, now: float) -> None:
        """A LAN client opens a connection. One that offers MPTCP itself gets plain TCP."""
        if now < self._closed_until:
            self.stack.counters.add("ConvertHeldOff")
            return
        host = self._openings.get(syn.src, 0)
        part = self.stack.token_share.part
        if (
            self._opening >= part(MAX_OPENING)
            or host >= part(MAX_OPENING_PER_HOST)
            or len(self.flows) >= part(MAX_FLOWS)
        ):
            self.stack.counters.add("ListenOverflows")
            return
        lan = self.stack.open_passive(syn, now, mptcp=False)
        assert isinstance(lan, TcpConnection)
        if lan.state is State.CLOSED:
            return  # refused already, say for its MSS
        opening = Opening(self, syn, lan, now)
        self._owners[lan] = opening
        self._openings[syn.src] = host + 1
        self._opening += 1
        opening.begin(now)

    def on_stray(self, segment: Segment, now: float) -> bool:
        """A segment of a connection that does not exist (any more) gets a RST: after a restart
        of the proxy its clients and the gateway learn at once that what they had is gone."""
        return True

    # -- Relay ----------------------------------------------------------------------------------

    def on_event(self, stream: Application, kind: Event, now: float) -> None:
        """Something happened to a connection."""
        if isinstance(stream, MptcpConnection):
            self._note_uplinks(stream, kind, now)
        owner = self._owners.get(stream)
        if isinstance(owner, Flow) and kind is Event.FALLBACK and self.refuses(owner.far):
            log.warning("flow %d ended: %s", owner.id, owner.far.fallback_reason)
            owner.abort(now)
        elif owner is not None:
            owner.on_event(stream, kind, now)

    def refuses(self, stream: ByteStream) -> TypeGuard[MptcpConnection]:
        """Whether it has fallen back and ``gateway.require_mptcp`` forbids that (RFC 8684 §5)."""
        if (
            isinstance(stream, MptcpConnection)
            and stream.fallback is not Fallback.NONE
            and stream.remote == self.gateway
            and self.config.gateway.require_mptcp
        ):
            self.stack.counters.add("FallbackRefused")
            return True
        return False

    def close(self, now: float) -> None:
        """Reset everything that is open."""
        for owner in set(self._owners.values()):
            if isinstance(owner, Flow):
                owner.abort(now)
            elif isinstance(owner, Probe):
                owner.stream.abort(now)
            else:
                self.abandon(owner, now)
                owner.lan.abort(now)

    # -- for GatewayWatch -----------------------------------------------------------------------

    def tell(self, name: str, attributes: dict[str, object]) -> None:
        """Publish an event."""
        self.table.tell(name, attributes)

    @property
    def waiting(self) -> bool:
        """Whether a conversation waits for its server."""
        return self._opening > 0

    def own(self, stream: TcpConnection, probe: Probe) -> None:
        """Events of ``stream`` are for ``probe``."""
        self._owners[stream] = probe

    def on_verdict(self, now: float) -> None:
        """The gateway was asked whether it is there; conversations may wait for that."""
        for owner in list(dict.fromkeys(self._owners.values())):
            if isinstance(owner, Opening):
                owner.on_verdict(now)

    # -- for Opening ----------------------------------------------------------------------------

    def attempt(
        self, opening: Opening, uplink: UplinkHealth, now: float
    ) -> Attempt | DirectAttempt | None:
        """Open a connection to where ``opening`` goes, on ``uplink``.

        None if that uplink has no port left towards there.
        """
        try:
            if opening.direct:
                return self._attempt_directly(opening, uplink, now)
            return self._attempt_by_gateway(opening, uplink, now)
        except OSError as error:
            log.warning("uplink %s: %s", uplink.name, error)
            return None

    def _attempt_directly(
        self, opening: Opening, uplink: UplinkHealth, now: float
    ) -> DirectAttempt:
        server = opening.destination
        local_ip = uplink.ip(len(server.ip))
        stream = self.stack.connect_mptcp(local_ip, server, now, b"", uplink.name)
        self._opened(opening, stream)
        return DirectAttempt(stream, uplink)

    def _opened(self, opening: Opening, stream: MptcpConnection) -> None:
        self._owners[stream] = opening
        if opening.rule is not None and opening.rule.uplinks:
            stream.use_uplinks(frozenset(opening.rule.uplinks))

    def _attempt_by_gateway(self, opening: Opening, uplink: UplinkHealth, now: float) -> Attempt:
        """With the request in the SYN."""
        challenge = uplink.challenge_at(now)
        request = self.client.request(
            opening.destination,
            self.wall_clock(),
            self.stack.rng.randbytes(NONCE_LENGTH),
            challenge,
            weight=uplink.weight,
        )
        uplink.attempts += 1
        early = request if uplink.takes_syn_data(now) else b""
        stream = self.stack.connect_mptcp(
            uplink.local_ip, self.gateway, now, early, uplink.name, self.client.knock
        )
        if not early:
            stream.send(request)
        self._opened(opening, stream)

        def check(reply: bytes) -> Reply:
            return self.client.check_reply(request, reply, self.wall_clock())

        return Attempt(stream, uplink, check, challenge)

    def join(
        self, opening: Opening, attempt: Attempt | DirectAttempt, rest: bytes, now: float
    ) -> None:
        """The server answered: answer the client and let bytes flow."""
        self._leave(opening, now, keep=attempt)
        if not opening.told:
            opening.lan.accept(now)
        flow = Flow(self._numbers.take(), opening.lan, attempt.stream, self._ended, now)
        self._owners[opening.lan] = flow
        self._owners[attempt.stream] = flow
        via = "direct" if opening.direct else "gateway"
        treatment = self.flows[flow] = Treatment(opening.rule, via, self.table.metered)
        treatment.begin(flow)
        self.meters.begin(flow, format_ip(opening.syn.src))
        flow.on_mark = treatment.on_mark
        for chunk in opening.early:
            attempt.stream.send(chunk)
            flow.bytes_out += len(chunk)
        if rest:
            opening.lan.send(rest)
            flow.bytes_in += len(rest)
        flow.start()

    def refuse(self, opening: Opening, now: float) -> None:
        """Tell the client that its connection was refused."""
        self._leave(opening, now)
        if opening.told:
            opening.lan.abort(now)
        else:
            opening.lan.refuse(now)

    def unreachable(self, opening: Opening, why: Unreachable, now: float) -> None:
        """Tell the client that its destination cannot be reached."""
        self._leave(opening, now)
        if opening.told:
            opening.lan.abort(now)
            return
        self.stack.answer_unreachable(opening.syn, why)
        opening.lan.discard(now)

    def hold_off(self, opening: Opening, delay: float, now: float) -> None:
        """The gateway is full: ask it nothing for ``delay`` seconds (RFC 8803 §6.2.8).

        The client hears nothing. Its kernel repeats the SYN, which is a new beginning by then.
        """
        log.warning("the gateway has no room: no new connections for %.0f s", delay)
        self._closed_until = max(self._closed_until, now + delay)
        if self.stack.handover is not None:
            self.stack.handover.note("hold-off", until=self._closed_until)
        self._leave(opening, now)
        opening.lan.discard(now)

    def abandon(self, opening: Opening, now: float) -> None:
        """The client went away before there was an answer."""
        self._leave(opening, now)

    def disown(self, stream: ByteStream) -> None:
        """No event of ``stream`` is of interest any more."""
        self._owners.pop(stream, None)

    # -- private --------------------------------------------------------------------------------

    def _limit(self, uplink: UplinkConfig) -> None:
        rate = uplink.limit_up * BYTES_PER_MBIT / self.config.workers
        self.stack.set_limit(uplink.name, rate)

    def _share(self) -> None:
        if self.stack.handover is not None:
            share_uplinks(lambda: self.uplinks, self.client, self.stack.handover)

    def _leave(
        self, opening: Opening, now: float, keep: Attempt | DirectAttempt | None = None
    ) -> None:
        opening.give_up()
        opening.give_up_at = None
        self.stack.forget(opening)
        self._opening -= 1
        host = opening.syn.src
        if self._openings[host] > 1:
            self._openings[host] -= 1
        else:
            del self._openings[host]
        self.disown(opening.lan)
        for attempt in opening.attempts:
            if attempt is not keep:
                self.disown(attempt.stream)
                attempt.stream.abort(now)
        opening.attempts = []

    def _ended(self, flow: Flow) -> None:
        self.disown(flow.near)
        self.disown(flow.far)
        self.flows.pop(flow, None)
        self.meters.end(flow)

    def _hear_hold_off(self, fields: dict[str, float]) -> None:
        self._closed_until = max(self._closed_until, fields["until"])

    def _uplink_lost(self, uplink: UplinkHealth, ip: bytes, now: float) -> None:
        for owner in list(self._owners.values()):
            if isinstance(owner, Opening):
                owner.uplink_lost(uplink, now)

    def _note_uplinks(self, connection: MptcpConnection, kind: Event, now: float) -> None:
        if kind is not Event.SUBFLOW_ESTABLISHED:
            return
        owner = self._owners.get(connection)
        if isinstance(owner, Flow):
            self.flows[owner].on_subflow(owner, now)
        if connection.remote != self.gateway:
            return
        for subflow in connection.subflows:
            for uplink in self.uplinks:
                if subflow.uplink == uplink.name and subflow.srtt and not subflow.stale:
                    uplink.answered(subflow.min_rtt)
                    if subflow.fully_established and now - subflow.last_received < 1.0:
                        self.watch.answered(uplink, now)
