"""Who may use the gateway: a MAC over the whole Convert message, in its Cookie TLV.

The client's token (the value of the Cookie TLV; big-endian)::

    format u8 = 1 | flags u8 | kid u16 | client id 8 | unix time u32 | nonce 12
    | challenge 16, only with FLAG_CHALLENGE | tag 16

    tag = HMAC-SHA256(K_auth, "c2s" label | service name | message with tag = 0)[:16]

It says nothing of addresses, ports or sequence numbers, for NATs rewrite them. The gateway proves
itself in turn (RFC 8803 §9.4: who steals the traffic must not be believed) by a private TLV::

    nonce 16 | HMAC-SHA256(K_auth, "s2c" label | tag of the request | reply with MAC = 0)[:16]

Freshness: a token is good once, while its time is within ``WINDOW`` of the gateway's clock. Where
that cannot be judged the gateway answers Missing Cookie with a challenge: its own time and a MAC
over that time and the client's network, made with a key that no other run of the gateway has, so
that nothing need be kept. The client repeats its request with the challenge in the token. It is
asked for

* when the clocks differ too much; the client learns the gateway's time by it, so that its next
  requests need no challenge, and
* for tokens made no later than the gateway's start: the nonces that an earlier run took are
  forgotten. (So a token of a client whose clock is d seconds fast can be replayed, to the one
  destination that it names, if the gateway restarts within d seconds after it was used.)

K_auth, kid and the client id come from the shared secret and the client's name alone.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.convert import tlv
from proxy.convert.replay import NonceCache, Seen
from proxy.convert.tlv import Connect, ConvertError, Cookie, Error, ErrorCode, Info, Message, Proof
from proxy.errors import CodecError, ConfigError

if TYPE_CHECKING:
    from proxy.config import ClientConfig
    from proxy.wire.address import Address

WINDOW = 30.0  # seconds that the clocks may differ, either way
CHALLENGE_LIFETIME = 60.0
NONCE_LENGTH = 12
CHALLENGE_LENGTH = 16
TAG_LENGTH = 16
NONCES_PER_CLIENT = 65536  # within 62 s, the life of a generation
CHALLENGES_PER_SECOND = 100  # per client: whoever replays old tokens gets no more out of us

FLAG_AEAD = 1
FLAG_LATE = 2
FLAG_CHALLENGE = 4
WEIGHT_SHIFT = 3  # the upper five bits: the weight of the uplink, less 1
MAX_WEIGHT = 32

_FORMAT = 1
_TOKEN = struct.Struct("!BBH8sI12s")
_LABEL_C2S = b"mptcp-proxy c2s v1\0"
_LABEL_S2C = b"mptcp-proxy s2c v1\0"
_LABEL_KNOCK = b"mptcp-proxy knock v1\0"
_LABEL_CHALLENGE = b"mptcp-proxy challenge v1\0"
_HKDF_SALT = b"mptcp-proxy convert v1"
_PROOF_ROOM = tlv.HEADER_LENGTH + 4 + Proof.NONCE_LENGTH + Proof.TAG_LENGTH
_CLIENT_TYPES = frozenset({Info.type, Connect.type, Cookie.type})


class Unauthorised(CodecError):
    """No client of ours sent this, or not now: answer nothing at all.

    DEVIATION: RFC 8803 §6.2.8 wants error 32; strangers get silence, so that the gateway can
    neither be found nor be made to send to forged addresses. ``reason`` is for a counter.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869); ``length`` up to 8160 bytes."""
    key = hmac.digest(salt or bytes(32), secret, "sha256")
    block = output = b""
    for counter in range(1, (length + 31) // 32 + 1):
        block = hmac.digest(key, block + info + bytes((counter,)), "sha256")
        output += block
    return output[:length]


def client_id(name: str) -> bytes:
    """The 8 bytes by which a token names its client."""
    return hashlib.sha256(b"mptcp-proxy client id\0" + name.encode()).digest()[:8]


class _Mac:
    """HMAC-SHA256 (RFC 2104) with the work for its key, and for what all its messages begin with,
    done once: a third of what ``hmac.digest`` takes for a message of ours."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes, begin: bytes) -> None:
        padded = key.ljust(64, b"\0")  # no key is longer than a block
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded) + begin)
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def digest(self, *parts: bytes | bytearray) -> bytes:
        """The 32 bytes for ``begin`` and these parts."""
        inner = self._inner.copy()
        for part in parts:
            inner.update(part)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


