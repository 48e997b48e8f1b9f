"""Ways from the client to the server: our two boxes, and other relays over the kernel's MPTCP.

Every chain stands in a lab of its own, so that all can be up and measured in turns. The peers are
Debian packages, each with one process (socat: one a connection) at the proxy's and at the
gateway's place, run by ``mptcpize run``, over the same uplinks:

    shadowsocks   ss-redir, to which nftables redirects all TCP of the LAN, and ss-server
    socat, haproxy   listen at both places for the ports that the benches use
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.native import PORT as LOAD_PORT
from tests.lab.daemons import Boxes, boxes
from tests.lab.link import LinkSpec
from tests.lab.namespaces import LabError, Namespace
from tests.lab.topology import (
    GATEWAY4,
    LAN4,
    SERVER4,
    Topology,
    next_hop,
    topology,
    uplink_address,
)
from tests.lab.waiting import wait_for

OURS = "mptcp-proxy"
TWO_WORKERS = "two workers"
PORTS = (80, 5201, LOAD_PORT, 8080)
_SS_PORT, _REDIR_PORT = 8388, 1080
_SS = ("-k", "bench", "-m", "aes-256-gcm", "-t", "600")
_SPLICE = 1 << 18

HAPROXY = """
global
    maxconn {connections}
    nbthread 1
defaults
    mode tcp
    timeout connect 10s
    timeout client 600s
    timeout server 600s
"""


def relayed_connections() -> int:
    """How many connections a relay with two sockets for each may hold; at most 30,000.

    Raises this process's limit of open files as far as the system lets it.
    """
    wanted = 60200
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return (min(hard, wanted) - 200) // 2


class Chain:
    """One way: its lab, and where its client has to connect to for a port of the server."""

    name = "direct"
    transparent = True
    programs: Sequence[str] = ()

    def __init__(self, lab: Topology) -> None:
        self.lab = lab
        self.processes: dict[str, list[int]] = {}

    def target(self, port: int) -> tuple[str, int]:
        """Address and port for the client."""
        return (SERVER4 if self.transparent else LAN4), port


class Relays(Chain):
    """Two processes over the kernel's MPTCP with an additional subflow for every further uplink."""

    def __init__(self, lab: Topology) -> None:
        super().__init__(lab)
        for namespace in (lab.proxy, lab.gateway):
            namespace.run("ip", "mptcp", "limits", "set", "subflow", "4", "add_addr_accepted", "4")
            namespace.sysctl("net.ipv4.ip_local_port_range", "1024 65535")
            namespace.sysctl("net.ipv4.tcp_tw_reuse", 1)
        for index in lab.indices:
            address, table = uplink_address(index), str(100 + index)
            lab.proxy.run("ip", "rule", "add", "from", address, "table", table)
            lab.proxy.run("ip", "route", "add", "default", "via", next_hop(index), "table", table)
            if index > 1:
                endpoint = ("add", address, "dev", f"u{index}", "subflow")
                lab.proxy.run("ip", "mptcp", "endpoint", *endpoint)
        self._started: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        """Starts both programs and waits until they listen."""
        raise NotImplementedError

    def spawn(self, role: str, *argv: str) -> None:
        """A program at one box's place."""
        namespace: Namespace = getattr(self.lab, role)
        with self._log(role).open("ab") as log:
            process = namespace.start("mptcpize", "run", *argv, stdout=log, stderr=log)
        self._started.append(process)
        self.processes.setdefault(role, []).append(process.pid)

    def _log(self, role: str) -> Path:
        return self.lab.namespaces.directory / f"{self.name}-{role}.log"

    def listening(self, role: str, *ports: int) -> None:
        """Waits until somebody listens on all these ports at one box's place."""
        namespace: Namespace = getattr(self.lab, role)

        def up() -> bool:
            if any(process.poll() is not None for process in self._started):
                raise LabError(f"{self.name} ended:\n{self._log(role).read_text()}")
            # Connecting would make it connect to a server that may not be there yet.
            sockets = namespace.run("ss", "-Htln").stdout
            return all(f":{port} " in sockets for port in ports)

        wait_for(up, f"{self.name} listens at the {role}")

    def file(self, name: str, text: str) -> str:
        """A configuration file."""
        path: Path = self.lab.namespaces.directory / name
        path.write_text(text)
        return str(path)


