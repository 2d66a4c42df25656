"""A found model on files and over HTTP: answers, bounds and faults, by a real server, client and browser."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from browser import browser  # noqa: F401 - a fixture
from jobs import SMALL
from PIL import Image
from typer.testing import CliRunner

import nas
from nas.__main__ import app
from nas.data.decode import fitted
from nas.errors import ConfigError, DataError
from nas.export import inference
from nas.export.formats import Pixels, exported, write_onnx
from nas.export.inference import Served, answer_files, pixels_of
from nas.files.folder import update_manifest

fastapi = pytest.importorskip("fastapi", reason="serving needs the extra `serve`")
pytest.importorskip("onnxscript", reason="the ONNX form needs the extra `onnx`")

from nas.export.server import Limits, load_model, make_app  # noqa: E402 - what it needs is asked for first

GREY = Served("toy on digits", tuple("0123456789"), (1, 8, 8), "uint8")
COLOUR = Served("toy on cifar10", ("cat", "dog"), (3, 8, 8), "uint8")
FLOATS = Served("toy on npz:x", ("cat", "dog"), (1, 8, 8), "float32")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with model.onnx, unproven."""
    settings = {**SMALL, "trials": 1, "top_k": 1, "top_k_epochs": None, "repeats": None}
    settings |= {"retrain": {"epochs": 8, "lr": 0.2}}
    out = tmp_path_factory.mktemp("a") / "run"
    result = nas.search("toy", "digits", "random", out=out, settings=settings)
    model = Pixels(result.network, result.inputs)
    write_onnx(result.folder / "model.onnx", exported(model, result.inputs.image_shape))
    update_manifest(result.folder, ["model.onnx"])
    return result


@pytest.fixture(scope="module")
def digits():
    """Ten images as bytes, one of each class."""
    test = nas.load_task("digits").test
    return test.x[[int((test.y == i).nonzero()[0]) for i in range(10)], 0].numpy()


def png(pixels, size=None, **how):
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image if size is None else image.resize(size)).save(buffer, "PNG", **how)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# -- what becomes of a file ------------------------------------------------------------------------------


def test_an_image_becomes_the_pixels_that_the_model_takes(digits):
    pixels = pixels_of("3.png", png(digits[3]), GREY)
    assert pixels.shape == (1, 1, 8, 8) and pixels.dtype == np.float32
    assert np.array_equal(pixels[0, 0], digits[3].astype(np.float32) / 255)
    assert np.array_equal(pixels, pixels_of("3.npy", npy(digits[3]), GREY))
    assert np.array_equal(pixels_of("x", npy(digits), GREY)[3], pixels[0])
    white = png(np.full((40, 20, 4), 255, np.uint8))
    assert pixels_of("x", white, GREY).tolist() == np.ones((1, 1, 8, 8)).tolist()
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    assert pixels_of("x", png(red), COLOUR).mean((0, 2, 3)).tolist() == [1, 0, 0]
    lying, exif = np.zeros((8, 8), np.uint8), Image.Exif()
    lying[:, :4] = 255  # its left half
    exif[0x0112] = 6  # turn it by 90 degrees, clockwise
    assert fitted(png(lying, exif=exif), (1, 8, 8))[0, :4].min() == 255