class _Key:
    """What is derived from one secret, for one gateway service."""

    __slots__ = ("_knock", "_reply", "_request", "kid")

    def __init__(self, secret: bytes, service: str) -> None:
        auth = hkdf(secret, _HKDF_SALT, b"auth", 32)
        self.kid = int.from_bytes(hkdf(secret, _HKDF_SALT, b"kid", 2), "big")
        name = service.encode()
        service_name = bytes((len(name),)) + name
        self._request = _Mac(auth, _LABEL_C2S + service_name)
        self._reply = _Mac(auth, _LABEL_S2C)
        self._knock = _Mac(auth, _LABEL_KNOCK + service_name)

    def request_tag(self, message: bytes | bytearray) -> bytes:
        """The tag of a request, given with zeros in its place."""
        return self._request.digest(message)[:TAG_LENGTH]

    def reply_tag(self, request_tag: bytes, reply: bytes) -> bytes:
        """The MAC of a reply, given with zeros in its place."""
        return self._reply.digest(request_tag, reply)[: Proof.TAG_LENGTH]

    def knock(self, isn: int) -> int:
        """The timestamp (u32) of a SYN of ours with that sequence number."""
        return int.from_bytes(self._knock.digest(isn.to_bytes(4, "big"))[:4], "big")

    def seal_reply(self, request_tag: bytes, tlvs: Iterable[tlv.Tlv], nonce: bytes) -> bytes:
        """The reply of ``tlvs`` and a proof, which comes last."""
        if len(nonce) != Proof.NONCE_LENGTH:
            raise ValueError(f"a nonce of {len(nonce)} bytes")
        reply = tlv.build((*tlvs, Proof(nonce, bytes(Proof.TAG_LENGTH))))
        return reply[: -Proof.TAG_LENGTH] + self.reply_tag(request_tag, reply)


@dataclass(frozen=True, slots=True)
class Reply:
    """A gateway's proven answer. Without an ``error`` the connection to the server stands.

    ``challenge`` is not empty when the request is to be repeated with it, at once. The same
    challenge serves other requests over the same uplink for ``CHALLENGE_LIFETIME`` seconds.
    """

    error: Error | None
    challenge: bytes
    message: Message


class Client:
    """The proxy's side: makes requests, and believes only proven replies.

    ``clock_offset`` (seconds to add to our clock to have the gateway's) stays 0 until a gateway
    finds our clock too far off. Nonces are 12 random bytes and must never be used twice.
    """

    __slots__ = ("_id", "_key", "clock_offset")

    def __init__(self, name: str, secret: bytes, service: str = "") -> None:
        self._id = client_id(name)
        self._key = _Key(secret, service)
        self.clock_offset = 0.0

    def request(
        self,
        destination: Address | None,
        wall_time: float,
        nonce: bytes,
        challenge: bytes = b"",
        late: bool = False,
        weight: int = 1,
    ) -> bytes:
        """A whole message that asks for a connection to ``destination``: 72 bytes, or 88 with a
        ``challenge``; without a destination it only asks for an answer. ``late`` says that it is
        made to be sent after the handshake. ``weight`` (1..32) is that of the uplink on which it
        goes, for the gateway's scheduler."""
        if len(nonce) != NONCE_LENGTH or len(challenge) not in (0, CHALLENGE_LENGTH):
            raise ValueError(f"nonce of {len(nonce)} bytes, challenge of {len(challenge)}")
        if not 1 <= weight <= MAX_WEIGHT:
            raise ValueError(f"weight {weight} is not 1..{MAX_WEIGHT}")
        flags = (FLAG_LATE if late else 0) | (FLAG_CHALLENGE if challenge else 0)
        flags |= weight - 1 << WEIGHT_SHIFT
        time = min(max(int(wall_time + self.clock_offset), 0), 0xFFFFFFFF)
        head = _TOKEN.pack(_FORMAT, flags, self._key.kid, self._id, time, nonce)
        cookie = Cookie(head + challenge + bytes(TAG_LENGTH))
        wish = Info() if destination is None else Connect(destination)
        message = tlv.build((wish, cookie))
        return message[:-TAG_LENGTH] + self._key.request_tag(message)

    def knock(self, isn: int) -> int:
        """The timestamp by which a SYN with sequence number ``isn`` shows that it is ours, should
        the path eat its payload (``Door.knows``)."""
        return self._key.knock(isn)

    def check_reply(self, request: bytes, reply: bytes, wall_time: float) -> Reply:
        """Reads the ``reply`` (exactly one message) to our ``request``.

        Raises ``ConvertError`` if it is not proven to be the gateway's answer to this very request:
        the connection must then be reset, and no byte of it may reach the LAN (RFC 8803 §8).
        """
        message = Message.parse(reply)
        proof = message.find(Proof)
        if proof is None or message.tlvs[-1] is not proof:
            raise ConvertError("the reply has no proof at its end", None)
        bare = reply[: -Proof.TAG_LENGTH] + bytes(Proof.TAG_LENGTH)
        expected = self._key.reply_tag(request[-TAG_LENGTH:], bare)
        if not hmac.compare_digest(expected, proof.tag):
            raise ConvertError("the reply's proof is wrong", None)
        error = message.find(Error)
        challenge = error.cookie if error is not None else b""
        if len(challenge) != CHALLENGE_LENGTH:
            return Reply(error, b"", message)
        offset = int.from_bytes(challenge[:4], "big") - wall_time
        if abs(offset - self.clock_offset) > WINDOW / 2:
            self.clock_offset = offset
        return Reply(error, challenge, message)


