"""The commands of the control socket against a live pair of connections in virtual time."""

from __future__ import annotations

import asyncio
import json
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.control.fields import CommandError
from proxy.control.plane import ControlPlane
from proxy.control.server import ControlServer
from proxy.mptcp.connection import MptcpConnection
from proxy.pm.base import Endpoint
from tests.pair.harness import App
from tests.pair.mptcp_harness import SERVER, SERVER_2, MptcpPair, client_ip, path, payload

IPS = [f"10.{n + 1}.0.1" for n in range(4)]
ONE = IPS[1]


class Plane:
    """A control plane over the client of a pair (``server``: over the server)."""

    def __init__(
        self, manager: str = "kernel", endpoints: int = 1, server: bool = False, paths: int = 3
    ) -> None:
        self.pair = MptcpPair(
            lambda rng: [path(rng) for _ in range(paths)],
            App(payload(10), close=False),
            App(payload(10), close=False),
            server_manager="kernel",
        )
        self.host = self.pair.server_host if server else self.pair.client_host
        stack: Any = self.host
        stack.local_addresses = stack.local_addresses[:endpoints]
        addresses = [SERVER.ip, SERVER_2] if server else [client_ip(n) for n in range(paths)]
        own = dict.fromkeys(addresses) | {e.ip: e for e in stack.local_addresses}
        self.events: list[dict[str, Any]] = []
        self.plane = ControlPlane(
            stack,
            self.flows,
            lambda: {"connections": [{"id": 1, "source": "a", "destination": "b"}]},
            lambda: self.pair.now,
            self.pair._settle,
            manager,
            lambda: own,
        )
        self.server = ControlServer(cast("Any", None), dict, self.plane.commands())
        self.plane.events.subscribe(lambda _, line: self.events.append(json.loads(line)))
        self.aborted = 0
        self.started = self.pair.now

    def open(self) -> Plane:
        """Connect anew, so that the connection has our path manager, and let it settle."""
        self.wait()
        self.pair.client.abort(self.pair.now)
        self.wait()
        self.events.clear()
        self.pair.client = MptcpConnection.connect(
            cast("Any", self.pair.client_host),
            self.pair.client_host.open_local_port(client_ip(0), SERVER),
            SERVER,
            self.pair.now,
            uplink="u0",
        )
        self.pair.server = None
        return self.wait()

    def wait(self, seconds: float = 0.5) -> Plane:
        self.pair._settle()
        self.pair.run_for(seconds)
        return self

    def flows(self) -> list[Any]:
        far = self.pair.client
        flow = SimpleNamespace(id=1, far=far, near=None, started=self.started, abort=self.abort)
        return [flow]

    def abort(self, now: float) -> None:
        self.aborted += 1
        self.pair.client.abort(now)

    def ask(self, command: str, **fields: object) -> Any:
        request = {"command": command, **{k.replace("_", "-"): v for k, v in fields.items()}}
        reply = asyncio.run(self.server.answer(json.dumps(request).encode()))
        assert "error" not in reply, reply
        return reply["result"]

    def errno(self, command: str, **fields: object) -> tuple[str, str]:
        request = {"command": command, **{k.replace("_", "-"): v for k, v in fields.items()}}
        error = asyncio.run(self.server.answer(json.dumps(request).encode()))["error"]
        assert error["code"] == "refused", error
        return error["errno"], error["message"]

    @property
    def token(self) -> str:
        return f"{self.pair.client.local_key.token:08x}"

    def sources(self) -> list[tuple[bytes, int, bool]]:
        return [(s.local.ip, s.local_id, s.backup) for s in self.pair.client.subflows]

    def names(self) -> list[str]:
        return [event["event"] for event in self.events]


# -- endpoints and limits ------------------------------------------------------------------------


def test_a_new_endpoint_is_used_by_live_connections_at_once() -> None:
    plane = Plane().open()
    assert plane.sources() == [(client_ip(0), 0, False)]
    made = plane.ask("add-addr", addr={"addr4": IPS[1], "flags": ["subflow", "backup"]})
    assert made == {"addr": {"id": 2, "family": 2, "addr4": IPS[1], "flags": ["subflow", "backup"]}}
    plane.wait()
    assert plane.sources()[1:] == [(client_ip(1), 2, True)]
    assert plane.names() == ["created", "established", "sub-established"]


