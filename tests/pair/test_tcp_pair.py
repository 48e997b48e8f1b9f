"""Two plain TCP endpoints over a modelled link; the oracle is the byte stream on both sides."""

from __future__ import annotations

import errno
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from proxy.seg import parse
from proxy.tcp.config import TcpConfig
from proxy.tcp.events import Event
from proxy.tcp.states import State
from proxy.wire.address import Address
from tests.pair.harness import App, Pair
from tests.pair.link import Link

STREAM = random.Random(7).randbytes(4_000_000)
SMALL = TcpConfig(time_wait=1.0)


def make_link(seed: int, **settings: object) -> Link:
    return Link(random.Random(seed), **{"delay": 0.01, **settings})  # type: ignore[arg-type]


def transfer(pair: Pair, until: float = 1400.0) -> None:
    """Run to the end and hold both streams to what was sent."""
    pair.run(until)
    assert pair.server_app.received == pair.client_app.data
    assert pair.client_app.received == pair.server_app.data
    assert pair.finished


def test_bulk_both_ways_arrives_and_closes_cleanly() -> None:
    link = {"rate": 100e6, "queue": 100}
    pair = Pair(
        up=make_link(1, **link), down=make_link(2, **link),
        client_app=App(STREAM[:2_000_000]), server_app=App(STREAM),
    )  # fmt: skip
    transfer(pair)
    pair.run_for(70)
    assert pair.client.state is State.CLOSED
    assert pair.server is not None
    assert pair.server.state is State.CLOSED
    assert pair.client_host.forgotten == [pair.client]
    assert pair.server_host.forgotten == [pair.server]
    assert Event.CLOSED in pair.client_app.events
    assert Event.CLOSED in pair.server_app.events
    assert pair.client_host.next_timeout() is None


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("loss", [0.0, 0.01, 0.05])
def test_loss_is_repaired(loss: float, offload: bool) -> None:
    link = {"rate": 50e6, "loss": loss, "offload": offload}
    pair = Pair(
        up=make_link(1, **link), down=make_link(2, **link),
        client_app=App(STREAM[:500_000]), server_app=App(STREAM[:1_500_000]),
    )  # fmt: skip
    transfer(pair)


@pytest.mark.parametrize("extra", [0.003, 0.02])
def test_reordering_does_not_stall(extra: float) -> None:
    link = {"rate": 50e6, "reorder": 0.03, "reorder_delay": extra, "queue": 100}
    pair = Pair(up=make_link(1), down=make_link(2, **link), server_app=App(STREAM))
    transfer(pair)
    assert pair.now - 1000 < 1.3
    assert pair.server_host.counters["TCPTimeouts"] == 0


def test_duplicates_are_reported_and_harmless() -> None:
    link = {"duplicate": 0.1, "rate": 50e6}
    pair = Pair(
        up=make_link(1, **link), down=make_link(2, **link), server_app=App(STREAM[:900_000])
    )
    transfer(pair)
    assert pair.client_host.counters["TCPDSACKOldSent"] > 0


def drop_once(link: Link, number: int) -> None:
    """Lose the ``number``-th packet from now on."""
    original = link.send
    seen = SimpleNamespace(count=0)

    def send(packet: bytes, now: float) -> list[tuple[float, bytes]]:
        if parse(packet).length:
            seen.count += 1
            if seen.count == number:
                return []
        return original(packet, now)

    link.send = send  # type: ignore[method-assign]


def test_tail_loss_is_repaired_by_a_probe_in_two_round_trips() -> None:
    down = make_link(2)
    drop_once(down, 1)
    pair = Pair(up=make_link(1), down=down, server_app=App(STREAM[:1000], close=False))
    pair.run_for(0.1)
    assert pair.client_app.received == b""
    pair.run_for(0.05)
    assert pair.client_app.received == STREAM[:1000]
    assert pair.server_host.counters["TCPLossProbes"] == 1
    assert pair.server_host.counters["TCPTimeouts"] == 0


def test_loss_in_the_middle_is_repaired_in_one_round_trip() -> None:
    down = make_link(2)
    drop_once(down, 2)
    pair = Pair(up=make_link(1), down=down, server_app=App(STREAM[:14_000], chunk=1400))
    transfer(pair)
    assert pair.now - 1000 < 0.09