@dataclass(frozen=True, slots=True)
class Request:
    """A request of a client that has proved who it is, or that is known by its address.

    With an ``error`` it must not be served: send ``reply(nonce, request.error)`` and close. Else
    ``destination`` is where it wants to go (``None``: it only asks what is supported). ``length``
    is the message's, in bytes: what follows is not covered by the MAC.
    """

    client: str
    destination: Address | None
    options: tuple[tlv.TcpOption, ...]
    wants_info: bool
    late: bool
    weight: int
    length: int
    error: Error | None
    _tag: bytes = field(default=b"", repr=False)
    _key: _Key | None = field(default=None, repr=False)

    @property
    def proven(self) -> bool:
        """Whether it has the MAC of a secret, so that its replies have one too."""
        return self._key is not None

    def reply(
        self, nonce: bytes, error: Error | None = None, tlvs: tuple[tlv.Tlv, ...] = ()
    ) -> bytes:
        """The answer, proven to be ours to who has proved itself: an error, or else success.

        ``nonce``: 16 random bytes. After an error the connection is closed, not reset, so that the
        answer arrives (RFC 8803 §6.2.8).
        """
        if error is not None:
            tlvs = (error,)
        return (
            tlv.build(tlvs) if self._key is None else self._key.seal_reply(self._tag, tlvs, nonce)
        )


@dataclass(frozen=True, slots=True)
class _Token:
    flags: int
    kid: int
    client: bytes
    time: int
    nonce: bytes
    challenge: bytes
    tag: bytes