@pytest.mark.parametrize(
    ("data", "served", "words"),
    [
        (b"", GREY, "x is empty; wanted an image"),
        (npy(np.array([{}])), GREY, "Object arrays cannot be loaded"),
        (npy(np.zeros((2, 8, 8))), COLOUR, r"wanted \[N, 8, 8, 3\] or one image"),
        (npy(np.zeros(())), GREY, r"x has shape \[\]"),
        (npy(np.zeros((0, 8, 8))), GREY, "x holds no image"),
        (npy(np.full((8, 8), 200.0)), GREY, "pixels from 200 to 200, wanted floats from 0 to 1"),
        (npy(np.full((8, 8), -1)), GREY, "pixels from -1 to -1, wanted integers from 0 to 255"),
        (npy(np.full((8, 8), 1e300)), FLOATS, "NaN or infinite"),
        (npy(np.zeros((8, 8), np.uint8)), FLOATS, "wanted floats of the training images' scale"),
        (png(np.zeros((8, 8), np.uint8)), FLOATS, "no image files: it was trained on floats.*send an .npy"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_is_said(data, served, words):
    with pytest.raises(DataError, match=words):
        pixels_of("x", data, served)


# -- nas predict -----------------------------------------------------------------------------------------


def predict(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def test_predict_takes_folders_beside_files_and_names_what_it_skips(run, digits, tmp_path):
    for name in ("b/2.PNG", "b/10.png", "a.png", ".hidden/3.png", "b/.4.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(png(digits[1]))
    (tmp_path / "in/b/bad.jpg").write_bytes(b"nothing")
    (tmp_path / "in/notes.txt").write_text("no image")
    np.save(tmp_path / "in/z.npy", digits[:2])
    (tmp_path / "one.png").write_bytes(png(digits[7]))
    (tmp_path / "empty").mkdir()
    done = predict(run.folder, tmp_path / "one.png", tmp_path / "in", tmp_path / "empty", "--json")
    answer = json.loads(done.stdout)
    names = [found["name"].removeprefix(f"{tmp_path}/") for found in answer["answers"]]
    assert names == ["one.png", "in/a.png", "in/b/10.png", "in/b/2.PNG", "in/z.npy[0]", "in/z.npy[1]"]
    assert [text.split()[0] for text in answer["errors"]] == [f"{tmp_path}/in/b/bad.jpg", f"{tmp_path}/empty"]
    assert "has no images in it; wanted files that end in .bmp" in answer["errors"][1]
    assert done.exit_code == 3


def test_many_files_are_answered_in_batches_as_each_alone(digits, tmp_path, monkeypatch):
    for number, image in enumerate(digits):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    np.save(tmp_path / "3b.npy", digits[:2])
    (tmp_path / "5b.png").write_bytes(b"nothing")
    sizes = []

    def model(pixels):
        sizes.append(len(pixels))
        return pixels.reshape(len(pixels), -1)[:, 20:30]

    alone = [answer_files(model, GREY, [str(file)], top=2) for file in sorted(tmp_path.iterdir())]
    monkeypatch.setattr(inference, "BATCH", 5)
    sizes.clear()
    found, troubles = answer_files(model, GREY, [str(tmp_path)], top=2)
    assert sizes == [6, 5, 1]
    assert found == [answer for answers, _ in alone for answer in answers]
    assert troubles == [text for _, texts in alone for text in texts]


def test_the_server_never_imports_torch_nor_a_prediction_study_and_supernet(run):
    code = (
        "import sys, nas.__main__, nas.export.server\n"
        "print('torch' in sys.modules)\n"
        "import numpy as np\n"
        f"nas.load_result({str(run.folder)!r}).predict(np.zeros((2, 8, 8), 'uint8'))\n"
        "print([name for name in ('optuna', 'nas.study.study', 'nas.oneshot') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n[]\n"


def test_predict_without_what_it_needs_says_so(run, tmp_path, monkeypatch):
    assert "no images were given" in predict(run.folder).stderr
    (tmp_path / "a.png").write_bytes(b"x")
    monkeypatch.setattr("nas.export.inference.find_spec", lambda _: None)
    assert "pip install 'nas-engine[vision]'" in predict(run.folder, tmp_path / "a.png").stderr


# -- nas serve -------------------------------------------------------------------------------------------


def started(folder, *more):
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-c", "from nas.__main__ import main; main()", "serve", str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--port", "0", *more], stdout=subprocess.PIPE, text=True, env=env)
    line = process.stdout.readline()
    return process, line.split(" on ", 2)[2].split()[0]


@pytest.fixture(scope="module")
def server(run):
    process, address = started(run.folder, "--max-upload", "1MiB")
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client
    with process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read().endswith("stopped\n")
    assert process.returncode == 0


def test_bounds_of_a_request_are_said(server, digits):
    many = server.post("/predict", content=npy(np.zeros((257, 8, 8), np.uint8)))
    assert (many.status_code, "beyond the 256 images" in many.text) == (422, True)
    huge = b"\0" * (20 << 20)
    for how in ({"files": {"file": ("huge.png", huge)}}, {"content": iter([huge])}):
        told = server.post("/predict", **how)
        assert told.status_code == 413
        assert "more than the 1,048,576 bytes" in told.json()["error"]
    assert server.get("/health").json()["status"] == "ok"
    assert server.get("/health").json()["image_shape"] == [1, 8, 8]


def test_twenty_clients_at_once_are_all_answered(server, run, digits):
    wanted = [run.inputs.classes[i] for i in run.predict(digits)]
    together = threading.Barrier(20)

    def client(number):
        image = png(digits[number % 10])
        with httpx.Client(base_url=server.base_url, timeout=60) as own:
            together.wait()
            answers = [own.post("/predict", files={"file": ("x.png", image)}) for _ in range(2)]
        return [(a.status_code, a.json()["answers"][0]["class"]) for a in answers]

    with ThreadPoolExecutor(20) as pool:
        told = list(pool.map(client, range(20)))
    assert told == [[(200, wanted[i % 10])] * 2 for i in range(20)]


def test_a_request_that_has_begun_is_answered_before_the_end(run, digits):
    process, address = started(run.folder)
    body = npy(digits)
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(
            f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        half.sendall(body[:100])
        while httpx.get(f"{address}health", timeout=60).json()["inside"] == 0:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        # Nobody else is let in; who knocks at the very moment at which the door closes is cut off.
        with pytest.raises((httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError)):
            while True:
                httpx.get(f"{address}health", timeout=60)
                time.sleep(0.01)
        half.sendall(body[100:])
        told = half.makefile("rb").read()
    assert told.startswith(b"HTTP/1.1 200") and told.count(b'"class"') > 10
    with process:
        assert process.stdout.read().endswith("stopped\n")
    assert process.returncode == 0


def test_a_browser_shows_the_class_of_an_upload(server, run, digits, browser):  # noqa: F811 - the fixture
    wanted = run.inputs.classes[run.predict(digits[7:8])[0]]
    page = browser.new_page()
    troubles = []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(str(server.base_url))
    page.get_by_text("10 classes. An image becomes").wait_for()
    files = [("<img src=x onerror=alert(1)>.png", png(digits[7])), ("bad.png", b"nothing")]
    page.set_input_files("#files", [{"name": n, "mimeType": "image/png", "buffer": d} for n, d in files])
    page.locator(".card .found").wait_for()
    page.locator(".card .error").wait_for()
    assert page.locator(".card .found").inner_text() == wanted
    assert page.locator(".card .row").count() == 5
    assert page.locator(".card h2").all_inner_texts() == [name for name, _ in reversed(files)]
    assert "cannot be read as an image" in page.locator(".card .error").inner_text()
    if place := os.environ.get("NAS_SCREENSHOTS"):
        page.screenshot(path=f"{place}/serve.png", full_page=True)
    page.close()
    assert [text for text in troubles if "422" not in text] == []


def test_a_model_of_another_run_or_damage_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"takes .* export it again"):
        load_model(run.folder, COLOUR)
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_model(tmp_path, GREY)


# -- bounds, by a model that can be held up --------------------------------------------------------------


def asked(application, *requests, tell=lambda answer: None):
    """Answers to requests sent one after the other, none of them waiting for an answer.

    tell: is told each of them when it comes.
    """

    async def go():
        async def one(request):
            tell(answer := await client.post("/predict", **request))
            return answer

        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await asyncio.gather(*map(one, requests))

    return asyncio.run(go())


def test_a_full_queue_refuses_at_once_and_loses_nobody_inside(digits):
    refused, both = [], threading.Event()

    def slow(pixels):
        assert both.wait(60)
        return np.eye(10, dtype=np.float32)[: len(pixels)]

    def tell(answer):
        refused.extend([answer] if answer.status_code == 503 else [])
        if len(refused) == 2:
            both.set()

    application = make_app(slow, GREY, Limits(places=3, at_once=1))
    told = asked(application, *[{"content": npy(digits[:1])}] * 5, tell=tell)
    assert sorted(answer.status_code for answer in told) == [200, 200, 200, 503, 503]
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert asked(application, {"content": npy(digits[:1])})[0].status_code == 200


def test_a_request_that_dawdles_is_ended(digits):
    async def dawdling():
        yield b"\x93NUMPY"
        await asyncio.sleep(10)

    (told,) = asked(make_app(np.zeros, GREY, Limits(upload_s=0.05)), {"content": dawdling()})
    assert (told.status_code, told.json()["error"]) == (408, "the request did not arrive within 0.05 s")