class Shadowsocks(Relays):
    """What OpenMPTCProuter runs."""

    name = "shadowsocks"
    programs = ("ss-redir", "ss-server", "mptcpize")

    def start(self) -> None:
        gateway = ("-s", GATEWAY4, "-p", str(_SS_PORT), *_SS)
        self.spawn("gateway", "ss-server", *gateway)
        self.spawn("proxy", "ss-redir", *gateway, "-b", "0.0.0.0", "-l", str(_REDIR_PORT))
        rules = f"""
        table ip bench {{
            chain prerouting {{
                type nat hook prerouting priority dstnat
                iifname lan0 tcp dport 1-65535 redirect to :{_REDIR_PORT}
            }}
        }}
        """
        self.lab.proxy.run("nft", "-f", "-", stdin=rules)
        self.listening("gateway", _SS_PORT)
        self.listening("proxy", _REDIR_PORT)


class Socat(Relays):
    """A process for every connection."""

    name = "socat"
    transparent = False
    programs = ("socat", "mptcpize")

    def start(self) -> None:
        places = (("gateway", GATEWAY4, SERVER4), ("proxy", LAN4, GATEWAY4))
        for role, here, there in places:
            for port in PORTS:
                listen = f"TCP-LISTEN:{port},bind={here},fork,reuseaddr,backlog=4096,nodelay"
                self.spawn(role, "socat", "-b", str(_SPLICE), listen, f"TCP:{there}:{port},nodelay")
            self.listening(role, *PORTS)


class Haproxy(Relays):
    """One thread at each place; splices where the kernel can."""

    name = "haproxy"
    transparent = False
    programs = ("haproxy", "mptcpize")

    def start(self) -> None:
        for role, here, there in (("gateway", GATEWAY4, SERVER4), ("proxy", LAN4, GATEWAY4)):
            parts = [HAPROXY.format(connections=relayed_connections())]
            for port in PORTS:
                parts += [f"listen p{port}", f"    bind {here}:{port} backlog 4096"]
                parts += [f"    server s {there}:{port}"]
            config = self.file(f"haproxy-{role}.cfg", "\n".join(parts) + "\n")
            self.spawn(role, "haproxy", "-db", "-f", config)
            self.listening(role, *PORTS)


class Ours(Chain):
    """Both boxes of this project."""

    name = OURS

    def __init__(self, lab: Topology, both: Boxes) -> None:
        super().__init__(lab)
        self.boxes = both
        self.processes = {box.role: [box.pid] for box in both}


class TwoWorkers(Ours):
    """The same with two workers in each box."""

    name = TWO_WORKERS


PEERS: dict[str, type[Chain]] = {peer.name: peer for peer in (Chain, Shadowsocks, Socat, Haproxy)}


def installed(name: str) -> bool:
    """Whether this machine has the chain's programs."""
    if name in (OURS, TWO_WORKERS):
        return True
    path = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/bin:/usr/local/sbin"
    return all(shutil.which(program, path=path) for program in PEERS[name].programs)


def _ready(lab: Topology) -> None:
    """Clients that open many connections, in short time."""
    lab.client.sysctl("net.ipv4.ip_local_port_range", "1024 65535")
    lab.client.sysctl("net.ipv4.tcp_tw_reuse", 1)


@contextmanager
def standing(
    names: Sequence[str],
    *links: LinkSpec | None,
    prepare: Callable[[Topology], object] = lambda _: None,
) -> Iterator[list[Chain]]:
    """Chains of these names, all at once; ``prepare`` starts each one's servers first."""
    relayed_connections()
    with ExitStack() as stack:
        found: list[Chain] = []
        for name in names:
            if not installed(name):
                raise LabError(f"{name} is not installed: deploy/setup.sh --bench")
            lab = stack.enter_context(topology(*links))
            _ready(lab)
            prepare(lab)
            if name == OURS:
                found.append(Ours(lab, stack.enter_context(boxes(lab))))
            elif name == TWO_WORKERS:
                two = {"workers": 2}
                both = stack.enter_context(boxes(lab, proxy=two, gateway=two))
                found.append(TwoWorkers(lab, both))
            else:
                found.append(PEERS[name](lab))
        yield found