class Door:
    """The gateway's side: lets clients in, keeps nothing of strangers.

    ``challenge_key`` are 32 random bytes that no other run uses; ``started`` is the wall time at
    which this run began to take connections.

    Where several processes share the work, a nonce is for one of them to judge: ``elsewhere`` takes
    a question and returns what another one said, None if it is ours, or raises what it likes;
    ``judge`` answers it. ``part`` is the part of the limits that is ours, ``forgot_until`` the wall
    time until which a process was in our place whose nonces are forgotten.
    """

    def __init__(
        self,
        clients: Iterable[ClientConfig],
        challenge_key: bytes,
        started: float,
        service: str = "",
        cache: NonceCache | None = None,
        part: float = 1.0,
        forgot_until: float = 0.0,
    ) -> None:
        self.elsewhere: Callable[[bytes], Seen | None] | None = None
        self._forgot_until = int(forgot_until)
        self._challenge_limit = max(int(CHALLENGES_PER_SECOND * part), 1)
        self._service = service
        self._keys = keys_of(clients, service)
        self._nobody = ("", _Key(challenge_key, service))
        self._challenge_key = challenge_key
        self._latest = started
        self._not_before = int(started)
        if cache is None:
            cache = NonceCache(2 * WINDOW + 2, int(NONCES_PER_CLIENT * part))
        self._cache = cache
        self._challenges: dict[bytes, int] = {}
        self._challenges_second = 0

    def admit(self, clients: Iterable[ClientConfig]) -> None:
        """From now on these are the clients; what was seen of them stays known.

        Raises ConfigError when two secrets of one look the same; nothing is changed then.
        """
        self._keys = keys_of(clients, self._service)

    def verify(self, data: bytes, source: bytes, wall_time: float) -> Request:
        """Judges the message with which ``data`` begins; ``source`` is the packed address it came
        from. Raises ``Unauthorised``; any other shortcoming is in the ``Request``'s ``error``."""
        self._follow_clock(wall_time)
        try:
            length = tlv.message_length(data) or 0
            message = data if length == len(data) else data[:length]
            framed = tlv.frame(message)
        except ConvertError as error:
            raise Unauthorised("no-convert") from error
        token, name, key = self._authenticate(message, framed)
        destination: Connect | None = None
        refusal = self._judge_freshness(token, source, wall_time)
        if refusal is None:
            try:
                destination = _read(framed, token)
            except ConvertError as error:
                code = error.code if error.code is not None else ErrorCode.MALFORMED_MESSAGE
                refusal = Error.echo(code, message, tlv.MAX_LENGTH - _PROOF_ROOM)
        return Request(
            client=name,
            destination=destination.destination if destination is not None else None,
            options=destination.options if destination is not None else (),
            wants_info=any(raw.type == Info.type for raw in framed),
            late=bool(token.flags & FLAG_LATE),
            weight=(token.flags >> WEIGHT_SHIFT) + 1,
            length=length,
            error=refusal,
            _tag=token.tag,
            _key=key,
        )

    def knows(self, isn: int, timestamp: int) -> bool:
        """Whether a SYN without payload is a client's: its timestamp is a MAC of its number.

        It says no more than that a SYN+ACK may be sent; the message that follows is verified as
        any other. A replay tells whoever saw the SYN only what it has seen.
        """
        found = False
        for _, key in self._keys.values():
            found |= key.knock(isn) == timestamp
        return found

    def _authenticate(self, message: bytes, framed: list[tlv.RawTlv]) -> tuple[_Token, str, _Key]:
        cookie = next((raw for raw in framed if raw.type == Cookie.type), None)
        token = _parse_token(bytes(cookie.value[2:])) if cookie is not None else None
        if cookie is None or token is None:
            raise Unauthorised("no-token")
        # An unknown client costs the same work as a known one with a bad tag.
        known = self._keys.get((token.client, token.kid))
        name, key = known if known is not None else self._nobody
        bare = bytearray(message)
        end = cookie.start + len(cookie.value)
        bare[end - TAG_LENGTH : end] = bytes(TAG_LENGTH)
        good = hmac.compare_digest(key.request_tag(bare), token.tag)
        if known is None:
            raise Unauthorised("unknown-client")
        if not good:
            raise Unauthorised("bad-tag")
        return token, name, key

    def _judge_freshness(self, token: _Token, source: bytes, now: float) -> Error | None:
        if token.flags & FLAG_CHALLENGE:
            fresh = self._is_own_challenge(token, source, now)
        else:
            fresh = abs(now - token.time) <= WINDOW and token.time > self._not_before
        if not fresh:
            self._count_challenge(token.client, now)
            return Error.missing_cookie(self._make_challenge(token, source, int(now)))
        seen = self._judge_nonce(token, now)
        if seen is Seen.FORGOTTEN:
            self._count_challenge(token.client, now)
            return Error.missing_cookie(self._make_challenge(token, source, int(now)))
        if seen is Seen.REPLAY:
            raise Unauthorised("replay")
        if seen is Seen.FULL:
            return Error(ErrorCode.RESOURCE_EXCEEDED, b"\1")
        return None

    def _judge_nonce(self, token: _Token, now: float) -> Seen:
        challenged = token.flags & FLAG_CHALLENGE
        time = token.challenge[:4] if challenged else token.time.to_bytes(4, "big")
        question = token.client + token.nonce + time
        seen = self.elsewhere(question) if self.elsewhere is not None else None
        return self.judge(question, now) if seen is None else seen

    def judge(self, question: bytes, now: float) -> Seen:
        """Enters a nonce: client id 8, nonce 12, time of the token or its challenge u32."""
        if int.from_bytes(question[20:24], "big") <= self._forgot_until:
            return Seen.FORGOTTEN
        return self._cache.add(question[:8], question[8:20], now)

    def _make_challenge(self, token: _Token, source: bytes, time: int) -> bytes:
        # The network, not the address: carriers' NATs change the latter between connections.
        network = source[: 3 if len(source) == 4 else 8]
        stamp = (time & 0xFFFFFFFF).to_bytes(4, "big")
        data = b"".join(
            (_LABEL_CHALLENGE, token.client, token.kid.to_bytes(2, "big"), stamp, network)
        )
        mac = hmac.digest(self._challenge_key, data, "sha256")
        return stamp + mac[: CHALLENGE_LENGTH - 4]

    def _is_own_challenge(self, token: _Token, source: bytes, now: float) -> bool:
        time = int.from_bytes(token.challenge[:4], "big")
        expected = self._make_challenge(token, source, time)
        own = hmac.compare_digest(expected, token.challenge)
        return own and 0 <= now - time <= CHALLENGE_LIFETIME

    def _count_challenge(self, client: bytes, now: float) -> None:
        second = int(now)
        if second != self._challenges_second:
            self._challenges_second = second
            self._challenges.clear()
        count = self._challenges.get(client, 0) + 1
        self._challenges[client] = count
        if count > self._challenge_limit:
            raise Unauthorised("too-many-challenges")

    def _follow_clock(self, now: float) -> None:
        """A clock that is set back makes tokens of the past good again, and keeps the cache from
        forgetting: begin anew, as after a restart."""
        if now >= self._latest:
            self._latest = now
        elif now < self._latest - 1:
            self._not_before = max(self._not_before, int(self._latest))
            self._latest = now
            self._challenge_key = hmac.digest(self._challenge_key, b"next", "sha256")
            self._cache.clear()


