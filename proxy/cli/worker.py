"""A worker process; ``mptcp-proxy run`` starts it, nobody else (``engine.runtime_supervisor``)."""

from __future__ import annotations

import sys

from proxy.cli import log


def main() -> int:
    """Read on standard input what to do, and do it."""
    from proxy.engine.runtime_worker import Boot, run

    boot = Boot.read(sys.stdin.buffer)
    log.set_up(boot.log_level, f"worker {boot.share.index}: ")
    return run(boot)


if __name__ == "__main__":
    sys.exit(main())
