"""The command line: what it prints, where, and with which exit status."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proxy.cli import main, status
from proxy.cli.log import LineFormatter
from proxy.cli.status_text import human_bytes, human_time, render
from proxy.control.server import ControlServer
from proxy.errors import ConfigError
from proxy.net.setup import Setup
from tests.unit.test_config import GATEWAY, PROXY, SECRET, write_secret

STATUS: dict[str, Any] = {
    "role": "proxy",
    "pid": 4711,
    "uptime": 3725.0,
    "gateway": "203.0.113.10:8803",
    "uplinks": [
        {
            "name": "fibre",
            "interface": "u1",
            "address": "198.18.92.10",
            "backup": False,
            "up": True,
            "subflows": 3,
            "srtt": 0.0204,
            "bytes_sent": 1500,
            "bytes_received": 2_000_000_000,
        },
        {"name": "lte", "interface": "u2", "address": None, "backup": True, "up": False},
    ],
    "connections": [
        {
            "id": 7,
            "token": "0a1b2c3d",
            "state": "ESTAB",
            "source": "192.168.1.20:50000",
            "destination": "[2001:db8::7]:443",
            "fallback": None,
            "bytes_sent": 999,
            "bytes_received": 12_345_678,
            "subflows": [
                {
                    "local": "198.18.92.10:40000",
                    "remote": "203.0.113.10:8803",
                    "uplink": "fibre",
                    "state": "ESTAB",
                    "backup": False,
                    "srtt": 0.0204,
                    "cwnd": 140000,
                    "bytes_sent": 1000,
                    "bytes_received": 12_000_000,
                    "retransmitted": 1400,
                    "reinjected": 0,
                },
                {
                    "local": "198.18.92.11:40001",
                    "remote": "203.0.113.10:8803",
                    "uplink": "lte",
                    "state": "ESTAB",
                    "backup": True,
                    "stale": True,
                    "srtt": None,
                    "cwnd": 14000,
                    "bytes_sent": 0,
                    "bytes_received": 0,
                    "retransmitted": 0,
                    "reinjected": 2800,
                },
            ],
        }
    ],
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configuration files of both roles, on a host that has what they name."""
    monkeypatch.setattr(Setup, "plan", lambda setup: ["ip rule add ..."])
    write_secret(tmp_path / "home-1.key", SECRET)
    (tmp_path / "proxy.toml").write_text(PROXY)
    (tmp_path / "gateway.toml").write_text(GATEWAY)
    return tmp_path


@contextmanager
def daemon(path: Path, answer: object = STATUS) -> Iterator[None]:
    """A control server in a thread of its own, as ``status`` has no event loop."""
    started = threading.Event()
    loop = uvloop.new_event_loop()  # as in the daemon
    stopped = asyncio.Event()

    async def serve() -> None:
        server = ControlServer(path, lambda: answer)  # type: ignore[arg-type,return-value]
        await server.start()
        started.set()
        await stopped.wait()
        await server.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit status and the one line on stderr."""
    try:
        code = main(arguments)
    except SystemExit as leave:
        code = int(str(leave.code))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mptcp-proxy: error: ")
    assert captured.err.count("\n") == 1
    return code, captured.err.removeprefix("mptcp-proxy: error: ").rstrip()


def test_keygen_prints_32_random_bytes_in_base64(capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for _ in range(2):
        assert main(["keygen"]) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] != lines[1]
    assert all(len(base64.b64decode(line, validate=False)) == 32 for line in lines)


def test_keygen_writes_a_file_for_its_owner_alone_and_never_over_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "home.key"
    assert main(["keygen", "-o", str(file)]) == 0
    assert capsys.readouterr().out == ""
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    code, line = fails(capsys, "keygen", "-o", str(file))
    assert code == 1
    assert "exists already" in line
    assert file.read_bytes() == before
    code, line = fails(capsys, "keygen", "-o", str(tmp_path / "no" / "home.key"))
    assert code == 1


def test_a_secret_of_keygen_is_taken_by_both_roles(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "home-1.key").unlink()
    assert main(["keygen", "-o", str(home / "home-1.key")]) == 0
    for role in ("proxy", "gateway"):
        assert main(["check", "-c", str(home / f"{role}.toml")]) == 0


def test_check_says_in_words_what_a_proxy_would_do(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "-c", str(home / "proxy.toml")]) == 0
    out = capsys.readouterr().out
    for text in (
        "lan0",
        "203.0.113.10:8803",
        "home-1",
        "fibre",
        "u2",
        "10.2.0.1",
        "ip rule add ...",
    ):
        assert text in out


def test_check_fails_if_the_file_does_not_fit_the_host(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(setup: Setup) -> list[str]:
        raise ConfigError("uplink[0].interface", 'there is no interface "u1"')

    monkeypatch.setattr(Setup, "plan", plan)
    assert main(["check", "-c", str(home / "proxy.toml")]) == 2
    captured = capsys.readouterr()
    assert "uplink fibre: interface u1" in captured.out
    assert captured.err.endswith('uplink[0].interface: there is no interface "u1"\n')


def test_check_says_in_words_what_a_gateway_would_do(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "-c", str(home / "gateway.toml")]) == 0
    out = capsys.readouterr().out
    for text in ("203.0.113.10:8803", "1 client: home-1", "198.51.100.0/24", "refused ports: 25"):
        assert text in out


def test_check_and_run_name_the_key_that_is_wrong(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = home / "proxy.toml"
    file.write_text(PROXY.replace("10.2.0.1", "10.2"))
    for command in ("check", "run"):
        code, line = fails(capsys, command, "-c", str(file))
        assert code == 2
        assert line == f'{file}: uplink[1].next_hop: "10.2" is not an IP address'


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ('[tcp]\ncongestion_control = "cubik"', "tcp.congestion_control: "),
        ('[mptcp]\nscheduler = "defautl"', "mptcp.scheduler: "),
        ('[mptcp]\npath_manager = "kernal"', "mptcp.path_manager: "),
    ],
)
def test_policies_that_do_not_exist_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str], added: str, message: str
) -> None:
    file = home / "proxy.toml"
    file.write_text(PROXY + added)
    code, line = fails(capsys, "check", "-c", str(file))
    assert code == 2
    assert line.startswith(f"{file}: {message}")
    assert "did you mean" in line


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("bogus",),
        ("run",),
        ("check", "--bogus"),
        ("run", "-c", "x", "--log-level", "loud"),
        ("run", "-c", "/nonexistent/a\nb"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert fails(capsys, *arguments)[0] == 2


@pytest.mark.parametrize("command", ["", "run", "check", "keygen", "status"])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as leave:
        main([command, "--help"] if command else ["--help"])
    assert leave.value.code == 0
    assert "usage: mptcp-proxy" in capsys.readouterr().out


def test_python_m_proxy_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "keygen"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) == 45


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m proxy keygen | true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_status_shows_uplinks_connections_and_subflows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.sock"
    with daemon(path):
        assert main(["status", "--socket", str(path)]) == 0
        text = capsys.readouterr().out
        assert main(["status", "--json", "--socket", str(path)]) == 0
        assert json.loads(capsys.readouterr().out) == STATUS
    assert text == EXPECTED


EXPECTED = """\
proxy, to 203.0.113.10:8803, pid 4711, up 1h02m, 1 connection

