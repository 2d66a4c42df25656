"""The HTTP interface: `/predict`, `/health` and a page, within bounds of size, number and time."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from asyncio import TimerHandle, Transport
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, TypeVar

import h11
import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from numpy.typing import NDArray
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from nas.data.image_io import picture_pixels
from nas.errors import DataError
from nas.export.serving.session import Served, answers, numbered, pixels_of, refused

PAGE = files("nas.export.serving").joinpath("page.html").read_text(encoding="utf-8")


def _hashes(tag: str) -> str:
    """What a policy calls the inline contents of all elements of a kind."""
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in contents)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


POLICY = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


T = TypeVar("T")


class FullError(Exception):
    """No further request can wait."""


class Queue:
    """Places for requests.

    at_once: calls that run at the same time, in threads. places: requests inside, waiting ones included.
    """

    def __init__(self, *, at_once: int, places: int) -> None:
        self.places, self.inside = places, 0
        self._running = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Holds a place from a request's first byte to its answer.

        Raises:
            FullError: when all are taken.
        """
        if self.inside >= self.places:
            raise FullError
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """The value of a function that takes the processor for a while."""
        async with self._running:
            return await asyncio.to_thread(work)


Model = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images `[N, C, H, W]` to logits `[N, classes]`; runs in several threads at once."""


@dataclass(frozen=True)
class Limits:
    """What a server bears.

    upload_bytes: of one request. files, images: of one request, an array may hold many images. pixels: of
    all pictures of a request, before they are shrunk.
    places: requests inside at a time; further ones are refused. at_once: of these, how many compute.
    upload_s: that a request may take to arrive. drained_bytes: so much of a request that is too large is
    read and forgotten, so that its sender hears the answer instead of a broken connection.
    top: classes in an answer.
    """

    upload_bytes: int = 10 << 20
    files: int = 32
    images: int = 256
    pixels: int = 100_000_000
    places: int = 64
    at_once: int = 2
    upload_s: float = 60.0
    drained_bytes: int = 256 << 20
    top: int = 5


def make_app(
    model: Model, served: Served, limits: Limits = Limits(), *, hosts: Collection[str] = ()
) -> FastAPI:
    """The application; every answer but the page is JSON, and errors are `{"error": words}`.

    hosts: names that a request may be sent to; any unless given.
    """
    # Its own pages of documentation would load scripts from elsewhere.
    app = FastAPI(title=served.title, docs_url=None, redoc_url=None)
    queue = Queue(at_once=limits.at_once, places=limits.places)

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
        return HTMLResponse(PAGE, headers=dict(POLICY))

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
            "inside": queue.inside,
            "limits": asdict(limits),
        }

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        """Classes of the files of a form, or of the one file that is the body."""
        try:
            async with queue.place():
                files = await _uploads(request, limits)
                found = await queue.run(lambda: _answered(files, model, served, limits))
        except FullError as error:
            raise HTTPException(
                503,
                f"{limits.places} requests are being answered already; try again in a moment",
                {"Retry-After": "1"},
            ) from error
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
            rows = answers(numbered(name, len(pixels)), model(pixels), served.classes, top=limits.top)
            found += [answer.to_dict() for answer in rows]
        except DataError as error:
            found.append(dict(refused(name, str(error))))
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
    """The same messages, up to the size that a request may have."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen <= limits.upload_bytes:
            return message
        while message.get("more_body", False) and seen <= limits.drained_bytes:
            message = await receive()
            seen += len(message.get("body", b""))
        raise HTTPException(
            413,
            f"the request has more than the {limits.upload_bytes:,} bytes that are read at once; send fewer "
            "or smaller files",
        )

    return counted


HEAD_S = 5.0


class Timely(H11Protocol):
    """Uvicorn's own protocol, with a limit on the time that the head of a request may take."""

    _late: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override] # noqa: D102
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE and self._late is not None:
            self._late.cancel()
            self._late = None
        elif self.conn.their_state is h11.IDLE and self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.close)
