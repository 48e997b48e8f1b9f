"""Commands that ask a daemon, against the real control plane over a connection in virtual time."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from proxy.cli import daemon, main
from proxy.cli.monitor import text_form
from proxy.control.server import ControlServer
from tests.unit.test_control_commands import IPS, Plane

Run = Callable[..., str]


@contextmanager
def serving(plane: Plane, path: Path) -> Iterator[asyncio.AbstractEventLoop]:
    """The control plane on a socket, in a thread of its own."""
    ready, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        status = {"role": "proxy", "pid": 4711, "connections": []}
        server = ControlServer(path, lambda: status, plane.plane.commands(), plane.plane.events)
        await server.start()
        loops.append(asyncio.get_running_loop())
        ready.set()
        await stop.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: uvloop.run(serve()))
    thread.start()
    assert ready.wait(5)
    try:
        yield loops[0]
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture
def plane() -> Plane:
    return Plane(endpoints=2).open()


@pytest.fixture
def run(
    plane: Plane,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Run]:
    """Runs a command that must succeed; its output."""
    path = tmp_path / "c.sock"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(daemon, "DEFAULT_SOCKETS", (path, tmp_path / "other.sock"))

    def call(words: str, *, status: int = 0) -> str:
        assert main(words.split()) == status
        output = capsys.readouterr()
        if status:
            assert output.out == ""
            assert output.err.startswith("mptcp-proxy: error: ")
            assert output.err.count("\n") == 1
            return output.err
        assert output.err == ""
        return output.out

    with serving(plane, path):
        yield call


def test_endpoints_are_shown_as_ip_mptcp_shows_them(run: Run) -> None:
    run("endpoint add 10.3.0.1 subflow backup")
    run("endpoint add 10.9.9.9 id 77 port 999 signal")
    assert run("endpoint show") == (
        "10.1.0.1 id 1 subflow dev u0\n"
        "10.2.0.1 id 2 subflow dev u1\n"
        "10.3.0.1 id 3 subflow backup\n"
        "10.9.9.9 port 999 id 77 signal\n"
    )
    assert run("endpoint show id 77") == "10.9.9.9 port 999 id 77 signal\n"
    assert json.loads(run("endpoint show id 77 --json")) == [
        {"address": "10.9.9.9", "port": 999, "id": 77, "signal": True}
    ]


def test_endpoints_are_changed_and_deleted(run: Run, plane: Plane) -> None:
    run("endpoint change id 2 backup")
    assert run("endpoint show id 2") == "10.2.0.1 id 2 subflow backup dev u1\n"
    run("endpoint change 10.2.0.1 fullmesh")
    assert run("endpoint show id 2") == "10.2.0.1 id 2 subflow backup fullmesh dev u1\n"
    run("endpoint change dev u1 nobackup nofullmesh")
    assert run("endpoint show id 2") == "10.2.0.1 id 2 subflow dev u1\n"
    run("endpoint delete id 2")
    assert run("endpoint show") == "10.1.0.1 id 1 subflow dev u0\n"
    run("endpoint add dev u1 subflow")
    assert run("endpoint show id 2") == "10.2.0.1 id 2 subflow dev u1\n"
    run("endpoint flush")
    assert run("endpoint show") == ""
    assert run("endpoint show --json") == "[]\n"


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ("endpoint add", 2, "an address is needed"),
        ("endpoint add 1.2.3", 2, '"1.2.3" is neither an address nor one of'),
        ("endpoint add 10.3.0.1 id", 2, '"id" needs a value'),
        ("endpoint add 10.3.0.1 id 300", 2, 'id "300" is wrong'),
        ("endpoint add 10.3.0.1 signal fullmesh", 2, "both signal and fullmesh"),
        ("endpoint add 10.3.0.1 subflow port 7", 2, "must have signal"),
        ("endpoint add 10.1.0.1", 1, "duplicate"),
        ("endpoint add 9.9.9.9 subflow", 1, "it has: 10.1.0.1"),
        ("endpoint add dev u9", 1, "no uplink u9"),
        ("endpoint delete", 2, "an id is needed"),
        ("endpoint delete id 0", 2, "address is needed for deleting id 0"),
        ("endpoint delete id 77", 1, "address not found"),
        ("endpoint change id 1", 2, "words are missing"),
        ("endpoint change backup", 2, "words are missing"),
        ("endpoint change id 77 backup", 1, "address not found"),
        ("limits set", 2, "words are missing"),
        ("limits set subflows", 2, "words are missing"),
        ("limits set speed 3", 2, "neither of"),
        ("limits set subflows x", 2, "is wrong"),
        ("limits set subflows 9", 1, "limit greater than maximum (8)"),
        ("sysctl net.mptcp.speed", 1, "there is no net.mptcp.speed"),
        ("sysctl enabled=", 2, "neither NAME nor"),
        ("sysctl scheduler=fifo", 1, "there are backup"),
        ("conn 9 show", 1, "no connection has id 9"),
        ("conn 1 cc", 2, "a name is needed"),
        ("conn 1 show cubic", 2, "too much"),
        ("conn 1 cc warp", 1, "there are"),
        ("monitor bogus", 1, "events must be a list of created"),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(
    run: Run, words: str, status: int, text: str
) -> None:
    assert text in run(words, status=status)


def test_limits_are_shown_as_ip_mptcp_shows_them(run: Run) -> None:
    assert run("limits show") == "add_addr_accepted 0 subflows 2\n"
    run("limits set subflows 3 add_addr_accepted 1")
    assert run("limits show") == "add_addr_accepted 1 subflows 3\n"
    assert json.loads(run("limits show --json")) == {"add_addr_accepted": 1, "subflows": 3}


def test_sysctls_are_shown_and_set(run: Run) -> None:
    assert "net.mptcp.close_timeout = 60\n" in run("sysctl")
    assert run("sysctl net.mptcp.enabled close_timeout=5") == (
        "net.mptcp.enabled = 1\nnet.mptcp.close_timeout = 5\n"
    )
    assert json.loads(run("sysctl --json pm_type")) == {"net.mptcp.pm_type": "0"}


def test_counters_are_shown_as_what_they_grew_by(run: Run, plane: Plane) -> None:
    first = run("nstat MPTcpExtMPJoinSynTx")
    assert first == f"#proxy\n{'MPTcpExtMPJoinSynTx':<32}{2:<16}   0.0\n"
    assert run("nstat MPTcpExtMPJoinSynTx") == "#proxy\n"
    assert "MPTcpExtMPJoinSynTx" in run("nstat -z MPTcpExtMPJoin*")
    plane.host.counters.add("MPTcpExtMPJoinSynTx", 5)
    assert json.loads(run("nstat -s --json *SynTx")) == {"proxy": {"MPTcpExtMPJoinSynTx": 5}}
    assert json.loads(run("nstat -a --json *SynTx")) == {"proxy": {"MPTcpExtMPJoinSynTx": 7}}


def test_a_history_that_is_not_ours_is_no_history(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "state" / "mptcp-proxy" / "nstat-proxy.json"
    for text in ("", "[]", '{"run": 4711}', '{"run": 4711, "counters": [1]}', '{"run": 1}'):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        assert "MPTcpExtMPJoinSynTx" in run("nstat")


def test_sockets_are_shown_as_ss_shows_them(run: Run, plane: Plane) -> None:
    local = str(plane.pair.client.local)
    head, row = run("ss").splitlines()
    assert " ".join(head.split()) == "State Recv-Q Send-Q Local Address:Port Peer Address:Port"
    assert row.split() == ["ESTAB", "0", "0", local, "10.9.0.1:8803"]
    lines = run("ss -i").splitlines()
    assert f"token:{plane.token} " in lines[2]
    assert " subflows:1 subflows_max:2 " in lines[2]
    assert "remote_key" in lines[2]
    assert "tcp-ulp-mptcp flags:Mmec id:0/0" in lines[3]
    assert " dev:u1 cubic " in lines[4]
    assert json.loads(run("ss --json"))[0]["info"]["token"] == plane.token


def test_one_connection_is_shown_changed_and_closed(run: Run, plane: Plane) -> None:
    assert run("conn 1 show").startswith("connection 1: a > b ESTAB\n")
    assert "scheduler:redundant" in run("conn 1 scheduler redundant")
    assert " reno " in run("conn 1 cc reno")
    assert json.loads(run("conn 1 show --json"))["scheduler"] == "redundant"
    assert run("conn 1 close") == ""
    assert plane.aborted == 1


def test_why_says_it_in_a_sentence_and_then_in_detail(run: Run, plane: Plane) -> None:
    first, title, *lines = run("why 1").splitlines()
    assert first.endswith(" % of the time the LAN client sends nothing more.".replace(" %", "%"))
    assert title.startswith("connection 1, ")
    assert lines[0].startswith("  sending: application ")
    assert [line.split()[:2] for line in lines[2:]] == [["subflow", "u0"], ["subflow", "u1"]]
    shown = json.loads(run(f"why {plane.token} --json"))
    assert shown["verdict"]["cause"] == shown["sending"]["now"] == "application"
    watched = json.loads(run("why 1 --watch 0.01 --json"))
    assert watched["id"] == 1
    assert watched["age"] == watched["bytes-sent"] == 0, "virtual time stands still"
    assert "no connection has id 7" in run("why 7", status=1)
    assert "a token of eight digits" in run("why seven", status=2)
    assert "--watch" in run("why 1 --watch 0", status=2)


def test_a_trace_is_printed_as_json_lines(run: Run, plane: Plane) -> None:
    assert run("trace start 1 --size 2") == (
        f"recording connection {plane.token}: trace dump shows the events, 2 MB at most\n"
    )
    plane.pair.client.send(bytes(5000))
    plane.wait()
    lines = [json.loads(line) for line in run("trace dump").splitlines()]
    assert sum(line["bytes"] for line in lines if line["event"] == "send") == 5000
    assert run("trace stop") == (
        f"{len(lines)} events were recorded: trace dump shows the newest\n"
    )
    assert len(run("trace dump").splitlines()) == len(lines)
    assert "trace start begins one" in run("trace stop", status=1)
    for words in ("trace", "trace sideways", "trace dump 1", "trace stop --size 1"):
        assert run(words, status=2)
    assert "recording all connections" in run("trace start")


def test_a_trace_is_followed_and_ended_with_its_reader(
    run: Run, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            plane.pair.client.send(bytes(5000))
            plane.wait()
        if looks == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("proxy.cli.trace.time.sleep", sleep)
    lines = [json.loads(line) for line in run("trace -f").splitlines()]
    assert sum(line["bytes"] for line in lines if line["event"] == "send") == 5000
    assert run("trace stop", status=1), "it has ended what it began"
    run("trace start")
    looks = 2
    run("trace -f")
    assert "events were recorded" in run("trace stop"), "it leaves alone what others began"


def test_events_are_printed_as_ip_mptcp_monitor_prints_them() -> None:
    event: dict[str, Any] = {
        "event": "sub-closed", "time": 0.5, "token": "0a1b2c3d", "loc-id": 2, "rem-id": 0,
        "saddr4": IPS[1], "daddr4": "10.9.0.1", "sport": 5, "dport": 6, "backup": 0, "error": 104,
        "reset-reason": 3, "reset-flags": 1, "uplink": "lte",
    }  # fmt: skip
    text = (
        "[     SF_CLOSED] token=0a1b2c3d remid=0 locid=2 saddr4=10.2.0.1 daddr4=10.9.0.1 sport=5 "
        "dport=6 backup=0 error=104 reset_reason=3 reset_flags=0x1 uplink=lte"
    )
    assert text_form(event) == text
    assert text_form(event, timed=True).endswith(f".500 {text}")
    assert text_form({"event": "\x1b[2J"}) == "[          ?[2J]"


def test_monitor_prints_events_until_it_has_seen_enough(
    plane: Plane, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.sock"
    hub = plane.plane.events
    subscribe = hub.subscribe
    with serving(plane, path) as loop:

        def publish() -> None:
            hub.publish("created", {"token": "1"})
            hub.publish("closed", {"token": "2"})

        def subscribed(deliver: Any) -> None:
            subscribe(deliver)
            loop.call_soon(publish)

        hub.subscribe = subscribed  # type: ignore[method-assign]
        words = ["monitor", "--no-time", "--count", "2", "--socket", str(path)]
        assert main(words) == 0
        assert capsys.readouterr().out == "[       CREATED] token=1\n[        CLOSED] token=2\n"
        assert main([*words[:-4], "--count", "1", "--json", "closed", *words[-2:]]) == 0
        assert json.loads(capsys.readouterr().out)["token"] == "2"


def test_without_a_daemon_there_is_an_exit_status_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "DEFAULT_SOCKETS", (tmp_path / "a", tmp_path / "b"))
    for words in (
        "endpoint show",
        "limits show",
        "monitor",
        "nstat",
        "ss",
        "sysctl",
        "conn 1 show",
        "why 1",
        "trace dump",
    ):
        assert main(words.split()) == 3
        assert "mptcp-proxy run" in capsys.readouterr().err


def test_with_two_daemons_one_must_be_chosen(
    plane: Plane,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = (tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(daemon, "DEFAULT_SOCKETS", paths)
    with serving(plane, paths[0]), serving(plane, paths[1]):
        assert main(["limits", "show"]) == 2
        assert f"--socket {paths[1]}" in capsys.readouterr().err
        assert main(["limits", "show", "--socket", str(paths[1])]) == 0


@pytest.mark.parametrize(
    "words",
    ["endpoint add", "endpoint change", "endpoint", "limits set", "monitor", "nstat", "ss",
     "sysctl", "conn", "why", "trace"],
)  # fmt: skip
def test_each_has_help(capsys: pytest.CaptureFixture[str], words: str) -> None:
    with pytest.raises(SystemExit) as leave:
        main([*words.split(), "--help"])
    assert leave.value.code == 0
    assert f"usage: mptcp-proxy {words}" in capsys.readouterr().out
