"""Waiting for what happens to a conversation of ``doctor`` and ``bench``."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from proxy.diagnose.prober import Talk
from proxy.tcp.events import Event


def make_talk() -> Talk:
    attempt: Any = SimpleNamespace(stream=None, on_event=lambda kind: None)
    prober: Any = None
    return Talk(prober, attempt)


def test_a_cancellation_that_comes_with_an_event_is_not_lost() -> None:
    """wait_for() of Python 3.11 returns what the event gave, and Ctrl-C is forgotten."""

    async def scene() -> None:
        talk = make_talk()
        waiting = asyncio.ensure_future(talk.until(lambda: False, 1.0))
        await asyncio.sleep(0.01)
        talk.on_event(Event.READABLE)
        waiting.cancel()
        await waiting

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scene())


def test_a_condition_that_never_holds_ends_with_the_time() -> None:
    assert not asyncio.run(make_talk().until(lambda: False, 0.06))


def test_an_event_has_the_condition_looked_at() -> None:
    async def scene() -> bool:
        talk = make_talk()
        asyncio.get_running_loop().call_later(0.01, talk.on_event, Event.RESET)
        return await talk.until(talk.is_decided, 5.0)

    assert asyncio.run(scene())
