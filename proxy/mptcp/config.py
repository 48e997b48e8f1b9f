"""Settings of the MPTCP level, named and defaulted like the kernel's ``net.mptcp`` sysctls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MptcpConfig:
    """What an operator may change; all times in seconds.

    ``enabled``                         False: connect with plain TCP, take no MP_CAPABLE
    ``checksum_enabled``                ask for DSS checksums
    ``allow_join_initial_addr_port``    False sets flag C of MP_CAPABLE
    ``syn_retrans_before_tcp_fallback`` SYN retransmissions that still carry MP_CAPABLE
    ``add_addr_timeout``                longest wait before an ADD_ADDR is repeated; 0: never repeat
    ``blackhole_timeout``               no MPTCP for so long on a path that swallows SYNs with
                                        MP_CAPABLE, doubled each time; 0: always try it
    ``close_timeout``                   how long a connection lives without any subflow
    ``stale_loss_cnt``                  time-outs in a row that make a subflow stale, so that it
                                        only probes while others work; 0: never.
                                        DEVIATION: the kernel counts intervals of its own, by
                                        default 4; a proxy must leave a dead uplink sooner
    ``subflow_keepalive``               silence after which a subflow asks if its peer is there, see
                                        ``mptcp.keepalive``; 0: as any TCP connection
    ``time_wait``                       TIME-WAIT of a subflow after a clean close
    ``subflows``                        additional subflows of a connection, both directions counted
    ``add_addr_accepted``               announced addresses that may be joined
    ``join_delay``                      how long a connection does with its initial subflow, so
                                        that one that is over by then costs no join; the kernel: 0
    ``max_half_open_joins``             joins that wait for their third ACK (RFC 7430 §4.1)
    ``rto_backoff_cap``                 longest RTO of a stale subflow: it doubles as a probe
    ``early_confirm``                   answer the third ACK at once, so that the peer may join
    ``scheduler``                       name in the registry of ``proxy.sched``
    ``path_manager``                    name in the registry of ``proxy.pm``; who owns the stack
                                        puts it into force (``Stack.path_manager``)
    """

    enabled: bool = True
    checksum_enabled: bool = False
    allow_join_initial_addr_port: bool = True
    syn_retrans_before_tcp_fallback: int = 2
    add_addr_timeout: float = 120.0
    blackhole_timeout: float = 3600.0
    close_timeout: float = 60.0
    stale_loss_cnt: int = 1
    subflow_keepalive: float = 30.0
    time_wait: float = 10.0
    subflows: int = 2
    add_addr_accepted: int = 0
    join_delay: float = 0.0
    max_half_open_joins: int = 3
    rto_backoff_cap: float = 0.5
    early_confirm: bool = True
    scheduler: str = "default"
    path_manager: str = "kernel"
