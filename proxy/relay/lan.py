"""The home role: TCP from the LAN becomes MPTCP to the gateway.

A LAN client's SYN is answered when the gateway says that the real server answered (RFC 8803 §4.2):
until then its connection is held back, so that a refusal is a RST and an unreachable destination an
ICMP error, as without a proxy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeGuard

from proxy.config import ProxyConfig
from proxy.config.proxy import BYTES_PER_MBIT
from proxy.convert.auth import NONCE_LENGTH, Client, Reply
from proxy.convert.tlv import Error, ErrorCode
from proxy.engine.stack import Application, Stack
from proxy.mptcp.connection import MptcpConnection
from proxy.mptcp.notes import Fallback
from proxy.pm.base import Endpoint, uplink_id
from proxy.pm.base import factory as path_manager
from proxy.relay.attempt import Attempt
from proxy.relay.flow import ByteStream, Flow, FlowNumbers
from proxy.relay.hotplug import Hotplug
from proxy.relay.shared import share_uplinks
from proxy.relay.uplinks import HostUplink, UplinkHealth, preference
from proxy.seg import Segment
from proxy.tcp.connection import TcpConnection
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.address import Address
from proxy.wire.icmp import Unreachable

log = logging.getLogger(__name__)

# A SYN without answer for this long is tried on the next uplink as well (seconds): longer than
# most servers take to accept, far shorter than a person waits.
HEDGE_DELAY = 1.0
# Nobody waits longer than this for a connection (seconds): the client's own kernel and the
# gateway's have given up by then. What accepts our SYN and then stays mute ends here.
OPENING_TIMEOUT = 180.0
# Conversations that wait for their server, and all that are open: SYN floods from the LAN end here.
MAX_OPENING = 4096
# Of these for one LAN host, so that a scanner does not shut out the others.
MAX_OPENING_PER_HOST = 1024
MAX_FLOWS = 65536
# By the ICMP code that the gateway names (RFC 8803 §6.2.8, error 97); others count as the host's.
_ICMP_CODES = {why.value[0]: why for why in Unreachable}


class Opening:
    """A LAN client that waits for its server; the owner of its attempts to reach it."""

    __slots__ = ("attempts", "give_up_at", "hedge_at", "lan", "relay", "remaining", "syn")

    def __init__(
        self,
        relay: LanRelay,
        syn: Segment,
        lan: TcpConnection,
        uplinks: list[UplinkHealth],
        now: float,
    ) -> None:
        self.relay = relay
        self.syn = syn
        self.lan = lan
        self.remaining = uplinks
        self.attempts: list[Attempt] = []
        self.hedge_at: float | None = None
        self.give_up_at: float | None = now + OPENING_TIMEOUT

    @property
    def destination(self) -> Address:
        """Where the client wants to go."""
        return self.lan.local

    def try_next(self, now: float) -> bool:
        """Start an attempt on the next uplink that can; False when none is left."""
        while self.remaining:
            attempt = self.relay.attempt(self, self.remaining.pop(0), now)
            if attempt is None:
                continue
            self.attempts.append(attempt)
            self.hedge_at = now + HEDGE_DELAY if self.remaining else None
            self.relay.stack.arm(self)
            return True
        return False

    def uplink_lost(self, uplink: UplinkHealth, now: float) -> None:
        """What was tried on it is in vain."""
        for attempt in [attempt for attempt in self.attempts if attempt.uplink is uplink]:
            attempt.stream.abort(now)
            self._attempt_failed(attempt, now)

    # -- timer ----------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """When the next uplink gets its chance, or all of them had theirs."""
        return self.give_up_at if self.hedge_at is None else self.hedge_at

    def on_timeout(self, now: float) -> None:
        """The uplinks tried so far stayed silent: the server may be slow, or the path dead."""
        if self.give_up_at is not None and now >= self.give_up_at:
            self.relay.unreachable(self, Unreachable.HOST, now)
        elif self.hedge_at is not None and now >= self.hedge_at:
            self.hedge_at = None
            self.try_next(now)

    def poll(self, now: float) -> None:
        """Nothing to send by itself."""

    # -- events ---------------------------------------------------------------------------------

    def on_event(self, stream: ByteStream, kind: Event, now: float) -> None:
        """Something happened to the client's connection or to an attempt."""
        if stream is self.lan:
            if kind in (Event.RESET, Event.TIMED_OUT, Event.UNREACHABLE, Event.CLOSED):
                self.relay.abandon(self, now)
            return
        for attempt in self.attempts:
            if attempt.stream is stream:
                self._on_attempt(attempt, kind, now)
                return

    def _on_attempt(self, attempt: Attempt, kind: Event, now: float) -> None:
        if kind in (Event.RESET, Event.TIMED_OUT, Event.UNREACHABLE, Event.CLOSED):
            self._attempt_failed(attempt, now)
            return
        answer = attempt.on_event(kind)
        if answer is None:
            return
        if answer.reply is None:
            log.warning("uplink %s: answer without the gateway's proof", attempt.uplink.name)
            attempt.stream.abort(now)
            self._attempt_failed(attempt, now)
            return
        if self.relay.refuses(attempt.stream):
            log.warning("uplink %s: %s", attempt.uplink.name, attempt.stream.fallback_reason)
            attempt.stream.abort(now)
            self._attempt_failed(attempt, now)
            return
        attempt.uplink.answered(attempt.rtt())
        self._suspect_earlier(attempt, now)
        if attempt.syn_data_eaten():
            attempt.uplink.ate_syn_data(now)
        if answer.reply.challenge:
            self._repeat(attempt, answer.reply.challenge, now)
        elif answer.reply.error is not None:
            self._refused(answer.reply.error, now)
        else:
            self.relay.join(self, attempt, answer.rest, now)

    def _suspect_earlier(self, answered: Attempt, now: float) -> None:
        """What was tried before and is silent still is slower by ``HEDGE_DELAY`` or dead. That the
        gateway is silent alone would say nothing: it answers when the server does."""
        for attempt in self.attempts:
            if attempt is answered:
                return
            attempt.uplink.unanswered(now)

    def _attempt_failed(self, attempt: Attempt, now: float) -> None:
        self.attempts.remove(attempt)
        self.relay.disown(attempt.stream)
        attempt.uplink.unanswered(now)
        if not self.try_next(now) and not self.attempts:
            self.relay.unreachable(self, Unreachable.HOST, now)

    def _repeat(self, attempt: Attempt, challenge: bytes, now: float) -> None:
        """Ask again with the gateway's challenge: our clock is off, or the gateway is new."""
        attempt.stream.abort(now)
        if attempt.challenged:
            self._attempt_failed(attempt, now)  # once is enough: something else is wrong
            return
        self.attempts.remove(attempt)
        self.relay.disown(attempt.stream)
        attempt.uplink.challenged(challenge, now)
        self.remaining.insert(0, attempt.uplink)
        self.try_next(now)

    def _refused(self, error: Error, now: float) -> None:
        """The gateway says why there is no connection: the client is told the same."""
        log.debug("%s: the gateway answers %s", self.destination, error)
        if error.code == ErrorCode.DESTINATION_UNREACHABLE:
            code = error.detail[0] if error.detail else -1
            self.relay.unreachable(self, _ICMP_CODES.get(code, Unreachable.HOST), now)
        elif error.code == ErrorCode.NOT_AUTHORIZED:
            self.relay.unreachable(self, Unreachable.PROHIBITED, now)
        elif error.code == ErrorCode.NETWORK_FAILURE:
            self.relay.unreachable(self, Unreachable.NETWORK, now)
        elif error.code == ErrorCode.RESOURCE_EXCEEDED:
            self.relay.hold_off(self, error.delay, now)
        else:
            self.relay.refuse(self, now)