Uplink  Interface  Address       State        Subflows     RTT   Sent  Received
fibre   u1         198.18.92.10  up                  3  20.4ms  1.5kB     2.0GB
lte     u2         -             down backup         -       -      -         -

State    Source / subflow      Destination / remote   Sent  Received  Details
ESTAB    192.168.1.20:50000    [2001:db8::7]:443      999B    12.3MB  id:7 token:0a1b2c3d
  ESTAB    198.18.92.10:40000    203.0.113.10:8803   1.0kB    12.0MB  fibre rtt:20.4ms \
cwnd:140.0kB retransmitted:1.4kB
  ESTAB    198.18.92.11:40001    203.0.113.10:8803      0B        0B  lte rtt:- cwnd:14.0kB \
reinjected:2.8kB backup stale
"""


def test_status_without_a_socket_asks_every_daemon_of_the_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = (tmp_path / "proxy.sock", tmp_path / "gateway.sock")
    monkeypatch.setattr(status, "DEFAULT_SOCKETS", paths)
    code, line = fails(capsys, "status")
    assert code == 3
    assert str(paths[1]) in line
    with daemon(paths[1], {"role": "gateway", "uplinks": [], "connections": []}):
        assert main(["status"]) == 0
        assert capsys.readouterr().out == "gateway, 0 connections\n\nno connections\n"
        with daemon(paths[0]):
            assert main(["status", "--json"]) == 0
            lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["role"] for line in lines] == ["proxy", "gateway"]


def test_what_a_daemon_says_cannot_drive_the_terminal() -> None:
    text = render({"role": "proxy\x1b[2J", "connections": [{"state": "\x9b31m", "id": 1}]})
    assert "\x1b" not in text
    assert "\x9b" not in text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1.0kB"),
        (999_949, "999.9kB"),
        (999_950, "1.0MB"),
        (1_234_567_890, "1.2GB"),
        (5e15, "5000.0TB"),
        (None, "-"),
    ],
)
def test_sizes_for_people(count: float | None, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00085, "850us"),
        (0.0234, "23.4ms"),
        (12.04, "12.0s"),
        (303.0, "5m03s"),
        (7500.0, "2h05m"),
        (273_600.0, "3d04h"),
        (None, "-"),
    ],
)
def test_times_for_people(seconds: float | None, text: str) -> None:
    assert human_time(seconds) == text


def test_log_lines_are_one_printable_line() -> None:
    record = logging.LogRecord(
        "proxy", logging.WARNING, __file__, 1, "client %s\n\x1b[31mforged", ("a\rb",), None
    )
    assert LineFormatter(journal=True).format(record) == "<4>client a\\rb\\n\\x1b[31mforged"
    assert "\n" not in LineFormatter(journal=False).format(record)


def test_tracebacks_stay_readable() -> None:
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.LogRecord("proxy", logging.ERROR, "", 1, "it broke", (), sys.exc_info())
    assert LineFormatter(journal=True).format(record).count("\n") >= 3
