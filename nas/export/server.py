"""`nas serve`: a run's model.onnx over HTTP, within bounds of size, number and time; without torch.

`/predict` answers images, `/health` says what is served, `/` is a page to drop images on.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import socket
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import h11
import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as states
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from nas.data.decode import picture_pixels
from nas.errors import ConfigError, DataError, printable
from nas.export.inference import Model, Pixels, Served, answers, pixels_of, read_served
from nas.files.folder import is_file, require_intact

MODEL = "model.onnx"
BATCH = 32
DRAINED_BYTES = 256 << 20
GRACE_S = 30
"""How long requests that have begun may take once the server was asked to stop."""
HEAD_S = 5.0
"""How long the head of a request may take."""
PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


def _policy() -> str:
    """A policy that lets the page load nothing, and run its own script and style alone, by their hashes."""
    hashes = {}
    for tag in ("script", "style"):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
        assert content is not None
        hashes[tag] = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


HEADERS = {
    "Content-Security-Policy": _policy(),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Limits:
    """What a server bears.

    upload_bytes: of one request. files, images: of one request, an array may hold many images. pixels: of
    all pictures of a request, before they are shrunk.
    places: requests inside at a time; further ones are refused. at_once: of these, how many compute.
    upload_s: that a request may take to arrive. top: classes in an answer.
    """

    upload_bytes: int = 10 << 20
    files: int = 32
    images: int = 256
    pixels: int = 100_000_000
    places: int = 64
    at_once: int = 2
    upload_s: float = 60.0
    top: int = 5


def serve(folder: Path, *, host: str, port: int, upload_bytes: int, tell: Callable[[str], None]) -> None:
    """Serves the model of a finished run.

    port: 0 takes any that is free. tell: is given a line with the address, once it can be reached.
    Stops at SIGINT or SIGTERM, which it raises again when all that was begun has been answered.

    Raises:
        ConfigError: when the run has no usable model.onnx, or the address is not free.
    """
    served = read_served(folder)
    listening = _listening(host, port)
    address, number, *rest = listening.getsockname()
    # Where it listens to everybody, by whatever name they know this machine.
    hosts = () if ip_address(address).is_unspecified else {"localhost", "127.0.0.1", "::1", host.lower()}
    app = make_app(load_model(folder, served), served, Limits(upload_bytes=upload_bytes), hosts=hosts)
    config = uvicorn.Config(
        app, http=Timely, log_config=None, access_log=False, server_header=False, lifespan="off", ws="none",
        proxy_headers=False, timeout_graceful_shutdown=GRACE_S,
    )  # fmt: skip
    name = f"[{address}]" if rest else address
    tell(f"{served.title}, {len(served.classes)} classes, on http://{name}:{number}/ (stop it by Ctrl-C)")
    tell(f"an image becomes: {served.steps}")
    if not ip_address(address).is_loopback:
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


def load_model(folder: Path, served: Served) -> Model:
    """A run's model.onnx on the CPU; may be called from several threads at once.

    Raises:
        ConfigError: when the run has none, or it is damaged or another run's.
    """
    if not is_file(folder / MODEL):
        raise ConfigError(
            f"{folder} has no {MODEL}; write it by: pip install 'nas-engine[onnx]' && nas export {folder}"
        )
    require_intact(folder, MODEL, "run.json")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])
    except (states.Fail, states.InvalidProtobuf, states.InvalidGraph, states.NotImplemented) as error:
        raise ConfigError(
            f"{folder / MODEL} cannot be loaded: {printable(str(error), limit=300)}; export it again"
        ) from error
    takes = [(i.name, *i.shape[1:]) for i in session.get_inputs()]
    gives = [tuple(o.shape[1:]) for o in session.get_outputs()]
    if takes != [("pixels", *served.image_shape)] or gives != [(len(served.classes),)]:
        raise ConfigError(
            f"{folder / MODEL} takes {takes} and answers {gives}, but the run is of images "
            f"{served.image_shape} and {len(served.classes)} classes; export it again"
        )

    def run(pixels: Pixels) -> NDArray[np.float32]:
        parts = (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))
        return np.concatenate(
            [session.run(["logits"], {"pixels": np.ascontiguousarray(part)})[0] for part in parts]
        )

    return run


def make_app(
    model: Model, served: Served, limits: Limits = Limits(), *, hosts: Collection[str] = ()
) -> FastAPI:
    """The application; every answer but the page is JSON, and errors are `{"error": words}`.

    hosts: names that a request may be sent to; any unless given.
    """
    # Its own pages of documentation would load scripts from elsewhere.
    app = FastAPI(title=served.title, docs_url=None, redoc_url=None)
    computing = asyncio.Semaphore(limits.at_once)
    inside = 0

    @app.middleware("http")
    async def check_host(request: Request, answer: RequestResponseEndpoint) -> Response:
        """A page whose name its owner lets lead to this machine could otherwise read from here."""
        name = re.sub(r":\d*$", "", request.headers.get("host", "")).strip("[]").lower()
        if hosts and name not in hosts:
            wanted = " or ".join(sorted(hosts))
            return JSONResponse({"error": f"asked as {name[:100]!r}, wanted {wanted}; see --host"}, 403)
        return await answer(request)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> HTMLResponse:
        """A page to try the model."""
        return HTMLResponse(PAGE, headers=HEADERS)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """That the server is up, what it serves, and what it bears."""
        return {
            "status": "ok",
            "model": served.title,
            "classes": served.classes,
            "image_shape": served.image_shape,
            "steps": served.steps,
            "takes_files": served.takes_files,
            "inside": inside,
            "limits": asdict(limits),
        }

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        """Classes of the files of a form, or of the one file that is the body."""
        nonlocal inside
        if inside >= limits.places:
            full = f"{limits.places} requests are being answered already; try again in a moment"
            raise HTTPException(503, full, {"Retry-After": "1"})
        inside += 1
        try:
            files = await _uploads(request, limits)
            async with computing:
                found = await asyncio.to_thread(_answered, files, model, served, limits)
        finally:
            inside -= 1
        good = any("error" not in answer for answer in found)
        return JSONResponse({"answers": found}, 200 if good else 422)

    @app.exception_handler(HTTPException)
    async def told(request: Request, error: HTTPException) -> JSONResponse:  # noqa: ARG001
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> JSONResponse:  # noqa: ARG001
        return JSONResponse({"error": "the client went away"}, 400)

    return app


def _answered(
    files: list[tuple[str, bytes]], model: Model, served: Served, limits: Limits
) -> list[dict[str, Any]]:
    """An answer for each image, or for a file that cannot be read what is wrong with it."""
    found: list[dict[str, Any]] = []
    left, seen = limits.images, 0
    for name, data in files:
        try:
            seen += picture_pixels(data)
            if seen > limits.pixels:
                raise DataError(f"{name} is beyond the {limits.pixels:,} pixels of pictures in a request")
            pixels = pixels_of(name, data, served)
            if len(pixels) > left:
                raise DataError(f"{name} is beyond the {limits.images} images that a request may hold")
            left -= len(pixels)
            rows = answers(name, model(pixels), served.classes, top=limits.top)
            found += [answer.to_dict() for answer in rows]
        except DataError as error:
            found.append({"name": name, "error": str(error)})
    return found


async def _uploads(request: Request, limits: Limits) -> list[tuple[str, bytes]]:
    """Names and contents of the files of a request."""
    bounded = Request(request.scope, _bounded(request.receive, limits))
    try:
        async with asyncio.timeout(limits.upload_s):
            if not request.headers.get("content-type", "").startswith("multipart/"):
                return [("the body", await bounded.body())]
            async with bounded.form(max_files=limits.files, max_fields=limits.files) as form:
                files = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
                found = [(part.filename or "a file", await part.read()) for part in files]
    except TimeoutError as error:
        raise HTTPException(408, f"the request did not arrive within {limits.upload_s:g} s") from error
    if not found:
        raise HTTPException(422, "the form holds no file; wanted images or .npy arrays, e.g. curl -F x=@FILE")
    return found


def _bounded(receive: Receive, limits: Limits) -> Receive:
    """The same messages, up to the size that a request may have.

    The rest of a larger one is read and forgotten, up to `DRAINED_BYTES`, so that its sender hears the answer
    instead of a broken connection.
    """
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen <= limits.upload_bytes:
            return message
        while message.get("more_body", False) and seen <= DRAINED_BYTES:
            message = await receive()
            seen += len(message.get("body", b""))
        most = f"the {limits.upload_bytes:,} bytes that are read at once"
        raise HTTPException(413, f"the request has more than {most}; send fewer or smaller files")

    return counted


class Timely(H11Protocol):
    """Uvicorn's own protocol, with a limit on the time that the head of a request may take."""

    _late: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override] # noqa: D102
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        super().data_received(data)
        waits = self.conn.their_state is h11.IDLE
        if not waits and self._late is not None:
            self._late.cancel()
            self._late = None
        elif waits and self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.close)
