"""Random networks, applications and mishaps; the oracle is the byte stream on both sides."""

from __future__ import annotations

import random
from typing import Any

import pytest

from proxy.mptcp.config import MptcpConfig
from proxy.tcp.config import TcpConfig
from proxy.tcp.events import Event
from tests.pair.mptcp_harness import App, MptcpPair, Path, path, payload

SCHEDULERS = ("default", "default", "default", "roundrobin", "redundant", "backup")


def random_paths(rng: random.Random) -> list[Path]:
    made = []
    for _ in range(rng.choice((1, 2, 2, 2, 3))):
        bad = rng.random()
        made.append(
            path(
                rng,
                rng.choice((0.5, 2, 5, 20, 100)),
                rng.choice((1, 5, 20, 80, 300)),
                queue_ms=rng.choice((10, 50, 300)),
                loss=rng.choice((0, 0, 0.001, 0.01, 0.05)) if bad < 0.6 else 0,
                reorder=rng.choice((0, 0.01, 0.1)) if bad < 0.4 else 0,
                reorder_delay=rng.choice((0.001, 0.02)),
                duplicate=rng.choice((0, 0.02)) if bad < 0.4 else 0,
                jitter=rng.choice((0, 0.002, 0.02)),
            )
        )
    return made


def random_settings(rng: random.Random) -> dict[str, Any]:
    buffer = rng.choice((131072, 131072, 131072, 3000, 20_000, 1 << 20))
    return {
        "client": MptcpConfig(
            checksum_enabled=rng.random() < 0.2, scheduler=rng.choice(SCHEDULERS)
        ),
        "server": MptcpConfig(
            checksum_enabled=rng.random() < 0.2, scheduler=rng.choice(SCHEDULERS)
        ),
        "client_tcp": TcpConfig(
            receive_buffer=buffer, receive_buffer_max=rng.choice((buffer, 16 << 20))
        ),
        "server_tcp": TcpConfig(sack=rng.random() < 0.9, timestamps=rng.random() < 0.9),
        "syn_payload": rng.randbytes(rng.choice((0, 0, 72, 200))),
        "take_syn_payload": rng.random() < 0.8,
        "backups": tuple(i for i in range(3) if rng.random() < 0.15),
        "gro": rng.random() < 0.7,
    }


def mishaps(pair: MptcpPair, rng: random.Random) -> None:
    """Cuts, losses of everything in one direction and pauses of the readers, all healed later."""
    span = rng.choice((0.2, 1.0, 6.0))
    for _ in range(rng.randrange(8)):
        at = pair.now + rng.uniform(0.0, span)
        until = at + rng.choice((0.02, 0.2, 1.0, 3.0))
        one = rng.choice(pair.paths)
        kind = rng.random()
        if kind < 0.4:
            pair.at(at, lambda p=one: setattr(p, "alive", False))
            pair.at(until, lambda p=one: setattr(p, "alive", True))
        elif kind < 0.7:
            link = rng.choice((one.up, one.down))
            pair.at(at, lambda x=link: setattr(x, "up", False))
            pair.at(until, lambda x=link: setattr(x, "up", True))
        else:
            app = rng.choice((pair.client_app, pair.server_app))
            pair.at(at, lambda a=app: setattr(a, "reading", False))
            pair.at(until, lambda a=app: setattr(a, "reading", True))


def run_one(seed: int) -> MptcpPair:
    rng = random.Random(seed)
    settings = random_settings(rng)
    apps = []
    for number in range(2):
        app = App(payload(rng.choice((0, 1, 3000, 100_000, 700_000, 3_000_000)), seed + number))
        app.chunk = rng.choice((1, 100, 5000, 46_000)) if len(app.data) < 5000 else 46_000
        apps.append(app)
    pair = MptcpPair(random_paths, *apps, seed=seed, **settings)
    mishaps(pair, rng)
    pair.run(600.0)
    assert pair.finished, f"seed {seed}: not finished at {pair.now}"
    pair.check_streams()
    for app in apps:
        assert Event.RESET not in app.events
        assert Event.TIMED_OUT not in app.events
    pair.check_gone()
    return pair


@pytest.mark.parametrize("seed", range(60))
def test_the_stream_survives_any_mishap(seed: int) -> None:
    print(f"seed {seed}")
    run_one(seed)