def test_a_deleted_endpoint_leaves_live_connections() -> None:
    plane = Plane(endpoints=2).open()
    assert len(plane.sources()) == 2
    plane.ask("del-addr", addr={"id": 2})
    plane.wait()
    assert plane.sources() == [(client_ip(0), 0, False)]
    assert plane.pair.server_counters["MPTcpExtRmAddr"] == 1
    plane.wait(5)
    assert len(plane.sources()) == 1, "opened again?"
    assert plane.ask("get-addr") == [
        {"addr": {"id": 1, "family": 2, "addr4": IPS[0], "flags": ["subflow"], "dev": "u0"}}
    ]


def test_flush_leaves_no_endpoint() -> None:
    plane = Plane(endpoints=3).open()
    plane.ask("flush-addrs")
    assert plane.ask("get-addr") == []


def test_set_flags_tells_the_peer_and_can_be_taken_back() -> None:
    plane = Plane(endpoints=2).open()
    for flags, backup in ((["backup"], True), ([], False)):
        plane.ask("set-flags", addr={"id": 2, "flags": flags})
        plane.wait()
        assert plane.sources()[1][2] is backup
        server = plane.pair.server
        assert isinstance(server, MptcpConnection)
        assert [s.peer_backup for s in server.subflows] == [False, backup]
    assert plane.pair.server_counters["MPTcpExtMPPrioRx"] == 2


def test_limits_hold_for_live_and_new_connections() -> None:
    plane = Plane().open()
    assert plane.ask("get-limits") == {"rcv-add-addrs": 0, "subflows": 2}
    plane.ask("set-limits", subflows=0)
    plane.ask("add-addr", addr={"addr4": IPS[1], "flags": ["subflow"]})
    assert len(plane.wait().sources()) == 1
    plane.ask("set-limits", subflows=1, rcv_add_addrs=3)
    plane.ask("add-addr", addr={"addr4": IPS[2], "flags": ["subflow"]})
    assert len(plane.wait().sources()) == 2
    assert plane.ask("get-limits") == {"rcv-add-addrs": 3, "subflows": 1}


def test_an_uplink_name_stands_for_its_address() -> None:
    plane = Plane(endpoints=3)
    plane.ask("del-addr", addr={"id": 3})
    made = plane.ask("add-addr", addr={"dev": "u2", "flags": ["subflow"]})
    assert (made["addr"]["addr4"], made["addr"]["id"], made["addr"]["dev"]) == (IPS[2], 3, "u2")
    assert plane.errno("add-addr", addr={"dev": "u9"})[0] == "ENODEV"


def test_the_address_a_connection_began_with_is_deleted_as_id_0() -> None:
    plane = Plane(endpoints=2).open()
    plane.ask("del-addr", addr={"id": 0, "addr4": IPS[0]})
    plane.wait(2)
    assert plane.sources() == [(client_ip(1), 2, False)]


def test_a_signal_endpoint_of_the_server_is_announced_with_its_port() -> None:
    plane = Plane(server=True, endpoints=0)
    plane.open()
    plane.ask("add-addr", addr={"addr4": "10.9.0.2", "port": 999, "flags": ["signal"]})
    plane.wait()
    assert str(plane.pair.client.remote_addresses[1]) == "10.9.0.2:999"
    plane.ask("del-addr", addr={"id": 1})
    assert plane.wait().pair.client.remote_addresses == {}
    listeners = [event for event in plane.events if event["event"].startswith("listener")]
    assert [(e["event"], e["saddr4"], e["sport"]) for e in listeners] == [
        ("listener-created", "10.9.0.2", 999),
        ("listener-closed", "10.9.0.2", 999),
    ]
    assert plane.events[0]["server-side"] == 1


