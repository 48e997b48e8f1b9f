"""The far role: MPTCP from proxies becomes TCP to the real servers.

A SYN is worth nothing until the Convert message in it carries the MAC of a client: before that no
state is made and nothing is answered (RFC 8803 §9.1; strangers get silence). The SYN+ACK waits for
the server's answer and carries ours, so that a connection costs no round trip more than a direct
one and its failure is told before the client is answered.

Clients without a secret may be let in by their address (``convert.guests``). They get their answer
as the first bytes of the stream, since a kernel drops what a SYN+ACK carries, and an error only
once their handshake has shown that they are where they say.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Protocol

from proxy.config import GatewayConfig
from proxy.config.gateway import MAX_CLIENTS
from proxy.convert.auth import Door, Request, Unauthorised, keys_of
from proxy.convert.destination import DestinationPolicy
from proxy.convert.guests import GuestBook, NoMessage
from proxy.convert.tlv import Error, ErrorCode, Proof, SupportedTcpExtensions
from proxy.engine.rate import TokenBucket
from proxy.engine.stack import ACK, FIN, RST, SYN, Application, Stack
from proxy.engine.syncookies import SynCookies
from proxy.mptcp.connection import MptcpConnection
from proxy.pm.base import Endpoint
from proxy.relay.admission import Admission, Place
from proxy.relay.flow import ByteStream, Flow, FlowNumbers
from proxy.relay.shared import Asked, share_nonces
from proxy.relay.trials import Trials, TrialStream
from proxy.relay.usage import Meters
from proxy.seg import Segment
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.address import Address

log = logging.getLogger(__name__)

# Bare SYNs looked at per second, from anywhere: bounds what a flood of them costs.
BARE_SYN_RATE = 200.0
# ICMP codes that stand for what a kernel socket says (RFC 1812 §5.2.7.1).
_ICMP_CODES = {
    errno.ENETUNREACH: 0,
    errno.EHOSTUNREACH: 1,
    errno.ETIMEDOUT: 1,
    errno.EACCES: 13,
    errno.EPERM: 13,
}
# What says that this host has come to its limits, not that there is no way.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
# What the door says of messages that have no MAC of a secret: they may be a guest's.
_UNPROVEN = ("no-convert", "no-token", "unknown-client", "bad-tag")
# MSS, window scale and SACK are each connection's own: a client that lists them asks for nothing
# (RFC 8803 §6.2.5).
_IGNORED_OPTIONS = frozenset({2, 3, 5})


class Cancellable(Protocol):
    """A connection attempt to a server."""

    def cancel(self) -> None: ...


Dialled = Callable[[ByteStream | None, int], None]
Dialler = Callable[[Address, Dialled], Cancellable]
"""Connects to a server; calls back, later, with a stream or with None and an errno."""


class Reception:
    """A client whose server has not answered yet.

    ``rest`` is what followed its message in the SYN. ``late``: the message came after the
    handshake. ``place``: its place among those of its client.
    """

    __slots__ = ("_farewell", "client", "dial", "late", "place", "relay", "request", "rest")

    def __init__(
        self,
        relay: GatewayRelay,
        client: Application,
        request: Request,
        place: Place,
        rest: bytes,
        late: bool = False,
    ) -> None:
        self.relay = relay
        self.client = client
        self.request = request
        self.place = place
        self.rest = rest
        self.late = late
        self.dial: Cancellable | None = None
        self._farewell: bytes | None = None
        if isinstance(client, MptcpConnection) and client.initial is not None:
            client.initial.weight = request.weight

    def answer(self, reply: bytes, now: float) -> None:
        """Send the Convert message of ours: in the SYN+ACK, or as the first bytes of the stream."""
        if self.late:
            self.client.send(reply)
        elif self.request.proven:
            self.client.accept(now, take_syn_payload=True, payload=reply)
        else:
            self.client.accept(now, take_syn_payload=True)
            self.client.send(reply)

    def dismiss(self, reply: bytes, now: float) -> None:
        """Answer with what ends the conversation (RFC 8803 §6.2.8: never by a RST)."""
        if self.request.proven or self.late:
            self.relay.leave(self)
            self.answer(reply, now)
            self.client.close(now)
        else:
            self._farewell = reply
            self.client.accept(now, take_syn_payload=True)

    def on_event(self, stream: ByteStream, kind: Event, now: float) -> None:
        """The client went away before the server answered, or is there to hear an error."""
        if kind is Event.ESTABLISHED and self._farewell is not None:
            self.relay.leave(self)
            self.client.send(self._farewell)
            self.client.close(now)
        elif kind in (Event.RESET, Event.TIMED_OUT, Event.UNREACHABLE, Event.CLOSED):
            if self.dial is not None:
                self.dial.cancel()
            self.relay.leave(self)


class GatewayRelay:
    """Owns all conversations of a gateway."""

    def __init__(
        self,
        config: GatewayConfig,
        stack: Stack,
        dial: Dialler,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self.config = config
        self.stack = stack
        self.flows: dict[Flow, str] = {}
        self.meters = Meters(MAX_CLIENTS)
        self.policy = DestinationPolicy(
            config.egress, config.listen.port, own_addresses=config.listen.addresses
        )
        self._dial = dial
        self._clock = clock
        self._wall_clock = wall_clock
        self._door = self._make_door()
        self._guest_key = self._shared_key(b"address cookie")
        self._guests = GuestBook(config.clients, self._guest_key)
        self._owners: dict[ByteStream, Reception | Flow] = {}
        self._places: dict[Flow, Place] = {}
        self._admission = Admission(stack.token_share)
        self._numbers = FlowNumbers(stack.token_share)
        self.started = clock()
        self._cookies = SynCookies(stack)
        self._bare_syns = TokenBucket(BARE_SYN_RATE / stack.token_share.count)
        self._trials = Trials(stack, config.listen.trials)
        stack.listener = self
        stack.public_addresses = {ours: ip for ip, ours in config.engine_addresses.items()}
        stack.local_addresses = [
            Endpoint(ip, number, signal=True) for number, ip in enumerate(config.listen.announce, 1)
        ]

    def check(self, config: GatewayConfig) -> None:
        """ConfigError if ``reconfigure`` would fail."""
        keys_of(config.clients, config.listen.service)

    def reconfigure(self, config: GatewayConfig, now: float) -> None:
        """Go by ``config`` from now on. What is open stays open, except for clients that are
        none any more."""
        self._door.admit(config.clients)
        self.config = config
        self._guests = GuestBook(config.clients, self._guest_key)
        self._trials.limit = config.listen.trials
        self.policy = DestinationPolicy(
            config.egress, config.listen.port, own_addresses=self.policy.own_addresses
        )
        names = {client.name for client in config.clients}
        for flow in [flow for flow, name in self.flows.items() if name not in names]:
            flow.abort(now)
        for owner in list(self._owners.values()):
            if isinstance(owner, Reception) and owner.request.client not in names:
                owner.on_event(owner.client, Event.RESET, now)
                owner.client.abort(now)

    # -- Listener -------------------------------------------------------------------------------

    def on_syn(self, syn: Segment, now: float) -> None:
        """A new connection: served if the Convert message in the SYN is a client's."""
        if syn.dport != self.config.listen.port:
            return
        data = bytes(syn.payload)
        if not data:
            self._on_bare_syn(syn, now)
            return
        try:
            request = self._verify(data, syn.src, now)
        except NoMessage:
            self.stack.reset(syn, now)
            return
        except Asked:
            return
        if request is None:
            return
        client = self.stack.open_passive(syn, now, mptcp=True)
        if client.state is State.CLOSED:
            return  # refused already, say for its MSS
        self._receive(client, request, syn.src, data[request.length :], False, now)

    def on_stray(self, segment: Segment, now: float) -> bool:
        """The first data after a stateless handshake, or something that gets silence.

        Only what looks like a subflow of a connection that is gone, say after a restart, gets a
        RST, so that its proxy need not wait for a time-out. So does what a client known by its
        address sends in vain.
        """
        if segment.flags & (SYN | RST | ACK) != ACK:
            return False
        if segment.dport != self.config.listen.port:
            return segment.dss_flags >= 0
        if segment.length:
            try:
                if self._on_late_message(segment, now):
                    return False
            except Asked:
                return False
        told = segment.length or segment.flags & FIN
        return segment.dss_flags >= 0 or bool(told and self._guests.find(segment.src))

    # -- Relay ----------------------------------------------------------------------------------

    def on_event(self, stream: ByteStream, kind: Event, now: float) -> None:
        """Something happened to a connection or to a server's socket."""
        owner = self._owners.get(stream)
        if owner is not None:
            owner.on_event(stream, kind, now)

    def close(self, now: float) -> None:
        """Reset everything that is open."""
        for owner in set(self._owners.values()):
            if isinstance(owner, Flow):
                owner.abort(now)
            else:
                owner.on_event(owner.client, Event.RESET, now)
                owner.client.abort(now)

    def leave(self, reception: Reception) -> None:
        """A reception is over, one way or the other."""
        self._owners.pop(reception.client, None)
        reception.place.leave()

    # -- private --------------------------------------------------------------------------------

    def _make_door(self) -> Door:
        stack, clients, service = self.stack, self.config.clients, self.config.listen.service
        handover = stack.handover
        key = self._shared_key(b"challenge")
        if handover is None:
            return Door(clients, key, self._wall_clock(), service)
        door = Door(
            clients,
            key,
            self._wall_clock(),
            service,
            part=1 / handover.share.count,
            forgot_until=handover.forgot_until,
        )
        share_nonces(door, stack, handover, self._clock, self._wall_clock)
        return door

    def _shared_key(self, label: bytes) -> bytes:
        """32 random bytes of this run, the same in each worker."""
        handover = self.stack.handover
        return self.stack.rng.randbytes(32) if handover is None else handover.shared_key(label)

    def _on_bare_syn(self, syn: Segment, now: float) -> None:
        """A path that eats SYN payloads, or a stranger: nothing is kept until a message comes."""
        self.stack.counters.add("ConvertSynWithoutMessage")
        if not self.config.listen.late_convert or not self._bare_syns.take(now):
            return
        knocks = syn.ts_val >= 0 and self._door.knows(syn.seq, syn.ts_val)
        if knocks or self._guests.find(syn.src) is not None:
            self._cookies.answer(syn, now)

    def _on_late_message(self, segment: Segment, now: float) -> bool:
        requests: list[Request] = []

        def accepts(data: bytes) -> bool:
            try:
                request = self._verify(data, segment.src, now, reached=True)
            except NoMessage:
                return False
            if request is not None:
                requests.append(request)
            return request is not None

        client = self._cookies.restore(segment, now, accepts)
        if client is None:
            return False
        if not _take(client, requests[0].length):
            # The message is there, but not in the stream: its mapping is wrong, for example.
            client.abort(now)
            return True
        self._receive(client, requests[0], segment.src, b"", True, now)
        return True

    def _verify(
        self, data: bytes, source: bytes, now: float, reached: bool = False
    ) -> Request | None:
        wall = self._wall_clock()
        try:
            try:
                return self._door.verify(data, source, wall)
            except Unauthorised as error:
                if error.reason not in _UNPROVEN or self._guests.find(source) is None:
                    raise
            if not self._admission.takes(source, now):
                raise Unauthorised("too-many-requests")
            return self._guests.verify(data, source, wall, reached)
        except NoMessage:
            self.stack.counters.add("ConvertDrop-no-convert")
            raise
        except Unauthorised as error:
            self.stack.counters.add(f"ConvertDrop-{error.reason}")
            return None

    def _receive(
        self,
        client: Application,
        request: Request,
        source: bytes,
        rest: bytes,
        late: bool,
        now: float,
    ) -> None:
        place = self._admission.enter(request.client, None if request.proven else source)
        reception = Reception(self, client, request, place, rest, late)
        self._owners[client] = reception
        error = request.error or self._judge(request, place)
        if error is not None:
            self._refuse(reception, error, now)
        elif request.destination is None:
            self._inform(reception, now)
        elif self._trials.serves(request):
            trial = self._trials.open(request.client, request.destination, client)
            self._join(reception, trial, now)
        else:
            self._reach(reception, request.destination)

    def _judge(self, request: Request, place: Place) -> Error | None:
        kinds = {option.kind for option in request.options} - _IGNORED_OPTIONS
        if kinds:
            # A kernel socket sends no options that a caller names, nor tells those of the
            # server's SYN+ACK, which the answer would have to hold (§6.2.6).
            return Error(ErrorCode.UNSUPPORTED_TCP_OPTION, bytes(sorted(kinds)))
        if not place.has_room:
            return Error(ErrorCode.RESOURCE_EXCEEDED, b"\1")
        if request.destination is None:
            return None
        if self._trials.serves(request):
            room = self._trials.has_room(request.client)
            return None if room else Error(ErrorCode.RESOURCE_EXCEEDED, b"\1")
        denial = self.policy.check(request.destination)
        if denial is None:
            return None
        self.stack.counters.add("ConvertDenied")
        log.info("client %s: %s refused: %s", request.client, request.destination, denial.reason)
        return denial.error

    def _reach(self, reception: Reception, server: Address) -> None:
        def done(stream: ByteStream | None, code: int) -> None:
            now = self._clock()
            if stream is not None:
                self._join(reception, stream, now)
            elif code == errno.ECONNREFUSED or code == errno.ECONNRESET:
                self._refuse(reception, Error(ErrorCode.CONNECTION_RESET), now)
            elif code in _ICMP_CODES:
                detail = bytes((_ICMP_CODES[code],))
                self._refuse(reception, Error(ErrorCode.DESTINATION_UNREACHABLE, detail), now)
            elif code in _EXHAUSTED:
                log.warning("cannot connect to a server: %s", errno.errorcode[code])
                self._refuse(reception, Error(ErrorCode.RESOURCE_EXCEEDED, b"\1"), now)
            else:
                log.warning("cannot connect to a server: %s", errno.errorcode.get(code, code))
                self._refuse(reception, Error(ErrorCode.NETWORK_FAILURE, b"\1"), now)

        reception.dial = self._dial(server, done)

    def _join(self, reception: Reception, server: ByteStream, now: float) -> None:
        client = reception.client
        reception.place.open()
        reception.answer(self._reply(reception.request), now)
        flow = Flow(self._numbers.take(), client, server, self._ended, now)
        self._owners[client] = flow
        self._owners[server] = flow
        self.flows[flow] = reception.request.client
        self.meters.begin(flow, reception.request.client)
        self._places[flow] = reception.place
        if reception.rest:
            server.send(reception.rest)
            flow.bytes_out += len(reception.rest)
        flow.start()

    def _refuse(self, reception: Reception, error: Error, now: float) -> None:
        reception.dismiss(self._reply(reception.request, error), now)

    def _inform(self, reception: Reception, now: float) -> None:
        tlvs = (SupportedTcpExtensions((30,)),)
        reply = reception.request.reply(self.stack.rng.randbytes(Proof.NONCE_LENGTH), tlvs=tlvs)
        reception.dismiss(reply, now)

    def _reply(self, request: Request, error: Error | None = None) -> bytes:
        return request.reply(self.stack.rng.randbytes(Proof.NONCE_LENGTH), error)

    def _ended(self, flow: Flow) -> None:
        self._owners.pop(flow.near, None)
        self._owners.pop(flow.far, None)
        client = self.flows.pop(flow, None)
        if client is not None and isinstance(flow.far, TrialStream):
            self._trials.leave(client)
        self.meters.end(flow)
        place = self._places.pop(flow, None)
        if place is not None:
            place.leave()


def _take(stream: ByteStream, length: int) -> bool:
    """Read and drop the first ``length`` bytes of a stream; False if it has not as many."""
    while length:
        chunks = stream.receive(length)
        if not chunks:
            return False
        length -= sum(map(len, chunks))
    return True
