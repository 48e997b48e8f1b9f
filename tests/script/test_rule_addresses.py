"""ADD_ADDR, REMOVE_ADDR and what options may share a segment: RFC 8684 §3, §3.4."""

from __future__ import annotations

from itertools import pairwise

import pytest

from proxy.mptcp import keys
from proxy.mptcp.notes import Fallback
from proxy.pm.base import Endpoint
from proxy.tcp.config import TcpConfig
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.address import Address
from proxy.wire.mptcp_options import (
    AddAddr,
    MpCapable,
    MpPrio,
    RemoveAddr,
    compatible,
    subtype_of,
)
from tests.script.mptcp_harness import (
    OURS_2,
    PEER_KEY,
    Leg,
    MptcpScript,
    config,
    has_option,
    option_of,
)

THERE = b"\x0a\x09\x00\x07"


def announcement(
    script: MptcpScript, address_id: int = 7, ip: bytes = THERE, port: int | None = None
) -> bytes:
    mac = keys.add_addr_hmac(PEER_KEY, script.conn.local_key.key, address_id, ip, port)
    return AddAddr(address_id, ip, port, hmac=mac).build()


def joining(**limits: int) -> MptcpScript:
    """A client that joins what is announced."""
    wanted = {"subflows": 4, "add_addr_accepted": 2} | limits
    return MptcpScript.client(mptcp=config(**wanted), path_manager="kernel")


def announcing(endpoints: list[Endpoint], **settings: float) -> MptcpScript:
    """A server that announces its endpoints as soon as it may."""
    script = MptcpScript.syn_received(
        mptcp=config(**settings), path_manager="kernel", endpoints=endpoints
    )
    script.first.take()
    script.first.inject(options=script.capable(PEER_KEY + script.conn.local_key.key))
    return script


def announced(leg: Leg) -> list[AddAddr]:
    return [option_of(seg, AddAddr) for seg in leg.take() if has_option(seg, AddAddr)]


def joined_to(script: MptcpScript) -> set[Address]:
    script.flush()
    return {theirs for (_, theirs) in script.legs if theirs != script.conn.remote}


# -- announced by the peer -------------------------------------------------------------------------


@pytest.mark.parametrize("port", [None, 9000])
def test_addr_01_an_announcement_is_echoed_as_it_came_without_its_hmac(port: int | None) -> None:
    script = joining()
    script.first.inject(options=announcement(script, port=port))
    echo = option_of(script.first.next(), AddAddr)
    assert echo == AddAddr(7, THERE, port, echo=True)
    assert script.count("AddAddr") == script.count("EchoAddTx") == 1
    assert script.count("PortAdd") == (port is not None)


@pytest.mark.parametrize(("port", "wanted"), [(None, 8803), (9000, 9000)])
def test_addr_02_without_a_port_it_is_that_of_the_first_subflow(
    port: int | None, wanted: int
) -> None:
    script = joining()
    script.first.inject(options=announcement(script, port=port))
    assert joined_to(script) == {Address(THERE, wanted)}
    assert script.conn.remote_addresses == {7: Address(THERE, wanted)}
    assert Event.ADDR_ANNOUNCED in script.events


def test_addr_01_an_id_keeps_its_address_until_it_is_removed() -> None:
    script = joining()
    script.first.inject(options=announcement(script))
    script.first.inject(options=announcement(script, ip=b"\x0a\x09\x00\x08"))
    assert script.conn.remote_addresses == {7: Address(THERE, 8803)}
    script.first.inject(options=announcement(script, port=9000))
    assert script.conn.remote_addresses == {7: Address(THERE, 9000)}, "a new port is taken"
    script.first.inject(options=RemoveAddr((7,)).build())
    script.first.inject(options=announcement(script, ip=b"\x0a\x09\x00\x08"))
    assert script.conn.remote_addresses == {7: Address(b"\x0a\x09\x00\x08", 8803)}


def test_key_04_a_wrong_hmac_gets_neither_echo_nor_join() -> None:
    script = joining()
    script.first.inject(options=AddAddr(7, THERE, hmac=bytes(8)).build())
    assert not any(has_option(seg, AddAddr) for seg in script.first.take())
    assert joined_to(script) == set()


def test_key_04_the_port_is_covered_by_the_hmac() -> None:
    script = joining()
    good = announcement(script, port=9000)
    script.first.inject(options=good[:8] + (9001).to_bytes(2, "big") + good[10:])
    assert script.conn.remote_addresses == {}


