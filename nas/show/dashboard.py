"""Serves a WSGI application to this machine until it is asked to stop."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from nas.errors import ConfigError

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

POLL_S = 0.2
"""How soon a stop is noticed."""


class _Quiet(WSGIRequestHandler):
    """Logs no requests: a page that looks every two seconds would fill the screen."""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Binds without asking a name server who this machine is, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Server6(_Server):
    address_family = socket.AF_INET6


def serve(
    app: WSGIApplication, host: str, port: int, *, ready: Callable[[str], None], stop: Callable[[], bool]
) -> None:
    """Answers requests until `stop` says so, which is asked several times a second.

    port: 0 takes a free one. ready: is told the URL once requests are answered.

    Raises:
        ConfigError: when the address is no address of this machine, or the port is in use.
    """
    kind = _Server6 if ":" in host else _Server
    try:
        server = kind((host, port), _Quiet)
    except OSError as error:
        advice = (
            "choose another --port"
            if error.errno in (errno.EADDRINUSE, errno.EACCES)
            else "choose another --host"
        )
        raise ConfigError(f"cannot listen on {host}, port {port}: {error.strerror}; {advice}") from error
    with server:
        server.timeout = POLL_S
        server.set_app(app)
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{server.server_port}/")
        while not stop():
            server.handle_request()