def keys_of(
    clients: Iterable[ClientConfig], service: str
) -> dict[tuple[bytes, int], tuple[str, _Key]]:
    """The keys of all ``clients``, by client id and key id.

    Raises ConfigError when two secrets of one client have the same key id.
    """
    keys: dict[tuple[bytes, int], tuple[str, _Key]] = {}
    for client in clients:
        for secret in filter(None, (client.secret, *client.previous_secrets)):
            key = _Key(secret, service)
            slot = (client_id(client.name), key.kid)
            if slot in keys:
                message = f"two secrets of {client.name} look the same: make a new one"
                raise ConfigError("client", message)
            keys[slot] = (client.name, key)
    return keys


def _parse_token(data: bytes) -> _Token | None:
    """A token of our format and of the right length, else ``None``."""
    if len(data) < _TOKEN.size + TAG_LENGTH:
        return None
    fmt, flags, kid, client, time, nonce = _TOKEN.unpack_from(data)
    challenged = CHALLENGE_LENGTH if flags & FLAG_CHALLENGE else 0
    if fmt != _FORMAT or len(data) != _TOKEN.size + challenged + TAG_LENGTH:
        return None
    challenge = data[_TOKEN.size : -TAG_LENGTH]
    return _Token(flags, kid, client, time, nonce, challenge, data[-TAG_LENGTH:])


def _read(framed: list[tlv.RawTlv], token: _Token) -> Connect | None:
    """What the message asks for: ``None`` if it has no Connect, only an Info."""
    tlv.check_types(framed)
    connect: Connect | None = None
    asked = False
    for raw in framed:
        if raw.type not in _CLIENT_TYPES:
            raise ConvertError(f"TLV of type {raw.type}", ErrorCode.UNSUPPORTED_MESSAGE)
        parsed = tlv.parse_tlv(raw)
        asked = asked or not isinstance(parsed, Cookie)
        if isinstance(parsed, Connect):
            connect = parsed
    if not asked:
        raise ConvertError("the message asks for nothing")
    if token.flags & FLAG_AEAD:
        raise ConvertError("flags that we do not know", ErrorCode.UNSUPPORTED_MESSAGE)
    return connect
