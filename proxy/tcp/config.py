"""Settings of the TCP engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TcpConfig:
    """Times in seconds, sizes in bytes; names follow ``net.ipv4.tcp_*`` where there is one."""

    congestion_control: str = "cubic"
    initial_window: int = 10
    """Segments in the first flight (RFC 6928)."""
    receive_buffer: int = 131072
    """Receive buffer at the start; grows to ``receive_buffer_max`` as the rate demands."""
    receive_buffer_max: int = 16 * 1024 * 1024
    memory: int = 512 * 1024 * 1024
    """By how much all receive buffers of a host together may grow beyond ``receive_buffer``."""
    send_buffer_max: int = 16 * 1024 * 1024
    min_rto: float = 0.2
    max_rto: float = 120.0
    initial_rto: float = 1.0
    syn_retries: int = 6
    retries: int = 15
    delayed_ack: float = 0.04
    keepalive_idle: float = 7200.0
    keepalive_interval: float = 75.0
    keepalive_count: int = 9
    pacing: bool = True
    timestamps: bool = True
    sack: bool = True
    window_scale: bool = True
    ecn: str = "passive"
    """``off``, ``passive`` (if the peer asks) or ``on`` (ask): ``tcp_ecn`` 0, 2 and 1."""
    mtu4: int = 1500
    mtu6: int = 1500
    mtu_probing: bool = True
    """Search for the path MTU when full-sized segments vanish (RFC 4821; ``tcp_mtu_probing``)."""
    time_wait: float = 60.0
    fin_timeout: float = 60.0
    """How long FIN_WAIT_2 lasts once the application has closed both directions."""
    user_timeout: float | None = None
    """Give up when data stays unacknowledged this long; None: after ``retries`` (RFC 5482)."""
    min_mss: int = 216
    """A peer that announces less is refused: tiny segments are an attack (CVE-2019-11479)."""
    max_out_of_order: int = 512
    """Disjoint out-of-order ranges kept per connection (CVE-2018-5390)."""
