"""Workers: which of them a packet is for, and how it gets there from another one's queue.

Each worker has a stack, and a queue of the TUN device that the kernel fills by its own idea of the
flow. So a worker that has no connection for a packet asks who has. The rules need no shared state:

* A SYN with MP_JOIN is its token's (``TokenShare.owner``).
* All else is its *home*'s: a keyed hash of the flow key. A worker that opens a connection draws a
  port that makes it the home, so only an additional subflow that the peer opened may live away.
* Where one does, its worker *claims* it at the home, which passes its packets on.

A packet is passed on twice at most. The kernel learns from what a worker sends which queue a flow
belongs to (``tun_flow_update()`` in drivers/net/tun.c), so that as a rule the SYN alone travels.
Before a packet is taken for nobody's the channel is read, and a claim is sent before the SYN+ACK:
so the third ACK never overtakes it.

A request to the gateway is good once, so that its nonce too has an owner: the worker that got the
request *asks* him, sends the packet along, and takes it up again with the *answer*.
"""

from __future__ import annotations

import enum
import json
from collections import deque
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

from proxy.engine.rate import TokenBucket
from proxy.mptcp.keys import TokenShare

if TYPE_CHECKING:
    from proxy.engine.stack import Stack

MAX_MESSAGE = 2 + 64 + 10 + 65536
"""The longest message: its head, what is asked, and one packet."""

# Packets of unknown standing that a worker passes on per second: what a flood of them costs the
# others is no more than this. Those of a subflow that is claimed do not count.
HANDOVER_RATE = 10_000.0
_CLAIMS_PER_MESSAGE = 1000
# Messages that a full channel makes wait; only claims, releases and notes do.
_MAX_WAITING = 262_144
# Messages that were read and wait for their turn.
_MAX_INBOX = 4096


class Kind(enum.IntEnum):
    """What a message between workers is; the sender's index follows in the second octet."""

    HELLO = 1
    """A worker has begun: what the others hold away from home is told to it anew."""
    SYNCED = 2
    """That is all."""
    CLAIM = 3
    """Keys, each after its length: the sender has these connections."""
    RELEASE = 4
    PACKET = 5
    """For whoever the rules say: the receiver."""
    CLAIMED = 6
    """A packet for who claimed its connection: not passed on again."""
    ASK = 7
    """A question, after its length, and the packet that it is about."""
    ANSWER = 8
    """The verdict, the question after its length, the packet."""
    NOTE = 9
    """Something that all workers should know, as JSON."""


class _Arrival(enum.Enum):
    """How the packet that the stack is at came here."""

    DEVICE = 0
    ROUTED = 1
    CLAIMED = 2


class Channel(Protocol):
    """Carries messages between workers, in order, without blocking."""

    def send(self, worker: int, *parts: bytes) -> bool:
        """Send one message; False when there is no room."""

    def receive(self) -> list[bytes]:
        """The messages that are there, oldest first; none when there are none."""


