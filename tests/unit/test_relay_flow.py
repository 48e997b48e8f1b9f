"""A flow moves bytes, half-closes and resets between its sides, and never buffers by itself."""

from __future__ import annotations

import pytest

from proxy.relay.flow import Flow
from proxy.tcp.events import Event


class FakeStream:
    """A byte stream with an inbox (what its peer sent) and an outbox of bounded size."""

    def __init__(self, inbox: bytes = b"", finished: bool = False, room: int = 1 << 20) -> None:
        self.inbox = inbox
        self.finished = finished
        self.room = room
        self.outbox = b""
        self.shut = 0
        self.aborted = 0

    @property
    def eof(self) -> bool:
        return self.finished and not self.inbox

    def send(self, chunk: bytes | memoryview) -> None:
        assert len(chunk) <= self.room, "more than send_room()"
        self.room -= len(chunk)
        self.outbox += chunk

    def send_room(self) -> int:
        return self.room

    def receive(self, limit: int) -> list[memoryview | bytes]:
        chunk, self.inbox = self.inbox[: min(limit, 7)], self.inbox[min(limit, 7) :]
        return [chunk] if chunk else []

    def shutdown_write(self) -> None:
        self.shut += 1

    def abort(self, now: float) -> None:
        self.aborted += 1


def flow_of(near: FakeStream, far: FakeStream) -> tuple[Flow, list[Flow]]:
    ended: list[Flow] = []
    return Flow(1, near, far, ended.append, 0.0), ended


def test_bytes_of_both_directions_arrive_whole_and_are_counted() -> None:
    near, far = FakeStream(b"request" * 9), FakeStream(b"response" * 99)
    flow, _ = flow_of(near, far)
    flow.start()
    assert far.outbox == b"request" * 9
    assert near.outbox == b"response" * 99
    assert (flow.bytes_out, flow.bytes_in) == (63, 792)


def test_full_sink_stops_its_source_until_it_is_writable() -> None:
    near, far = FakeStream(b"x" * 100), FakeStream(room=30)
    flow, _ = flow_of(near, far)
    flow.start()
    assert (len(far.outbox), len(near.inbox)) == (30, 70)
    far.room = 1000
    flow.on_event(far, Event.WRITABLE, 0.0)
    assert (len(far.outbox), near.inbox) == (100, b"")


def test_half_close_passes_on_after_the_last_byte_only() -> None:
    near, far = FakeStream(b"x" * 100, finished=True), FakeStream(room=30)
    flow, ended = flow_of(near, far)
    flow.on_event(near, Event.EOF, 0.0)
    assert far.shut == 0
    far.room = 1000
    flow.on_event(far, Event.WRITABLE, 0.0)
    assert (len(far.outbox), far.shut, near.shut) == (100, 1, 0)
    assert not ended


@pytest.mark.parametrize("kind", [Event.RESET, Event.TIMED_OUT, Event.UNREACHABLE])
def test_failure_of_one_side_resets_the_other_and_ends_the_flow(kind: Event) -> None:
    near, far = FakeStream(), FakeStream()
    flow, ended = flow_of(near, far)
    flow.on_event(far, kind, 0.0)
    flow.on_event(far, kind, 0.0)
    assert (near.aborted, far.aborted) == (1, 0)
    assert ended == [flow]


def test_flow_ends_when_both_sides_are_closed() -> None:
    near, far = FakeStream(finished=True), FakeStream(finished=True)
    flow, ended = flow_of(near, far)
    flow.start()
    flow.on_event(near, Event.CLOSED, 0.0)
    assert not ended
    flow.on_event(far, Event.CLOSED, 0.0)
    assert ended == [flow]
    assert (near.shut, far.shut, near.aborted, far.aborted) == (1, 1, 0, 0)


def test_unread_rest_of_a_closed_side_still_follows() -> None:
    near, far = FakeStream(b"x" * 50, finished=True), FakeStream(room=20)
    flow, _ = flow_of(near, far)
    flow.on_event(near, Event.CLOSED, 0.0)
    far.room = 1000
    flow.on_event(far, Event.WRITABLE, 0.0)
    assert (far.outbox, far.shut, far.aborted) == (b"x" * 50, 1, 0)


def test_abort_resets_both_sides_once() -> None:
    near, far = FakeStream(), FakeStream()
    flow, ended = flow_of(near, far)
    flow.abort(0.0)
    flow.abort(0.0)
    assert (near.aborted, far.aborted, ended) == (1, 1, [flow])
