"""``mptcp-proxy doctor``: what is wrong with this host and with its uplinks, and how to mend it."""

from __future__ import annotations

import argparse
from pathlib import Path

from proxy import config
from proxy.cli.daemon import UsageError, clean, show_json
from proxy.diagnose.result import Level, Result

MAX_NAT_TIMEOUT = 7200.0
_FINDINGS = 1  # the exit status


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "doctor",
        help="find out what is wrong with this host and its uplinks",
        description="Looks at this host, and at what the path of each uplink to the gateway does "
        "to MPTCP, beside a running proxy or without one, and says how to mend what it finds. "
        "Moves about 2 MB on each uplink, metered ones too. Of a gateway's configuration the host "
        "alone is looked at. Exit status: 0 nothing found, 1 something is to be mended.",
    )
    parser.add_argument(
        "-c", "--config", type=Path, required=True, metavar="FILE", help="configuration file (TOML)"
    )
    parser.add_argument(
        "--uplink", action="append", metavar="NAME", help="test this uplink alone; repeatable"
    )
    parser.add_argument(
        "--nat-timeout",
        type=_seconds,
        metavar="SECONDS",
        help="for how long a silent connection shall live; 0: do not test that (default: as long "
        "as mptcp.subflow_keepalive)",
    )
    parser.add_argument("--json", "-j", action="store_true", help="output as JSON, at the end")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Prints each result as it comes; returns the exit status."""
    settings = config.load(options.config)
    known = [uplink.name for uplink in getattr(settings, "uplinks", ())]
    for name in options.uplink or ():
        if name not in known:
            raise UsageError(f'{options.config} has no uplink "{name}"')
    # Late: the other commands need neither the engine nor netlink.
    from proxy.cli.interrupt import until_interrupted
    from proxy.cli.policies import check_policies
    from proxy.diagnose.host import HostExam, running_daemon

    check_policies(settings)
    pid = running_daemon(settings)
    report = Report(settings.role, pid, options.json)
    for result in HostExam(settings, pid).results():
        report.add(result)
    if isinstance(settings, config.ProxyConfig):
        names = options.uplink or known
        until_interrupted(_examine(settings, names, pid, options.nat_timeout, report))
    report.close()
    return _FINDINGS if report.findings else 0


async def _examine(
    settings: config.ProxyConfig, names: list[str], pid: int, nat: float | None, report: Report
) -> None:
    from proxy.diagnose.doctor import examine_paths

    async for result in examine_paths(settings, names, bool(pid), nat):
        report.add(result)


class Report:
    """What is said: line by line, or as one JSON object at the end."""

    def __init__(self, role: str, pid: int, as_json: bool) -> None:
        self._role = role
        self._pid = pid
        self._json = as_json
        self._where = ""
        self._results: list[Result] = []
        if not as_json:
            state = f"is running (pid {pid})" if pid else "is not running"
            print(f"The {role} {state}.", flush=True)

    @property
    def findings(self) -> list[Result]:
        """What is to be mended."""
        return [result for result in self._results if result.level is Level.FINDING]

    def add(self, result: Result) -> None:
        """One more."""
        self._results.append(result)
        if self._json:
            return
        if result.where != self._where:
            self._where = result.where
            print(f"{result.where}:")
        mark = "FINDING" if result.level is Level.FINDING else result.level.value
        print(f"  {mark:<8} {result.check}: {clean(result.text)}")
        for step in result.mend:
            print(f"             mend: {clean(step)}")
        print(end="", flush=True)

    def close(self) -> None:
        """The summary."""
        if self._json:
            show_json(
                {
                    "role": self._role,
                    "pid": self._pid or None,
                    "findings": len(self.findings),
                    "results": [result.fields() for result in self._results],
                }
            )
            return
        if not self.findings:
            print("Nothing found.")
            return
        print(f"{len(self.findings)} to mend:")
        for result in self.findings:
            print(f"  {result.where}: {result.check}: {clean(result.text)}")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_NAT_TIMEOUT:
        raise argparse.ArgumentTypeError(f"a number from 0 to {MAX_NAT_TIMEOUT:g} is needed")
    return seconds
