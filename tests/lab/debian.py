"""A bare Debian in a directory: what containers and packages are tried on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.lab.namespaces import LabError

SUITE = "bookworm"
_SUPERFLUOUS = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man")


def bootstrap(tree: Path) -> None:
    """Makes a minimal Debian at ``tree`` that trusts whom this machine trusts."""
    run("debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, str(tree))
    for name in _SUPERFLUOUS:
        shutil.rmtree(tree / name, ignore_errors=True)
        (tree / name).mkdir(parents=True)
    certificates = "etc/ssl/certs/ca-certificates.crt"
    shutil.copy(f"/{certificates}", tree / certificates)


def run(*argv: str, timeout: float = 600.0) -> str:
    """Runs a command to its end and returns its output; LabError with that if it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise LabError(f"{' '.join(argv)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout
