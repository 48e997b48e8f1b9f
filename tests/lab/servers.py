"""Real servers in a namespace, from throw-away directories: nginx, iperf3, sshd, databases."""

from __future__ import annotations

import contextlib
import glob
import pwd
import random
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from tests.lab.namespaces import LabError, Namespace
from tests.lab.topology import SERVER4, SERVER6
from tests.lab.waiting import wait_for

NGINX_CONFIG = """
daemon off;
# One process that changes no user: also good in a user namespace, where there is but one.
master_process off;
user root root;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    sendfile on;
    keepalive_timeout 600;
    keepalive_requests 1000000;
    server {{
        listen {v4}:80 backlog=4096;
        listen [{v6}]:80 backlog=4096;
        root {directory}/www;
    }}
}}
"""

SSHD_CONFIG = """
Port 2222
ListenAddress {v4}
ListenAddress {v6}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/client_key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
UseDNS no
"""


def listening(namespace: Namespace, address: str, port: int) -> bool:
    """Somebody in the namespace accepts connections there."""
    with contextlib.suppress(OSError):
        namespace.connect(address, port, timeout=1.0).close()
        return True
    return False


def _await(process: subprocess.Popen[bytes], namespace: Namespace, port: int, what: str) -> None:
    def up() -> bool:
        if process.poll() is not None:
            output = process.stdout.read().decode() if process.stdout else ""
            raise LabError(f"{what} ended with {process.returncode}: {output}")
        return listening(namespace, SERVER4, port)

    wait_for(up, f"{what} listens", within=20)


def random_file(path: Path, size: int, seed: int = 1) -> str:
    """Fills a file with ``size`` seeded bytes; returns their SHA-256."""
    source, digest = random.Random(seed), sha256()
    with path.open("wb") as file:
        while size > 0:
            chunk = source.randbytes(min(size, 1 << 20))
            file.write(chunk)
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest()


class Nginx:
    """nginx on port 80 of the server's v4 and v6 address; ``add`` makes files to fetch."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self._directory = directory / "nginx"
        self.root = self._directory / "www"
        self.root.mkdir(parents=True)
        config = self._directory / "nginx.conf"
        config.write_text(NGINX_CONFIG.format(directory=self._directory, v4=SERVER4, v6=SERVER6))
        self.process = namespace.start("nginx", "-e", "stderr", "-c", str(config))
        _await(self.process, namespace, 80, "nginx")

    def add(self, name: str, size: int, seed: int = 1) -> str:
        """A file of random bytes; returns its SHA-256."""
        return random_file(self.root / name, size, seed)

    @staticmethod
    def url(name: str, address: str = SERVER4) -> str:
        """Where a client finds the file."""
        return f"http://{f'[{address}]' if ':' in address else address}/{name}"


def start_iperf3(namespace: Namespace, *, port: int = 5201) -> subprocess.Popen[bytes]:
    """An iperf3 server on all addresses."""
    process = namespace.start("iperf3", "-s", "-p", str(port), stdout=subprocess.DEVNULL)

    def bound() -> bool:
        # Connecting would disturb it: it serves one test at a time.
        return f":{port}" in namespace.run("ss", "-Htln").stdout

    wait_for(bound, "iperf3 listens")
    return process


class Sshd:
    """sshd on port 2222, with a key that opens it."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self._directory = directory / "sshd"
        self._directory.mkdir()
        for key in ("host_key", "client_key"):
            file = self._directory / key
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True
            )
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
        config = self._directory / "sshd_config"
        config.write_text(SSHD_CONFIG.format(directory=self._directory, v4=SERVER4, v6=SERVER6))
        program = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin") or "sshd"
        self.process = namespace.start(program, "-D", "-e", "-f", str(config))
        _await(self.process, namespace, 2222, "sshd")

    def client(self, *command: str, address: str = SERVER4) -> list[str]:
        """The ssh command line that runs ``command`` there."""
        options = {
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "IdentityFile": str(self._directory / "client_key"),
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return ["ssh", "-F", "none", "-p", "2222", *words, f"root@{address}", *command]


class Postgres:
    """PostgreSQL on its usual port; user ``postgres`` may connect from anywhere."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
        if not programs:
            raise LabError("no PostgreSQL server on this machine")
        self._programs = Path(programs[-1])
        self._directory = directory / "postgres"
        self._directory.mkdir()
        data = self._directory / "data"
        entry = pwd.getpwnam("postgres")
        shutil.chown(self._directory, entry.pw_uid, entry.pw_gid)
        become = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
        done = subprocess.run(
            [*become, str(self._programs / "initdb"), "-D", str(data), "-A", "trust", "-N"],
            capture_output=True,
            text=True,
            cwd=self._directory,
        )
        if done.returncode:
            raise LabError(f"initdb: {done.stdout}{done.stderr}")
        with (data / "pg_hba.conf").open("a") as file:
            file.write("host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n")
        settings = {
            "listen_addresses": f"{SERVER4},{SERVER6}",
            "unix_socket_directories": str(self._directory),
            "fsync": "off",
        }
        words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        self.process = namespace.start(
            *become, str(self._programs / "postgres"), "-D", str(data), *words, cwd=self._directory
        )
        _await(self.process, namespace, 5432, "PostgreSQL")

    @staticmethod
    def client(sql: str, address: str = SERVER4) -> list[str]:
        """The psql command line that prints the bare result."""
        return ["psql", "-h", address, "-U", "postgres", "-XAtqc", sql]


class TcpServer:
    """A server of ours: each connection gets a thread that runs ``handler(sock)``.

    What a handler raises is kept in ``errors``; what it returns in ``results``.
    """

    def __init__(
        self,
        namespace: Namespace,
        handler: Callable[[socket.socket], object],
        *,
        address: str = SERVER4,
        port: int = 0,
    ) -> None:
        self.errors: list[BaseException] = []
        self.results: list[object] = []
        self.peers: list[str] = []
        self._handler = handler
        self._listener = namespace.listen(address, port)
        self.address, self.port = self._listener.getsockname()[:2]
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                return
            self.peers.append(peer[0])
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(60)
            try:
                self.results.append(self._handler(sock))
            except Exception as error:
                self.errors.append(error)

    def close(self) -> None:
        """No more connections; those that run are left to end."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def serving(
    namespace: Namespace,
    handler: Callable[[socket.socket], object],
    *,
    address: str = SERVER4,
    port: int = 0,
) -> Iterator[TcpServer]:
    """A ``TcpServer`` for the length of the block."""
    server = TcpServer(namespace, handler, address=address, port=port)
    try:
        yield server
    finally:
        server.close()


def read_all(sock: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    parts = []
    while part := sock.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


def echo(sock: socket.socket) -> int:
    """Handler: sends back what comes, to the end; returns how much."""
    total = 0
    while part := sock.recv(1 << 16):
        sock.sendall(part)
        total += len(part)
    return total


def digest_reply(sock: socket.socket) -> str:
    """Handler: reads to the end of the stream, then answers with its SHA-256 (half close)."""
    digest = sha256()
    while part := sock.recv(1 << 18):
        digest.update(part)
    sock.sendall(digest.hexdigest().encode())
    return digest.hexdigest()
