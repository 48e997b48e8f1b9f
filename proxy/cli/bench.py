"""``mptcp-proxy bench``: how fast each uplink is towards the gateway, and all of them together."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from proxy import config
from proxy.cli.daemon import UsageError, clean, show_json
from proxy.diagnose.measured import Direction, Speed, share
from proxy.errors import ConfigError

MAX_SECONDS = 300.0
_FAILED = 1  # the exit status
_HEAD = ("", "down", "up", "RTT idle", "loaded", "loss up")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds this command to the command line."""
    parser = commands.add_parser(
        "bench",
        help="measure the speed of the uplinks, each alone and all together",
        description="Measures the speed between this host and the gateway: down and up on each "
        "uplink alone, then on one connection over all of them (without backup uplinks), beside a "
        "running proxy or without one. Fills the lines while it runs, metered ones too. Exit "
        "status: 0 all was measured, 1 something could not be.",
    )
    parser.add_argument(
        "-c", "--config", type=Path, required=True, metavar="FILE", help="configuration file (TOML)"
    )
    parser.add_argument(
        "--uplink", action="append", metavar="NAME", help="measure this uplink; may be repeated"
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=10.0,
        metavar="N",
        help="length of each test, one per uplink and direction (default: 10)",
    )
    parser.add_argument("--json", "-j", action="store_true", help="output as JSON, at the end")
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> int:
    """Shows progress on a terminal, and a table at the end; returns the exit status."""
    settings = config.load(options.config)
    if not isinstance(settings, config.ProxyConfig):
        raise ConfigError("role", "speed is measured from the proxy: give the proxy's file")
    known = [uplink.name for uplink in settings.uplinks]
    for name in options.uplink or ():
        if name not in known:
            raise UsageError(f'{options.config} has no uplink "{name}"')
    # Late: the other commands need neither the engine nor netlink.
    from proxy.cli.interrupt import until_interrupted
    from proxy.cli.policies import check_policies
    from proxy.diagnose.host import running_daemon

    check_policies(settings)
    running = bool(running_daemon(settings))
    report = Report(options.json)
    names = frozenset(options.uplink or known)
    until_interrupted(_measure(settings, running, names, options.seconds, report))
    report.close()
    return _FAILED if any(speed.error for speed in report.speeds) else 0


async def _measure(
    settings: config.ProxyConfig,
    running: bool,
    names: frozenset[str],
    seconds: float,
    report: Report,
) -> None:
    from proxy.diagnose.speed import speeds

    async for speed in speeds(settings, running, names, seconds, report.progress):
        report.add(speed)


class Report:
    """What is said: progress on a terminal, and a table or one JSON object at the end."""

    def __init__(self, as_json: bool) -> None:
        self.speeds: list[Speed] = []
        self._json = as_json
        self._live = sys.stderr.isatty()

    def progress(self, name: str, direction: Direction, part: float, rate: float) -> None:
        """How far the test of ``name`` is, and the rate until now."""
        if self._live:
            line = f"{clean(name)} {direction.value} {min(part, 1.0):.0%} {_rate(rate)}"
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)

    def add(self, speed: Speed) -> None:
        """An uplink, or all of them, is done."""
        self.speeds.append(speed)
        self._clear()
        if self._live and not self._json:
            said = speed.error or f"down {_rate(speed.down)}, up {_rate(speed.up)}"
            print(f"{clean(speed.name)}: {clean(said)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """The result."""
        shares = {way: share(self.speeds, way) for way in Direction}
        if self._json:
            show_json(
                {
                    "speeds": [speed.fields() for speed in self.speeds],
                    "share": {way.value: part for way, part in shares.items()},
                }
            )
            return
        print("\n".join(_lines([_HEAD, *map(_row, self.speeds)])))
        told = [f"{part:.0%} {way.value}" for way, part in shares.items() if part is not None]
        if told:
            print(f"bonded: {' and '.join(told)} of the sum of its uplinks")
        for speed in self.speeds:
            if speed.error:
                print(f"{clean(speed.name)}: {clean(speed.error)}")

    def _clear(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


Row = tuple[str, ...]


def _row(speed: Speed) -> Row:
    loss = "-" if speed.loss is None else f"{speed.loss:.2%}"
    rates = [_rate(speed.rate(way)) for way in Direction]
    return (clean(speed.name), *rates, _time(speed.rtt_idle), _time(speed.rtt_loaded), loss)


def _lines(rows: list[Row]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate * 8 / 1e6:.1f} Mbit/s"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.0f} ms"


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"a number from 1 to {MAX_SECONDS:g} is needed")
    return seconds
