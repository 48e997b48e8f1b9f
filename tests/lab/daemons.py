"""The two boxes under test: ``mptcp-proxy run`` for the proxy and for the gateway.

Each runs in its namespace with a configuration generated here and a private
``/run/mptcp-proxy``, so that labs side by side do not meet.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lab.namespaces import LabError, Namespace
from tests.lab.topology import EGRESS, GATEWAY4, Topology, next_hop, next_hop6
from tests.lab.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / ".venv" / "bin" / "mptcp-proxy"
PORT = 8803
UPLINK_NAMES = ("fibre", "lte", "sat", "dsl")
# LAB_WORKERS=2 runs every test with boxes of two workers.
WORKERS = int(os.environ.get("LAB_WORKERS", "1"))
READY_WITHIN = 30.0
STOP_WITHIN = 10.0


def new_secret(seed: int = 1) -> str:
    """A secret as ``mptcp-proxy keygen`` would write it (not secret at all: seeded)."""
    return base64.b64encode(random.Random(seed).randbytes(32)).decode() + "\n"


# Comes and goes by itself: link-local addresses and routes, and how long something is valid.
_VOLATILE = re.compile(r"fe80:|ff00:")
_LIFETIME = re.compile(r" (expires|valid_lft|preferred_lft) \S+| (tentative|linkdown)\b")
_INDEX = re.compile(r"^\d+: (?=\w+ +inet)")  # another one when an interface returns


def snapshot(namespace: Namespace) -> dict[str, list[str]]:
    """What a daemon must leave as it found it: links, addresses, rules, routes, nft, sysctls."""
    commands = {
        "links": "ls /sys/class/net",
        "addresses": "ip -o addr show",
        "rules": "ip rule show",
        "rules6": "ip -6 rule show",
        "routes": "ip route show table all",
        "routes6": "ip -6 route show table all",
        "nft": "nft list ruleset",
        "sysctls": "cd /proc/sys/net && grep -s . ipv4/ip_forward ipv4/conf/*/rp_filter"
        " ipv4/conf/*/forwarding ipv6/conf/*/forwarding ipv4/conf/*/accept_local"
        " ipv4/conf/*/src_valid_mark ipv4/conf/*/send_redirects",
    }
    state = {}
    for name, command in commands.items():
        text = namespace.run("sh", "-c", command, check=False).stdout
        lines = [_INDEX.sub("", _LIFETIME.sub("", line)).strip() for line in text.splitlines()]
        state[name] = sorted(line for line in lines if not _VOLATILE.search(line))
    return state


def differences(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """Lines that came or went between two snapshots, readable."""
    found = []
    for name in before:
        found += [
            f"{name}: left behind: {line}" for line in after[name] if line not in before[name]
        ]
        found += [f"{name}: lost: {line}" for line in before[name] if line not in after[name]]
    return found


class Daemon:
    """One ``mptcp-proxy run -c FILE`` in a namespace."""

    def __init__(self, namespace: Namespace, role: str, directory: Path, config: str) -> None:
        self.namespace = namespace
        self.role = role
        self.directory = directory
        self.config_file = directory / f"{role}.toml"
        self.config_file.write_text(config)
        self.socket = directory / f"{role}.sock"
        self.log_file = directory / f"{role}.log"
        self.ready_line = ""
        self._run = directory / f"{role}.run"
        self._run.mkdir(exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running daemon."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything it wrote to stderr since it was first started."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def _private(self, *argv: str) -> list[str]:
        script = 'mkdir -p /run/mptcp-proxy && mount --bind "$0" /run/mptcp-proxy && exec "$@"'
        return ["sh", "-c", script, str(self._run), *argv]

    def launch(self) -> None:
        """Starts the process without waiting."""
        assert self._process is None or self._process.poll() is not None
        self.socket.unlink(missing_ok=True)
        argv = self._private(str(COMMAND), "run", "-c", str(self.config_file))
        with self.log_file.open("ab") as log:
            self._process = self.namespace.start(
                *argv, stdout=subprocess.PIPE, stderr=log, cwd=ROOT
            )

    def wait_ready(self, within: float = READY_WITHIN) -> None:
        """Waits for the ``ready`` line; LabError with the log if it does not come."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        stream = process.stdout
        lines: list[bytes] = []
        reader = threading.Thread(target=lambda: lines.append(stream.readline()), daemon=True)
        reader.start()
        reader.join(within)
        line = lines[0].decode().strip() if lines else ""
        if not line.startswith("ready"):
            state = f"exit {process.poll()}" if process.poll() is not None else "still starting"
            raise LabError(f"{self.role}: no ready line but {line!r} ({state})\n{self.log}")
        self.ready_line = line

    def start(self) -> None:
        """Starts it and waits until traffic may flow."""
        self.launch()
        self.wait_ready()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stops it as systemd would; returns its exit status."""
        process = self._process
        assert process is not None
        process.send_signal(number)
        try:
            return process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise LabError(
                f"{self.role}: did not stop within {STOP_WITHIN} s\n{self.log}"
            ) from None

    def hang_up(self) -> None:
        """SIGHUP: read the configuration again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """kill -9: no chance to clean up."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def running(self) -> bool:
        """It was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def command(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Another ``mptcp-proxy`` command in the same surroundings."""
        return self.namespace.run(*self._private(str(COMMAND), *argv), check=check)

    def start_command(self, *argv: str, **streams: Any) -> subprocess.Popen[bytes]:
        """As ``command``, without waiting for it; ``streams`` as of ``Namespace.start``."""
        return self.namespace.start(*self._private(str(COMMAND), *argv), cwd=ROOT, **streams)

    def status(self) -> dict[str, Any]:
        """What ``mptcp-proxy status --json`` says."""
        answer = self.command("status", "--json", "--socket", str(self.socket)).stdout
        return dict(json.loads(answer))

    def query(self, command: str, **arguments: object) -> dict[str, Any]:
        """As ``status``, without a process for each question: for what asks many a second."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(self.socket))
            sock.sendall(json.dumps({"id": 1, "command": command, **arguments}).encode() + b"\n")
            with sock.makefile("rb") as lines:
                reply = json.loads(lines.readline())
        if "result" not in reply:
            raise LabError(f"{self.role}: {command}: {reply}")
        return dict(reply["result"])

    def memory(self) -> int:
        """Resident bytes of the process that are its own (USS: shared pages left out)."""
        total = 0
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
        return total

    def processor_seconds(self) -> float:
        """User and system time that the process has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proxy_config(
    directory: Path,
    uplinks: Sequence[int],
    *,
    gateway: str = GATEWAY4,
    port: int = PORT,
    backup: Sequence[int] = (),
    secret_file: str = "home-1.key",
    workers: int = WORKERS,
    extra: str = "",
) -> str:
    """The near box's TOML; ``extra`` is appended (whole sections)."""
    parts = ['role = "proxy"', f"workers = {workers}", "[lan]", 'interfaces = ["lan0"]']
    for index in uplinks:
        parts += [
            "[[uplink]]",
            f'name = "{UPLINK_NAMES[index - 1]}"',
            f'interface = "u{index}"',
            f'next_hop = "{next_hop(index)}"',
            f'next_hop6 = "{next_hop6(index)}"',
            f"backup = {'true' if index in backup else 'false'}",
        ]
    parts += [
        "[gateway]",
        f'address = "{gateway}"',
        f"port = {port}",
        'client = "home-1"',
        f'secret_file = "{secret_file}"',
        "[control]",
        f'socket = "{directory / "proxy.sock"}"',
        extra,
    ]
    return "\n".join(parts) + "\n"


def gateway_config(
    directory: Path,
    *,
    addresses: Sequence[str] = (GATEWAY4,),
    port: int = PORT,
    allow: Sequence[str] = EGRESS,
    late_convert: bool = True,
    workers: int = WORKERS,
    extra: str = "",
) -> str:
    """The far box's TOML; ``extra`` is appended (whole sections)."""
    return "\n".join(
        [
            'role = "gateway"',
            f"workers = {workers}",
            "[listen]",
            f"addresses = {json.dumps(list(addresses))}",
            f"port = {port}",
            f"late_convert = {'true' if late_convert else 'false'}",
            "[[client]]",
            'name = "home-1"',
            'secret_file = "home-1.key"',
            "[egress]",
            f"allow = {json.dumps(list(allow))}",
            "[control]",
            f'socket = "{directory / "gateway.sock"}"',
            extra,
            "",
        ]
    )


def edit(box: Daemon, old: str, new: str) -> None:
    """Replaces the first ``old`` in a box's configuration file."""
    text = box.config_file.read_text()
    assert old in text
    box.config_file.write_text(text.replace(old, new, 1))


class Boxes:
    """Proxy and gateway of a topology, and what their namespaces looked like before."""

    def __init__(
        self,
        lab: Topology,
        *,
        proxy: Mapping[str, Any] | None = None,
        gateway: Mapping[str, Any] | None = None,
    ) -> None:
        """``proxy`` and ``gateway`` are keyword arguments of the two config functions."""
        self.lab = lab
        directory = lab.namespaces.directory
        self.write_secret("home-1.key", 1)
        options = {"uplinks": list(lab.indices), **(proxy or {})}
        self.proxy = Daemon(lab.proxy, "proxy", directory, proxy_config(directory, **options))
        self.gateway = Daemon(
            lab.gateway, "gateway", directory, gateway_config(directory, **(gateway or {}))
        )
        self.before = {box.role: snapshot(box.namespace) for box in self}

    def __iter__(self) -> Iterator[Daemon]:
        yield self.gateway
        yield self.proxy

    def write_secret(self, name: str, seed: int) -> None:
        """A secret file that both configurations may name."""
        file = self.lab.namespaces.directory / name
        file.write_text(new_secret(seed))
        file.chmod(0o600)

    def start(self) -> None:
        """Both, at once; returns when both are ready."""
        for box in self:
            box.launch()
        for box in self:
            box.wait_ready()

    def leftovers(self, role: str) -> list[str]:
        """What is not as it was before the first start."""
        box = self.proxy if role == "proxy" else self.gateway
        return differences(self.before[role], snapshot(box.namespace))

    def stop(self) -> None:
        """Stops what runs; LabError if a box failed to stop cleanly or left something."""
        problems = []
        for box in (self.proxy, self.gateway):
            if not box.running:
                continue
            status = box.stop()
            if status != 0:
                problems.append(f"{box.role}: exit {status}\n{box.log}")
            problems += [f"{box.role}: {line}" for line in self.leftovers(box.role)]
        if problems:
            raise LabError("\n".join(problems))

    def logs(self) -> str:
        """Both logs, for a failing test's report."""
        return "\n".join(f"--- {box.role}\n{box.log}" for box in self)


@contextmanager
def boxes(
    lab: Topology,
    *,
    proxy: Mapping[str, Any] | None = None,
    gateway: Mapping[str, Any] | None = None,
) -> Iterator[Boxes]:
    """Both boxes running; stopped and checked at the end, their logs printed on failure."""
    both = Boxes(lab, proxy=proxy, gateway=gateway)
    try:
        both.start()
        yield both
    except BaseException:
        print(both.logs())
        raise
    both.stop()
    for box in both:
        wait_for(lambda box=box: not box.running, f"{box.role} ended")  # type: ignore[misc]
        if "Traceback" in box.log:
            raise LabError(f"{box.role} logged an exception:\n{box.log}")
