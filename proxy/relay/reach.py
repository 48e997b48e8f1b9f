"""Whether the gateway answers: asked on each uplink by Convert requests that connect to nothing.

Silence on a conversation's own SYN says little, since the gateway answers when the server does; a
request without a destination it answers at once. An uplink on which something was answered a while
ago is asked seldom; one whose conversations wait is asked at once. When all are silent the gateway
counts as unreachable, until it has answered several times in a row: the more often it comes and
goes, the more times.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from proxy.convert.auth import NONCE_LENGTH, Reply
from proxy.convert.tlv import MAX_LENGTH, ConvertError, message_length
from proxy.mptcp.subflow import Subflow
from proxy.tcp.events import Event

if TYPE_CHECKING:
    from proxy.relay.flow import ByteStream
    from proxy.relay.lan import LanRelay
    from proxy.relay.uplinks import UplinkHealth
    from proxy.tcp.connection import TcpConnection

log = logging.getLogger(__name__)

# How often an uplink that works is asked while nothing else shows it (seconds); the second is for
# those that are to be spared. One question is three packets, some 300 bytes.
IDLE_PERIOD, SPARED_PERIOD = 15.0, 60.0
# The pauses while it is silent (seconds): the first, and the longest.
SILENT_PERIOD, SILENT_PERIOD_MAX = 1.0, 5.0
# How long an answer may take (seconds), at least, at most, and while the round trip is not known,
# to the first question and to the second one.
_PATIENCE, _PATIENCE_MAX, _PATIENCE_UNKNOWN = (0.2, 0.25), 2.0, (0.25, 0.4)
# What was answered less than this ago (seconds) need not be asked again.
_FRESH = 0.25
# Answers in a row that make it reachable again: at first, and at most.
_ANSWERS, _ANSWERS_MAX = 2, 16
# Lost again within so many seconds, it needs twice as many; after so many quiet ones, the first.
_RELAPSE, _FORGIVEN = 60.0, 600.0


class Probe:
    """One question on one uplink, over plain TCP."""

    __slots__ = ("_received", "_request", "stream", "uplink", "watch")

    def __init__(
        self, watch: GatewayWatch, uplink: UplinkHealth, stream: TcpConnection, request: bytes
    ) -> None:
        self.watch = watch
        self.uplink = uplink
        self.stream = stream
        self._request = request
        self._received = b""

    def on_event(self, stream: ByteStream, kind: Event, now: float) -> None:
        """An answer, or the end of it."""
        if kind is Event.ESTABLISHED:
            self._received = bytes(self.stream.syn_ack_payload)
        elif kind is Event.READABLE:
            self._received += b"".join(self.stream.receive(MAX_LENGTH))
        elif kind in (Event.RESET, Event.UNREACHABLE, Event.TIMED_OUT, Event.CLOSED):
            self.watch.refused(self, now)
            return
        try:
            length = message_length(self._received)
            if length is None or len(self._received) < length:
                return
            reply = self.watch.check(self._request, self._received[:length])
        except ConvertError:
            self.watch.refused(self, now)  # whoever this is, it is no gateway of ours
            return
        if reply.challenge:
            self.uplink.challenged(reply.challenge, now)
        self.watch.replied(self, now)


class _Reach:
    """What is known of the gateway on one uplink; times in seconds."""

    __slots__ = (
        "answered_at",
        "asked_at",
        "deadline",
        "next_at",
        "pause",
        "probes",
        "second_at",
        "silent",
    )

    def __init__(self) -> None:
        self.answered_at = -math.inf
        self.asked_at = 0.0
        self.silent = False
        self.next_at = -math.inf
        self.pause = SILENT_PERIOD
        self.probes: list[Probe] = []
        self.second_at = math.inf
        self.deadline = math.inf

    @property
    def asking(self) -> bool:
        """Whether a question waits for its answer."""
        return self.deadline < math.inf


class GatewayWatch:
    """Asks, and tells the relay when ``reachable`` changes (``LanRelay.on_verdict``)."""

    def __init__(self, relay: LanRelay, now: float) -> None:
        self._relay = relay
        self._reaches: dict[str, _Reach] = {}
        self.reachable = True
        self.since = now
        self._answers = 0
        self._needed = _ANSWERS
        self._ever = False  # it has answered once
        # Of several workers one asks regularly; the others when they have a reason to.
        self._regular = relay.stack.token_share.index == 0

    def state(self, uplink: UplinkHealth) -> str:
        """How the gateway is on ``uplink``: ``answers``, ``silent`` or ``unknown``."""
        reach = self._reaches.get(uplink.name)
        if reach is None or not self._usable(uplink):
            return "unknown"
        if reach.silent:
            return "silent"
        return "answers" if reach.answered_at > -math.inf else "unknown"

    def start(self) -> None:
        """Begin to ask; again after the uplinks have changed."""
        self._relay.stack.arm(self)

    def reset(self, now: float) -> None:
        """It is another gateway from now on."""
        for reach in self._reaches.values():
            self._settle(reach, now)
        self._reaches.clear()
        if not self.reachable:
            self._found(now)
        self.start()

    # -- what others notice -----------------------------------------------------------------------

    def answered(self, uplink: UplinkHealth, now: float) -> None:
        """The gateway proved itself on ``uplink``."""
        reach = self._reach(uplink)
        asked = reach.asking
        self._settle(reach, now)
        reach.answered_at = now
        reach.silent = False
        reach.pause = SILENT_PERIOD
        spared = uplink.backup or uplink.metered
        period = SPARED_PERIOD if spared else IDLE_PERIOD
        reach.next_at = now + period if self._regular else math.inf
        if not self.reachable:
            reach.next_at = now + SILENT_PERIOD
            self._answers += 1
            if not self._ever or self._answers >= self._needed:
                self._found(now)
        elif asked:
            self._relay.on_verdict(now)
        self._ever = True
        self.start()

    def suspect(self, now: float, fresh: float = _FRESH) -> bool:
        """A conversation waits: ask now, unless there was an answer ``fresh`` seconds ago or later.

        True if an answer, or the lack of it, is to come.
        """
        for uplink in self._relay.uplinks:
            reach = self._reach(uplink)
            if self._usable(uplink) and not reach.asking and now - reach.answered_at > fresh:
                self._ask(uplink, reach, now)
        self.start()
        return any(self._reach(uplink).asking for uplink in self._relay.uplinks)

    # -- for Probe ------------------------------------------------------------------------------

    def check(self, request: bytes, reply: bytes) -> Reply:
        """Raises ConvertError if it is not the gateway's."""
        return self._relay.client.check_reply(request, reply, self._relay.wall_clock())

    def replied(self, probe: Probe, now: float) -> None:
        """It was the gateway's."""
        if probe.stream.min_rtt < math.inf:
            probe.uplink.answered(probe.stream.min_rtt)
        self.answered(probe.uplink, now)

    def refused(self, probe: Probe, now: float) -> None:
        """There is somebody, but not the gateway; or no way there."""
        reach = self._reach(probe.uplink)
        self._relay.disown(probe.stream)
        if probe in reach.probes:
            reach.probes.remove(probe)
            probe.stream.abort(now)
            if not reach.probes:
                self._silent(probe.uplink, reach, now)

    # -- time -------------------------------------------------------------------------------------

    def poll(self, now: float) -> None:
        """Nothing to send by itself."""

    def next_timeout(self) -> float | None:
        """When to ask next, or to give a question up."""
        times = [
            min(reach.deadline, reach.second_at) if reach.asking else reach.next_at
            for uplink in self._relay.uplinks
            if self._usable(uplink) and (reach := self._reach(uplink))
        ]
        earliest = min(times, default=math.inf)
        return None if earliest == math.inf else earliest

    def on_timeout(self, now: float) -> None:
        """Ask, ask once more, or give up."""
        for uplink in self._relay.uplinks:
            reach = self._reach(uplink)
            if not self._usable(uplink):
                self._settle(reach, now)
            elif now >= reach.deadline:
                if self._alive(uplink, reach.asked_at):
                    # A full queue delays the answer; what runs there shows that it is there.
                    self.answered(uplink, now)
                else:
                    self._silent(uplink, reach, now)
            elif now >= reach.second_at:
                reach.second_at = math.inf
                self._send(uplink, reach, now, early=False)
            elif not reach.asking and now >= reach.next_at:
                self._ask(uplink, reach, now)

    # -- private ----------------------------------------------------------------------------------

    def _reach(self, uplink: UplinkHealth) -> _Reach:
        reach = self._reaches.get(uplink.name)
        if reach is None:
            reach = self._reaches[uplink.name] = _Reach()
            if not self._regular:
                reach.next_at = math.inf
        return reach

    def _usable(self, uplink: UplinkHealth) -> bool:
        return uplink.usable(len(self._relay.gateway.ip))

    def _ask(self, uplink: UplinkHealth, reach: _Reach, now: float) -> None:
        # One lost packet says nothing, nor does a path that drops SYNs with payload: the second
        # question goes after the handshake, and needs a round trip more.
        first, second = _PATIENCE_UNKNOWN
        if uplink.srtt:
            first = min(max(1.5 * uplink.srtt + 0.05, _PATIENCE[0]), _PATIENCE_MAX)
            second = min(max(2.0 * uplink.srtt + 0.1, _PATIENCE[1]), _PATIENCE_MAX)
        reach.asked_at = now
        reach.second_at = now + first
        reach.deadline = now + first + second
        reach.next_at = now + SILENT_PERIOD
        self._send(uplink, reach, now, uplink.takes_syn_data(now))

    def _send(self, uplink: UplinkHealth, reach: _Reach, now: float, early: bool) -> None:
        relay = self._relay
        client = relay.client
        request = client.request(
            None,
            relay.wall_clock(),
            relay.stack.rng.randbytes(NONCE_LENGTH),
            uplink.challenge_at(now),
        )
        payload = request if early else b""
        try:
            stream = relay.stack.connect_tcp(
                uplink.local_ip, relay.gateway, now, payload, client.knock
            )
        except OSError as error:
            log.warning("uplink %s: %s", uplink.name, error)
            return
        if not early:
            stream.send(request)
        probe = Probe(self, uplink, stream, request)
        reach.probes.append(probe)
        relay.own(stream, probe)

    def _settle(self, reach: _Reach, now: float) -> None:
        for probe in reach.probes:
            self._relay.disown(probe.stream)
            # Having answered, the gateway closes; nothing of it is of interest.
            probe.stream.abort(now)
        reach.probes = []
        reach.deadline = reach.second_at = math.inf

    def _silent(self, uplink: UplinkHealth, reach: _Reach, now: float) -> None:
        self._settle(reach, now)
        uplink.unanswered(now)
        reach.silent = True
        reach.next_at = now + reach.pause
        reach.pause = min(reach.pause * 1.5, SILENT_PERIOD_MAX)
        self._answers = 0
        usable = [self._reach(other) for other in self._relay.uplinks if self._usable(other)]
        # Before its first answer it may just be starting, as we are: who waits decides.
        matters = self._ever or self._relay.waiting
        if self.reachable and matters and all(other.silent for other in usable):
            self._lost(now)
        self.start()

    def _alive(self, uplink: UplinkHealth, since: float) -> bool:
        gateway = self._relay.gateway
        return self.reachable and any(
            isinstance(subflow, Subflow)
            and subflow.uplink == uplink.name
            and subflow.remote == gateway
            and subflow.fully_established
            and subflow.last_received > since
            for subflow in self._relay.stack.demux
        )

    def _lost(self, now: float) -> None:
        quiet = now - self.since
        if quiet > _FORGIVEN:
            self._needed = _ANSWERS
        elif quiet < _RELAPSE and self._needed < _ANSWERS_MAX:
            self._needed *= 2
        self.reachable, self.since = False, now
        for reach in self._reaches.values():
            reach.pause = SILENT_PERIOD
        policy = self._relay.config.gateway.when_unreachable
        log.warning("the gateway does not answer on any uplink: new connections: %s", policy)
        self._relay.tell("gateway-unreachable", {"when-unreachable": policy})
        self._relay.on_verdict(now)

    def _found(self, now: float) -> None:
        self.reachable, self.since = True, now
        self._answers = 0
        log.info("the gateway answers again")
        self._relay.tell("gateway-reachable", {})
        self._relay.on_verdict(now)
