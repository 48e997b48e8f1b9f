"""How fast the uplinks are towards the gateway, each alone and all together."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from proxy.config import ProxyConfig
from proxy.diagnose.measured import Direction, Speed
from proxy.diagnose.prober import Prober, Talk, Verdict, device_name, probing
from proxy.errors import MptcpProxyError
from proxy.net.uplinks import Uplink
from proxy.relay.trials import PATTERN, TrialPort

_PORTS = {Direction.DOWN: TrialPort.SOURCE, Direction.UP: TrialPort.DISCARD}
_WARM_UP = 0.25  # of a test's time: until the windows have grown, nothing is counted
_STEP = 0.2  # seconds between two looks at the clock
_IDLE_PINGS = 5
_PING_EVERY = 0.1
_PING_PATIENCE = 5.0
_QUEUED = 16 << 20  # bytes handed to the engine ahead of what is acknowledged
_JOIN_PATIENCE = 10.0


class TrialError(MptcpProxyError):
    """A test could not begin, or its connection ended."""


Progress = Callable[[str, Direction, float, float], None]
"""Told the name, the direction, the part of the test that is over and the rate meanwhile."""


class Bench:
    """The tests, one after the other. ``seconds``: the length of each."""

    def __init__(self, prober: Prober, seconds: float, progress: Progress) -> None:
        self._prober = prober
        self._seconds = seconds
        self._progress = progress

    async def alone(self, uplink: Uplink) -> Speed:
        """One uplink, without the others."""
        return await self._measure(Speed(uplink.name), [uplink])

    async def bonded(self, uplinks: list[Uplink]) -> Speed:
        """One connection over all of them."""
        names = tuple(uplink.name for uplink in uplinks)
        return await self._measure(Speed("bonded", names), uplinks)

    async def _measure(self, speed: Speed, uplinks: list[Uplink]) -> Speed:
        pings: list[Ping] = []
        try:
            for uplink in uplinks:
                pings.append(await Ping.begin(self._prober, uplink))
            speed.rtt_idle = max([await ping.idle() for ping in pings])
            async with _pinging(pings):
                speed.down = await self._run(speed, Direction.DOWN, uplinks)
                speed.up = await self._run(speed, Direction.UP, uplinks)
            speed.rtt_loaded = max((r for ping in pings if (r := ping.loaded())), default=None)
        except TrialError as error:
            speed.error = str(error)
        finally:
            for ping in pings:
                ping.close()
        return speed

    async def _run(self, speed: Speed, direction: Direction, uplinks: list[Uplink]) -> float:
        bond = frozenset(uplink.name for uplink in uplinks)
        talk = await _served(self._prober, uplinks[0], _PORTS[direction], bond)
        try:
            await self._join(talk, uplinks)
            meter = Meter(talk, direction)
            began = time.monotonic()
            mark_at, mark = began, 0
            while (now := time.monotonic()) < began + self._seconds:
                if now < began + self._seconds * _WARM_UP:
                    mark_at, mark = now, meter.bytes
                if talk.ended is not None:
                    raise TrialError(f"the connection ended ({talk.ended.value})")
                await talk.until(meter.moved, _STEP)
                rate = (meter.bytes - mark) / max(time.monotonic() - mark_at, _STEP)
                self._progress(speed.name, direction, (now - began) / self._seconds, rate)
            rate = (meter.bytes - mark) / (time.monotonic() - mark_at)
            if direction is Direction.UP:
                speed.loss = _loss(talk)
            return rate
        finally:
            talk.close()

    async def _join(self, talk: Talk, uplinks: list[Uplink]) -> None:
        """Wait for the subflows of the other uplinks, which the path manager opens."""
        if len(uplinks) == 1:
            return
        names = {uplink.name for uplink in uplinks}
        conn = talk.stream

        def joined() -> bool:
            return names <= {s.uplink for s in conn.subflows if s.fully_established}

        if talk.ended is None and not await talk.until(joined, _JOIN_PATIENCE):
            missing = names - {s.uplink for s in conn.subflows if s.fully_established}
            raise TrialError(f"no subflow on {', '.join(sorted(missing))} (mptcp-proxy doctor)")


class Meter:
    """Counts what arrives: here, or at the gateway as far as it says so; keeps the queue filled."""

    def __init__(self, talk: Talk, direction: Direction) -> None:
        self.bytes = 0
        self._talk = talk
        self._down = direction is Direction.DOWN
        self._queued = 0

    def moved(self) -> bool:
        """Take what has come or queue what has room; never satisfied, so that time decides."""
        talk = self._talk
        if self._down:
            self.bytes += talk.take()
        else:
            self.bytes = talk.stream.tx.una
            while self._queued - self.bytes < _QUEUED and talk.stream.send_room():
                talk.send(PATTERN)
                self._queued += len(PATTERN)
        return talk.ended is not None


class Ping:
    """Round trips of one byte, on a connection of their own on one uplink."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self._loaded: list[float] = []
        self._sent = 0
        self._received = 0

    @classmethod
    async def begin(cls, prober: Prober, uplink: Uplink) -> Ping:
        """Raises TrialError."""
        return cls(await _served(prober, uplink, TrialPort.ECHO, enabled=False))

    async def idle(self) -> float:
        """The median of a few, in seconds."""
        return statistics.median([await self._once() for _ in range(_IDLE_PINGS)])

    async def under_load(self) -> None:
        """Go on for ever."""
        while True:
            self._loaded.append(await self._once())
            await asyncio.sleep(_PING_EVERY)

    def loaded(self) -> float | None:
        """The median of those under load, in seconds; None if none came back."""
        return statistics.median(self._loaded) if self._loaded else None

    def close(self) -> None:
        """End its connection."""
        self._talk.close()

    async def _once(self) -> float:
        began = time.monotonic()
        self._talk.send(b".")
        self._sent += 1
        if not await self._talk.until(self._returned, _PING_PATIENCE):
            raise TrialError("the gateway does not answer any more")
        return time.monotonic() - began

    def _returned(self) -> bool:
        # All of them: the one before may have been given up while it was under way.
        self._received += self._talk.take()
        return self._received >= self._sent


