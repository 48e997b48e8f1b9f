"""Subflows over a path that drops large packets: mappings stay, only segments get smaller."""

from __future__ import annotations

import random

import pytest

from proxy.mptcp.config import MptcpConfig
from tests.pair.mptcp_harness import App, MptcpPair, Path, path, payload

MB = 1_000_000


def narrow(rng: random.Random) -> list[Path]:
    return [path(rng, 50, 20, mtu=1400)]


def one_narrow(rng: random.Random) -> list[Path]:
    return [path(rng, 50, 20, mtu=1400), path(rng, 20, 60)]


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("up", [False, True], ids=["download", "upload"])
def test_the_only_path_is_narrow(up: bool, checksum: bool) -> None:
    config = MptcpConfig(checksum_enabled=checksum)
    data, reader = App(payload(10 * MB)), App()
    pair = MptcpPair(
        narrow, data if up else reader, reader if up else data, client=config, server=config
    )
    pair.run(20.0)
    pair.check_streams()
    assert pair.now - 1000 < 4.5
    counters = (pair.client_host if up else pair.server_host).counters
    assert counters["TCPMTUBlackHole"] == 1
    assert counters["MPTcpExtMPFailTx"] == 0
    assert counters["MPTcpExtDataCsumErr"] == 0


@pytest.mark.parametrize("up", [False, True], ids=["download", "upload"])
def test_one_of_two_paths_is_narrow_and_still_used(up: bool) -> None:
    data, reader = App(payload(30 * MB)), App()
    pair = MptcpPair(one_narrow, data if up else reader, reader if up else data)
    pair.run(30.0)
    pair.check_streams()
    link = pair.paths[0].up if up else pair.paths[0].down
    assert link.carried * 1400 > 15 * MB  # most of it went there
    assert pair.now - 1000 < 30 * MB * 8 / 60e6 + 2.5