@pytest.mark.parametrize(
    "ip",
    [bytes(4), b"\x7f\0\0\1", b"\xe0\0\0\1", b"\xff\xff\xff\xff", b"\0\1\2\3", bytes(15) + b"\1",
     b"\xff\2" + bytes(14)],
)  # fmt: skip
def test_addr_04_addresses_that_are_no_host_are_not_joined(ip: bytes) -> None:
    script = joining()
    script.first.inject(options=announcement(script, ip=ip))
    assert joined_to(script) == set()
    assert script.count("AddAddrDrop") == 1


def test_addr_04_the_number_of_joins_is_limited() -> None:
    script = joining(add_addr_accepted=2)
    for number in range(20):
        script.first.inject(options=announcement(script, 10 + number, bytes((10, 9, 1, number))))
    assert len(joined_to(script)) == 2


def test_addr_05_remove_addr_closes_the_subflows_to_these_ids_alone() -> None:
    script = joining()
    for address_id in (7, 8):
        ip = bytes((10, 9, 0, address_id))
        script.first.inject(options=announcement(script, address_id, ip))
        leg = next(one for (_, theirs), one in script.legs.items() if theirs.ip == ip)
        leg.inject("SA", options=script.join_syn_ack(leg))
        leg.inject(options=script.dss(ack=0))
        leg.take()
    gone, stays = (
        next(one for (_, theirs), one in script.legs.items() if theirs.ip[3] == last)
        for last in (7, 8)
    )
    script.first.inject(options=RemoveAddr((7, 99)).build())
    assert any(seg.flags & 5 for seg in gone.take())
    assert stays.quiet()
    assert script.count("RmAddr") == 2
    assert script.count("RmSubflow") == 0, "that counts what we remove ourselves"
    assert Event.ADDR_REMOVED in script.events


# -- announced by us -------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [None, 9000])
def test_addr_01_our_announcement_has_its_hmac_and_ends_with_the_echo(port: int | None) -> None:
    script = announcing([Endpoint(THERE, 5, signal=True, port=port)])
    (option,) = announced(script.first)
    own = script.conn.local_key.key
    assert option == AddAddr(5, THERE, port, hmac=keys.add_addr_hmac(own, PEER_KEY, 5, THERE, port))
    script.first.inject(options=AddAddr(5, THERE, port, echo=True).build() + script.dss(ack=0))
    script.sleep(10.0)
    assert announced(script.first) == []
    assert script.count("AddAddrTx") == script.count("EchoAdd") == 1


def test_addr_03_without_echo_it_is_sent_four_times_with_doubled_pauses() -> None:
    script = announcing([Endpoint(THERE, 5, signal=True)])
    times = []
    for _ in range(400):
        times += [script.now] * len(announced(script.first))
        script.sleep(0.05)
    pauses = [b - a for a, b in pairwise(times)]
    assert len(times) == 4
    assert all(1.5 < b / a < 2.6 for a, b in pairwise(pauses))


@pytest.mark.parametrize(("timeout", "sent"), [(0.0, 1), (0.3, 4)])
def test_addr_03_add_addr_timeout_bounds_the_pauses(timeout: float, sent: int) -> None:
    script = announcing([Endpoint(THERE, 5, signal=True)], add_addr_timeout=timeout)
    script.sleep(1.5)
    assert len(announced(script.first)) == sent


def test_addr_03_one_announcement_is_under_way_at_a_time() -> None:
    script = announcing([Endpoint(bytes((10, 9, 0, n)), n, signal=True) for n in (5, 6)])
    assert [option.address_id for option in announced(script.first)] == [5]
    echo = AddAddr(5, b"\x0a\x09\x00\x05", echo=True).build()
    script.first.inject(options=echo)
    assert [option.address_id for option in announced(script.first)] == [6]


def test_addr_05_removing_an_endpoint_tells_the_peer_on_another_subflow() -> None:
    script = MptcpScript.client(mptcp=config())
    leg = script.joined()
    script.conn.withdraw(2, script.now)
    assert option_of(script.first.last(), RemoveAddr).address_ids == (2,)
    assert not any(has_option(seg, RemoveAddr) for seg in leg.take())
    assert script.count("RmAddrTx") == 1


def test_spc_an_ipv6_address_with_a_port_fits_only_without_timestamps() -> None:
    ip = b"\xfd" + bytes(14) + b"\5"
    for timestamps in (False, True):
        script = MptcpScript.client(
            mptcp=config(), tcp=TcpConfig(timestamps=timestamps, pacing=False)
        )
        script.conn.initial.timestamps = timestamps  # type: ignore[union-attr]
        script.conn.announce(Address(ip, 9000), 5, script.now)
        options = announced(script.first)
        assert len(options) == (0 if timestamps else 1)
        assert script.count("AddAddrTxDrop") == timestamps