def test_zero_window_holds_the_sender_and_reopens() -> None:
    app = App()
    app.reading = False
    pair = Pair(client_app=app, server_app=App(STREAM[:2_000_000]))
    pair.run_for(3)
    held = pair.client.receivable
    assert 50_000 < held <= 140_000
    assert pair.server is not None
    assert pair.server.snd_wnd < 1448
    assert pair.server_host.counters["TCPWinProbe"] >= 2
    app.reading = True
    transfer(pair)


def test_lost_window_update_is_replaced_by_a_probe() -> None:
    app = App()
    app.reading = False
    pair = Pair(client_app=app, server_app=App(STREAM[:1_000_000]))
    pair.run_for(2)
    pair.up.up = False
    app.reading = True
    pair.run_for(0.05)
    pair.up.up = True
    transfer(pair)


def test_zero_window_for_an_hour_does_not_kill_a_peer_that_answers() -> None:
    app = App()
    app.reading = False
    pair = Pair(client_app=app, server_app=App(STREAM[:1_000_000]))
    pair.run_for(3600)
    assert pair.server is not None
    assert pair.server.error is None
    app.reading = True
    transfer(pair, until=6000)


@pytest.mark.parametrize("buffer", [1000, 3000, 10_000])
def test_tiny_receive_buffers_work(buffer: int) -> None:
    config = TcpConfig(receive_buffer=buffer, receive_buffer_max=buffer)
    pair = Pair(client_config=config, server_app=App(STREAM[:60_000]))
    transfer(pair)
    assert pair.now < 1100


def test_slow_reader_never_holds_more_than_its_buffer() -> None:
    app = App()
    app.read_limit = 5000
    config = TcpConfig(receive_buffer_max=200_000)
    pair = Pair(client_app=app, client_config=config, server_app=App(STREAM[:1_000_000]))
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, pair.client.receivable)
        pair.at(pair.now + 0.001, look)

    look()
    transfer(pair)
    assert most <= 200_000 + 65_536


def test_half_close_lets_the_other_direction_go_on() -> None:
    server = App(STREAM[:300_000])
    pair = Pair(client_app=App(b"request"), server_app=server)
    server.close = False
    held, server.data = server.data, b""
    pair.run_for(1)
    assert pair.server_app.received == b"request"
    assert pair.client.state is State.FIN_WAIT_2
    assert pair.server is not None
    assert pair.server.state is State.CLOSE_WAIT
    server.data, server.close = held, True
    transfer(pair)


def test_simultaneous_close_ends_in_time_wait_on_both_sides() -> None:
    client, server = App(close=False), App(close=False)
    pair = Pair(client_app=client, server_app=server)
    pair.run_for(1)
    client.close = server.close = True
    pair.run_for(1)
    assert pair.server is not None
    assert pair.client.state is State.TIME_WAIT
    assert pair.server.state is State.TIME_WAIT
    assert client.events.count(Event.CLOSED) == 1


def test_abort_resets_the_peer() -> None:
    pair = Pair(client_app=App(close=False), server_app=App(STREAM, close=False))
    pair.run_for(0.05)
    assert pair.server is not None
    pair.client.abort(pair.now)
    pair.run_for(0.1)
    assert pair.server.state is State.CLOSED
    assert pair.server.error is not None
    assert pair.server.error.errno == errno.ECONNRESET
    assert pair.server_app.events[-1] is Event.RESET
    assert pair.server_host.forgotten == [pair.server]


def test_refused_connection_is_reported_as_reset() -> None:
    pair = Pair()
    pair.on_syn = lambda conn, now: conn.refuse(now)
    pair.run_for(1)
    assert pair.client.state is State.CLOSED
    assert pair.client.error is not None
    assert pair.client.error.errno == errno.ECONNREFUSED
    assert pair.client_app.events == [Event.RESET]


def test_silence_times_out() -> None:
    pair = Pair()
    pair.on_syn = lambda conn, now: conn.discard(now)
    pair.run_for(200)
    assert pair.client.error is not None
    assert pair.client.error.errno == errno.ETIMEDOUT
    assert pair.client_app.events == [Event.TIMED_OUT]


