"""The token bucket."""

from __future__ import annotations

from proxy.engine.rate import TokenBucket


def test_burst_is_allowed_then_the_rate_holds() -> None:
    bucket = TokenBucket(rate=10.0, burst=3.0)
    assert [bucket.take(1.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.take(1.1)
    assert not bucket.take(1.1)


def test_idle_time_does_not_add_up_beyond_the_burst() -> None:
    bucket = TokenBucket(rate=10.0, burst=2.0)
    assert [bucket.take(1000.0) for _ in range(3)] == [True, True, False]
