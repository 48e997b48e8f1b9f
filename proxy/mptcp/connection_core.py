"""The state of an MPTCP connection, shared by the classes that ``MptcpConnection`` is made of.

``connection_core`` (state) ← ``sending`` ← ``receiving`` (bytes out and in) ← ``paths``
(subflows and the path manager) ← ``fallback`` ← ``connection`` (opening, closing, timers, the
application).
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from proxy.cc.base import create as create_congestion_control
from proxy.mptcp.keepalive import INTERVAL, PROBES
from proxy.mptcp.notes import MAX_NOTES, Fallback, Note
from proxy.mptcp.receive import DataReceiver
from proxy.mptcp.send import DataSender
from proxy.pm.base import Limits
from proxy.sched.base import Scheduler
from proxy.sched.base import create as create_scheduler
from proxy.tcp.events import Failure
from proxy.tcp.states import State

if TYPE_CHECKING:
    from proxy.cc.coupling import Coupling
    from proxy.mptcp.config import MptcpConfig
    from proxy.mptcp.host import MptcpHost
    from proxy.mptcp.keys import Key
    from proxy.mptcp.signals import Signals
    from proxy.mptcp.subflow import Subflow
    from proxy.mptcp.subflow_core import SubflowCore
    from proxy.pm.base import PathManager
    from proxy.tcp.config import TcpConfig
    from proxy.wire.address import Address

INFINITE = float("inf")


@lru_cache(maxsize=16)
def subflow_config(config: TcpConfig, time_wait: float, idle: float) -> TcpConfig:
    """TCP settings for subflows.

    DEVIATION from RFC 9293 §3.6.1: a shorter TIME-WAIT. A subflow only closes after the
    connection has ended by DATA_FINs on both sides, so what TIME-WAIT would still protect is the
    port, and ports are random; with hundreds of connections a second it would hold most memory.
    ``idle``: see ``mptcp.keepalive``; 0 leaves the keep-alive that of TCP.
    """
    config = replace(config, time_wait=time_wait)
    if not 0.0 < idle < config.keepalive_idle:
        return config
    return replace(
        config,
        keepalive_idle=idle,
        keepalive_interval=idle * INTERVAL,
        keepalive_count=PROBES,
    )


@lru_cache(maxsize=16)
def congestion_config(config: TcpConfig, name: str) -> TcpConfig:
    """``config`` with another congestion control; KeyError for an unknown name."""
    create_congestion_control(name, 1, 1)
    return replace(config, congestion_control=name)


class ConnectionCore:
    """State only. Offsets count bytes of the stream from 0; times are ``now`` seconds.

    ``local`` and ``remote`` are the addresses of the initial subflow, for ever (JOIN-10).
    ``doomed`` holds subflows that the next ``poll`` resets. ``checksum``: DSS checksums are on.
    """

    __slots__ = (
        "__weakref__",
        "_backoff",
        "_blocked",
        "_closed_by_app",
        "_fail_again_at",
        "_fail_at",
        "_gap",
        "_held",
        "_held_bytes",
        "_last_rx",
        "_late_data",
        "_life_at",
        "_limit",
        "_notes",
        "_now",
        "_pace_at",
        "_rtx_at",
        "_signals",
        "_subflow_ids",
        "_tail_at",
        "_told",
        "_uplinks",
        "_usable",
        "_use_stale",
        "active",
        "backlogged",
        "checksum",
        "checksum_seen",
        "config",
        "contiguous",
        "coupling",
        "doomed",
        "eof",
        "error",
        "fail_dsn",
        "fallback",
        "fallback_reason",
        "fully_established",
        "host",
        "infinite_seq",
        "initial",
        "limits",
        "local",
        "local_key",
        "path_manager",
        "pending",
        "receivable",
        "remote",
        "remote_denies_initial",
        "remote_key",
        "remote_token",
        "rx",
        "scheduler",
        "state",
        "subflows",
        "syn_payload",
        "tcp_config",
        "tx",
        "window_left",
    )

    def __init__(
        self, host: MptcpHost, local: Address, remote: Address, key: Key, active: bool
    ) -> None:
        self.host = host
        self.config: MptcpConfig = host.mptcp_config
        self.tcp_config: TcpConfig = subflow_config(
            host.tcp_config, host.mptcp_config.time_wait, host.mptcp_config.subflow_keepalive
        )
        self.local = local
        self.remote = remote
        self.active = active
        self.state: State = State.CLOSED
        self.error: Failure | None = None
        self.syn_payload = b""
        self._init_protocol(key)
        self._init_paths()
        self._init_data()

    def _init_protocol(self, key: Key) -> None:
        self.local_key = key
        self.remote_key = b""
        self.remote_token = 0
        self.remote_denies_initial = False
        self.fully_established = False
        self.checksum = False
        self.checksum_seen = False
        self.fallback = Fallback.NONE
        self.fallback_reason = ""
        self.contiguous = True
        self.infinite_seq = -1
        self.fail_dsn = -1
        self._held: list[memoryview] | None = None
        self._held_bytes = 0
        self._notes: deque[Note] | None = None
        self._rtx_at = INFINITE
        self._life_at = INFINITE
        self._fail_at = INFINITE
        self._fail_again_at = INFINITE
        self._gap = -1
        self._pace_at = INFINITE
        self._tail_at = INFINITE
        self._backoff = 0
        self._now = 0.0

    def _init_paths(self) -> None:
        self.subflows: list[Subflow] = []
        self._subflow_ids = 0
        self.coupling: Coupling | None = None
        self.doomed: list[SubflowCore] = []
        self.initial: Subflow | None = None
        self.path_manager: PathManager = self.host.path_manager()
        self.limits: Limits = Limits(self.config.subflows, self.config.add_addr_accepted)
        self._signals: Signals | None = None
        self._usable: list[Subflow] | None = None
        self._use_stale = False
        self._uplinks: frozenset[str] | None = None
        self._last_rx: Subflow | None = None

    def _init_data(self) -> None:
        config = self.tcp_config
        self.tx = DataSender()
        self.tx.start(self.local_key.idsn)
        self.rx = DataReceiver(config.receive_buffer, config.receive_buffer_max, self.host.memory)
        self.use_scheduler(self.config.scheduler)
        self.pending = 0
        self.window_left = 0
        self.backlogged = False
        self._limit = 0
        self._blocked = False
        self._closed_by_app = False
        self._late_data = False
        self._told = False
        self.receivable = 0
        self.eof = False

    def use_scheduler(self, name: str) -> None:
        """A scheduler of its own, seen through the trace if there is one; ConfigError: no such."""
        scheduler = create_scheduler(name)
        trace = self.host.trace
        self.scheduler: Scheduler = scheduler if trace is None else trace.wrap(self, scheduler)

    def trace(self, event: str, subflow: SubflowCore, now: float, **fields: object) -> None:
        """Something rare happened to a subflow: write it if somebody traces."""
        trace = self.host.trace
        if trace is not None:
            trace.write_subflow(event, self, subflow, now, fields)

    def next_subflow_id(self) -> int:
        """A number for a new subflow, from 1 (``subflow_id`` of the kernel)."""
        self._subflow_ids += 1
        return self._subflow_ids

    def poll(self, now: float) -> None:
        """Send what may be sent, on all subflows."""
        raise NotImplementedError

    def next_timeout(self) -> float | None:
        """When ``on_timeout`` must be called; None: never."""
        raise NotImplementedError

    def on_timeout(self, now: float) -> None:
        """A deadline may have passed."""
        raise NotImplementedError

    @property
    def signals(self) -> Signals:
        """Made when first needed: most connections never announce anything."""
        raise NotImplementedError

    @property
    def notes(self) -> deque[Note]:
        """Details of events, oldest first; the reader removes them. Bounded."""
        if self._notes is None:
            self._notes = deque(maxlen=MAX_NOTES)
        return self._notes
