"""Captured packets in words, and as pcapng."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest

from proxy.cli.capture_file import CaptureFile, text_of
from proxy.cli.mptcp_text import option_text
from proxy.cli.packet_text import packet_text
from proxy.seg import ACK, PSH, RST, SYN, build_header, dss_option
from proxy.wire.mptcp_options import (
    AddAddr,
    MpCapable,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpPrio,
    MpTcprst,
    RemoveAddr,
    pad,
)
from proxy.wire.tcp_options import SynOptions

KEY, OTHER = bytes(range(8)), bytes(range(8, 16))
IP4, IP6 = b"\xc0\x00\x02\x01", bytes.fromhex("20010db8000000000000000000000001")


@pytest.mark.parametrize(
    ("raw", "syn", "ack", "words"),
    [
        (MpCapable().build(), True, False, "MP_CAPABLE v1 flags [H]"),
        (
            MpCapable(KEY, checksum_required=True, no_subflows_here=True).build(), True, True,
            "MP_CAPABLE v1 flags [ACH] key 0x0001020304050607",
        ),
        (
            MpCapable(KEY, OTHER, data_length=9).build(), False, True,
            "MP_CAPABLE v1 flags [H] key 0x0001020304050607 peer key 0x08090a0b0c0d0e0f length 9",
        ),
        (
            MpJoinSyn(True, 2, 0xABC, b"\1\2\3\4").build(), True, False,
            "MP_JOIN SYN id 2 token 0x00000abc nonce 0x01020304 backup",
        ),
        (
            MpJoinSynAck(False, 0, KEY, b"\1\2\3\4").build(), True, True,
            "MP_JOIN SYN/ACK id 0 hmac 0x0001020304050607 nonce 0x01020304",
        ),
        (MpJoinAck(b"\7" * 20).build(), False, True, f"MP_JOIN ACK hmac 0x{'07' * 20}"),
        (
            AddAddr(3, IP4, 443, hmac=KEY).build(), False, True,
            "ADD_ADDR id 3 192.0.2.1:443 hmac 0x0001020304050607",
        ),
        (AddAddr(3, IP6, echo=True).build(), False, True, "ADD_ADDR id 3 2001:db8::1 echo"),
        (RemoveAddr((1, 4)).build(), False, True, "REMOVE_ADDR id 1,4"),
        (MpPrio(True).build(), False, True, "MP_PRIO backup"),
        (MpFail(77).build(), False, True, "MP_FAIL dsn 77"),
        (MpFastclose(KEY).build(), False, True, "MP_FASTCLOSE key 0x0001020304050607"),
        (
            MpTcprst(6, True).build(), False, True,
            "MP_TCPRST reason 6 (middlebox interference) transient",
        ),
        (bytes((30, 8, 0x20, 5, 0, 0, 0, 9)), False, True, "DSS of 8 bytes, malformed"),
        (bytes((30, 8, 0x20, 1, 0, 0, 0, 9)), False, True, "DSS DATA_ACK 9"),
        (
            bytes((30, 18, 0x20, 0x15)) + (5).to_bytes(4, "big") + (6).to_bytes(4, "big")
            + (7).to_bytes(4, "big") + b"\0\1", False, True,
            "DSS dsn 6 ssn 7 length 1, DATA_ACK 5, DATA_FIN",
        ),
        (
            bytes((30, 17, 0x20, 0x0C)) + (2**40).to_bytes(8, "big") + b"\0\0\0\1" + b"\0",
            False, True, "DSS of 17 bytes, malformed",
        ),
        (
            bytes((30, 20, 0x20, 0x0C)) + (2**40).to_bytes(8, "big") + b"\0\0\0\1"
            + b"\0\0\xab\xcd", False, True,
            f"DSS dsn {2**40} ssn 1 length 0, infinite mapping, checksum 0xabcd",
        ),
        (b"\x1e\x03\xf0", False, True, "MPTCP subtype 15 of 3 bytes, not understood"),
        (b"\x1e\x02", False, True, "MPTCP subtype -1 of 2 bytes, not understood"),
    ],
)  # fmt: skip
def test_options_in_words(raw: bytes, syn: bool, ack: bool, words: str) -> None:
    assert option_text(raw, syn, ack) == words


def test_a_syn_reads_as_in_tcpdump() -> None:
    options = SynOptions(1460, 8, True, 5, 0).build(MpCapable().build())
    message = bytes((1, 2)) + (0x2263).to_bytes(2, "big") + bytes(4)
    data = build_header(IP4, IP4[::-1], 7, 8803, 100, 0, SYN, 500, options, 8, 0)[10:] + message
    assert str(packet_text(data, len(data))) == (
        "IP 192.0.2.1.7 > 1.2.0.192.8803: Flags [S], seq 100:108, win 500, "
        "options [mss 1460,sackOK,TS val 5 ecr 0,wscale 8], length 8; MP_CAPABLE v1 flags [H]; "
        "Convert message of 8 bytes"
    )


def test_the_length_of_a_cut_packet_is_that_of_the_whole() -> None:
    option = dss_option(-1, False, 1000, 1, 3000, -1, False)
    header = build_header(IP6, IP6, 7, 8, 1, 2, ACK | PSH, 500, pad(option), 3000, 1400)[10:]
    text = str(packet_text(header + bytes(50), len(header) + 3000))
    assert "Flags [P.], seq 1:3001, ack 2, win 500, length 3000" in text
    assert "DSS dsn 1000 ssn 1 length 3000" in text


def test_what_is_no_tcp_is_named() -> None:
    assert packet_text(b"", 0).line == "not IP, length 0"
    assert packet_text(b"\x45\0", 2).line == "not IP, length 2"
    icmp = bytes.fromhex("4500001c00000000400100000a0000010a00000208000000") + bytes(4)
    assert packet_text(icmp, 28).line == "IP 10.0.0.1 > 10.0.0.2: ICMP, length 28"


def event(**more: Any) -> dict[str, Any]:
    option = MpTcprst(4).build()
    data = build_header(IP4, IP4, 7, 8, 1, 2, RST | ACK, 0, option, 0, 0)[10:]
    return {
        "event": "packet", "time": 10**18, "interface": "fibre", "direction": "out",
        "length": len(data), "data": base64.b64encode(data).decode(), **more,
    }  # fmt: skip


def test_what_the_daemon_knows_follows_what_the_packet_says() -> None:
    known = {"token": "0000abcd", "scheduler": "default", "gso-size": 1400}
    assert text_of(event(**known)).mptcp == (
        "MP_TCPRST reason 4 (too much outstanding data)",
        "super-segment for segments of 1400 bytes",
        "connection 0000abcd",
        "scheduled by default: fibre",
    )


def test_an_uplink_that_comes_later_gets_an_interface_of_its_own() -> None:
    file = io.BytesIO()
    writer = CaptureFile(file, ["lan", "fibre"])
    writer.write(event())
    writer.write(event(interface="lte"))
    data = file.getvalue()
    assert [data.count(name) for name in (b"lan\0", b"fibre\0", b"lte\0")] == [1, 1, 1]
    assert data.count(b"too much outstanding data") == 2
