"""The live page of a run: Optuna's dashboard, and beside it what the search has found so far."""

from __future__ import annotations

import errno
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import optuna

from nas.errors import ConfigError, NasError
from nas.study.storage import past_storage

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from optuna.storages import BaseStorage

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLL_S = 0.2
"""How soon a stop is noticed."""
SHELL = (Path(__file__).parent / "live.html").read_text(encoding="utf-8")


class Live:
    """`/` the report of a run, `/dashboard` its studies in Optuna's dashboard, `/state` what has changed.

    folder: of the run. render: makes the report of a folder, of an unfinished run too, as HTML; asked again
      only when the run has changed.
    local: whether requests must name this machine, so that no page of another site can read from here.
    """

    def __init__(self, folder: Path, render: Callable[[Path], str], *, local: bool = True) -> None:
        self.folder, self.render, self.local = folder, render, local
        self._lock = threading.Lock()
        self._storage: BaseStorage | None = None
        self._studies: WSGIApplication | None = None
        self._rendered = "", ""

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        """Answers one request."""
        if environ["REQUEST_METHOD"] != "GET":
            return _answer(
                start, "405 Method Not Allowed", "this view only reads: a run is changed by its job"
            )
        if self.local and _host(environ) not in LOOPBACK:
            return _answer(start, "403 Forbidden", "open this page as http://127.0.0.1 or http://localhost")
        try:
            page = self._page(environ["PATH_INFO"])
            return self._optuna()(environ, start) if page is None else _answer(start, "200 OK", *page)
        except (NasError, OSError) as error:
            return _answer(start, "503 Service Unavailable", str(error))

    def _page(self, path: str) -> tuple[str, str] | None:
        """A page of ours and its kind; None where it is Optuna's."""
        match path:
            case "" | "/":
                return SHELL, "text/html"
            case "/state":
                return json.dumps({"run": self.folder.name, "state": self.state()}), "application/json"
            case "/report":
                return self.report(), "text/html"
        return None

    def state(self) -> str:
        """A text that is another one when trials or files of the run have changed."""
        files = [(p.name, p.stat().st_mtime_ns) for p in sorted(self.folder.iterdir()) if p.is_file()]
        storage = self._history()
        studies = [] if storage is None else optuna.get_all_study_summaries(storage)
        trials = [(study.study_name, study.n_trials, repr(study.user_attrs)) for study in studies]
        return hashlib.sha256(repr((files, trials)).encode()).hexdigest()[:16]

    def report(self) -> str:
        """The report of the run as it is now."""
        with self._lock:  # drawn once, however many ask
            now = self.state()
            if self._rendered[0] != now:
                self._rendered = now, self.render(self.folder)
            return self._rendered[1]

    def _history(self) -> BaseStorage | None:
        """The studies of the run, as soon as there are any."""
        if self._storage is None:
            found = past_storage(self.folder)
            self._storage = None if found is None else found[0]
        return self._storage

    def _optuna(self) -> WSGIApplication:
        import optuna_dashboard

        with self._lock:
            storage = self._history()
            if storage is None:
                raise ConfigError(f"{self.folder} has no trials yet; reload this page when it has")
            if self._studies is None:
                self._studies = optuna_dashboard.wsgi(storage)
            return self._studies


def _host(environ: WSGIEnvironment) -> str:
    """The name by which this machine was asked, without the port."""
    name: str = environ.get("HTTP_HOST", "")
    return name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0]


def _answer(start: StartResponse, status: str, text: str, kind: str = "text/plain") -> list[bytes]:
    body = text.encode()
    headers = [
        ("Content-Type", f"{kind}; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    start(status, headers)
    return [body]


class _Quiet(WSGIRequestHandler):
    """Logs no requests: a page that looks every two seconds would fill the screen."""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Quiet)
        self.timeout = POLL_S

    def server_bind(self) -> None:
        """Binds without asking a name server who this machine is, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


def serve(
    app: WSGIApplication, host: str, port: int, *, ready: Callable[[str], None], stop: Callable[[], bool]
) -> None:
    """Answers requests until `stop` says so, which is asked several times a second.

    port: 0 takes a free one. ready: is told the URL once requests are answered.

    Raises:
        ConfigError: when the address is no address of this machine, or the port is in use.
    """
    try:
        server = _Server(host, port)
    except OSError as error:
        option = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror}; choose another {option}"
        ) from error
    with server:
        server.set_app(app)
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{server.server_port}/")
        while not stop():
            server.handle_request()
