"""``mptcp-proxy capture``: running boxes as their operator sees them, judged by tshark."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.lab.conftest import needs_boxes, running
from tests.lab.daemons import COMMAND, Boxes, Daemon
from tests.lab.servers import echo, serving
from tests.lab.sockets import echo_through
from tests.lab.topology import SERVER4, Topology, topology
from tests.lab.waiting import wait_for

pytestmark = needs_boxes


@pytest.fixture(scope="module")
def lab() -> Iterator[Topology]:
    """Two unshaped uplinks."""
    with topology(None, None) as network:
        yield network


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def home(lab: Topology, request: pytest.FixtureRequest) -> Iterator[Boxes]:
    """Boxes with one worker and with two."""
    workers = {"workers": request.param}
    with running(lab, proxy=workers, gateway=workers) as both:
        yield both


class Captor:
    """A running ``capture``."""

    def __init__(self, box: Daemon, out: Path, *words: str) -> None:
        self._out = out
        self._file = out.open("wb")
        self._process = box.namespace.start(
            str(COMMAND), "capture", "--socket", str(box.socket), *words,
            stdout=self._file, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stderr is not None
        line = self._process.stderr.readline().decode()
        assert line.startswith("capturing on "), line

    def lines(self) -> list[str]:
        return self._out.read_text().splitlines()

    def tells(self, words: str) -> bool:
        return any(words in line for line in self.lines())

    def stop(self) -> str:
        """Interrupts it; returns what it said at its end."""
        self._process.send_signal(signal.SIGINT)
        return self.ended()

    def ended(self) -> str:
        """Waits for its end; returns what it said then."""
        said = self._process.communicate(timeout=20)[1].decode()
        self._file.close()
        assert self._process.returncode == 0, said
        return said


def converse(lab: Topology, home: Boxes, size: int = 300_000) -> None:
    """A conversation over both uplinks, with an end."""
    with serving(lab.server, echo) as server, lab.client.connect(SERVER4, server.port) as sock:
        assert echo_through(sock, 1000)
        wait_for(
            lambda: any(len(c["subflows"]) == 2 for c in home.proxy.status()["connections"]),
            "both uplinks carry it",
        )
        assert echo_through(sock, size)
    wait_for(lambda: not home.proxy.status()["connections"], "the conversation is over")


def shown(file: Path, filter_: str, *names: str) -> list[list[str]]:
    """The fields of each packet that tshark finds in ``file``."""
    wanted = [word for name in names for word in ("-e", name)]
    command = ["tshark", "-n", "-r", str(file), "-Y", filter_, "-T", "fields", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_wireshark_reads_the_file_with_an_interface_for_the_lan_and_each_uplink(
    lab: Topology, home: Boxes, tmp_path: Path
) -> None:
    file = tmp_path / "all.pcapng"
    captor = Captor(home.proxy, tmp_path / "out", "-w", str(file))
    converse(lab, home)
    assert " 0 lost" in captor.stop()

    mptcp = {name for (name,) in shown(file, "tcp.options.mptcp.subtype", "frame.interface_name")}
    assert mptcp == {"fibre", "lte"}
    plain = {
        name for (name,) in shown(file, "tcp && !tcp.options.mptcp.subtype", "frame.interface_name")
    }
    assert "lan" in plain
    # A SYN may be there twice: sent again, or of the attempt after one that was challenged.
    syns = [
        {name for (name,) in shown(file, f"tcp.flags == 2 && {option}", "frame.interface_name")}
        for option in ("tcp.options.mptcp.subtype == 0", "tcp.options.mptcp.subtype == 1")
    ]
    assert all(syns), "a SYN with MP_CAPABLE and one with MP_JOIN"
    assert set.union(*syns) == {"fibre", "lte"}
    assert shown(file, "_ws.malformed", "frame.number") == []
    for name, comment in shown(
        file, 'frame.comment contains "scheduled by"', "frame.interface_name", "frame.comment"
    ):
        assert f"scheduled by default: {name}" in comment
    lengths = shown(file, "frame.cap_len < frame.len", "frame.cap_len", "frame.len")
    assert {captured for captured, _ in lengths} == {"256"}
    assert max(int(whole) for _, whole in lengths) > 1_500, "super-segments are noted as such"


def test_packets_are_told_in_words_as_they_pass(lab: Topology, home: Boxes, tmp_path: Path) -> None:
    captor = Captor(home.proxy, tmp_path / "out")
    converse(lab, home, 20_000)
    wait_for(lambda: captor.tells("DATA_FIN"), "the end was told")
    captor.stop()
    lines = captor.lines()

    def some(*words: str) -> list[str]:
        found = [line for line in lines if all(word in line for word in words)]
        assert found, (words, lines)
        return found

    some("Flags [S]", "MP_CAPABLE v1 flags [H]", "Convert message", " Out IP ")
    some("Flags [S.]", "MP_CAPABLE v1", "key 0x", " In  IP ")
    some("Flags [S]", "MP_JOIN SYN id", "token 0x")
    some("Flags [S.]", "MP_JOIN SYN/ACK id", "hmac 0x")
    some("MP_JOIN ACK hmac 0x")
    some("DSS dsn", "ssn", "length", "DATA_ACK", "scheduled by default: ")
    some(" lan In  IP 192.168.77.2.")
    assert not [line for line in lines if " lan " in line and "MP_CAPABLE" in line]


def test_a_capture_shows_what_was_asked_for_and_nothing_else(
    lab: Topology, home: Boxes, tmp_path: Path
) -> None:
    captor = Captor(home.proxy, tmp_path / "out", "--json", "--uplink", "lte", "not", "dss", "syn")
    converse(lab, home, 20_000)
    captor.stop()
    events = [json.loads(line) for line in captor.lines()]
    assert {event["interface"] for event in events} == {"lte"}
    assert all("Flags [S" in event["text"] for event in events)


def test_what_makes_no_sense_is_refused_in_a_line(home: Boxes) -> None:
    def refused(*words: str) -> str:
        box = home.proxy
        done = box.command("capture", "--socket", str(box.socket), *words, check=False)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert 'no interface "dsl"; there is lan, fibre, lte' in refused("--uplink", "dsl")
    assert '"sideways" is not understood' in refused("sideways")
    assert 'port "http" is wrong' in refused("dst", "port", "http")


def test_a_gateway_captures_what_comes_from_its_clients(
    lab: Topology, home: Boxes, tmp_path: Path
) -> None:
    captor = Captor(home.gateway, tmp_path / "out", "mp_join")
    converse(lab, home, 20_000)
    for step in ("MP_JOIN SYN id", "MP_JOIN SYN/ACK id", "MP_JOIN ACK hmac"):
        wait_for(partial(captor.tells, step), step)
    captor.stop()


def test_a_capture_ends_after_as_many_packets_as_asked_for(
    lab: Topology, home: Boxes, tmp_path: Path
) -> None:
    captor = Captor(home.gateway, tmp_path / "out", "-c", "4")
    converse(lab, home, 20_000)
    assert captor.ended().startswith("4 packets captured")
    assert len(captor.lines()) == 4