@pytest.mark.parametrize(
    ("command", "fields", "errno", "text"),
    [
        ("add-addr", {}, "EINVAL", "missing addr"),
        ("add-addr", {"addr": {"id": 9}}, "EINVAL", "missing address"),
        ("add-addr", {"addr": {"addr4": "::1"}}, "EINVAL", "addr4"),
        ("add-addr", {"addr": {"addr4": IPS[1], "id": 256}}, "EINVAL", "0 to 255"),
        ("add-addr", {"addr": {"addr4": IPS[1], "color": 1}}, "EINVAL", "color"),
        ("add-addr", {"addr": {"addr4": IPS[1], "flags": "subflow"}}, "EINVAL", "list"),
        ("add-addr", {"addr": {"addr4": IPS[1], "flags": ["x"]}}, "EINVAL", "invalid addr flags"),
        ("add-addr", {"addr": {"addr4": IPS[1], "flags": ["implicit"]}}, "EINVAL", "IMPLICIT"),
        ("add-addr", {"addr": {"addr4": ONE, "flags": ["signal", "fullmesh"]}}, "EINVAL", "both"),
        ("add-addr", {"addr": {"addr4": ONE, "flags": ["subflow"], "port": 5}}, "EINVAL", "port"),
        ("add-addr", {"addr": {"addr4": IPS[1], "id": 1}}, "EBUSY", "duplicate"),
        ("add-addr", {"addr": {"addr4": IPS[0]}}, "EEXIST", "duplicate"),
        ("add-addr", {"addr": {"addr4": "9.9.9.9", "flags": ["subflow"]}}, "EADDRNOTAVAIL", "has"),
        ("del-addr", {"addr": {"id": 77}}, "EINVAL", "address not found"),
        ("del-addr", {"addr": {"id": 0}}, "EINVAL", "address is needed"),
        ("get-addr", {"addr": {"id": 77}}, "EINVAL", "address not found"),
        ("set-flags", {"addr": {"flags": ["backup"]}}, "EINVAL", "missing address ID"),
        ("set-flags", {"addr": {"id": 77}}, "EINVAL", "address not found"),
        ("set-flags", {"addr": {"addr4": "9.9.9.9"}}, "EINVAL", "address not found"),
        ("set-limits", {"subflows": 9}, "EINVAL", r"maximum \(8\)"),
        ("set-limits", {"subflows": -1}, "EINVAL", "number"),
        ("set-limits", {"rcv_add_addrs": True}, "EINVAL", "number"),
        ("announce", {"token": 1, "addr": {"addr4": IPS[1]}}, "EINVAL", "invalid token"),
        ("announce", {"token": "x"}, "EINVAL", "missing token"),
        ("sysctl", {"name": "net.mptcp.speed"}, "ENOENT", "no net.mptcp.speed"),
        ("sysctl", {"name": "enabled", "value": "2"}, "EINVAL", "0 to 1"),
        ("sysctl", {"name": "pm_type", "value": "2"}, "EINVAL", "0 to 1"),
        ("sysctl", {"name": "scheduler", "value": "fifo"}, "ENOENT", "there are"),
        ("sysctl", {"name": "path_manager", "value": "x"}, "ENOENT", "there are"),
        ("sysctl", {"name": "available_schedulers", "value": "x"}, "EACCES", "read-only"),
        ("connection", {"conn": 4, "action": "show"}, "ENOENT", "no connection has id 4"),
        ("connection", {"conn": 1, "action": "fly"}, "EINVAL", "no action fly"),
        ("connection", {"conn": 1, "action": "scheduler", "name": "x"}, "ENOENT", "there are"),
        ("connection", {"conn": 1, "action": "cc", "name": "x"}, "ENOENT", "there are"),
    ],
)  # fmt: skip
def test_what_the_kernel_refuses_is_refused(
    command: str, fields: dict[str, Any], errno: str, text: str
) -> None:
    plane = Plane()
    name, message = plane.errno(command, **fields)
    assert name == errno
    assert re.search(text, message), message
    assert len(plane.ask("get-addr")) == 1


def test_the_ninth_endpoint_is_too_many() -> None:
    plane = Plane(endpoints=0)
    for number in range(8):
        plane.ask("add-addr", addr={"addr4": f"10.0.0.{number}", "flags": ["signal"]})
    assert plane.errno("add-addr", addr={"addr4": "10.0.0.9", "flags": ["signal"]})[0] == "ERANGE"


def test_the_kernel_path_manager_obeys_no_program() -> None:
    plane = Plane().open()
    addr = {"addr4": IPS[1], "id": 4, "flags": ["signal"]}
    errno, text = plane.errno("announce", token=plane.token, addr=addr)
    assert errno == "EINVAL"
    assert "userspace PM not selected" in text


