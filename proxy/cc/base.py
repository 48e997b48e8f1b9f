"""The base of congestion controls, and the registry that finds one by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from proxy.cc.coupling import Coupling
    from proxy.cc.sample import Sample

UNLIMITED = 1 << 40
"""``ssthresh`` before the first congestion event: slow start has no end yet."""


class CongestionControl:
    """Decides how many bytes may be in flight, and how fast they go.

    ``cwnd`` and ``ssthresh`` are bytes. Loss detection, recovery (PRR) and undo belong to the
    connection; it tells what happened and reads ``cwnd`` afterwards.

    There are two kinds. One with ``sample`` None is told by ``on_ack`` of what arrived while
    nothing was being repaired. One that keeps a model of the path sets ``sample``: then the
    connection fills it with the delivery rate and all else that it knows and calls
    ``on_delivery`` for every ACK, in recovery too; its ``cwnd`` is obeyed as it is, without PRR.
    """

    __slots__ = (
        "_prior_cwnd",
        "_prior_ssthresh",
        "cwnd",
        "initial_cwnd",
        "mss",
        "sample",
        "ssthresh",
    )

    name: ClassVar[str] = ""
    coupled: ClassVar[bool] = False
    """True: the subflows of one connection look at each other; ``couple`` is called."""

    def __init__(self, mss: int, initial_cwnd: int) -> None:
        """``mss``: payload bytes of a full segment; ``initial_cwnd``: bytes (RFC 6928)."""
        self.mss = mss
        self.initial_cwnd = initial_cwnd
        self.cwnd = initial_cwnd
        self.ssthresh = UNLIMITED
        self.sample: Sample | None = None
        self._prior_cwnd = 0
        self._prior_ssthresh = UNLIMITED

    def set_mss(self, mss: int, initial_cwnd: int) -> None:
        """The payload size of a full segment changed (handshake, path MTU); bytes stay bytes."""
        if self.cwnd == self.initial_cwnd:
            self.cwnd = initial_cwnd
        self.mss = mss
        self.initial_cwnd = initial_cwnd
        if self.cwnd < mss:
            self.cwnd = mss

    def on_ack(self, acked: int, rtt: float, now: float, in_flight: int, app_limited: bool) -> None:
        """``acked`` bytes were newly delivered (cumulatively or by SACK) outside fast recovery.

        ``rtt``: seconds of the newest segment acknowledged, 0 if there is no sample;
        ``in_flight``: bytes still in flight; ``app_limited``: the window was not used up, so it
        must not grow (RFC 7661).
        """
        raise NotImplementedError

    def on_congestion(self, now: float) -> None:
        """A loss was detected by fast recovery: set ``ssthresh`` and ``cwnd``; once per window."""
        self._save()
        self.ssthresh = max(self.cwnd // 2, 2 * self.mss)
        self.cwnd = self.ssthresh

    def on_mark(self, now: float) -> None:
        """The peer got packets with a congestion mark (RFC 3168 §6.1.2); once per window.

        Base: as a loss. The connection softens what Reno or Cubic do to it (RFC 8511).
        """
        self.on_congestion(now)

    def on_rto(self, now: float) -> None:
        """The retransmission timer fired for the first time in a row (RFC 5681 §3.1)."""
        self.on_congestion(now)
        self.cwnd = self.mss

    def on_undo(self) -> None:
        """The last ``on_congestion`` or ``on_rto`` was spurious (RFC 5682, RFC 4015)."""
        self.cwnd = max(self.cwnd, self._prior_cwnd)
        self.ssthresh = max(self.ssthresh, self._prior_ssthresh)

    def on_restart(self, idle: float) -> None:
        """Nothing was sent for ``idle`` times the RTO: decay towards the initial window.

        As Linux does (tcp_cwnd_restart): half per RTO, and ssthresh remembers 3/4 (RFC 2861).
        """
        if self.cwnd <= self.initial_cwnd:
            return
        self.ssthresh = max(self.ssthresh, self.cwnd * 3 // 4)
        self.cwnd = max(self.cwnd >> min(int(idle), 30), self.initial_cwnd)

    def restore(self, cwnd: int, ssthresh: int) -> None:
        """Start again at ``cwnd`` after a time when the path delivered nothing at all."""
        self.cwnd = cwnd
        self.ssthresh = ssthresh

    def pacing_rate(self, srtt: float) -> float:
        """Bytes per second: 2 windows per RTT in slow start, 1.2 after (Linux' ratios)."""
        if srtt <= 0.0:
            return 0.0
        return self.cwnd * (2.0 if self.cwnd < self.ssthresh else 1.2) / srtt

    # -- controls with a model ------------------------------------------------------------------

    def on_delivery(self, sample: Sample, now: float) -> None:
        """An ACK that delivered something, or after which something is lost; see ``Sample``."""
        raise NotImplementedError

    def on_lost(
        self, length: int, tx_in_flight: int, tx_lost: int, app_limited: bool, prior: int
    ) -> None:
        """``length`` bytes were found lost; before the ``on_delivery`` of the same ACK.

        ``tx_in_flight``: bytes in flight just after they were sent; ``tx_lost``: bytes found lost
        since then, they included; ``prior``: bytes delivered by then.
        """

    # -- siblings, and change at run time -------------------------------------------------------

    def couple(self, coupling: Coupling) -> None:
        """Be one of several subflows of a connection; only called if ``coupled``."""

    def release(self) -> None:
        """The connection has ended or goes on under another control."""

    def handover(self) -> tuple[int, int]:
        """``cwnd`` and ``ssthresh`` for another control that takes over."""
        return self.cwnd, self.ssthresh

    def take_over(self, cwnd: int, ssthresh: int, srtt: float, min_rtt: float, rate: float) -> None:
        """Go on where another control has been; before any other call but ``__init__``.

        ``srtt`` and ``min_rtt`` in seconds, ``rate``: delivered bytes per second; 0 if unknown.
        """
        self.cwnd = max(cwnd, self.mss)
        self.ssthresh = ssthresh

    def _save(self) -> None:
        self._prior_cwnd = self.cwnd
        self._prior_ssthresh = self.ssthresh


Factory = Callable[[int, int], CongestionControl]

ENTRY_POINTS = "mptcp_proxy.congestion_controls"
_BUILT_IN = {
    "balia": "proxy.cc.balia:Balia",
    "bbr": "proxy.cc.bbr:Bbr",
    "cubic": "proxy.cc.cubic:Cubic",
    "lia": "proxy.cc.lia:Lia",
    "olia": "proxy.cc.olia:Olia",
    "reno": "proxy.cc.reno:Reno",
}
_registry: dict[str, Factory] = {}


def register(name: str, factory: Factory) -> None:
    """Make ``factory(mss, initial_cwnd)`` available as ``name``; replaces an earlier one."""
    _registry[name] = factory


def names() -> list[str]:
    """Every name that ``create`` knows, sorted."""
    third_party = {point.name for point in entry_points(group=ENTRY_POINTS)}
    return sorted(third_party | set(_BUILT_IN) | set(_registry))


def create(name: str, mss: int, initial_cwnd: int) -> CongestionControl:
    """A congestion control by name; KeyError for an unknown one."""
    factory = _registry.get(name)
    if factory is None:
        factory = _registry[name] = _load(name)
    return factory(mss, initial_cwnd)


def _load(name: str) -> Factory:
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        loaded: Factory = getattr(import_module(module), attribute)
        return loaded
    for point in entry_points(group=ENTRY_POINTS, name=name):
        third_party: Factory = point.load()
        return third_party
    raise KeyError(name)
