"""`nas serve`: a model behind a port until a signal asks it to stop; what was begun is answered first."""

from __future__ import annotations

import socket
from collections.abc import Callable
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

from nas.errors import ConfigError
from nas.export.serving.session import read_served

NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "onnxruntime": "onnxruntime",
    "PIL": "pillow",
}
"""Packages by the names of their modules."""
GRACE_S = 30
"""How long requests that have begun may take once the server was asked to stop."""


def serve(folder: Path, *, host: str, port: int, upload_bytes: int, tell: Callable[[str], None]) -> None:
    """Serves the model of a finished run.

    port: 0 takes any that is free. tell: is given a line with the address, once it can be reached.
    Stops at SIGINT or SIGTERM, which it raises again when all that was begun has been answered.

    Raises:
        ConfigError: when a package is missing, the run has no usable model.onnx, or the address is not free.
    """
    if missing := [package for module, package in NEEDED.items() if find_spec(module) is None]:
        raise ConfigError(f"serve: {', '.join(missing)} is missing; pip install 'nas-engine[serve]'")
    import uvicorn

    from nas.export.serving.app import Limits, Timely, make_app
    from nas.export.serving.session import Session

    served = read_served(folder)
    limits = Limits(upload_bytes=upload_bytes)
    listening = _listening(host, port)
    address = _shown(listening)
    # Where it listens to everybody, by whatever name they know this machine.
    everybody = ip_address(listening.getsockname()[0]).is_unspecified
    hosts = () if everybody else {"localhost", "127.0.0.1", "::1", host.lower()}
    app = make_app(Session(folder, served), served, limits, hosts=hosts)
    config = uvicorn.Config(
        app, http=Timely, log_config=None, access_log=False, server_header=False, lifespan="off", ws="none",
        proxy_headers=False, timeout_graceful_shutdown=GRACE_S,
    )  # fmt: skip
    tell(f"{served.title}, {len(served.classes)} classes, on http://{address}/ (stop it by Ctrl-C)")
    tell(f"an image becomes: {served.steps}")
    if not _is_loopback(host):
        tell(
            f"WARNING: {host} can be reached from other machines, and there is no password and no "
            "encryption; put a proxy with both before it"
        )
    with listening:
        uvicorn.Server(config).run(sockets=[listening])
    tell("stopped")


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(
            f"serve: cannot listen on {host}:{port}: {error}; choose another --port or --host"
        ) from error


def _shown(listening: socket.socket) -> str:
    host, port, *rest = listening.getsockname()
    return f"[{host}]:{port}" if rest else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