@contextlib.asynccontextmanager
async def _pinging(pings: list[Ping]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(ping.under_load()) for ping in pings]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _served(
    prober: Prober,
    uplink: Uplink,
    port: TrialPort,
    bond: frozenset[str] = frozenset(),
    **settings: Any,
) -> Talk:
    talk = await prober.ask(uplink, port, bond=bond, **settings)
    if talk.verdict is Verdict.SERVED:
        return talk
    talk.close()
    if talk.unserved:
        raise TrialError("the gateway serves no trials (listen.trials = 0 there)")
    raise TrialError(f"{talk.verdict.value} (mptcp-proxy doctor)")


def _loss(talk: Talk) -> float:
    """The part of all bytes sent on all subflows that was sent again there."""
    sent = sum(subflow.bytes_sent for subflow in talk.stream.subflows)
    again = sum(subflow.bytes_retransmitted for subflow in talk.stream.subflows)
    return again / sent if sent else 0.0


async def speeds(
    config: ProxyConfig,
    running: bool,
    names: Collection[str],
    seconds: float,
    progress: Progress,
) -> AsyncIterator[Speed]:
    """Those of each uplink in ``names``, then of all that work together.

    ``running``: the proxy of ``config`` runs on this host. Backup uplinks are not in the bond.
    Raises ConfigError or DeviceError when the host cannot be set up.
    """
    backup = {uplink.name for uplink in config.uplinks if uplink.backup}
    async with probing(config, device_name(config, running)) as prober:
        bench = Bench(prober, seconds, progress)
        works: list[tuple[float, Uplink]] = []
        for uplink in prober.uplinks:
            if uplink.name not in names:
                continue
            if uplink.waits_for or not prober.local_ip(uplink):
                yield Speed(uplink.name, error=uplink.waits_for or "no way out to the gateway")
                continue
            speed = await bench.alone(uplink)
            yield speed
            if not speed.error:
                works.append((speed.rtt_idle or 0.0, uplink))
        works.sort(key=lambda work: work[0])
        bond = [uplink for _, uplink in works if uplink.name not in backup]
        if len(bond) > 1:
            yield await bench.bonded(bond)
