"""Tokens and proofs: who is let in, who gets silence, who is told to try again."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import ClientConfig
from proxy.convert import auth, tlv
from proxy.convert.auth import Client, Door, Unauthorised, hkdf
from proxy.convert.replay import NonceCache, Seen
from proxy.convert.tlv import (
    Connect,
    ConvertError,
    Cookie,
    Error,
    ErrorCode,
    Info,
    Message,
    Proof,
    SupportedTcpExtensions,
)
from proxy.errors import ConfigError
from proxy.wire.address import Address

SECRET = bytes(range(32))
OTHER_SECRET = bytes(range(32, 64))
SERVER = Address(bytes([198, 51, 100, 7]), 443)
SOURCE = bytes([192, 0, 2, 77])
ELSEWHERE = bytes([203, 0, 113, 5])
STARTED = 1_700_000_000.25
NOW = STARTED + 1000


def nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def make_door(*clients: ClientConfig, service: str = "", cache: NonceCache | None = None) -> Door:
    known = clients or (ClientConfig("home-1", SECRET),)
    return Door(known, b"k" * 32, STARTED, service, cache)


def make_request(time: float = NOW, number: int = 1, challenge: bytes = b"") -> bytes:
    return Client("home-1", SECRET).request(SERVER, time, nonce(number), challenge)


def reason(door: Door, message: bytes, now: float = NOW, source: bytes = SOURCE) -> str:
    with pytest.raises(Unauthorised) as caught:
        door.verify(message, source, now)
    return caught.value.reason


def challenge_for(door: Door, now: float = NOW, source: bytes = SOURCE) -> bytes:
    request = door.verify(make_request(time=1000.0, number=999), source, now)
    assert request.error is not None
    assert request.error.code == ErrorCode.MISSING_COOKIE
    return request.error.cookie


def seal(*tlvs: tlv.Tlv, flags: int = 0, number: int = 1) -> bytes:
    """A message of any TLVs with a good token at its end."""
    genuine = make_request(number=number)
    head = bytearray(genuine[28:60])
    head[1] = flags
    message = tlv.build((*tlvs, Cookie(bytes(head[:28]) + bytes(16))))
    return message[:-16] + auth._Key(SECRET, "").request_tag(message)


def test_hkdf_gives_the_first_vector_of_rfc_5869() -> None:
    salt = bytes(range(13))
    info = bytes(range(0xF0, 0xFA))
    assert hkdf(b"\x0b" * 22, salt, info, 42).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_hkdf_gives_the_third_vector_of_rfc_5869() -> None:
    assert hkdf(b"\x0b" * 22, b"", b"", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )


def test_a_request_is_72_bytes_laid_out_as_documented() -> None:
    request = make_request(time=NOW)
    assert len(request) == 72
    assert request[:4].hex() == "01122263"
    assert request[24:28].hex() == "160c0000"
    token = request[28:]
    assert token[:2] == b"\1\0"
    assert token[4:12] == hashlib.sha256(b"mptcp-proxy client id\0home-1").digest()[:8]
    assert int.from_bytes(token[12:16], "big") == int(NOW)
    assert token[16:28] == nonce(1)
    key = hkdf(SECRET, b"mptcp-proxy convert v1", b"auth", 32)
    data = b"mptcp-proxy c2s v1\0" + b"\0" + request[:56] + bytes(16)
    assert token[28:] == hmac.digest(key, data, "sha256")[:16]


def test_a_good_request_is_let_in() -> None:
    request = make_door().verify(make_request() + b"early data", SOURCE, NOW)
    assert request.error is None
    assert (request.client, request.destination, request.length) == ("home-1", SERVER, 72)
    assert not request.late
    assert not request.wants_info


def test_a_request_made_for_after_the_handshake_says_so() -> None:
    message = Client("home-1", SECRET).request(SERVER, NOW, nonce(1), late=True)
    assert make_door().verify(message, SOURCE, NOW).late


@pytest.mark.parametrize("weight", [1, 2, 31, 32])
def test_a_request_tells_the_weight_of_its_uplink(weight: int) -> None:
    message = Client("home-1", SECRET).request(SERVER, NOW, nonce(1), weight=weight)
    request = make_door().verify(message, SOURCE, NOW)
    assert (request.error, request.weight, request.late) == (None, weight, False)


def test_every_flipped_bit_means_silence() -> None:
    message = make_request()
    for bit in range(len(message) * 8):
        forged = bytearray(message)
        forged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Unauthorised):
            make_door().verify(bytes(forged), SOURCE, NOW)


def test_every_cut_means_silence() -> None:
    message = make_request()
    for length in range(len(message)):
        with pytest.raises(Unauthorised):
            make_door().verify(message[:length], SOURCE, NOW)


@given(st.binary(max_size=120))
def test_random_bytes_mean_silence(data: bytes) -> None:
    with pytest.raises(Unauthorised):
        make_door().verify(data, SOURCE, NOW)


def test_strangers_get_silence_and_the_reason_is_counted_apart() -> None:
    door = make_door()
    assert reason(door, b"GET / HTTP/1.1\r\n\r\n") == "no-convert"
    assert reason(door, Message((Connect(SERVER),)).build()) == "no-token"
    assert reason(door, Message((Connect(SERVER), Cookie(b"secret42"))).build()) == "no-token"
    stranger = Client("home-2", SECRET).request(SERVER, NOW, nonce(1))
    assert reason(door, stranger) == "unknown-client"
    liar = Client("home-1", OTHER_SECRET).request(SERVER, NOW, nonce(1))
    assert reason(door, liar) == "unknown-client"
    assert reason(door, make_request()[:-1] + b"\0") == "bad-tag"


def test_a_token_for_one_service_is_nothing_to_another() -> None:
    message = Client("home-1", SECRET, "paris").request(SERVER, NOW, nonce(1))
    assert make_door(service="paris").verify(message, SOURCE, NOW).error is None
    assert reason(make_door(service="berlin"), message) == "bad-tag"
    assert reason(make_door(), message) == "bad-tag"


def test_a_token_works_once() -> None:
    door = make_door()
    assert door.verify(make_request(), SOURCE, NOW).error is None
    assert reason(door, make_request()) == "replay"
    assert door.verify(make_request(number=2), SOURCE, NOW).error is None
    assert reason(door, make_request(), NOW + 29, ELSEWHERE) == "replay"


def test_a_token_can_never_be_used_twice_at_any_distance() -> None:
    seed = 20260101
    rng = random.Random(seed)
    for number in range(300):
        door = make_door()
        made = NOW + rng.uniform(-40, 40)
        first = NOW + rng.uniform(-5, 5)
        accepted = 0
        for moment in sorted([first, *(first + rng.uniform(0, 200) for _ in range(8))]):
            door_request = make_request(number=900 + rng.randrange(10**6), time=moment)
            door.verify(door_request, SOURCE, moment)  # others come and go
            with contextlib.suppress(Unauthorised):
                accepted += door.verify(make_request(made), SOURCE, moment).error is None
        assert accepted <= 1, f"seed {seed}, round {number}"


@pytest.mark.parametrize("skew", [-30, -29, 0, 29, 30])
def test_clocks_may_differ_by_the_window(skew: int) -> None:
    now = int(NOW) + 0.0
    assert make_door().verify(make_request(time=now + skew), SOURCE, now).error is None


@pytest.mark.parametrize("skew", [-1_000_000, -31, 31, 1_000_000])
def test_beyond_the_window_the_client_is_challenged(skew: int) -> None:
    request = make_door().verify(make_request(time=int(NOW) + skew), SOURCE, int(NOW))
    assert request.error is not None
    assert request.error.code == ErrorCode.MISSING_COOKIE
    assert len(request.error.cookie) == auth.CHALLENGE_LENGTH


def test_a_client_without_a_clock_gets_in_by_its_challenge_and_then_without() -> None:
    door = make_door()
    client = Client("home-1", SECRET)
    boot = 4.0
    first = client.request(SERVER, boot, nonce(1))
    refusal = door.verify(first, SOURCE, NOW)
    answer = client.check_reply(first, refusal.reply(bytes(16), refusal.error), boot)
    assert answer.error is not None
    assert answer.challenge
    second = client.request(SERVER, boot, nonce(2), answer.challenge)
    assert len(second) == 88
    assert door.verify(second, SOURCE, NOW).error is None
    third = client.request(SERVER, boot + 500, nonce(3))
    assert door.verify(third, SOURCE, NOW + 500).error is None


def test_a_challenge_from_a_gateway_with_our_time_leaves_the_offset_alone() -> None:
    door = make_door()
    client = Client("home-1", SECRET)
    early = client.request(SERVER, STARTED, nonce(1))
    refusal = door.verify(early, SOURCE, STARTED + 0.1)
    assert client.check_reply(early, refusal.reply(bytes(16), refusal.error), STARTED).challenge
    assert client.clock_offset == 0


def test_a_challenge_serves_its_client_network_and_minute_only() -> None:
    door = make_door()
    challenge = challenge_for(door)
    for moment, source, good in (
        (NOW, SOURCE, True),
        (NOW + 59, SOURCE[:3] + b"\1", True),
        (NOW + 61, SOURCE, False),
        (NOW, ELSEWHERE, False),
        (NOW, bytes(16), False),
    ):
        message = make_request(
            time=5.0, number=hash((moment, source)) & 0xFFFF, challenge=challenge
        )
        assert (make_door().verify(message, source, moment).error is None) is good


def test_a_challenged_token_works_once_too() -> None:
    door = make_door()
    message = make_request(time=5.0, challenge=challenge_for(door))
    assert door.verify(message, SOURCE, NOW).error is None
    assert reason(door, message) == "replay"
    assert reason(door, message, NOW + 59) == "replay"


def test_a_forged_challenge_gets_a_new_one() -> None:
    door = make_door()
    forged = challenge_for(door)[:-1] + b"\0"
    request = door.verify(make_request(challenge=forged), SOURCE, NOW)
    assert request.error is not None
    assert request.error.cookie not in (b"", forged)


def test_tokens_from_before_a_restart_need_a_challenge() -> None:
    before = make_request(time=STARTED - 2)
    request = make_door().verify(before, SOURCE, STARTED + 1)
    assert request.error is not None
    assert request.error.code == ErrorCode.MISSING_COOKIE
    after = make_request(time=STARTED + 1, number=2)
    assert make_door().verify(after, SOURCE, STARTED + 1).error is None


def test_a_challenge_does_not_survive_a_restart() -> None:
    challenge = challenge_for(make_door())
    restarted = Door([ClientConfig("home-1", SECRET)], b"n" * 32, NOW)
    message = make_request(time=5.0, challenge=challenge)
    assert restarted.verify(message, SOURCE, NOW + 1).error is not None


def test_a_gateway_clock_that_is_set_back_does_not_bring_tokens_to_life() -> None:
    door = make_door()
    challenged = make_request(time=5.0, number=3, challenge=challenge_for(door))
    assert door.verify(challenged, SOURCE, NOW).error is None
    assert door.verify(make_request(), SOURCE, NOW).error is None
    assert door.verify(make_request(NOW + 200, 2), SOURCE, NOW + 200).error is None
    for message in (make_request(), challenged):
        again = door.verify(message, SOURCE, NOW + 5)
        assert again.error is not None
        assert again.error.code == ErrorCode.MISSING_COOKIE
    assert door.verify(make_request(NOW + 202, 4), SOURCE, NOW + 202).error is None


def test_challenges_are_limited_per_client_and_second() -> None:
    door = make_door()
    stale = [make_request(time=9.0, number=number) for number in range(auth.CHALLENGES_PER_SECOND)]
    for message in stale:
        assert door.verify(message, SOURCE, NOW).error is not None
    assert reason(door, stale[0]) == "too-many-challenges"
    assert door.verify(make_request(number=5000), SOURCE, NOW).error is None
    assert door.verify(stale[0], SOURCE, NOW + 1).error is not None


def test_a_full_nonce_cache_fails_closed_for_that_client_alone() -> None:
    clients = (ClientConfig("home-1", SECRET), ClientConfig("home-2", OTHER_SECRET))
    door = make_door(*clients, cache=NonceCache(62.0, share=2))
    for number in range(2):
        assert door.verify(make_request(number=number), SOURCE, NOW).error is None
    request = door.verify(make_request(number=2), SOURCE, NOW)
    assert request.error is not None
    assert request.error.code == ErrorCode.RESOURCE_EXCEEDED
    other = Client("home-2", OTHER_SECRET).request(SERVER, NOW, nonce(1))
    assert door.verify(other, SOURCE, NOW).error is None


def test_secrets_can_be_changed_without_a_gap() -> None:
    door = make_door(ClientConfig("home-1", OTHER_SECRET, (SECRET,)))
    assert door.verify(make_request(), SOURCE, NOW).error is None
    new = Client("home-1", OTHER_SECRET).request(SERVER, NOW, nonce(2))
    assert door.verify(new, SOURCE, NOW).error is None


def test_the_same_secret_twice_is_a_mistake_of_the_operator() -> None:
    with pytest.raises(ConfigError):
        make_door(ClientConfig("home-1", SECRET, (SECRET,)))


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (seal(Connect(SERVER), Connect(SERVER)), ErrorCode.MALFORMED_MESSAGE),
        (seal(), ErrorCode.MALFORMED_MESSAGE),
        (seal(tlv.Unknown(200, b"ab")), ErrorCode.UNSUPPORTED_MESSAGE),
        (seal(SupportedTcpExtensions((30,))), ErrorCode.UNSUPPORTED_MESSAGE),
        (seal(Error(1, b"\0"), Connect(SERVER)), ErrorCode.UNSUPPORTED_MESSAGE),
        (seal(Connect(Address(b"\xe0\0\0\1", 80))), ErrorCode.MALFORMED_MESSAGE),
        (seal(Connect(SERVER), flags=auth.FLAG_AEAD), ErrorCode.UNSUPPORTED_MESSAGE),
        (
            seal(Connect(SERVER), flags=auth.FLAG_AEAD | auth.FLAG_LATE),
            ErrorCode.UNSUPPORTED_MESSAGE,
        ),
    ],
)
def test_a_client_that_breaks_the_rules_is_told_with_an_echo(
    message: bytes, code: ErrorCode
) -> None:
    request = make_door().verify(message, SOURCE, NOW)
    assert request.error is not None
    assert request.error.code == code
    assert request.error.detail == b"\0" + message
    assert request.destination is None


def test_a_client_may_ask_what_is_supported() -> None:
    client = Client("home-1", SECRET)
    message = seal(Info())
    request = make_door().verify(message, SOURCE, NOW)
    assert request.error is None
    assert request.wants_info
    assert request.destination is None
    reply = request.reply(bytes(16), tlvs=(SupportedTcpExtensions((30,)),))
    answer = client.check_reply(message, reply, NOW)
    assert answer.message.find(SupportedTcpExtensions) == SupportedTcpExtensions((30,))


def test_success_is_forty_proven_bytes() -> None:
    message = make_request()
    reply = make_door().verify(message, SOURCE, NOW).reply(b"s" * 16)
    assert len(reply) == 40
    answer = Client("home-1", SECRET).check_reply(message, reply, NOW)
    assert answer.error is None
    assert answer.challenge == b""


def test_errors_reach_the_client_proven() -> None:
    message = make_request()
    request = make_door().verify(message, SOURCE, NOW)
    reply = request.reply(b"s" * 16, Error(ErrorCode.DESTINATION_UNREACHABLE, b"\3"))
    answer = Client("home-1", SECRET).check_reply(message, reply, NOW)
    assert answer.error is not None
    assert (answer.error.code, answer.error.detail[0]) == (97, 3)


def test_no_flipped_bit_of_a_reply_is_believed() -> None:
    message = make_request()
    client = Client("home-1", SECRET)
    reply = make_door().verify(message, SOURCE, NOW).reply(b"s" * 16)
    for bit in range(len(reply) * 8):
        forged = bytearray(reply)
        forged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ConvertError):
            client.check_reply(message, bytes(forged), NOW)


def test_a_reply_to_another_request_is_not_believed() -> None:
    client = Client("home-1", SECRET)
    reply = make_door().verify(make_request(), SOURCE, NOW).reply(b"s" * 16)
    with pytest.raises(ConvertError):
        client.check_reply(make_request(number=2), reply, NOW)


def test_a_reply_without_a_proof_at_its_end_is_not_believed() -> None:
    client = Client("home-1", SECRET)
    message = make_request()
    proof = Proof(bytes(16), bytes(16))
    for tlvs in ((), (proof,), (proof, Error(96, b"\0"))):
        with pytest.raises(ConvertError):
            client.check_reply(message, tlv.build(tlvs), NOW)


def test_no_secret_and_no_tag_shows_in_a_repr() -> None:
    client = ClientConfig("home-1", SECRET, (OTHER_SECRET,))
    request = make_door(client).verify(make_request(), SOURCE, NOW)
    for text in (repr(client), repr(request)):
        assert repr(SECRET)[2:20] not in text
        assert "_tag" not in text
        assert "_key" not in text


def test_nonces_are_forgotten_after_two_generations_at_the_latest() -> None:
    cache = NonceCache(lifetime=60, share=100)
    assert cache.add(b"a", b"1", 0) is Seen.NEW
    assert cache.add(b"a", b"1", 59.9) is Seen.REPLAY
    assert cache.add(b"a", b"2", 59.9) is Seen.NEW
    assert cache.add(b"a", b"1", 60) is Seen.REPLAY
    assert cache.add(b"b", b"1", 60) is Seen.NEW
    assert cache.add(b"a", b"2", 119) is Seen.REPLAY
    assert cache.add(b"a", b"2", 120) is Seen.NEW
    assert cache.add(b"a", b"3", 1000) is Seen.NEW
    assert len(cache) == 1


def test_a_syn_without_payload_is_known_by_its_timestamp() -> None:
    client = Client("home-1", SECRET, "gw")
    clients = [ClientConfig("other", OTHER_SECRET), ClientConfig("home-1", SECRET)]
    door = Door(clients, bytes(32), STARTED, "gw")
    stamp = client.knock(0x12345678)
    assert 0 <= stamp <= 0xFFFFFFFF
    assert door.knows(0x12345678, stamp)
    assert not door.knows(0x12345679, stamp)
    assert not door.knows(0x12345678, stamp ^ 1)


def test_a_knock_of_a_stranger_or_for_another_service_is_not_known() -> None:
    door = Door([ClientConfig("home-1", SECRET)], bytes(32), STARTED, "gw")
    assert not door.knows(7, Client("home-1", OTHER_SECRET, "gw").knock(7))
    assert not door.knows(7, Client("home-1", SECRET, "elsewhere").knock(7))