class Handover:
    """Takes what ``stack`` has no connection for to the worker that has one.

    ``share`` says which worker this is, ``secret`` (32 bytes) is the same for all.
    ``forgot_until``: what was known here before that wall time died with the process that was in
    this one's place (0: there was none). ``judge`` answers questions of others (0..255), ``noted``
    hears their notes.
    """

    def __init__(
        self,
        stack: Stack,
        share: TokenShare,
        secret: bytes,
        channel: Channel,
        forgot_until: float = 0.0,
    ) -> None:
        self.forgot_until = forgot_until
        self.share = share
        self.judge: Callable[[bytes, float], int] | None = None
        self.noted: dict[str, Callable[[dict[str, Any]], None]] = {}
        self.others = [index for index in range(share.count) if index != share.index]
        self._stack = stack
        self._secret = secret
        self._channel = channel
        self._unsynced = set(self.others)
        # Flow keys: of connections that others have though we are their home, and of ours.
        self._claimed: dict[bytes, int] = {}
        self._away: dict[bytes, int] = {}
        self._waiting: dict[int, deque[bytes]] = {index: deque() for index in self.others}
        self._inbox: deque[bytes] = deque()
        self._arrival = _Arrival.DEVICE
        self._verdict: tuple[bytes, int] | None = None
        self._strays = TokenBucket(HANDOVER_RATE)
        stack.handover = self

    # -- who ------------------------------------------------------------------------------------

    def hash(self, data: bytes) -> int:
        """The worker that ``data`` falls to."""
        digest = blake2b(data, digest_size=4, key=self._secret).digest()
        return int.from_bytes(digest, "big") % self.share.count

    def is_home(self, key: bytes) -> bool:
        """Whether packets with that flow key are looked for here."""
        return self.hash(key) == self.share.index

    def shared_key(self, purpose: bytes) -> bytes:
        """32 secret bytes that all workers of this run have, and nobody else."""
        return blake2b(purpose, digest_size=32, key=self._secret, person=b"shared key").digest()

    @property
    def synced(self) -> bool:
        """Whether all others have told what they hold away from home."""
        return not self._unsynced

    # -- called by the stack ----------------------------------------------------------------------

    def take(self, key: bytes, packet: bytes, token: int | None, now: float) -> bool:
        """A packet for which there is no connection here; ``token``: of a SYN that joins.

        True if it is another worker's, and is on its way or lost.
        """
        if self._arrival is _Arrival.CLAIMED:
            return False
        owner = self.hash(key) if token is None else self.share.owner(token)
        if owner != self.share.index:
            if self._arrival is _Arrival.DEVICE:
                self._pass_on(owner, packet, now)
                return True
            return False
        if token is not None:
            return token in self._stack.tokens and not self._claim_early(key)
        holder = self._claimed.get(key)
        if holder is None:
            self._read()
            holder = self._claimed.get(key)
        if holder is None:
            return False
        self._send_packet(holder, Kind.CLAIMED, packet)
        return True

    def registered(self, key: bytes) -> None:
        """The stack has a connection with that flow key."""
        home = self.hash(key)
        if home != self.share.index and key not in self._away:
            self._away[key] = home
            self._tell(home, Kind.CLAIM, _packed(key))

    def forgotten(self, key: bytes) -> None:
        """It has none any more."""
        home = self._away.pop(key, None)
        if home is not None:
            self._tell(home, Kind.RELEASE, _packed(key))

    # -- questions and notes ----------------------------------------------------------------------

    def verdict(self, question: bytes) -> int | None:
        """What the worker that ``question`` falls to has said of it; None if it was not asked."""
        if self._verdict is not None and self._verdict[0] == question:
            return self._verdict[1]
        return None

    def ask(self, worker: int, question: bytes, packet: bytes, now: float) -> None:
        """Ask, and take ``packet`` up again when there is an answer; lost when there is no room."""
        if self._strays.take(now):
            parts = (bytes((len(question),)), question, packet)
            if self._channel.send(worker, self._head(Kind.ASK), *parts):
                return
        self._count("WorkerHandoverDropped")

    def note(self, name: str, **fields: object) -> None:
        """Tell all others."""
        text = json.dumps({"note": name, **fields}).encode()
        for worker in self.others:
            self._tell(worker, Kind.NOTE, text)

    # -- called by the runtime ---------------------------------------------------------------------

    def begin(self) -> None:
        """Tell the others that this worker is there. Packets may come once ``synced``."""
        for worker in self.others:
            self._tell(worker, Kind.HELLO)

    def read(self) -> None:
        """Read the channel: who has what is learnt, the rest waits for ``receive``."""
        self._read()

    @property
    def pending(self) -> bool:
        """Whether ``receive`` has something to do."""
        return bool(self._inbox)

    def receive(self, now: float) -> None:
        """Act on all messages that were read."""
        while self._inbox:
            self._act(self._inbox.popleft(), now)

    def flush(self) -> None:
        """Send what had to wait, as far as there is room."""
        for worker, waiting in self._waiting.items():
            while waiting and self._channel.send(worker, waiting[0]):
                waiting.popleft()

    @property
    def waiting(self) -> bool:
        """Whether anything waits for room in the channel."""
        return any(self._waiting.values())

    # -- private ----------------------------------------------------------------------------------

    def _head(self, kind: Kind) -> bytes:
        return bytes((kind, self.share.index))

    def _count(self, name: str) -> None:
        self._stack.counters.add(name)

    def _claim_early(self, key: bytes) -> bool:
        """Claim what joins before it is answered; False when it must be sent again, as the claim
        would come too late."""
        home = self.hash(key)
        if home == self.share.index or key in self._away:
            return True
        if not self._waiting[home]:
            claim = _packed(key)
            if self._channel.send(home, self._head(Kind.CLAIM), claim):
                self._away[key] = home
                return True
        self._count("WorkerHandoverDropped")
        return False

    def _pass_on(self, owner: int, packet: bytes, now: float) -> None:
        if self._strays.take(now):
            self._send_packet(owner, Kind.PACKET, packet)
        else:
            self._count("WorkerHandoverDropped")

    def _send_packet(self, worker: int, kind: Kind, packet: bytes) -> None:
        sent = self._channel.send(worker, self._head(kind), packet)
        self._count("WorkerHandover" if sent else "WorkerHandoverDropped")

    def _tell(self, worker: int, kind: Kind, body: bytes = b"") -> None:
        waiting = self._waiting[worker]
        if not waiting and self._channel.send(worker, self._head(kind), body):
            return
        if len(waiting) < _MAX_WAITING:
            waiting.append(self._head(kind) + body)

    def _read(self) -> None:
        """What tells who has what counts at once, the rest in its turn."""
        for message in self._channel.receive():
            kind, sender = message[0], message[1]
            if kind == Kind.CLAIM:
                self._claimed.update(dict.fromkeys(_unpacked(message), sender))
            elif kind == Kind.RELEASE:
                for key in _unpacked(message):
                    if self._claimed.get(key) == sender:
                        del self._claimed[key]
            elif kind == Kind.HELLO:
                self._welcome(sender)
            elif kind == Kind.SYNCED:
                self._unsynced.discard(sender)
            elif len(self._inbox) < _MAX_INBOX:
                self._inbox.append(message)
            else:
                self._count("WorkerHandoverDropped")

    def _welcome(self, worker: int) -> None:
        """A worker was started anew: what it had is gone, and what it knew of ours."""
        for key in [key for key, holder in self._claimed.items() if holder == worker]:
            del self._claimed[key]
        self._waiting[worker].clear()
        ours = [_packed(key) for key, home in self._away.items() if home == worker]
        for start in range(0, len(ours), _CLAIMS_PER_MESSAGE):
            self._tell(worker, Kind.CLAIM, b"".join(ours[start : start + _CLAIMS_PER_MESSAGE]))
        self._tell(worker, Kind.SYNCED)

    def _act(self, message: bytes, now: float) -> None:
        kind = message[0]
        if kind == Kind.PACKET:
            self._receive_packet(message[2:], _Arrival.ROUTED, now)
        elif kind == Kind.CLAIMED:
            self._receive_packet(message[2:], _Arrival.CLAIMED, now)
        elif kind == Kind.ASK:
            self._answer(message, now)
        elif kind == Kind.ANSWER:
            end = 4 + message[3]
            self._verdict = (message[4:end], message[2])
            try:
                self._receive_packet(message[end:], _Arrival.ROUTED, now)
            finally:
                self._verdict = None
        elif kind == Kind.NOTE:
            self._hear(message)

    def _receive_packet(self, packet: bytes, arrival: _Arrival, now: float) -> None:
        self._arrival = arrival
        try:
            self._stack.receive(packet, now)
        finally:
            self._arrival = _Arrival.DEVICE

    def _answer(self, message: bytes, now: float) -> None:
        if self.judge is None:
            return
        verdict = self.judge(message[3 : 3 + message[2]], now)
        head = self._head(Kind.ANSWER) + bytes((verdict,))
        if not self._channel.send(message[1], head, message[2:]):
            self._count("WorkerHandoverDropped")

    def _hear(self, message: bytes) -> None:
        fields = json.loads(message[2:])
        hear = self.noted.get(fields.pop("note"))
        if hear is not None:
            hear(fields)


def _packed(key: bytes) -> bytes:
    return bytes((len(key),)) + key


def _unpacked(message: bytes) -> Iterator[bytes]:
    at = 2
    while at < len(message):
        end = at + 1 + message[at]
        yield message[at + 1 : end]
        at = end