def test_held_back_syn_ack_absorbs_repeated_syns() -> None:
    pair = Pair()
    pair.on_syn = lambda conn, now: pair.at(now + 2.5, lambda: conn.accept(pair.now))
    pair.run_for(2)
    assert pair.client.state is State.SYN_SENT
    assert pair.down.carried == 0
    transfer(pair)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_lost_syns_are_repeated_every_second(lost: int) -> None:
    pair = Pair(up=make_link(1, up=False), client_app=App(b"hello"))
    pair.at(1000.0 + lost - 0.5, lambda: setattr(pair.up, "up", True))
    transfer(pair)
    assert 1000 + lost < pair.now < 1000 + lost + 0.3


def test_syn_payload_is_taken_and_acknowledged() -> None:
    pair = Pair(syn_payload=b"destination", take_syn_payload=True, client_app=App(b"rest"))
    pair.run(1010)
    assert pair.client.syn_payload_acked == 11
    assert pair.server_app.received == b"destinationrest"


def test_unacknowledged_syn_payload_is_sent_again_as_data() -> None:
    pair = Pair(syn_payload=b"destination", client_app=App(b"rest"))
    pair.run(1010)
    assert pair.client.syn_payload_acked == 0
    assert pair.server_app.received == b"destinationrest"


def test_path_that_eats_syn_payload_still_connects() -> None:
    pair = Pair(up=make_link(1, up=False), syn_payload=b"destination", client_app=App(b"rest"))
    original = pair.up.send

    def send(packet: bytes, now: float) -> list[tuple[float, bytes]]:
        seg = parse(packet)
        return [] if seg.flags & 2 and seg.length else original(packet, now)

    pair.up.up = True
    pair.up.send = send  # type: ignore[method-assign]
    pair.run(1010)
    assert pair.server_app.received == b"destinationrest"
    assert pair.now < 1003


def test_syn_ack_payload_reaches_the_client() -> None:
    pair = Pair(server_app=App(b"more"))
    pair.on_syn = lambda conn, now: conn.accept(now, payload=b"early")
    pair.run(1010)
    assert pair.client.syn_ack_payload == b"early"
    assert pair.client_app.received == b"more"


def test_lost_syn_ack_payload_comes_as_data() -> None:
    pair = Pair(down=make_link(2, up=False), server_app=App(b"more"))
    pair.on_syn = lambda conn, now: conn.accept(now, payload=b"early")
    pair.at(1000.5, lambda: setattr(pair.down, "up", True))
    pair.run(1010)
    assert pair.client.syn_ack_payload == b""
    assert pair.client_app.received == b"earlymore"


def test_lost_third_ack_is_repeated() -> None:
    pair = Pair(client_app=App(close=False), server_app=App(STREAM[:5000]))
    pair.at(1000.015, lambda: setattr(pair.up, "up", False))
    pair.at(1000.5, lambda: setattr(pair.up, "up", True))
    pair.run_for(3)
    assert pair.client_app.received == STREAM[:5000]


def rate_between(app: App, start: float, end: float) -> float:
    """Mean bit/s received between two instants."""
    counts = [0, 0]
    for at, count in app.arrivals:
        for i, limit in enumerate((start, end)):
            if at <= limit:
                counts[i] = count
    return (counts[1] - counts[0]) * 8 / (end - start)


@pytest.mark.parametrize("cap", [None, 0.5])
def test_full_speed_soon_after_a_black_out(cap: float | None) -> None:
    link = {"rate": 50e6, "queue": 90, "delay": 0.01}
    pair = Pair(up=make_link(1), down=make_link(2, **link), server_app=App(STREAM * 30))
    pair.run_for(3)
    assert pair.server is not None
    pair.server.rto_backoff_cap = cap
    pair.down.up = pair.up.up = False
    pair.run_for(3)
    pair.down.up = pair.up.up = True
    back = pair.now
    pair.run_for(4)
    last = max(at for at, _ in pair.client_app.arrivals if at < back + 3.5)
    assert last > back
    first = min(at for at, _ in pair.client_app.arrivals if at > back)
    assert first - back < (0.6 if cap else 3.3)
    assert rate_between(pair.client_app, first + 0.3, first + 0.8) > 0.9 * 45e6


