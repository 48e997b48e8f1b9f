"""What is on the wire: rules that a strict peer (Linux) holds against us."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest

from proxy.mptcp.config import MptcpConfig
from proxy.seg import DSS_ACK, DSS_ACK64, DSS_DSN64, DSS_FIN, DSS_MAP, Segment, parse
from proxy.wire.mptcp_options import MpCapable, compatible, parse_option, subtype_of
from tests.pair.mptcp_harness import App, MptcpPair, Path, path, payload
from tests.pair.mptcp_middlebox import options_of

MB = 1_000_000
DSS = 2


def lossy(rng: random.Random) -> list[Path]:
    return [path(rng, 30, 20, loss=0.01), path(rng, 10, 50, loss=0.02)]


def logged(seed: int, **settings: Any) -> tuple[MptcpPair, list[tuple[int, bool, bytes, Segment]]]:
    pair = MptcpPair(
        lossy, App(payload(MB, 1)), App(payload(2 * MB, 2)), seed=seed, log=True, **settings
    )
    pair.at(1000.3, lambda: setattr(pair.paths[0], "alive", False))
    pair.at(1001.1, lambda: setattr(pair.paths[0], "alive", True))
    pair.run(60.0)
    pair.check_streams()
    pair.run_for(5.0)
    assert pair.wire_log is not None
    return pair, [(index, up, p, parse(p)) for _, index, up, p in pair.wire_log]


SETTINGS = [{}, {"server": MptcpConfig(checksum_enabled=True)}, {"syn_payload": b"x" * 72}]


@pytest.mark.parametrize("settings", SETTINGS, ids=["plain", "checksum", "syn-payload"])
@pytest.mark.parametrize("seed", range(3))
def test_every_segment_obeys_the_rules_of_the_kernel(seed: int, settings: Any) -> None:
    _, log = logged(seed, **settings)
    maps: dict[bytes, dict[int, tuple[int, int, int]]] = defaultdict(dict)
    bases: dict[bytes, int] = {}
    firsts: dict[bytes, int] = {}
    for _index, _up, packet, seg in log:
        assert sum(length for _, _, length in options_of(packet)) <= 40
        subtypes = [subtype_of(raw) for raw in seg.mptcp] + [DSS] * seg.dss_count
        assert compatible(subtypes), subtypes
        if seg.flags & 2:
            bases[seg.key] = (seg.seq + seg.length) & 0xFFFFFFFF
            continue
        for raw in seg.mptcp:
            option = parse_option(raw, False, True)
            if isinstance(option, MpCapable) and option.data_length is not None:
                firsts[seg.key] = option.data_length
                assert seg.seq - bases[seg.key] + seg.length <= option.data_length + 1
        if seg.dss_flags < 0 or not seg.dss_flags & DSS_MAP:
            if seg.length and seg.key in bases:
                assert 0 in subtypes, "data without a mapping"
            continue
        assert seg.dss_flags & DSS_DSN64, "the DSN is always sent as 64 bits"
        if seg.dss_flags & DSS_FIN:
            assert (seg.length, seg.ssn, seg.data_length) == (0, 0, 1)
            continue
        # The mapping touches the segment, does not begin after it, and covers all of it.
        assert seg.length
        start = (bases[seg.key] + seg.ssn) & 0xFFFFFFFF
        assert seg.ssn != 1 or firsts.get(seg.key, seg.data_length) == seg.data_length
        ahead = (seg.seq - start) & 0xFFFFFFFF
        assert ahead + seg.length <= seg.data_length
        # What was declared once is never changed, and mappings do not overlap.
        declared = (seg.dsn, seg.data_length, seg.dss_checksum)
        assert maps[seg.key].setdefault(seg.ssn, declared) == declared
    for key, declared_maps in maps.items():
        at = 1 if 1 in declared_maps else 1 + firsts[key]
        for ssn in sorted(declared_maps):
            assert ssn == at, "the next mapping begins where the last ended"
            at += declared_maps[ssn][1]


def test_64_bit_data_acks_answer_64_bit_dsns() -> None:
    _, log = logged(1)
    seen: set[tuple[bytes, bool]] = set()
    mapped: set[bytes] = set()
    for _, _, _, seg in log:
        reverse = (
            seg.dst
            + seg.src
            + bytes((seg.dport >> 8, seg.dport & 255))
            + bytes((seg.sport >> 8, seg.sport & 255))
        )
        if seg.dss_flags >= 0 and seg.dss_flags & DSS_ACK:
            seen.add((seg.key, bool(seg.dss_flags & DSS_ACK64)))
        if seg.dss_flags >= 0 and seg.dss_flags & DSS_MAP and seg.length:
            mapped.add(reverse)
    for key in mapped:
        assert (key, True) in seen


def test_sack_blocks_get_the_room_of_a_data_ack_that_says_nothing_new() -> None:
    _, log = logged(2)
    blocks = [len(seg.sack) for _, _, _, seg in log if seg.sack and not seg.length]
    assert max(blocks) == 3
    bare = sum(1 for _, _, _, seg in log if seg.sack and not seg.has_mptcp)
    both = sum(1 for _, _, _, seg in log if seg.sack and seg.dss_flags >= 0)
    assert bare > 0
    assert both > 0, "a DATA_ACK that moved is told all the same"


def test_at_most_two_signalling_acks_follow_each_other() -> None:
    pair, _ = logged(1)
    pair = MptcpPair(lossy, App(payload(100), close=False), App(payload(100), close=False))
    pair.run_for(1.0)
    pair.wire_log = []
    for number in range(5):
        pair.client.withdraw(100 + number, pair.now)
    pair._settle()
    pair.run_for(0.5)
    shots = [p for _, _, up, p in pair.wire_log if up]
    assert len(shots) >= 5
