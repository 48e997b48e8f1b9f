"""Which packets a capture is to show, in a few of tcpdump's words (pcap-filter(7))."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from proxy.control.fields import CommandError
from proxy.wire.head import Head

T = TypeVar("T")
Test = Callable[[Head], bool]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

OPTIONS = (
    "mp_capable",
    "mp_join",
    "dss",
    "add_addr",
    "remove_addr",
    "mp_prio",
    "mp_fail",
    "mp_fastclose",
    "mp_tcprst",
)
"""By subtype (RFC 8684 §8.3)."""
FLAGS = {"fin": 1, "syn": 2, "rst": 4}
WORDS = "[not] [src|dst] host ADDRESS, net NETWORK or port NUMBER; syn, fin, rst; " + ", ".join(
    OPTIONS
)
MAX_WORDS = 64


class PacketFilter:
    """All of its tests must hold; CommandError EINVAL names the word that makes no sense."""

    def __init__(self, words: Sequence[str]) -> None:
        if len(words) > MAX_WORDS:
            raise CommandError("EINVAL", f"a filter may have {MAX_WORDS} words")
        self._tests = list(_tests(iter(words)))

    def __bool__(self) -> bool:
        return bool(self._tests)

    def takes(self, head: Head | None) -> bool:
        """Whether a packet is to be shown; what is not TCP only without a filter."""
        if head is None:
            return not self._tests
        return all(test(head) for test in self._tests)


def _tests(words: Iterator[str]) -> Iterator[Test]:
    for word in words:
        if word == "and":
            continue
        wanted = word != "not"
        test = _test(word if wanted else _next(words, word), words)
        yield test if wanted else _opposite(test)


def _opposite(test: Test) -> Test:
    return lambda head: not test(head)


def _test(word: str, words: Iterator[str]) -> Test:
    if word in FLAGS:
        flag = FLAGS[word]
        return lambda head: bool(head.flags & flag)
    if word in OPTIONS:
        subtype = OPTIONS.index(word)
        return lambda head: subtype in head.subtypes
    side = word if word in ("src", "dst") else ""
    kind = _next(words, word) if side else word
    if kind in ("host", "net"):
        network = _network(_next(words, kind), kind)
        return lambda head: any(_within(ip, network) for ip in _sides(side, head.src, head.dst))
    if kind == "port":
        port = _port(_next(words, kind))
        return lambda head: port in _sides(side, head.sport, head.dport)
    raise CommandError("EINVAL", f'filter: "{kind}" is not understood; there is {WORDS}')


def _sides(side: str, source: T, destination: T) -> tuple[T, ...]:
    if side == "src":
        return (source,)
    return (destination,) if side == "dst" else (source, destination)


def _within(ip: bytes, network: Network) -> bool:
    return ipaddress.ip_address(ip) in network


def _network(text: str, kind: str) -> Network:
    try:
        network = ipaddress.ip_network(text)
        if kind == "host" and network.num_addresses != 1:
            raise ValueError("it is a network")
    except ValueError as error:
        raise CommandError("EINVAL", f'filter: {kind} "{text}" is wrong: {error}') from error
    return network


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise CommandError("EINVAL", f'filter: port "{text}" is wrong: a number is needed')
    return int(text)


def _next(words: Iterator[str], before: str) -> str:
    word = next(words, None)
    if word is None:
        raise CommandError("EINVAL", f'filter: something is missing after "{before}"')
    return word
