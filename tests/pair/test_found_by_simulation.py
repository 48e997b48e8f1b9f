"""Small replays of what the seeded simulation (``tests/sim``) has found."""

from __future__ import annotations

import pytest

from proxy.tcp.events import Event
from tests.pair.harness import App, Pair


@pytest.mark.parametrize("seed", range(3))
def test_end_of_stream_is_told_before_closed(seed: int) -> None:
    pair = Pair(seed, client_app=App(b"request"), server_app=App(b"answer" * 5000))
    pair.run()
    pair.run_for(120.0)
    for app in (pair.client_app, pair.server_app):
        assert app.events.index(Event.EOF) < app.events.index(Event.CLOSED)
