"""``mptcp-proxy exec``: run a program with all of its TCP through the running proxy."""

from __future__ import annotations

import argparse
import os
import pwd
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from proxy.cli.daemon import Subcommands, UsageError, add_socket_option, asking
from proxy.control.client import ControlClient
from proxy.errors import MptcpProxyError

EXIT_NOT_EXECUTABLE = 126  # as of env and of shells
EXIT_NOT_FOUND = 127
_TAKEN_WITHIN = 30.0  # seconds for the daemon to notice an interface; it needs a few tenths
_RESOLV_CONF = Path("/etc/resolv.conf")
# Where systemd-resolved, behind its 127.0.0.53, tells the servers that it asks.
_UPSTREAM = Path("/run/systemd/resolve/resolv.conf")
_NAMESERVER = re.compile(r"^nameserver[ \t]+([^\s%]+)", re.MULTILINE)


def add_parser(commands: Subcommands) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "exec",
        help="run a program with its TCP through the running proxy",
        description="Runs COMMAND in a network namespace of its own, whose TCP the proxy on this "
        "host takes as that of a LAN host; UDP and all else leave natively, masqueraded. Nothing "
        "changes for the rest of the host. It needs root for that; COMMAND runs as the user who "
        "called sudo. Its exit status is that of COMMAND; 126 if that cannot be executed, 127 if "
        "there is none.",
    )
    parser.add_argument("--user", metavar="NAME", help="run COMMAND as this user")
    parser.add_argument(
        "--dns",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="name server for COMMAND (repeatable), needed where /etc/resolv.conf names only "
        "servers on loopback; none: leave DNS as it is",
    )
    add_socket_option(parser)
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="COMMAND", help="the program, and its arguments"
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Becomes COMMAND. Returns only if that cannot be executed."""
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        raise UsageError("say which program to run: mptcp-proxy exec -- COMMAND")
    if os.geteuid() != 0:
        raise UsageError("exec needs root to make a network namespace: sudo mptcp-proxy exec ...")
    user = _user(options.user)
    servers = _servers(options.dns)
    # Late: it takes long to load.
    from proxy.net.annex import Annex, enter_annex

    with asking(options) as client:
        if client.status()["role"] != "proxy":
            raise UsageError("this daemon is a gateway: exec needs a proxy (--socket PATH)")

        def taken(annex: Annex) -> None:
            _await_taken(client, annex.name)

        enter_annex(taken)
    if servers is not None:
        _show_servers(servers)
    if user is not None:
        _become(user)
    return _become_program(words)


def _await_taken(client: ControlClient, interface: str) -> None:
    deadline = time.monotonic() + _TAKEN_WITHIN
    # By index: one of the same name may have gone just now.
    wanted = {"name": interface, "index": socket.if_nametoindex(interface)}
    while wanted not in client.request("lan")["interfaces"]:
        if time.monotonic() > deadline:
            raise MptcpProxyError(
                f"the proxy does not take {interface}: is it in another network namespace? "
                "(its log says more)"
            )
        time.sleep(0.02)


def _user(name: str | None) -> pwd.struct_passwd | None:
    """Who COMMAND runs as; None: as we do."""
    name = name or os.environ.get("SUDO_USER")
    if name is None:
        return None
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise UsageError(f'--user: there is no user "{name}"') from None


def _become(user: pwd.struct_passwd) -> None:
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)


def _become_program(words: list[str]) -> int:
    # Python ignores these, and what is ignored stays so in a new program.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(words[0], words)
    except OSError as error:
        print(f"mptcp-proxy: error: {words[0]}: {error.strerror}", file=sys.stderr)
        missing = isinstance(error, FileNotFoundError)
        return EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE


def _servers(wanted: Sequence[str]) -> str | None:
    """What shall stand in COMMAND's resolv.conf; None: what stands there can stay.

    UsageError if the servers there are those of the host's loopback, which is not COMMAND's.
    """
    if list(wanted) == ["none"]:
        return None
    if wanted:
        return "".join(f"nameserver {_server(text)}\n" for text in wanted)
    if _reachable(_read(_RESOLV_CONF)):
        return None
    text = _read(_UPSTREAM)
    if not _reachable(text):
        raise UsageError(
            f"names cannot be resolved in there, for {_RESOLV_CONF} names no server but on "
            "loopback: say --dns ADDRESS, or --dns none to do without"
        )
    return text


def _server(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        raise UsageError(f'--dns: "{text}" is no IP address') from None
    if address.is_loopback:
        raise UsageError(f"--dns: {text} is loopback, and COMMAND has a loopback of its own")
    return text


def _reachable(text: str) -> bool:
    """Whether the first server is one that can be asked from elsewhere than this host."""
    servers = _NAMESERVER.findall(text)
    try:
        return bool(servers) and not ip_address(servers[0]).is_loopback
    except ValueError:
        return False


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _show_servers(text: str) -> None:
    from proxy.net.annex import bind_mount

    if not _RESOLV_CONF.exists():
        raise MptcpProxyError(f"{_RESOLV_CONF}: not there, so it cannot be replaced (touch it)")
    with tempfile.NamedTemporaryFile("w", prefix="mptcp-proxy-resolv-") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        bind_mount(file.name, str(_RESOLV_CONF.resolve()))
