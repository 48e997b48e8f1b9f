"""A Docker engine of the lab's own: its data, its socket, and networks in a namespace.

The host's engine, if there is one, is left alone. Images are built with the engine in the host's
namespace, since only that reaches package mirrors; containers run with the engine in a namespace
of the lab, so that no bridge and no address of theirs is seen outside.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.namespaces import LabError, Namespace
from tests.lab.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("dockerd", "docker", "docker-compose", "debootstrap")
BASE = "debian:bookworm-slim"


class Engine:
    """``dockerd`` with everything below ``directory``; one at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "docker.sock"
        self.log = directory / "dockerd.log"
        self._environment = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}"}

    @contextmanager
    def running(self, namespace: Namespace | None = None) -> Iterator[None]:
        """The engine runs for the length of the block, in ``namespace`` or in the host's."""
        # Not `ip netns exec`: that mounts a /sys without control groups.
        prefix = [] if namespace is None else ["nsenter", f"--net={namespace.path}"]
        flags = ("--iptables=false", "--ip6tables=false", "--ip-masq=false", "--bridge=none")
        command = [
            *prefix, "dockerd", *flags, "--ip-forward=false",
            "--host", f"unix://{self.socket}",
            "--data-root", str(self.directory / "data"),
            "--exec-root", str(self.directory / "exec"),
            "--pidfile", str(self.directory / "pid"),
        ]  # fmt: skip
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        try:
            wait_for(lambda: self._answers(process), "the Docker engine", within=60, every=0.2)
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        if process.poll() is not None:
            raise LabError(f"dockerd ended:\n{self.log.read_text()[-3000:]}")
        return self.run("docker", "version", check=False).returncode == 0

    def run(
        self, *argv: str, check: bool = True, timeout: float = 600.0, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a client of the engine; a LabError with its output if it fails and ``check``."""
        done = subprocess.run(
            argv,
            capture_output=True,
            cwd=ROOT,
            env=self._environment,
            timeout=timeout,
            input=stdin,
        )
        result = subprocess.CompletedProcess(
            argv, done.returncode, done.stdout.decode(), done.stderr.decode()
        )
        if check and result.returncode:
            raise LabError(f"{' '.join(argv)}:\n{result.stdout[-3000:]}{result.stderr[-3000:]}")
        return result

    def compose(
        self, *argv: str, check: bool = True, timeout: float = 600.0
    ) -> subprocess.CompletedProcess[str]:
        """``docker-compose`` on the project's own file."""
        return self.run("docker-compose", "-p", "lab", *argv, check=check, timeout=timeout)

    def import_base(self, tree: Path) -> None:
        """Makes the image that the container file starts from: a Debian without anything."""
        archive = self.directory / "debian.tar"
        self.run("tar", "-C", str(tree), "-cf", str(archive), ".")
        self.run("docker", "import", str(archive), BASE)
        archive.unlink()

    def build(self) -> None:
        """Builds the images of ``docker-compose.yml``."""
        self._environment["BUILD_NETWORK"] = "host"
        self.compose("build", "-q")


@contextmanager
def engine() -> Iterator[Engine]:
    """An engine's directory for the length of the block."""
    directory = Path(tempfile.mkdtemp(prefix="mplab-docker-", dir="/var/tmp"))
    try:
        yield Engine(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
