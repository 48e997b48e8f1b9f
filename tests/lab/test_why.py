"""``mptcp-proxy why`` of running boxes: a reader that stops, a narrow uplink."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any

from tests.lab.conftest import needs_boxes, running
from tests.lab.daemons import Boxes, Daemon
from tests.lab.link import LinkSpec
from tests.lab.servers import read_all, serving
from tests.lab.sockets import until_blocked
from tests.lab.topology import SERVER4, topology
from tests.lab.waiting import wait_for

pytestmark = needs_boxes


def why(box: Daemon, *words: str) -> dict[str, Any]:
    """What the command says in JSON."""
    done = box.command("why", *words, "--json", "--socket", str(box.socket))
    return dict(json.loads(done.stdout))


def becomes(box: Daemon, cause: str, *words: str) -> str:
    """Waits until that is the cause for most of two seconds; returns the sentence."""

    def found() -> str:
        verdict = why(box, *words, "--watch", "2")["verdict"]
        return (
            str(verdict["text"])
            if (verdict["cause"], verdict["share"] > 0.5) == (cause, True)
            else ""
        )

    return wait_for(found, f"{box.role}: {cause}", within=60)


def ids(home: Boxes) -> tuple[str, str]:
    """Of the only conversation: its number at the proxy, its token at the gateway."""
    (connection,) = home.proxy.status()["connections"]
    number = str(connection["id"])
    return number, str(why(home.proxy, number)["peer-token"])


def test_a_reader_that_stops_is_named_at_both_boxes() -> None:
    go_on = threading.Event()

    def stubborn(sock: socket.socket) -> int:
        assert go_on.wait(120)
        return len(read_all(sock))

    with (
        topology(None, None) as lab,
        running(lab) as home,
        serving(lab.server, stubborn) as server,
        lab.client.connect(SERVER4, server.port) as sock,
    ):
        try:
            until_blocked(sock, 1.0, 1 << 30)
            number, token = ids(home)
            said = becomes(home.proxy, "peer-reader", number)
            assert "the server reads slowly: the window of the gateway stays all but shut" in said
            assert "the server reads slowly" in becomes(home.gateway, "reader", token)
            text = home.proxy.command("why", token_of(home), "--socket", str(home.proxy.socket))
            assert "subflow fibre " in text.stdout
            assert "subflow lte " in text.stdout
        finally:
            go_on.set()


def token_of(home: Boxes) -> str:
    """At the proxy."""
    return str(home.proxy.status()["connections"][0]["token"])


def test_a_narrow_uplink_is_full() -> None:
    stop = threading.Event()

    def send(sock: socket.socket) -> None:
        sock.settimeout(1.0)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                sock.send(bytes(65536))

    with (
        topology(LinkSpec.symmetric(2, 20)) as lab,
        running(lab) as home,
        serving(lab.server, read_all) as server,
        lab.client.connect(SERVER4, server.port) as sock,
    ):
        sender = threading.Thread(target=send, args=(sock,))
        sender.start()
        try:
            wait_for(lambda: home.proxy.status()["connections"], "it is carried")
            number, token = ids(home)
            said = becomes(home.proxy, "congestion", number)
            assert "the paths are full: congestion control lets no more go" in said
            assert f"there: mptcp-proxy why {why(home.proxy, number)['token']}" in becomes(
                home.gateway, "peer", token
            )
        finally:
            stop.set()
            sender.join()