class LanRelay:
    """Owns all conversations of a proxy."""

    def __init__(
        self, config: ProxyConfig, stack: Stack, wall_clock: Callable[[], float], now: float
    ) -> None:
        self.config = config
        self.stack = stack
        self.gateway = Address(config.gateway.address, config.gateway.port)
        self.client = Client(config.gateway.client, config.gateway.secret, config.gateway.service)
        self.uplinks = uplink_health(config)
        for uplink in config.uplinks:
            stack.set_limit(uplink.name, uplink.limit_up * BYTES_PER_MBIT / config.workers)
        self.endpoints = {uplink.local_ip: _endpoint(uplink) for uplink in self.uplinks}
        self.hotplug = Hotplug(stack, lambda: list(self.endpoints), self._uplink_lost)
        self.tell: Callable[[str, dict[str, object]], None] = lambda name, attributes: None
        self.flows: dict[Flow, None] = {}
        self._wall_clock = wall_clock
        self._owners: dict[ByteStream, Opening | Flow] = {}
        self._openings: dict[bytes, int] = {}
        self._opening = 0
        self._numbers = FlowNumbers(stack.token_share)
        self._closed_until = 0.0
        self.started = now
        if stack.handover is not None:
            share_uplinks(lambda: self.uplinks, self.client, stack.handover)
            stack.handover.noted["hold-off"] = self._hear_hold_off
        stack.listener = self
        stack.path_manager = path_manager(config.mptcp.get("path_manager", "kernel"))
        stack.local_addresses = list(self.endpoints.values())

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
        length = len(self.gateway.ip)
        usable = [uplink for uplink in self.uplinks if uplink.usable(length)]
        opening = Opening(self, syn, lan, preference(usable, now), now)
        self._owners[lan] = opening
        self._openings[syn.src] = host + 1
        self._opening += 1
        if not opening.try_next(now):
            self.unreachable(opening, Unreachable.HOST, now)

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

    def follow(self, host: Sequence[HostUplink], now: float) -> None:
        """The host's interfaces, addresses or routes changed."""
        for uplink in self.uplinks:
            for state in host:
                if state.name == uplink.name and self.hotplug.follow(uplink, state, now):
                    self._tell_uplink(uplink)

    def refuses(self, stream: ByteStream) -> TypeGuard[MptcpConnection]:
        """Whether it has fallen back and ``gateway.require_mptcp`` forbids that (RFC 8684 §5)."""
        plain = isinstance(stream, MptcpConnection) and stream.fallback is not Fallback.NONE
        if plain and self.config.gateway.require_mptcp:
            self.stack.counters.add("FallbackRefused")
            return True
        return False

    def close(self, now: float) -> None:
        """Reset everything that is open."""
        for owner in set(self._owners.values()):
            if isinstance(owner, Flow):
                owner.abort(now)
            else:
                self.abandon(owner, now)
                owner.lan.abort(now)

    # -- for Opening ----------------------------------------------------------------------------

    def attempt(self, opening: Opening, uplink: UplinkHealth, now: float) -> Attempt | None:
        """Open a connection to the gateway on ``uplink``, with the request in its SYN.

        None if that uplink has no port left towards the gateway.
        """
        challenge = uplink.challenge_at(now)
        request = self.client.request(
            opening.destination,
            self._wall_clock(),
            self.stack.rng.randbytes(NONCE_LENGTH),
            challenge,
            weight=uplink.weight,
        )
        uplink.attempts += 1
        early = request if uplink.takes_syn_data(now) else b""
        try:
            stream = self.stack.connect_mptcp(
                uplink.local_ip, self.gateway, now, early, uplink.name, self.client.knock
            )
        except OSError as error:
            log.warning("uplink %s: %s", uplink.name, error)
            return None
        if not early:
            stream.send(request)
        self._owners[stream] = opening

        def check(reply: bytes) -> Reply:
            return self.client.check_reply(request, reply, self._wall_clock())

        return Attempt(stream, uplink, check, challenged=bool(challenge))

    def join(self, opening: Opening, attempt: Attempt, rest: bytes, now: float) -> None:
        """The server answered: answer the client and let bytes flow."""
        self._leave(opening, now, keep=attempt)
        opening.lan.accept(now)
        flow = Flow(self._numbers.take(), opening.lan, attempt.stream, self._ended, now)
        self._owners[opening.lan] = flow
        self._owners[attempt.stream] = flow
        self.flows[flow] = None
        if rest:
            opening.lan.send(rest)
            flow.bytes_in += len(rest)
        flow.start()

    def refuse(self, opening: Opening, now: float) -> None:
        """Tell the client that its connection was refused."""
        self._leave(opening, now)
        opening.lan.refuse(now)

    def unreachable(self, opening: Opening, why: Unreachable, now: float) -> None:
        """Tell the client that its destination cannot be reached."""
        self._leave(opening, now)
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

    def _leave(self, opening: Opening, now: float, keep: Attempt | None = None) -> None:
        opening.hedge_at = opening.give_up_at = None
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

    def _hear_hold_off(self, fields: dict[str, float]) -> None:
        self._closed_until = max(self._closed_until, fields["until"])

    def _uplink_lost(self, uplink: UplinkHealth, ip: bytes, now: float) -> None:
        for owner in list(self._owners.values()):
            if isinstance(owner, Opening):
                owner.uplink_lost(uplink, now)

    def _tell_uplink(self, uplink: UplinkHealth) -> None:
        attributes: dict[str, object] = {"uplink": uplink.name, "interface": uplink.interface}
        if uplink.waits_for:
            log.warning("uplink %s: %s", uplink.name, uplink.waits_for)
            self.tell("uplink-down", {**attributes, "waits-for": uplink.waits_for})
        else:
            log.info("uplink %s: %s can be used", uplink.name, uplink.interface)
            self.tell("uplink-up", attributes)

    def _note_uplinks(self, connection: MptcpConnection, kind: Event, now: float) -> None:
        if kind is not Event.SUBFLOW_ESTABLISHED:
            return
        for subflow in connection.subflows:
            for uplink in self.uplinks:
                if subflow.uplink == uplink.name and subflow.srtt and not subflow.stale:
                    uplink.answered(subflow.min_rtt)


def uplink_health(config: ProxyConfig) -> list[UplinkHealth]:
    """One entry per uplink, with its engine addresses; all have a way out until told otherwise."""
    v6 = len(config.gateway.address) == 16
    found = []
    for uplink in config.uplinks:
        ips = [
            prefix[10 + uplink.slot].packed for prefix in (config.tun.prefix4, config.tun.prefix6)
        ]
        found.append(
            UplinkHealth(
                uplink.name,
                uplink.interface,
                local_ip=ips[v6],
                other_ip=ips[not v6],
                slot=uplink.slot,
                backup=uplink.backup,
                weight=uplink.weight,
                ways=frozenset(ips),
            )
        )
    return found


def _endpoint(uplink: UplinkHealth) -> Endpoint:
    return Endpoint(
        uplink.local_ip,
        uplink_id(uplink.slot, uplink.weight),
        uplink.name,
        subflow=True,
        backup=uplink.backup,
        weight=uplink.weight,
    )
