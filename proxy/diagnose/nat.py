"""How long a NAT on the way remembers a connection that is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from proxy.diagnose.prober import Prober, Talk, Verdict
from proxy.diagnose.result import Result, finding, fine, skipped
from proxy.net.uplinks import Uplink
from proxy.relay.trials import TrialPort

_ANSWER_WITHIN = 8.0  # seconds: time for some retransmissions
_CHECK = "NAT"


class NatTimeout:
    """Connections that say nothing for a while, on all uplinks at once, and then ask for an echo.

    ``seconds`` is the longest silence; ``keepalive`` that after which the proxy's subflows speak
    (0: never).
    """

    def __init__(self, seconds: float, keepalive: float) -> None:
        self._silences = sorted({seconds / 4, seconds / 2, seconds} if seconds else ())
        self._keepalive = keepalive
        self._waits: dict[str, list[asyncio.Task[bool | None]]] = {}

    def begin(self, prober: Prober, uplink: Uplink, early: bool) -> None:
        """Let the silences of one uplink begin."""
        self._waits[uplink.name] = [
            asyncio.create_task(_outlives(prober, uplink, early, silence))
            for silence in self._silences
        ]

    async def results(self) -> AsyncIterator[Result]:
        """When they are over, uplink by uplink."""
        for name, waits in self._waits.items():
            if waits:
                yield self._judge(name, await asyncio.gather(*waits))

    def cancel(self) -> None:
        """Wait for none of them any more."""
        for waits in self._waits.values():
            for wait in waits:
                wait.cancel()

    def _judge(self, name: str, outcomes: list[bool | None]) -> Result:
        known = [pair for pair in zip(self._silences, outcomes, strict=True) if pair[1] is not None]
        if not known:
            return skipped(name, _CHECK, "no connection could be opened for it")
        lost = min((silence for silence, alive in known if not alive), default=0.0)
        lived = max(
            (silence for silence, alive in known if alive and not 0 < lost < silence), default=0.0
        )
        if not lost:
            return fine(name, _CHECK, f"silent connections live for at least {lived:g} s")
        text = f"a connection that is silent for {lost:g} s is lost"
        if lived:
            text += f", after {lived:g} s it still lived"
        if 0 < self._keepalive <= lived:
            return fine(name, _CHECK, f"{text}; ours speak every {self._keepalive:g} s")
        return finding(name, _CHECK, text, f"mptcp.subflow_keepalive = {(lived or lost / 2):g}")


async def _outlives(prober: Prober, uplink: Uplink, early: bool, silence: float) -> bool | None:
    """Whether a connection lives after a silence; None if there was none."""
    talk: Talk = await prober.ask(
        uplink, TrialPort.ECHO, early=early, enabled=False, subflow_keepalive=0.0
    )
    try:
        if talk.verdict is not Verdict.SERVED:
            return None
        await asyncio.sleep(silence)
        if talk.ended is not None:
            return False
        talk.send(b"alive")
        return await talk.until(lambda: bool(talk.receive()), _ANSWER_WITHIN)
    finally:
        talk.close()
