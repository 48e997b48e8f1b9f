"""Keys, tokens and HMACs against handshakes captured from Linux 6.18."""

from __future__ import annotations

import random

from proxy.mptcp import keys

KEY_A = bytes.fromhex("1782f8ead15c56fb")
KEY_B = bytes.fromhex("38b0e02f1ae77431")
NONCE_A = bytes.fromhex("1cf0e6fe")
NONCE_B = bytes.fromhex("83e4732e")


def test_token_and_idsn_are_those_of_the_kernel() -> None:
    a, b = keys.derive(KEY_A), keys.derive(KEY_B)
    assert (a.token, a.idsn) == (0xAA3184BA, 4796892536276830472)
    assert (b.token, b.idsn) == (0x34702AA1, 12031090656744910456)
    c = keys.derive(bytes.fromhex("c646ecf9616b5430"))
    d = keys.derive(bytes.fromhex("84cb97c5e3b7bade"))
    assert (c.token, c.idsn) == (0xC00223B3, 8632439083950984879)
    assert (d.token, d.idsn) == (0xBDA6868B, 5491851161293436063)


def test_join_hmacs_are_those_of_the_kernel() -> None:
    hmac_b = keys.join_hmac(KEY_B, KEY_A, NONCE_B, NONCE_A)
    hmac_a = keys.join_hmac(KEY_A, KEY_B, NONCE_A, NONCE_B)
    assert hmac_b[: keys.JOIN_SYN_ACK_HMAC].hex() == "9d0df19d5bb644af"
    assert hmac_a[: keys.JOIN_ACK_HMAC].hex() == "8042391ea0cae5f8629a93e0a68279dc3934367b"


def test_add_addr_hmac_is_the_rightmost_half_as_the_kernel_sends_it() -> None:
    found = keys.add_addr_hmac(KEY_B, KEY_A, 1, bytes((10, 99, 2, 2)), None)
    assert found.hex() == "c2e7484c07a69770"


def test_a_taken_token_is_drawn_again_and_at_last_given_up() -> None:
    class Everything:
        def __contains__(self, token: object) -> bool:
            return True

    first = keys.generate(random.Random(1), ())
    assert first is not None
    second = keys.generate(random.Random(1), {first.token})
    assert second is not None
    assert second != first
    assert keys.generate(random.Random(1), Everything()) is None


def test_key_zero_and_nonce_zero_are_never_used() -> None:
    class Zeros:
        def randbytes(self, n: int) -> bytes:
            return bytes(n)

    assert keys.generate(Zeros(), ()) is None
    assert any(keys.nonce(Zeros()))