def test_path_mtu_drop_is_followed() -> None:
    down = make_link(2, rate=50e6)
    pair = Pair(up=make_link(1), down=down, server_app=App(STREAM[:2_000_000]))
    pair.at(1000.1, lambda: setattr(down, "mtu", 1300))

    def report() -> None:
        assert pair.server is not None
        for packet in down.too_big:
            pair.server.on_icmp(
                SimpleNamespace(type=3, code=4, mtu=1300, seq=parse(packet).seq), pair.now
            )
        down.too_big.clear()
        pair.at(pair.now + 0.02, report)

    pair.at(1000.12, report)
    transfer(pair)
    assert pair.now - 1000 < 1.0
    assert pair.server is not None
    assert pair.server.mss == 1260


def test_icmp_outside_the_window_is_ignored() -> None:
    pair = Pair(client_app=App(close=False), server_app=App(close=False))
    pair.run_for(0.5)
    quoted = SimpleNamespace(type=3, code=4, mtu=600, seq=(pair.client.snd_una - 5000) % 2**32)
    pair.client.on_icmp(quoted, pair.now)
    pair.client.on_icmp(SimpleNamespace(type=3, code=4, mtu=68, seq=pair.client.snd_una), pair.now)
    assert pair.client.mss == 1460
    pair.client.on_icmp(SimpleNamespace(type=3, code=1, mtu=0, seq=pair.client.snd_una), pair.now)
    assert pair.client.state is State.ESTABLISHED


def test_unreachable_before_established_is_reported() -> None:
    pair = Pair(up=make_link(1, up=False))
    pair.client.on_icmp(SimpleNamespace(type=3, code=1, mtu=0, seq=pair.client.iss), pair.now)
    assert pair.client.error is not None
    assert (pair.client.error.errno, pair.client.error.icmp_code) == (errno.EHOSTUNREACH, 1)
    pair.run_for(0.1)
    assert pair.client_app.events == [Event.UNREACHABLE]


def test_peer_without_sack_and_timestamps_recovers() -> None:
    config = TcpConfig(sack=False, timestamps=False, window_scale=False)
    link = {"rate": 20e6, "loss": 0.01}
    pair = Pair(
        up=make_link(1), down=make_link(2, **link), client_config=config,
        server_app=App(STREAM[:1_000_000]),
    )  # fmt: skip
    transfer(pair)
    assert pair.now - 1000 < 6
    assert pair.server_host.counters["TCPTimeouts"] < 6


def test_keepalive_ends_a_dead_connection() -> None:
    config = TcpConfig(keepalive_idle=10, keepalive_interval=1, keepalive_count=3)
    pair = Pair(client_app=App(close=False), server_app=App(close=False), client_config=config)
    pair.run_for(35)
    assert pair.client.state is State.ESTABLISHED
    pair.up.up = False
    pair.run_for(20)
    assert pair.client.error is not None
    assert pair.client.error.errno == errno.ETIMEDOUT


def test_unacknowledged_data_times_out_after_the_user_timeout() -> None:
    config = TcpConfig(user_timeout=5.0)
    pair = Pair(server_config=config, server_app=App(STREAM, close=False))
    pair.run_for(0.1)
    pair.down.up = False
    pair.run_for(15)
    assert pair.server is not None
    assert pair.server.error is not None
    assert pair.server.error.errno == errno.ETIMEDOUT


def test_small_writes_travel_in_full_segments() -> None:
    pair = Pair(up=make_link(1, rate=1e6), client_app=App(STREAM[:40_000], chunk=1))
    transfer(pair)
    assert pair.up.carried < 120


def test_bulk_fills_a_link_with_a_queue_of_one_bandwidth_delay_product() -> None:
    link = {"rate": 50e6, "queue": 83, "delay": 0.01}
    pair = Pair(up=make_link(1), down=make_link(2, **link), server_app=App(STREAM * 20))
    pair.run(1010)
    assert len(pair.client_app.received) * 8 > 0.95 * 10 * 50e6 * 1448 / 1514


