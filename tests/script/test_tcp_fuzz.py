"""Any sequence of segments, in any state: no exception, sound books, bounded memory."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from proxy.tcp.connection import TcpConnection
from proxy.tcp.states import State
from tests.script.harness import Script

MASK = 0xFFFFFFFF
STATES: list[Callable[..., Script]] = [
    Script.syn_sent, Script.listen, Script.syn_received, Script.established, Script.fin_wait_1,
    Script.fin_wait_2, Script.close_wait, Script.last_ack, Script.closing, Script.time_wait,
]  # fmt: skip


def check_books(conn: TcpConnection) -> None:
    """The records in flight cover exactly what is unacknowledged, and the sums are right."""
    pipe = lost = sacked = 0
    position = conn.snd_una
    for tx in conn._flight:
        assert tx.seq == position
        position = tx.end
        length = (tx.end - tx.seq) & MASK
        assert length == sum(map(len, tx.chunks)) + tx.fin
        assert not (tx.lost and tx.sacked)
        sacked += length if tx.sacked else 0
        lost += length if tx.lost else 0
        pipe += 0 if tx.lost or tx.sacked else length
    assert (pipe, lost, sacked) == (conn.bytes_in_flight, conn._lost_bytes, conn._sacked_bytes)
    if conn._flight:
        assert position == conn.snd_nxt
        assert conn.next_timeout() is not None
    assert conn.cwnd > 0
    assert conn._effective_mss > 0


def near(rng: random.Random, value: int) -> int:
    return value + rng.choice([0, 0, 0, 1, -1, 100, 1460, -1460, 60_000, rng.randrange(1 << 32)])


@pytest.mark.parametrize("seed", range(150))
def test_no_sequence_of_segments_breaks_a_connection(seed: int) -> None:
    print(f"seed {seed}: pytest {__file__} -k 'breaks_a_connection and {seed}'")
    rng = random.Random(seed)
    script = rng.choice(STATES)(timestamps=rng.random() < 0.5, pacing=rng.random() < 0.5)
    conn = script.conn
    for _ in range(120):
        if conn.state is State.CLOSED:
            break
        action = rng.random()
        if action < 0.1 and not conn._fin_queued:
            conn.send(rng.randbytes(rng.choice([1, 1000, 20_000])))
        elif action < 0.15:
            script.sleep(rng.choice([0.001, 0.05, 0.3, 3.0]))
        elif action < 0.16:
            conn.shutdown_write()
        elif action < 0.2:
            conn.receive(rng.choice([1, 5000]))
        else:
            flags = rng.choice(["A"] * 8 + ["PA", "FA", "SA", "S", "R", "RA", "UA", ""])
            payload = rng.randbytes(rng.choice([0, 0, 1, 10, 1460, 9000]))
            in_flight = (conn.snd_nxt - conn.snd_una) & MASK
            una = (conn.snd_una - conn.iss) & MASK
            ack = near(rng, una + rng.choice([0, 0, in_flight, in_flight // 2]))
            blocks = rng.choice([0, 0, 1, 2])
            sack = tuple((near(rng, una), near(rng, una + in_flight)) for _ in range(blocks))
            options = b""
            if rng.random() < 0.5:
                ts = near(rng, max(conn._ts_recent, 0)) & MASK
                options = struct.pack(">BBBBII", 1, 1, 8, 10, ts, rng.randrange(1 << 32))
            script.inject(
                flags, near(rng, conn.rcv_nxt - conn.irs), ack, payload=payload,
                window=rng.choice([0, 1, 1000, 60_000]), options=options,
                sack=sack,
            )  # fmt: skip
        script._flush()
        check_books(conn)
        reassembly = conn._reassembly
        held = conn.receivable + (reassembly.size if reassembly is not None else 0)
        assert held <= conn._rcv_buffer + 65_536
    assert len(script.sent) < 2000
    if conn.state is State.CLOSED:
        assert conn.next_timeout() is None
        assert not conn._flight
