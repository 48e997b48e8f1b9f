"""What the workers of a box know together, as each learns it from its own connections."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from proxy.convert.replay import Seen

if TYPE_CHECKING:
    from proxy.convert.auth import Client, Door
    from proxy.engine.handover import Handover
    from proxy.engine.stack import Stack
    from proxy.relay.uplinks import UplinkHealth

_VERDICTS = tuple(Seen)


class Asked(Exception):
    """Another worker was asked about the packet, which comes back with the answer."""


def share_nonces(
    door: Door,
    stack: Stack,
    handover: Handover,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
) -> None:
    """Each nonce is remembered by the worker that it falls to."""

    def elsewhere(question: bytes) -> Seen | None:
        owner = handover.hash(question[:20])
        if owner == handover.share.index:
            return None
        verdict = handover.verdict(question)
        if verdict is not None:
            return _VERDICTS[verdict]
        handover.ask(owner, question, stack.packet, clock())
        raise Asked

    def judge(question: bytes, now: float) -> int:
        del now
        return _VERDICTS.index(door.judge(question, wall_clock()))

    door.elsewhere = elsewhere
    handover.judge = judge


def share_uplinks(
    uplinks: Callable[[], Iterable[UplinkHealth]], client: Client, handover: Handover
) -> None:
    """What one worker's handshakes say of an uplink, or of the gateway's clock, is so for all."""

    def hear(fields: dict[str, Any]) -> None:
        client.clock_offset = fields["clock_offset"] or client.clock_offset
        for uplink in uplinks():
            if uplink.name == fields["uplink"]:
                uplink.learn(fields["news"])

    def tell(uplink: UplinkHealth) -> None:
        handover.note(
            "uplink", uplink=uplink.name, news=uplink.news(), clock_offset=client.clock_offset
        )

    for uplink in uplinks():
        uplink.tell = tell
    handover.noted["uplink"] = hear


def share_blackhole(stack: Stack, handover: Handover) -> None:
    """A path that swallowed the SYN of one worker is the same for all."""
    blackhole = stack.blackhole

    def tell(news: str, local_ip: bytes, remote_ip: bytes, *times: float) -> None:
        path = [local_ip.hex(), remote_ip.hex()]
        handover.note("blackhole", news=news, path=path, times=times)

    def hear(fields: dict[str, Any]) -> None:
        local_ip, remote_ip = map(bytes.fromhex, fields["path"])
        blackhole.hear(fields["news"], local_ip, remote_ip, *fields["times"])

    blackhole.tell = tell
    handover.noted["blackhole"] = hear
