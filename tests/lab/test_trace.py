"""``mptcp-proxy trace`` of running boxes: what a cut did is told afterwards."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

from tests.lab.conftest import FIBRE, LTE, needs_boxes, running
from tests.lab.daemons import Daemon
from tests.lab.servers import read_all, serving
from tests.lab.topology import SERVER4, topology
from tests.lab.waiting import wait_for

pytestmark = needs_boxes


def run(box: Daemon, *words: str) -> str:
    return box.command("trace", *words, "--socket", str(box.socket)).stdout


def dump(box: Daemon, *names: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in run(box, "dump").splitlines()]
    return [event for event in events if event["event"] in names]


def test_the_trace_of_a_cut_names_why_bytes_were_sent_again() -> None:
    stop = threading.Event()
    sent = 0

    def send(sock: socket.socket) -> None:
        nonlocal sent
        sock.settimeout(60)
        while not stop.is_set():
            sent += sock.send(bytes(65536))
        sock.shutdown(socket.SHUT_WR)

    with (
        topology(FIBRE, LTE) as lab,
        running(lab) as home,
        serving(lab.server, lambda sock: len(read_all(sock))) as server,
        lab.client.connect(SERVER4, server.port) as sock,
    ):
        proxy = home.proxy
        assert "recording all connections" in run(proxy, "start", "--size", "16")
        transfer = threading.Thread(target=send, args=(sock,))
        transfer.start()
        try:

            def used() -> bool:
                return {event["to"] for event in dump(proxy, "send")} == {"fibre", "lte"}

            def moved() -> list[dict[str, Any]]:
                again = dump(proxy, "reinject")
                return [e for e in again if (e["instead-of"], e["to"]) == ("fibre", "lte")]

            def silence_is_named() -> bool:
                return bool({e["reason"] for e in moved()} & {"timeout", "tail-probe", "silent"})

            def timed_out() -> bool:
                return "fibre" in {event["subflow"] for event in dump(proxy, "timeout")}

            wait_for(used, "both uplinks carry it", within=60)
            lab.link(1).cut()
            wait_for(silence_is_named, "it was sent again, and why", within=60)
            wait_for(timed_out, "the uplink that is silent is told of", within=60)
        finally:
            stop.set()
            transfer.join(120)
        wait_for(lambda: server.results, "the stream has ended", within=60)
        assert server.results == [sent]
        recorded = int(run(proxy, "stop").split()[0])
        for event in dump(proxy, "send"):
            assert event["reason"]
            assert event["to"] in {c["subflow"] for c in event["candidates"]}
        assert len(run(proxy, "dump").splitlines()) <= recorded + 1