# -- the userspace path manager --------------------------------------------------------------------


def test_a_program_opens_and_closes_subflows_by_token() -> None:
    plane = Plane("userspace", endpoints=3).open()
    assert len(plane.sources()) == 1, "endpoints are the kernel path manager's"
    remote = {"addr4": "10.9.0.1", "port": SERVER.port}
    made = plane.ask(
        "subflow-create", token=plane.token, addr={"addr4": IPS[1], "id": 5}, addr_remote=remote
    )
    assert made["addr-remote"] == remote
    plane.wait()
    assert plane.sources()[1:] == [(client_ip(1), 5, False)]
    assert plane.pair.client.subflows[1].uplink == "u1"

    both = {"addr": {"addr4": IPS[1], "flags": ["backup"]}, "addr_remote": {"addr4": "10.9.0.1"}}
    plane.ask("set-flags", token=plane.token, **both)
    plane.wait()
    assert plane.pair.server_counters["MPTcpExtMPPrioRx"] == 1
    entries = plane.ask("get-addr", token=int(plane.token, 16))
    assert [entry["addr"]["id"] for entry in entries] == [5]

    ends = {"token": plane.token, "addr": made["addr"], "addr_remote": made["addr-remote"]}
    plane.ask("subflow-destroy", **ends)
    plane.wait()
    assert len(plane.sources()) == 1
    assert plane.errno("subflow-destroy", **ends)[0] == "ESRCH"
    closed = plane.events[-1]
    assert (closed["event"], closed["loc-id"], closed["saddr4"]) == ("sub-closed", 5, IPS[1])
    assert closed["uplink"] == "u1"


def test_a_program_announces_and_removes_by_token() -> None:
    plane = Plane("userspace").open()
    addr = {"addr4": IPS[1], "id": 4, "flags": ["signal"]}
    plane.ask("announce", token=plane.token, addr=addr)
    plane.wait()
    server = plane.pair.server
    assert isinstance(server, MptcpConnection)
    assert list(server.remote_addresses) == [4]
    plane.ask("remove", token=plane.token, loc_id=4)
    plane.wait()
    assert server.remote_addresses == {}
    assert plane.errno("remove", token=plane.token, loc_id=4)[0] == "EINVAL"
    own = plane.errno(
        "subflow-create", token=plane.token, addr={"addr4": "9.9.9.9"}, addr_remote=addr
    )
    assert own[0] == "EADDRNOTAVAIL"


# -- settings and connections ----------------------------------------------------------------------


def test_sysctls_have_the_names_and_values_of_the_kernel() -> None:
    plane = Plane()
    everything = plane.ask("sysctl")
    assert everything["net.mptcp.enabled"] == "1"
    assert everything["net.mptcp.add_addr_timeout"] == "120"
    assert everything["net.mptcp.pm_type"] == "0"
    assert len(everything) == 13
    assert plane.ask("sysctl", name="net/mptcp/close_timeout") == {"net.mptcp.close_timeout": "60"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enabled", "0"),
        ("checksum_enabled", "1"),
        ("close_timeout", "7"),
        ("blackhole_timeout", "0"),
        ("syn_retrans_before_tcp_fallback", "255"),
        ("scheduler", "redundant"),
        ("path_manager", "userspace"),
        ("pm_type", "1"),
    ],
)
def test_sysctls_are_set_for_connections_to_come(name: str, value: str) -> None:
    plane = Plane()
    assert plane.ask("sysctl", name=name, value=value) == {f"net.mptcp.{name}": value}
    assert plane.ask("sysctl", name=f"net.mptcp.{name}") == {f"net.mptcp.{name}": value}


def test_the_path_manager_of_new_connections_can_be_changed() -> None:
    plane = Plane(endpoints=3)
    plane.ask("sysctl", name="pm_type", value="1")
    plane.open()
    assert len(plane.sources()) == 1
    plane.ask("sysctl", name="path_manager", value="kernel")
    plane.open()
    assert len(plane.sources()) == 3
    assert plane.ask("sysctl", name="pm_type") == {"net.mptcp.pm_type": "0"}


