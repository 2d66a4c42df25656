"""A private PostgreSQL server for tests, in a temporary folder: started once a session, gone at its end."""

import contextlib
import os
import pwd
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

USER, PASSWORD = "searcher", "s3cr%t:/@{}"
"""The password holds whatever a URL, a format string or a pattern could trip over."""
QUOTED = "s3cr%25t%3A%2F%40%7B%7D"
"""The same inside a URL."""


class Server:
    """One server of its own; it accepts a password on 127.0.0.1 and anybody on its socket."""

    def __init__(self, folder):
        self.folder, self.data, self._process = folder, folder / "data", None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        password = folder / "password"
        password.write_text(PASSWORD)
        owned(folder)
        owned(password)
        options = {"pgdata": self.data, "username": USER, "pwfile": password, "auth-local": "trust"}
        options |= {"auth-host": "scram-sha-256", "encoding": "UTF8", "locale": "C"}
        command = [binary("initdb"), "--no-sync", *(f"--{name}={value}" for name, value in options.items())]
        made = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=folder, **unprivileged()
        )
        assert made.returncode == 0, made.stderr
        self.start()

    def start(self):
        """Starts the server and waits until it answers."""
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "fsync": "off", "max_connections": 20}
        settings |= {"unix_socket_directories": self.folder, "shared_buffers": "16MB", "autovacuum": "off"}
        settings |= {"superuser_reserved_connections": 0}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [binary("postgres"), "-D", str(self.data), *(f"--{k}={v}" for k, v in settings.items())],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **unprivileged(),
            )
        while not self.answers():
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.02)

    def answers(self):
        """Whether the server accepts connections."""
        import psycopg

        try:
            psycopg.connect(self.dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how=signal.SIGINT):
        """Stops it: SIGINT breaks off connections and writes all to disk, SIGQUIT is like a crash."""
        self._process.send_signal(how)
        self._process.wait(30)

    @property
    def dsn(self):
        return f"host={self.folder} port={self.port} user={USER} dbname=postgres"

    def database(self):
        """The URL of a new, empty database, its password inside."""
        import psycopg

        name = f"d{secrets.token_hex(6)}"
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://{USER}:{QUOTED}@127.0.0.1:{self.port}/{name}"


def folder_of_binaries():
    """Where the server's programs are, or None."""
    folders = [Path(found).resolve().parent] if (found := shutil.which("postgres")) else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None)


def binary(name):
    return str(folder_of_binaries() / name)


def unprivileged():
    """The server refuses to run as root; Debian's package makes a user for it."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}


def owned(path):
    if os.geteuid() == 0:
        shutil.chown(path, "postgres", "postgres")


@pytest.fixture(scope="session")
def postgres():
    """The session's server; the test is skipped where there is none to start."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if folder_of_binaries() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    if os.geteuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    with contextlib.ExitStack() as stack:
        # A socket's path may have 107 bytes only; pytest's own folders can be longer.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nas-pg-")))
        server = Server(folder)
        stack.callback(server.stop, signal.SIGQUIT)
        yield server


class Proxy:
    """Stands between a client and the server, and can break the connection at the worst moment.

    doubtful: how many of the next commits reach the server, while the client never hears that they did.
    """

    def __init__(self, port):
        self.doubtful, self._server = 0, ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        """Breaks off all connections and takes no new ones."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._open:
            end.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(self._server)
                self._open += [client, server]
                threading.Thread(target=self._pass, args=(client, server), daemon=True).start()

    def _pass(self, client, server):
        ends = {client: server, server: client}
        with contextlib.suppress(OSError, ValueError):
            while True:
                for end in select.select([client, server], [], [])[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        raise OSError
                    ends[end].sendall(data)
                    if end is client and b"COMMIT" in data and self.doubtful:
                        self.doubtful -= 1
                        server.recv(1 << 16)  # the answer: it is done
                        raise OSError
        for end in ends:
            end.close()
