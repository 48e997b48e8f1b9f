"""A LAN client whose server has not answered yet, and the attempts to reach that server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from proxy.config import RuleConfig, Via
from proxy.convert.tlv import Error, ErrorCode
from proxy.relay.attempt import Attempt, DirectAttempt
from proxy.relay.flow import ByteStream
from proxy.relay.uplinks import UplinkHealth
from proxy.seg import Segment
from proxy.tcp.connection import TcpConnection
from proxy.tcp.events import Event
from proxy.wire.address import Address
from proxy.wire.icmp import Unreachable
from proxy.wire.tls import MAX_HELLO, server_name

if TYPE_CHECKING:
    from proxy.relay.lan import LanRelay

log = logging.getLogger(__name__)

# A SYN without answer for this long is tried on the next uplink as well (seconds): longer than
# most servers take to accept, far shorter than a person waits.
HEDGE_DELAY = 1.0
# Nobody waits longer than this for a connection (seconds): the client's own kernel and the
# gateway's have given up by then. What accepts our SYN and then stays mute ends here.
OPENING_TIMEOUT = 180.0
# A conversation answers so many challenges at most, on all uplinks together.
MAX_REPEATS = 4
# After so long (seconds) without an answer the gateway is asked whether it is there, and again.
SUSPECT_DELAY = 0.25
SUSPECT_PAUSE = 0.5
# How long the server name of a client is waited for (seconds): it may be one that lets the server
# speak first.
SNI_TIMEOUT = 2.0
# By the ICMP code that the gateway names (RFC 8803 §6.2.8, error 97); others count as the host's.
_ICMP_CODES = {why.value[0]: why for why in Unreachable}


class Opening:
    """A LAN client that waits for its server; the owner of its attempts to reach it.

    ``rule`` is the one that it falls under; ``direct``: to the server itself, not by the gateway.
    ``told``: the client was answered already, to hear the server name; ``early`` is what it said.
    """

    __slots__ = (
        "attempts",
        "direct",
        "early",
        "give_up_at",
        "hedge_at",
        "lan",
        "listen_until",
        "relay",
        "remaining",
        "repeats",
        "rule",
        "suspect_at",
        "syn",
        "told",
    )

    def __init__(self, relay: LanRelay, syn: Segment, lan: TcpConnection, now: float) -> None:
        self.relay = relay
        self.syn = syn
        self.lan = lan
        self.rule: RuleConfig | None = None
        self.direct = False
        self.told = False
        self.early: list[bytes | memoryview] = []
        self.remaining: list[UplinkHealth] = []
        self.repeats = 0
        self.attempts: list[Attempt | DirectAttempt] = []
        self.listen_until: float | None = None
        self.hedge_at: float | None = None
        self.suspect_at: float | None = None
        self.give_up_at: float | None = now + OPENING_TIMEOUT

    def begin(self, now: float) -> None:
        """Choose the way, at once or after the client has named its server."""
        if not self.relay.rules.needs_sni(self.syn.src, self.destination):
            self._choose("", now)
            return
        self.told = True
        self.listen_until = now + SNI_TIMEOUT
        self.lan.accept(now)
        self.relay.stack.arm(self)

    def _listen(self, now: float) -> None:
        self.early += self.lan.receive(MAX_HELLO)
        name = server_name(b"".join(self.early))
        if name is not None or self.lan.eof:
            self._choose(name or "", now)

    def _choose(self, sni: str, now: float) -> None:
        self.listen_until = None
        relay = self.relay
        self.rule = relay.rules.find(self.syn.src, self.destination, sni)
        relay.rules.count(self.rule)
        self.direct = self.rule is not None and self.rule.via is not Via.GATEWAY
        if not self.direct and not relay.watch.reachable:
            if relay.config.gateway.when_unreachable == "refuse":
                relay.unreachable(self, Unreachable.NETWORK, now)
                return
            self.direct = True
        self._try_all(now)

    def _try_all(self, now: float) -> None:
        target = self.destination if self.direct else self.relay.gateway
        names = self.rule.uplinks if self.rule is not None else ()
        self.remaining = self.relay.table.usable(len(target.ip), now, names)
        self.suspect_at = None if self.direct else now + SUSPECT_DELAY
        if not self.try_next(now):
            self.relay.unreachable(self, Unreachable.HOST, now)

    def on_verdict(self, now: float) -> None:
        """The gateway was asked whether it is there."""
        if self.direct or self.listen_until is not None:
            return
        if self.relay.watch.reachable:
            if not self.attempts:
                self.relay.unreachable(self, Unreachable.HOST, now)
        elif self.relay.config.gateway.when_unreachable == "refuse":
            self.relay.unreachable(self, Unreachable.NETWORK, now)
        else:
            self.direct = True
            self.give_up()
            for attempt in self.attempts:
                self.relay.disown(attempt.stream)
                attempt.stream.abort(now)
            self.attempts = []
            self._try_all(now)

    def give_up(self) -> None:
        """Wait for nothing any more but the end."""
        self.hedge_at = self.suspect_at = self.listen_until = None

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
        times = (self.give_up_at, self.hedge_at, self.suspect_at, self.listen_until)
        return min((at for at in times if at is not None), default=None)

    def on_timeout(self, now: float) -> None:
        """The uplinks tried so far stayed silent: the server may be slow, or the path dead."""
        if self.give_up_at is not None and now >= self.give_up_at:
            self.relay.unreachable(self, Unreachable.HOST, now)
            return
        if self.listen_until is not None and now >= self.listen_until:
            self._choose("", now)
            return
        if self.hedge_at is not None and now >= self.hedge_at:
            self.hedge_at = None
            self.try_next(now)
        if self.suspect_at is not None and now >= self.suspect_at:
            self.suspect_at = now + SUSPECT_PAUSE
            self.relay.watch.suspect(now)

    def poll(self, now: float) -> None:
        """Nothing to send by itself."""

    # -- events ---------------------------------------------------------------------------------

    def on_event(self, stream: ByteStream, kind: Event, now: float) -> None:
        """Something happened to the client's connection or to an attempt."""
        if stream is self.lan:
            if kind in (Event.RESET, Event.TIMED_OUT, Event.UNREACHABLE, Event.CLOSED):
                self.relay.abandon(self, now)
            elif self.listen_until is not None:
                self._listen(now)
            return
        for attempt in self.attempts:
            if attempt.stream is not stream:
                continue
            if isinstance(attempt, DirectAttempt):
                self._on_direct(attempt, kind, now)
            else:
                self._on_attempt(attempt, kind, now)
            return

    def _on_direct(self, attempt: DirectAttempt, kind: Event, now: float) -> None:
        if kind is Event.ESTABLISHED:
            self.relay.join(self, attempt, b"", now)
        elif kind is Event.RESET:
            self.relay.refuse(self, now)
        elif kind in (Event.TIMED_OUT, Event.UNREACHABLE, Event.CLOSED):
            self._attempt_failed(attempt, now)

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
        self.relay.watch.answered(attempt.uplink, now)
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

    def _attempt_failed(self, attempt: Attempt | DirectAttempt, now: float) -> None:
        self.attempts.remove(attempt)
        self.relay.disown(attempt.stream)
        if not self.direct:
            attempt.uplink.unanswered(now)
        if self.try_next(now) or self.attempts:
            return
        if not self.direct and self.relay.watch.suspect(now, 0.0):
            return  # it was told off by somebody, perhaps not the gateway: a verdict follows
        self.relay.unreachable(self, Unreachable.HOST, now)

    def _repeat(self, attempt: Attempt, challenge: bytes, now: float) -> None:
        """Ask again with the gateway's challenge: our clock is off, or the gateway is new.

        It may be newer than the challenge that was answered. But not again and again: then
        something else is wrong.
        """
        attempt.stream.abort(now)
        self.repeats += 1
        if attempt.challenge == challenge or self.repeats > MAX_REPEATS:
            self._attempt_failed(attempt, now)
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
