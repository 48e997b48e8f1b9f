"""The server name is found in any ClientHello, and in nothing else."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.tls import MAX_HELLO, server_name


def client_hello(name: str | None) -> bytes:
    """As OpenSSL sends it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    out = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return out.read()


def in_records(hello: bytes, size: int) -> bytes:
    """The same message in records of ``size`` bytes."""
    body = hello[5:]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(hello[:3] + len(part).to_bytes(2, "big") + part for part in parts)


@pytest.mark.parametrize("name", ["example.org", "Very.Long-Name.example.com"])
@pytest.mark.parametrize("size", [1, 7, 100, 16384])
def test_the_name_is_found_as_soon_as_it_is_there(name: str, size: int) -> None:
    data = in_records(client_hello(name), size)
    assert server_name(data) == name.lower()
    assert server_name(data + b"more") == name.lower()
    assert {server_name(data[:end]) for end in range(len(data))} == {None}


def test_without_a_name_there_is_none() -> None:
    assert server_name(client_hello(None)) == ""


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"SSH-2.0-x\r\n", b"\x16\x02\0\0\0", b"\x16\x03\1\0\0", b"\0"]
)
def test_what_is_no_client_hello_has_no_name(data: bytes) -> None:
    assert server_name(data) == ""


def test_a_hello_without_end_is_not_waited_for() -> None:
    assert server_name(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xf0" + bytes(100)) is None
    assert server_name(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(100)) == ""
    assert server_name(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xf0" + bytes(MAX_HELLO)) == ""


@given(st.binary(max_size=200), st.integers(0, 600))
def test_damaged_hellos_do_no_harm(noise: bytes, at: int) -> None:
    hello = client_hello("example.org")
    data = hello[:at] + noise + hello[at + len(noise) :]
    found = server_name(data)
    assert found is None or isinstance(found, str)