def test_sockets_are_told_in_the_words_of_ss() -> None:
    plane = Plane(endpoints=2).open()
    (entry,) = plane.ask("sockets")
    assert (entry["state"], entry["remote"], entry["send-q"]) == ("ESTAB", str(SERVER), 0)
    info = entry["info"]
    assert (info["token"], info["subflows"], info["subflows_total"]) == (plane.token, 1, 2)
    assert info["remote_key"]
    assert info["write_seq"] == info["snd_una"]
    assert [(s["loc-id"], s["flags"], s["cc"]) for s in entry["subflows"]] == [
        (0, "Mmec", "cubic"),
        (2, "Jjec", "cubic"),
    ]


def test_one_connection_can_be_changed_and_closed() -> None:
    plane = Plane(endpoints=2).open()
    shown = plane.ask("connection", conn=1, action="scheduler", name="redundant")
    assert (shown["scheduler"], shown["source"]) == ("redundant", "a")
    shown = plane.ask("connection", conn=1, action="cc", name="reno")
    assert [s["cc"] for s in shown["subflows"]] == ["reno", "reno"]
    assert plane.ask("connection", conn=1, action="show") == shown
    assert plane.ask("connection", conn=1, action="close") is None
    assert plane.aborted == 1
    assert plane.names()[-1] == "closed"


def test_where_the_time_went_is_told_by_number_or_token() -> None:
    plane = Plane(endpoints=2).open()
    why = plane.ask("why", conn=1)
    assert (
        plane.ask("why", token=plane.token) == plane.ask("why", token=int(plane.token, 16)) == why
    )
    assert (why["role"], why["id"], why["token"]) == ("proxy", 1, plane.token)
    assert why["peer-token"] == f"{plane.pair.client.remote_token:08x}"
    assert (why["sending"]["now"], why["receiving"]["now"]) == ("application", "peer")
    assert [s["uplink"] for s in why["subflows"]] == ["u0", "u1"]
    assert plane.errno("why", conn=9)[0] == "ENOENT"
    assert plane.errno("why", token="0000000f")[0] == "ENOENT"
    assert plane.errno("why", token="x")[0] == plane.errno("why")[0] == "EINVAL"


def test_counters_are_told() -> None:
    plane = Plane().open()
    assert plane.ask("counters")["MPTcpExtMPCapableSYNTX"] == 2


def test_events_have_the_attributes_of_the_kernel() -> None:
    plane = Plane(endpoints=2).open()
    created, established, joined = plane.events
    for event in (created, established):
        assert event["token"] == plane.token
        assert (event["family"], event["saddr4"], event["daddr4"]) == (2, IPS[0], "10.9.0.1")
        assert event["dport"] == SERVER.port
        assert (event["server-side"], event["flags"]) == (0, [])
    assert (joined["loc-id"], joined["rem-id"], joined["backup"]) == (2, 0, 0)
    assert joined["uplink"] == "u1"
    assert isinstance(joined["time"], float)
    assert Endpoint(client_ip(1), 2).id == joined["loc-id"]


def test_the_limit_of_an_uplink_is_told_and_set() -> None:
    box = Plane().open()
    command = box.plane.commands()["uplink-limit"]
    assert command({"uplink": "u0"}) == {"uplink": "u0", "up": 0.0}
    assert command({"uplink": "u0", "up": 12.5}) == {"uplink": "u0", "up": 12.5}
    initial = box.pair.client.initial
    assert initial is not None
    assert initial.limit is box.host.limits["u0"]
    assert initial.limit.rate == 12.5e6 / 8


@pytest.mark.parametrize(
    ("request_", "errno", "words"),
    [
        ({"uplink": "u9"}, "ENODEV", "no uplink u9"),
        ({}, "EINVAL", "missing uplink"),
        ({"uplink": "u0", "up": -1}, "EINVAL", "a number from 0 to 100000"),
        ({"uplink": "u0", "up": True}, "EINVAL", "a number from 0 to 100000"),
    ],
)
def test_a_limit_that_cannot_be_set_is_refused(
    request_: dict[str, object], errno: str, words: str
) -> None:
    command = Plane().open().plane.commands()["uplink-limit"]
    with pytest.raises(CommandError, match=words) as refused:
        command(request_)
    assert refused.value.errno_name == errno
