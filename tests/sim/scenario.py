"""What one seed stands for: hosts, paths and flows, all drawn from ``random.Random(seed)``."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from proxy.mptcp.config import MptcpConfig
from proxy.tcp.config import TcpConfig

FOREVER = float("inf")
SCHEDULERS = (
    "default", "roundrobin", "redundant", "backup", "blest", "ecf", "weighted", "overflow",
)  # fmt: skip
CONTROLS = ("cubic", "reno", "bbr", "lia", "olia", "balia")

THEMES = (
    ("calm", 3),
    ("lossy", 4),
    ("reorder", 3),
    ("dying", 6),
    ("windows", 4),
    ("middlebox", 8),
    ("churn", 5),
    ("roles", 4),
    ("opening", 3),
    ("ending", 4),
    ("bulk", 1),
    ("mixed", 5),
)
"""Kinds of scenario with their weight; a theme makes its own trouble likely, not certain."""


@dataclass(frozen=True)
class Outage:
    """A path carries nothing from ``start`` for ``length`` seconds (of the run), maybe for ever.

    ``direction`` is "both", "up" or "down". ``flush``: what is under way is lost as well.
    """

    start: float
    length: float
    direction: str = "both"
    flush: bool = True

    @property
    def end(self) -> float:
        """When it is over."""
        return self.start + self.length


@dataclass(frozen=True)
class PathPlan:
    """One uplink, both directions. Times in seconds, rates in bit/s (0: no limit).

    ``burst`` is the chance per packet that a burst of losses begins, ``burst_length`` its mean
    length in packets. ``offload``: super-segments travel whole. ``batch``: arrivals are held back
    to multiples of this, as interrupt moderation does, so that GRO finds something to merge.
    ``resegment``: a box cuts segments to this payload. ``strip`` says from which segments MPTCP
    options are taken: "", "syn", "syn-ack", "ack" (all but SYNs, both ways) or "all".
    ``strip_after``: only once so many packets of a flow have passed. ``strip_subtype`` takes one
    kind of them, "join" or "add-addr". ``drop_capable``: SYNs with MP_CAPABLE vanish.
    ``strip_option`` is "timestamps" or "sack" with ":" and from where: "syn", "syn-ack", "syns" or
    "all". ``shift``: sequence numbers are chosen anew, in SACK blocks too ("sack") or not
    ("plain"). ``coalesce``: neighbours that arrive at once become one, up to so many bytes.
    ``syn_payload`` is "keep", "strip" or "drop". ``corrupt`` is the chance that a box changes a
    byte of a segment and mends the TCP checksum. ``rst_chance``: per packet, that a RST is sent in
    the name of its receiver; ``rst`` is "exact", "window" or "blind". ``rebinds``: when address
    translation forgets its flows. ``late_mtu`` holds from ``late_mtu_at`` on; without ``icmp``
    what is too big vanishes in silence.
    """

    rate_up: float = 0.0
    rate_down: float = 0.0
    delay: float = 0.01
    jitter: float = 0.0
    queue: int = 0
    loss_up: float = 0.0
    loss_down: float = 0.0
    burst: float = 0.0
    burst_length: float = 0.0
    reorder: float = 0.0
    reorder_delay: float = 0.0
    duplicate: float = 0.0
    offload: bool = False
    batch: float = 0.0
    resegment: int = 0
    mtu: int = 1500
    strip: str = ""
    strip_after: int = 0
    strip_subtype: str = ""
    drop_capable: bool = False
    strip_option: str = ""
    shift: str = ""
    coalesce: int = 0
    rst: str = ""
    rst_chance: float = 0.0
    rebinds: tuple[float, ...] = ()
    late_mtu: int = 1500
    late_mtu_at: float = FOREVER
    icmp: bool = True
    syn_payload: str = "keep"
    nat: bool = False
    corrupt: float = 0.0
    backup: bool = False
    outages: tuple[Outage, ...] = ()

    @property
    def loss(self) -> float:
        """Chance that one packet is lost by any cause but queues and outages."""
        return max(self.loss_up, self.loss_down) + self.burst * self.burst_length

    @property
    def hinders(self) -> bool:
        """Whether a box may keep MPTCP from using this path, or end what uses it."""
        return bool(
            self.strip
            or self.strip_subtype == "join"
            or self.corrupt
            or self.coalesce
            or (self.rst_chance and self.rst == "exact")
            or self.rebinds
        )

    @property
    def kills(self) -> bool:
        """Whether a box may end connections."""
        return bool((self.rst_chance and self.rst == "exact") or self.rebinds)

    @property
    def black_hole(self) -> bool:
        """Whether large packets may vanish in silence."""
        return not self.icmp and (self.mtu < 1500 or self.late_mtu < 1500)


@dataclass(frozen=True)
class Change:
    """Something an operator does ``at`` seconds after the start.

    On the client's uplinks (``which``: the path): "remove" and "add" its endpoint, "vanish" and
    "appear" (the uplink loses its address, and gets it back), "backup" and "regular". On the
    server's addresses (``which``: the number): "withdraw" and "announce". On both hosts:
    "scheduler:NAME" and "control:NAME".
    """

    at: float
    what: str
    which: int = 0


@dataclass(frozen=True)
class ServerAddress:
    """One more address of the server, from the start (``present``) or added later."""

    number: int
    signal: bool = True
    subflow: bool = False
    present: bool = True
    port: int | None = None


@dataclass(frozen=True)
class EndPlan:
    """How one application behaves.

    ``size`` bytes are written in pieces of at most ``chunk``; after each ``burst`` bytes comes a
    pause of ``gap`` seconds. ``speak``: "open", "eof" (only after the peer's end of stream) or
    "data" (only after the first byte from the peer). It finishes its direction ``linger`` seconds
    after the last byte was written (``finish`` "sent"), or after the peer's end ("eof").
    ``read_limit`` bytes at most per read, reads ``read_gap`` seconds apart; no reading for
    ``pause`` seconds once ``pause_at`` bytes were read. ``abort``: "", "time", "written" or "read"
    with ``abort_at`` seconds or bytes; "close" is no abort, but neither writes nor reads any more
    after ``abort_at`` seconds.
    """

    size: int = 0
    chunk: int = 65536
    burst: int = 1 << 40
    gap: float = 0.0
    speak: str = "open"
    finish: str = "sent"
    linger: float = 0.0
    read_limit: int = 1 << 30
    read_gap: float = 0.0
    pause_at: int = -1
    pause: float = 0.0
    abort: str = ""
    abort_at: float = 0.0


@dataclass(frozen=True)
class FlowPlan:
    """One conversation, opened by the client at ``start`` over path ``path``.

    ``kind`` is "mptcp" or "tcp" (then the client opens plain TCP). ``reverse``: the host with
    several uplinks is the one that is connected to. ``answer`` is what the server
    does ``answer_after`` seconds after the SYN: "accept", "refuse" or "discard".
    """

    kind: str = "mptcp"
    path: int = 0
    reverse: bool = False
    start: float = 0.0
    syn_payload: int = 0
    take_syn_payload: bool = False
    syn_ack_payload: int = 0
    answer: str = "accept"
    answer_after: float = 0.0
    client: EndPlan = field(default_factory=EndPlan)
    server: EndPlan = field(default_factory=EndPlan)


@dataclass(frozen=True)
class HostPlan:
    """Settings of one stack; ``late`` seconds may pass until a due timer is served."""

    tcp: TcpConfig = field(default_factory=TcpConfig)
    mptcp: MptcpConfig = field(default_factory=MptcpConfig)
    gro: bool = True
    late: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """All of one run.

    ``addresses``: what the server has beyond its first one. ``uplink_flags``: of the endpoints of
    the client's uplinks. ``server_joins``: the server's path manager opens subflows too.
    ``wrap``: sequence numbers, DSNs and timestamps begin shortly before they wrap.
    """

    seed: int
    theme: str
    v6: bool
    client: HostPlan
    server: HostPlan
    paths: tuple[PathPlan, ...]
    flows: tuple[FlowPlan, ...]
    addresses: tuple[ServerAddress, ...] = ()
    uplink_flags: tuple[str, ...] = ("subflow",)
    server_joins: bool = False
    wrap: bool = False
    changes: tuple[Change, ...] = ()

    @property
    def loss(self) -> float:
        """The worst loss of all paths."""
        return max(path.loss for path in self.paths)

    @property
    def aborts(self) -> bool:
        """Whether an application may abort."""
        return any(end.abort for flow in self.flows for end in (flow.client, flow.server))


def draw(seed: int) -> Scenario:
    """The scenario of ``seed``."""
    rng = random.Random(seed)
    names = [name for name, weight in THEMES for _ in range(weight)]
    theme = rng.choice(names)
    count = rng.choice((1, 2, 2, 2, 3, 4))
    if theme in ("dying", "churn"):
        count = max(count, rng.choice((1, 2, 2, 3)))
    v6 = rng.random() < 0.25
    paths = [_path(rng, theme, v6) for _ in range(count)]
    if theme in ("dying", "mixed"):
        _cut(rng, paths, certain=theme == "dying")
    if count > 1 and rng.random() < 0.15:
        which = rng.randrange(count)
        paths[which] = replace(paths[which], backup=True)
    client = _host(rng, theme, paths)
    server = _host(rng, theme, paths)
    if any(path.corrupt for path in paths) and not client.mptcp.checksum_enabled:
        server = replace(server, mptcp=replace(server.mptcp, checksum_enabled=True))  # one will do
    flows = [_flow(rng, theme, paths) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    reverse = rng.random() < (0.5 if theme == "roles" else 0.08)
    if reverse:
        # Nobody can connect to an uplink behind address translation.
        paths = [replace(path, nat=False, rebinds=()) for path in paths]
        flows = [replace(flow, reverse=rng.random() < 0.7) for flow in flows]
    flags = ("subflow",)
    if rng.random() < (0.4 if theme in ("roles", "churn") else 0.05):
        flags = rng.choice(
            (("subflow", "signal"), ("signal",), ("subflow", "fullmesh"), ("laminar",))
        )
    return Scenario(
        seed, theme, v6, client, server, tuple(paths), tuple(flows),
        addresses=_addresses(rng, theme),
        uplink_flags=flags,
        server_joins=rng.random() < (0.5 if theme == "roles" else 0.05),
        wrap=rng.random() < 0.1,
        changes=_changes(rng, theme, count),
    )  # fmt: skip


def _addresses(rng: random.Random, theme: str) -> tuple[ServerAddress, ...]:
    if rng.random() > (0.6 if theme in ("churn", "roles") else 0.1):
        return ()
    return tuple(
        ServerAddress(
            number,
            signal=rng.random() < 0.8,
            subflow=rng.random() < 0.3,
            present=theme != "churn" or rng.random() < 0.6,
            port=rng.choice((None, None, None, 9000 + number)),
        )
        for number in range(2, 2 + rng.choice((1, 1, 2, 3)))
    )


def _changes(rng: random.Random, theme: str, count: int) -> tuple[Change, ...]:
    if theme != "churn":
        if rng.random() > 0.15:
            return ()
        return tuple(_policy_change(rng) for _ in range(rng.randrange(1, 4)))
    changes: list[Change] = []
    for _ in range(rng.randrange(1, 7)):
        at = _log(rng, 0.02, 6.0)
        pause = _log(rng, 0.02, 8.0)
        path = rng.randrange(count)
        kind = rng.choice(("remove", "remove", "vanish", "vanish", "server", "backup", "policy"))
        if kind == "policy":
            changes.append(_policy_change(rng))
            continue
        pairs = {
            "remove": ("remove", "add"), "vanish": ("vanish", "appear"),
            "backup": ("backup", "regular"), "server": ("withdraw", "announce"),
        }  # fmt: skip
        which = rng.randrange(2, 5) if kind == "server" else path
        there, back = pairs[kind]
        changes.append(Change(at, there, which))
        if rng.random() < 0.85:
            changes.append(Change(at + pause, back, which))
    return tuple(sorted(changes, key=lambda change: change.at))


def _policy_change(rng: random.Random) -> Change:
    if rng.random() < 0.5:
        return Change(_log(rng, 0.01, 5.0), f"scheduler:{rng.choice(SCHEDULERS)}")
    return Change(_log(rng, 0.01, 5.0), f"control:{rng.choice(CONTROLS)}")


def _log(rng: random.Random, low: float, high: float) -> float:
    """Log-uniform."""
    return float(low * (high / low) ** rng.random())


def _path(rng: random.Random, theme: str, v6: bool) -> PathPlan:
    rate = 0.0 if rng.random() < 0.1 else _log(rng, 0.5e6, 200e6)
    delay = 0.00005 if rng.random() < 0.05 else _log(rng, 0.0005, 0.12)
    queue = 0
    if rate and (rate < 1e7 or rng.random() < 0.8):
        queue = max(12, int(rate * _log(rng, 0.01, 0.3) / 12000))
    plan = PathPlan(
        rate_up=rate,
        rate_down=rate if rng.random() < 0.7 else max(rate * _log(rng, 0.1, 4.0), min(rate, 3e5)),
        delay=delay,
        queue=queue,
        offload=not 0 < rate < 5e6 and rng.random() < (0.5 if theme == "bulk" else 0.2),
        batch=_log(rng, 0.0001, 0.002) if rng.random() < 0.4 else 0.0,
        nat=rng.random() < 0.3,
        jitter=rng.random() * delay if rng.random() < 0.2 else 0.0,
    )
    if theme == "bulk" and plan.offload:
        plan = replace(plan, rate_up=0.0, rate_down=0.0, queue=0)
    if theme in ("lossy", "mixed") or rng.random() < 0.1:
        plan = _with_loss(rng, plan)
    if theme in ("reorder", "mixed") or rng.random() < 0.1:
        plan = _with_reordering(rng, plan)
    if theme == "middlebox" or rng.random() < 0.05:
        plan = _with_middlebox(rng, plan, v6)
    if theme == "opening" and rng.random() < 0.5:
        plan = replace(plan, syn_payload=rng.choice(("strip", "drop")))
    return plan


def _with_loss(rng: random.Random, plan: PathPlan) -> PathPlan:
    if rng.random() < 0.7:
        loss = _log(rng, 0.001, 0.08)
        where = rng.random()
        plan = replace(
            plan, loss_up=loss if where < 0.8 else 0.0, loss_down=loss if where > 0.2 else 0.0
        )
    if rng.random() < 0.4:
        plan = replace(plan, burst=_log(rng, 0.0005, 0.01), burst_length=rng.uniform(2, 12))
    return plan


def _with_reordering(rng: random.Random, plan: PathPlan) -> PathPlan:
    if rng.random() < 0.8:
        plan = replace(
            plan,
            reorder=_log(rng, 0.002, 0.3),
            reorder_delay=max(plan.delay, 0.001) * _log(rng, 0.05, 2.0),
        )
    if rng.random() < 0.4:
        plan = replace(plan, duplicate=_log(rng, 0.002, 0.2))
    return plan


def _with_middlebox(rng: random.Random, plan: PathPlan, v6: bool) -> PathPlan:
    plan = _with_one_box(rng, plan, v6)
    return _with_one_box(rng, plan, v6) if rng.random() < 0.15 else plan


def _with_one_box(rng: random.Random, plan: PathPlan, v6: bool) -> PathPlan:
    kind = rng.choice(
        ("strip", "strip", "after", "resegment", "mtu", "late mtu", "syn", "corrupt", "subtype",
         "capable", "option", "shift", "shift", "coalesce", "rst", "rst", "rebind")
    )  # fmt: skip
    least = 1280 if v6 else 700
    if kind == "strip":
        return replace(plan, strip=rng.choice(("syn", "syn-ack", "ack", "all", "all")))
    if kind == "after":
        where = rng.choice(("all", "ack"))
        return replace(plan, strip=where, strip_after=int(_log(rng, 1, 400)))
    if kind == "resegment":
        return replace(plan, resegment=rng.randrange(100, 1400))
    if kind == "mtu":
        return replace(plan, mtu=rng.randrange(least, 1500), icmp=rng.random() < 0.7)
    if kind == "late mtu":
        return replace(
            plan, late_mtu=rng.randrange(least, 1500), late_mtu_at=_log(rng, 0.02, 4.0),
            icmp=rng.random() < 0.5,
        )  # fmt: skip
    if kind == "syn":
        return replace(plan, syn_payload=rng.choice(("strip", "drop")))
    if kind == "corrupt":
        return replace(plan, corrupt=_log(rng, 0.003, 0.1))
    if kind == "subtype":
        return replace(plan, strip_subtype=rng.choice(("join", "add-addr")))
    if kind == "capable":
        return replace(plan, drop_capable=True)
    if kind == "option":
        name = rng.choice(("timestamps", "sack"))
        return replace(plan, strip_option=f"{name}:{rng.choice(('syn', 'syn-ack', 'syns', 'all'))}")
    if kind == "shift":
        return replace(plan, shift=rng.choice(("sack", "sack", "plain")))
    if kind == "coalesce":
        limit = rng.choice((1460, 1460, 3000, 60000))
        return replace(plan, coalesce=limit, batch=_log(rng, 0.0005, 0.005))
    if kind == "rst":
        how = rng.choice(("exact", "window", "blind"))
        return replace(plan, rst=how, rst_chance=_log(rng, 0.0005, 0.05))
    rebinds = tuple(sorted(_log(rng, 0.02, 10.0) for _ in range(rng.choice((1, 1, 2)))))
    return replace(plan, nat=True, rebinds=rebinds)


def _cut(rng: random.Random, paths: list[PathPlan], certain: bool) -> None:
    """Let paths die: some or all, once or again and again, for a while or for ever."""
    if not certain and rng.random() < 0.5:
        return
    if rng.random() < 0.25:
        # All at once.
        start, length = _log(rng, 0.01, 4.0), _length(rng)
        for index, path in enumerate(paths):
            paths[index] = replace(path, outages=(Outage(start, length),))
        return
    for index in rng.sample(range(len(paths)), rng.randrange(1, len(paths) + 1)):
        outages = []
        at = _log(rng, 0.01, 3.0)
        for _ in range(rng.choice((1, 1, 2, 4))):
            direction = rng.choice(("both", "both", "both", "up", "down"))
            outage = Outage(at, _length(rng), direction, rng.random() < 0.7)
            outages.append(outage)
            at = outage.end + _log(rng, 0.05, 5.0)
            if at == FOREVER:
                break
        paths[index] = replace(paths[index], outages=tuple(outages))


def _length(rng: random.Random) -> float:
    return FOREVER if rng.random() < 0.2 else _log(rng, 0.05, 25.0)


def _host(rng: random.Random, theme: str, paths: list[PathPlan]) -> HostPlan:
    small = theme == "windows" or rng.random() < 0.1
    receive = int(_log(rng, 3000, 60000) if small else _log(rng, 40000, 300000))
    tcp = TcpConfig(
        congestion_control=rng.choice(("cubic", "cubic", *CONTROLS)),
        receive_buffer=receive,
        receive_buffer_max=receive if small and rng.random() < 0.5 else receive * 8,
        send_buffer_max=int(_log(rng, 4000, 60000)) if small else int(_log(rng, 1e5, 4e6)),
        pacing=rng.random() < 0.8,
        timestamps=rng.random() < 0.85,
        sack=rng.random() < 0.9,
        window_scale=rng.random() < 0.85,
        delayed_ack=rng.choice((0.04, 0.04, 0.0, 0.2)),
        initial_window=rng.choice((10, 10, 2, 32)),
        mtu4=rng.choice((1500, 1500, 1400, 9000)),
        keepalive_idle=20.0,
        keepalive_interval=5.0,
        keepalive_count=5,
        time_wait=rng.choice((60.0, 60.0, 5.0)),
        user_timeout=rng.choice((None, None, None, 10.0)),
        retries=rng.choice((15, 15, 8)),
    )
    mptcp = MptcpConfig(
        enabled=rng.random() < 0.95,
        checksum_enabled=rng.random() < (0.7 if any(path.corrupt for path in paths) else 0.25),
        scheduler=rng.choice(("default",) * 6 + SCHEDULERS),
        allow_join_initial_addr_port=rng.random() < 0.95,
        subflows=rng.choice((len(paths), len(paths), 1, 8)),
        add_addr_accepted=rng.choice((0, 0, 1, 4)),
        early_confirm=rng.random() < 0.9,
    )
    late = rng.random() * 0.002 if rng.random() < 0.3 else 0.0
    return HostPlan(tcp, mptcp, gro=rng.random() < 0.8, late=late)


def _flow(rng: random.Random, theme: str, paths: list[PathPlan]) -> FlowPlan:
    opening = theme in ("opening", "mixed")
    with_payload = rng.random() < (0.7 if opening else 0.2)
    answer = "accept"
    if opening and rng.random() < 0.1:
        answer = rng.choice(("refuse", "refuse", "discard"))
    flow = FlowPlan(
        kind="tcp" if rng.random() < 0.25 else "mptcp",
        path=rng.randrange(len(paths)),
        start=0.0 if rng.random() < 0.6 else rng.random() * 3.0,
        syn_payload=rng.randrange(1, 1200) if with_payload else 0,
        take_syn_payload=rng.random() < 0.6,
        syn_ack_payload=rng.randrange(1, 1200) if rng.random() < (0.3 if opening else 0.1) else 0,
        answer=answer,
        answer_after=_log(rng, 0.001, 2.0) if rng.random() < (0.5 if opening else 0.2) else 0.0,
        client=_end(rng, theme),
        server=_end(rng, theme),
    )
    # One of both must speak and finish first.
    return _untangle(rng, flow)


def _untangle(rng: random.Random, flow: FlowPlan) -> FlowPlan:
    """No two applications that wait for each other for ever."""
    client, server = flow.client, flow.server
    if client.speak != "open" and server.speak != "open":
        server = replace(server, speak="open")
    if client.speak == "eof":
        server = replace(server, finish="sent")
    if server.speak == "eof":
        client = replace(client, finish="sent")
    if client.finish == "eof" and server.finish == "eof":
        client = replace(client, finish="sent")
    if client.speak == "data" and server.size == 0:
        client = replace(client, speak="open")
    if server.speak == "data" and client.size == 0:
        server = replace(server, speak="open")
    return replace(flow, client=client, server=server)


def _end(rng: random.Random, theme: str) -> EndPlan:
    most = 4e6 if theme == "bulk" else 1e6 if rng.random() < 0.15 else 3e5
    size = 0 if rng.random() < 0.15 else int(_log(rng, 1, most))
    end = EndPlan(
        size=size,
        chunk=rng.choice((65536, 46000, 1460, int(_log(rng, 200, 65536)))),
        finish=rng.choice(("sent", "sent", "eof")),
        linger=rng.random() * 3.0 if rng.random() < 0.2 else 0.0,
        speak=rng.choice(("open",) * 6 + ("eof", "data")),
    )
    if size / end.chunk > 300:
        end = replace(end, chunk=65536)
    if rng.random() < 0.2:
        burst = max(1, int(size * rng.uniform(0.05, 0.5)))
        end = replace(end, burst=burst, gap=_log(rng, 0.01, 1.0))
    if theme == "windows" or rng.random() < 0.1:
        end = _slow_reader(rng, end)
    if theme == "ending" and rng.random() < 0.4:
        end = _aborting(rng, end)
    return end


def _slow_reader(rng: random.Random, end: EndPlan) -> EndPlan:
    if rng.random() < 0.5:
        limit = int(_log(rng, 2000, 30000))
        end = replace(end, read_limit=limit, read_gap=_log(rng, 0.001, 0.3))
    if rng.random() < 0.4:
        end = replace(end, pause_at=int(_log(rng, 1, 60000)), pause=_log(rng, 0.1, 8.0))
    return end


def _aborting(rng: random.Random, end: EndPlan) -> EndPlan:
    kind = rng.choice(("time", "written", "read", "close"))
    if kind in ("time", "close"):
        return replace(end, abort=kind, abort_at=_log(rng, 0.01, 3.0))
    if kind == "written":
        return replace(end, abort=kind, abort_at=float(rng.randrange(end.size + 1)))
    return replace(end, abort=kind, abort_at=_log(rng, 1, 1e5))