def test_jitter_does_not_end_slow_start_early() -> None:
    link = {"rate": 50e6, "queue": 400, "delay": 0.01, "jitter": 0.015, "batch": 0.002}
    pair = Pair(up=make_link(1), down=make_link(2, **link), server_app=App(STREAM * 20))
    pair.run(1010)
    assert len(pair.client_app.received) * 8 > 0.9 * 10 * 50e6 * 1448 / 1514


def test_deep_queue_is_not_filled_by_slow_start() -> None:
    link = {"rate": 100e6, "queue": 1000, "delay": 0.005}
    pair = Pair(up=make_link(1), down=make_link(2, **link), server_app=App(STREAM * 20))
    pair.run(1002)
    assert pair.server is not None
    assert pair.server.srtt < 0.06


def random_link(rng: random.Random) -> dict[str, object]:
    rate = 10 ** rng.uniform(5.7, 8)
    return {
        "rate": rate,
        "delay": 10 ** rng.uniform(-4, -1),
        "queue": rng.choice([0, 20, 100, 1000]),
        "loss": rng.choice([0.0, 0.0, 0.01, 0.03, 0.1]),
        "jitter": rng.choice([0.0, 0.0, 0.01]),
        "reorder": rng.choice([0.0, 0.0, 0.05]),
        "reorder_delay": rng.uniform(0, 0.05),
        "duplicate": rng.choice([0.0, 0.0, 0.05]),
        "offload": rng.random() < 0.2,
        "batch": rng.choice([0.0, 0.0, 0.001]),
    }


@pytest.mark.parametrize("seed", range(100))
def test_streams_survive_random_links(seed: int) -> None:
    print(f"seed {seed}: pytest {__file__} -k 'random_links and {seed}'")
    rng = random.Random(seed)
    config = replace(
        TcpConfig(),
        sack=rng.random() < 0.9,
        timestamps=rng.random() < 0.9,
        receive_buffer=rng.choice([4000, 30_000, 131_072]),
        receive_buffer_max=rng.choice([131_072, 4_000_000]),
        pacing=rng.random() < 0.8,
        congestion_control=rng.choice(["cubic", "cubic", "reno"]),
    )
    data = STREAM[: rng.randrange(400_000)]
    back = STREAM[: rng.choice([0, 10, 200_000])]
    up, down = make_link(seed, **random_link(rng)), make_link(seed, **random_link(rng))
    pair = Pair(
        seed + 100, up=up, down=down,
        client_app=App(data, chunk=rng.choice([100, 1448, 46_000])), server_app=App(back),
        client_config=config, server_config=replace(config, sack=rng.random() < 0.9),
        syn_payload=b"", gro=rng.random() < 0.5,
    )  # fmt: skip
    if rng.random() < 0.3:
        start = 1000 + rng.uniform(0, 0.5)
        for link in (pair.up, pair.down):
            pair.at(start, lambda link=link: setattr(link, "up", False))  # type: ignore[misc]
            pair.at(start + 2, lambda link=link: setattr(link, "up", True))  # type: ignore[misc]
    transfer(pair, until=1900)


def test_writes_and_close_before_the_handshake_are_kept() -> None:
    client = App(close=False)
    pair = Pair(client_app=client, server_app=App(b"answer"))
    pair.client.send(b"early")
    pair.client.shutdown_write()
    pair.run(1010)
    assert pair.server_app.received == b"early"
    assert client.received == b"answer"
    assert pair.client.state is State.TIME_WAIT or pair.client.state is State.CLOSED


def test_held_back_answer_does_not_inflate_the_round_trip_time() -> None:
    pair = Pair(client_app=App(STREAM[:200_000], close=False))
    pair.on_syn = lambda conn, now: pair.at(now + 0.5, lambda: conn.accept(pair.now))
    pair.run_for(0.6)
    assert pair.client.srtt < 0.05


def test_ipv6_bulk() -> None:
    pair = Pair(
        client=Address(bytes(15) + b"\x01", 40000), server=Address(bytes(15) + b"\x02", 80),
        server_app=App(STREAM[:500_000]),
    )  # fmt: skip
    transfer(pair)
    assert pair.client.mss == 1440