# -- options ---------------------------------------------------------------------------------------


def noise(kind: int) -> bytes:
    """An MPTCP option of a subtype that is not assigned, or private."""
    return bytes((30, 6, kind << 4, 0, 1, 2))


@pytest.mark.parametrize(
    "option",
    [noise(9), noise(14), noise(15), b"\x1e\x05\x30\x07\x0a", b"\x1e\x02", b"\x1e\x01", b"\x1e",
     b"\x1e\xff\x20", b"\x1e\x03\x40", b"\xfd\x04\x12\x34", b"\x01\x01\x00\x1e\x0c"],
)  # fmt: skip
def test_opt_01_what_is_no_option_of_ours_does_no_harm(option: bytes) -> None:
    script = MptcpScript.client(mptcp=config())
    good = script.dss(at=0, ssn=1, length=3, ack=0)
    script.first.inject(payload=b"abc", options=good + option)
    assert script.read() == b"abc"
    assert script.conn.fallback is Fallback.NONE
    assert script.conn.state is State.ESTABLISHED


def test_opt_02_addresses_outside_the_window_are_not_heard() -> None:
    script = joining()
    far = script.first.seq + (1 << 30)
    script.first.inject(options=announcement(script), seq=far)
    script.first.inject(options=RemoveAddr((0,)).build(), seq=far)
    script.first.inject(options=MpPrio(True).build(), seq=far)
    assert joined_to(script) == set()
    assert script.count("AddAddr") == script.count("RmAddr") == script.count("MPPrioRx") == 0


def test_opt_03_signals_on_duplicate_acks_are_no_sign_of_loss() -> None:
    script = MptcpScript.client(mptcp=config())
    script.send(bytes(10_000))
    script.first.take()
    for number in range(5):
        option = announcement(script, 20 + number, bytes((10, 9, 2, number)))
        script.first.inject(options=option, ack=1)
    assert not any(seg.length for seg in script.first.take())


@pytest.mark.parametrize("other", ["add-addr", "prio"])
def test_opt_04_options_that_exclude_each_other_are_all_ignored(other: str) -> None:
    script = MptcpScript.client(mptcp=config())
    if other == "add-addr":
        both = script.capable(PEER_KEY + script.conn.local_key.key)[:20]
        option = both + announcement(script)[:16]
    else:
        option = MpPrio(True).build() + b"\x1e\x0c\x60\x00" + bytes(8)
    script.first.inject(options=option)
    assert script.conn.remote_addresses == {}
    assert not script.first.subflow.peer_backup
    assert script.conn.fallback is Fallback.NONE


def test_opt_04_and_spc_every_segment_of_ours_fits_and_mixes_only_what_may_be_mixed() -> None:
    script = MptcpScript.client(
        mptcp=config(subflows=4), tcp=TcpConfig(pacing=False), proven=False, checksum=True
    )
    first = script.first
    script.send(bytes(3000))
    came = first.take()
    first.inject(options=script.dss(ack=3000))
    leg = script.joined()
    for number in range(3):
        first.inject(options=announcement(script, 20 + number, bytes((10, 9, 2, number))))
        script.conn.set_backup(leg.subflow, bool(number & 1), script.now)
        script.send(bytes(2000))
    script.conn.withdraw(2, script.now)
    script.conn.announce(Address(OURS_2, 8803), 2, script.now)
    script.sleep(1.0)
    came += first.take() + leg.take()
    assert any(has_option(seg, MpCapable) for seg in came)
    for seg in came:
        subtypes = [subtype_of(raw) for raw in seg.mptcp] + [2] * seg.dss_count
        assert compatible(subtypes), subtypes


def test_echoes_and_removals_that_find_no_room_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = joining(add_addr_accepted=0)
    with monkeypatch.context() as patch:
        patch.setattr(script, "flush", lambda: None)  # all of them arrive in one batch
        for number in range(12):
            ip = bytes((10, 9, 2, number))
            script.first.inject(options=announcement(script, 20 + number, ip))
    script.flush()
    assert script.count("EchoAddTx") == 8
    assert script.count("EchoAddTxDrop") == 4
    script.first.inject("R", seq=script.first.seq)
    script.conn.withdraw(5, script.now)
    assert script.count("RmAddrTxDrop") == 1
