"""Convert messages: what is built, what is taken, what is refused (RFC 8803 §6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.convert.tlv import (
    Connect,
    ConvertError,
    Cookie,
    Error,
    ErrorCode,
    ExtendedTcpHeader,
    Info,
    Message,
    Proof,
    SupportedTcpExtensions,
    TcpOption,
    Unknown,
    message_length,
)
from proxy.wire.address import Address

if TYPE_CHECKING:
    from proxy.convert import tlv

V4 = Address(bytes([192, 0, 2, 33]), 443)
V6 = Address(bytes.fromhex("20010db8000000000000000000000007"), 80)


def refused(data: str) -> ConvertError:
    with pytest.raises(ConvertError) as caught:
        Message.parse(bytes.fromhex(data))
    return caught.value


def test_base_connect_is_24_bytes_with_a_mapped_ipv4_address() -> None:
    message = Message((Connect(V4),)).build()
    assert message.hex() == "010622630a0501bb00000000000000000000ffffc0000221"
    assert Message.parse(message) == Message((Connect(V4),))


@pytest.mark.parametrize(
    "parsed",
    [
        Info(),
        Connect(V6),
        Connect(V4, (TcpOption(34), TcpOption(4), TcpOption(8, bytes(8)))),
        Cookie(bytes(range(44))),
        SupportedTcpExtensions((30, 34)),
        ExtendedTcpHeader(bytes.fromhex("020405b404020101")),
        Proof(bytes(range(16)), bytes(range(16, 32))),
        Unknown(200, b"ab"),
    ],
    ids=lambda parsed: type(parsed).__name__,
)
def test_every_tlv_survives_the_wire(parsed: tlv.Tlv) -> None:
    message = Message((parsed,)).build()
    assert len(message) % 4 == 0
    assert message[1] * 4 == len(message)
    assert Message.parse(message).tlvs == (parsed,)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_error_survives_the_wire(code: ErrorCode) -> None:
    error = Error(code, b"\7")
    assert Message.parse(Message((error,)).build()).tlvs == (error,)


def test_a_header_alone_is_a_message() -> None:
    assert Message.parse(bytes.fromhex("01012263")).tlvs == ()
    assert Message().build().hex() == "01012263"


def test_unknown_error_codes_are_kept_and_can_be_printed() -> None:
    (error,) = Message.parse(bytes.fromhex("010222631e01c800")).tlvs
    assert isinstance(error, Error)
    assert (error.code, str(error)) == (200, "error 200")
    assert str(Error(97)) == "destination unreachable (97)"


@pytest.mark.parametrize(
    ("data", "length"),
    [("", None), ("01", None), ("0106", None), ("010622", None), ("01062263", 24)],
)
def test_length_is_known_when_the_header_is_there(data: str, length: int | None) -> None:
    assert message_length(bytes.fromhex(data)) == length


def test_length_ignores_what_follows_the_message() -> None:
    assert message_length(Message((Connect(V4),)).build() + b"user data") == 24


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("01002263", None),  # libconvert took this for 2**64-4 bytes of TLVs
        ("0100", None),
        ("00", None),
        ("00062263", None),
        ("01062264", None),
        ("474554202f", None),
        ("16030100", None),
        ("02062263", ErrorCode.UNSUPPORTED_VERSION),
    ],
)
def test_what_is_no_message_is_refused_at_its_header(data: str, code: ErrorCode | None) -> None:
    with pytest.raises(ConvertError) as caught:
        message_length(bytes.fromhex(data))
    assert caught.value.code == code


@pytest.mark.parametrize(
    "data",
    [
        "010222631e000000",  # Error of length 0: an endless loop in libconvert
        "0102226316000000",  # Cookie of length 0: malloc(2**64-4) there
        "0102226314000000",  # Extended TCP Header of length 0: the same
        "010222630a000000",
        "010222630a050050",  # beyond its message
        "010222631602aaaa",
        "0103226301010000",  # message longer than the bytes
        "0101226301010000",  # message shorter than the bytes
        "0102226316010000",  # Cookie without a cookie
        "010322630102000000000000",  # Info of two words
        "010522630a040050" + "00" * 12,  # Connect of four words
        "01032263c102000000000000",
    ],
)
def test_bad_frames_and_lengths_are_malformed(data: str) -> None:
    assert refused(data).code == ErrorCode.MALFORMED_MESSAGE


@pytest.mark.parametrize("kind", ["0101", "1e01", "c801", "ff01"])
def test_a_type_that_is_there_twice_is_malformed(kind: str) -> None:
    assert refused("01032263" + (kind + "0000") * 2).code == ErrorCode.MALFORMED_MESSAGE


def test_type_zero_is_unsupported() -> None:
    assert refused("0102226300010000").code == ErrorCode.UNSUPPORTED_MESSAGE


@pytest.mark.parametrize(
    "address",
    [
        "00000000000000000000ffffe0000001",
        "00000000000000000000ffffefffffff",
        "00000000000000000000ffffffffffff",
        "ff020000000000000000000000000001",
    ],
)
def test_connect_to_multicast_or_broadcast_is_malformed(address: str) -> None:
    assert refused("010622630a050050" + address).code == ErrorCode.MALFORMED_MESSAGE


@pytest.mark.parametrize(
    "options",
    [
        "00000004",
        "01010402",
        "04020100",
        "0401",
        "0400",
        "22ff0000",
        "0402ff",
        "00040200",
        "040200ff",
    ],
)
def test_bad_options_of_an_extended_connect_are_malformed(options: str) -> None:
    value = bytes.fromhex(options)
    value += bytes(-len(value) % 4)
    words = 5 + len(value) // 4
    text = f"01{words + 1:02x}22630a{words:02x}0050" + "20010db8" + "00" * 11 + "07" + value.hex()
    assert refused(text).code == ErrorCode.MALFORMED_MESSAGE


def test_options_may_fill_their_word_or_be_padded() -> None:
    for options in ((TcpOption(4), TcpOption(30)), (TcpOption(34, b"\1"),)):
        message = Message((Connect(V6, options),)).build()
        assert Message.parse(message).tlvs == (Connect(V6, options),)


def test_kinds_that_must_not_be_listed_are_neither_sent_nor_seen() -> None:
    with pytest.raises(ValueError, match="must not be listed"):
        Message((SupportedTcpExtensions((30, 5)),)).build()
    (parsed,) = Message.parse(bytes.fromhex("01032263150200001e050100")).tlvs
    assert parsed == SupportedTcpExtensions((30,))


def test_an_echo_is_cut_to_what_fits() -> None:
    longest = Message((Unknown(200, bytes(1014)),)).build()
    assert len(longest) == 1020
    proof = Proof(bytes(16), bytes(16))
    error = Error.echo(ErrorCode.MALFORMED_MESSAGE, longest, 1020 - 4 - 36)
    answer = Message((error, proof)).build()
    assert len(answer) <= 1020
    assert longest.startswith(error.detail[1:])
    short = Error.echo(ErrorCode.MALFORMED_MESSAGE, longest[:24], 980)
    assert short.detail == b"\0" + longest[:24]


def test_too_long_a_message_is_not_built() -> None:
    with pytest.raises(ValueError, match="1020"):
        Message((Unknown(200, bytes(1014)), Info())).build()
    with pytest.raises(ValueError, match="255"):
        Message((Unknown(200, bytes(1020)),)).build()


def test_delays_of_zero_stand_for_half_a_minute() -> None:
    assert Error(ErrorCode.RESOURCE_EXCEEDED, b"\0").delay == 30
    assert Error(ErrorCode.NETWORK_FAILURE, b"\5").delay == 5
    assert Error(ErrorCode.NOT_AUTHORIZED, b"\5").delay == 0


def test_missing_cookie_carries_its_cookie_in_whole_words() -> None:
    error = Error.missing_cookie(bytes(range(16)))
    assert len(Message((error,)).build()) == 4 + 4 + 16
    assert error.cookie == bytes(range(16))
    assert Error(ErrorCode.NOT_AUTHORIZED, b"\0abcd").cookie == b""


def test_find_gives_the_tlv_of_a_class() -> None:
    message = Message((Info(), Connect(V4)))
    assert message.find(Connect) == Connect(V4)
    assert message.find(Cookie) is None


@given(st.binary(max_size=80))
def test_random_tlvs_parse_or_are_refused(body: bytes) -> None:
    body += bytes(-len(body) % 4)
    message = bytes((1, 1 + len(body) // 4, 0x22, 0x63)) + body
    try:
        parsed = Message.parse(message)
    except ConvertError:
        return
    assert len(parsed.build()) == len(message)


@given(st.binary(max_size=40))
def test_random_bytes_parse_or_are_refused(data: bytes) -> None:
    try:
        length = message_length(data)
        if length is not None:
            Message.parse(data[:length])
    except ConvertError:
        pass
