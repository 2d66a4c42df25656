"""Answers of a found model: on the command line and over HTTP they are those of `Result.predict`."""

import csv
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forking import wait_for
from using import nas_command

import nas

httpx = pytest.importorskip("httpx", reason="needs the extra dev: httpx")
Image = pytest.importorskip("PIL.Image", reason="needs Pillow")


@pytest.fixture(scope="module")
def model(runs):
    """The result of a run with a bundle."""
    return nas.load_result(runs("evolution"))


@pytest.fixture(scope="module")
def digits(model):
    """Twenty images as bytes, and the classes that the model says."""
    images = nas.load_task("digits").test.x[:20, 0].numpy()
    classes = [model.inputs.classes[number] for number in model.predict(images)]
    assert len(set(classes)) > 1
    return images, classes


def _png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path, digits):
    """A folder of the images, of which some lie deeper."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number, image in enumerate(digits[0]):
        place = tmp_path / "photos" / ("more" if number >= 15 else "")
        (place / f"{number:02}.png").write_bytes(_png(image))
    return tmp_path / "photos"


def test_a_table_has_a_row_for_each_image_of_a_folder(model, digits, photos, tmp_path):
    said = nas_command("predict", model.folder, photos, "--csv", tmp_path / "answers.csv", "--top", 2)
    assert said.code == 0, said.err
    with (tmp_path / "answers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = {row["name"].rsplit("/", 1)[-1]: row for row in rows}
    assert {name: row["class"] for name, row in told.items()} == {
        f"{number:02}.png": answer for number, answer in enumerate(digits[1])
    }
    assert len(rows) == 20
    assert all(1 >= float(row["probability"]) >= float(row["probability_2"]) >= 0 for row in rows)
    assert all(row["class"] != row["class_2"] for row in rows)


def test_a_bad_file_is_named_and_does_not_spoil_the_others(model, digits, photos, tmp_path):
    (photos / "03.png").write_bytes(b"no picture")
    (photos / "04.png").write_bytes((photos / "04.png").read_bytes()[:50])
    (photos / "notes.txt").write_text("no picture either")
    files = [photos / f"{number:02}.png" for number in range(6)]
    said = nas_command("predict", model.folder, *files, tmp_path / "absent.png", "--json")
    assert said.code == 3
    told = json.loads(said.out)
    kept = [number for number in range(6) if number not in (3, 4)]
    assert [answer["name"].rsplit("/", 1)[-1] for answer in told["answers"]] == [f"{n:02}.png" for n in kept]
    assert [answer["class"] for answer in told["answers"]] == [digits[1][number] for number in kept]
    assert len(told["errors"]) == 3
    assert all(any(name in e for e in told["errors"]) for name in ("03.png", "04.png", "absent.png"))


def test_arrays_are_answered_as_bytes_and_as_shares(model, digits, tmp_path):
    images, classes = digits
    for array in (
        images,
        images[..., None],
        images[:, None],
        images / 255,
        (images / 255).astype(np.float32),
    ):
        np.savez(tmp_path / "images.npz", images=array)
        said = nas_command("predict", model.folder, "--npz", tmp_path / "images.npz", "--json")
        assert said.code == 0, said.err
        assert [answer["class"] for answer in json.loads(said.out)["answers"]] == classes


def test_arrays_that_are_no_images_of_this_model_are_refused(model, digits, tmp_path):
    images = digits[0]
    wrong = {
        "another size": images[:, :5],
        "NaN": np.where(np.arange(8) == 3, np.nan, images / 255),
        "other numbers": images * 1000.0,
        "text": images.astype(str),
        "objects": np.array([None] * 3),
    }
    for why, array in wrong.items():
        np.savez(tmp_path / "images.npz", images=array)
        said = nas_command("predict", model.folder, "--npz", tmp_path / "images.npz")
        assert said.code in (2, 3), why
        assert "images" in said.err, why
        assert not said.out, why
    np.savez(tmp_path / "images.npz", pictures=images)
    assert nas_command("predict", model.folder, "--npz", tmp_path / "images.npz").code in (2, 3)


def test_no_image_is_overwritten_where_the_name_of_the_table_was_forgotten(model, photos):
    whole = (photos / "00.png").read_bytes()
    assert nas_command("predict", model.folder, "--csv", photos / "00.png").code == 2
    assert nas_command("predict", model.folder, photos / "01.png", "--csv", photos / "00.png").code == 2
    assert (photos / "00.png").read_bytes() == whole


# -- over HTTP ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """A client of a server in a process of its own."""
    pytest.importorskip("fastapi", reason="serving needs the extra serve")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "said.txt"
    command = [sys.executable, "-m", "nas", "serve", model.folder, "--port", port, "--max-upload", "1MiB"]
    here = os.environ | {"PYTHONPATH": str(Path(nas.__file__).parent.parent)}
    with log.open("w") as file:
        process = subprocess.Popen([*map(str, command)], stdout=file, stderr=file, env=here)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            def up():
                try:
                    return client.get("/health").status_code == 200
                except httpx.TransportError:
                    assert process.poll() is None, log.read_text()
                    return False

            wait_for(up)
            yield client
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def test_a_client_is_told_the_classes_of_its_images(server, digits):
    images, classes = digits
    files = [("file", (f"{number}.png", _png(image))) for number, image in enumerate(images)]
    told = server.post("/predict", files=files).json()["answers"]
    assert [(answer["name"], answer["class"]) for answer in told] == [
        (f"{number}.png", answer) for number, answer in enumerate(classes)
    ]
    assert all(0 <= answer["probability"] <= 1 for answer in told)
    array = server.post("/predict", content=_npy(images)).json()["answers"]
    assert [answer["class"] for answer in array] == classes
    assert server.post("/predict", content=_png(images[0])).json()["answers"][0]["class"] == classes[0]


def _complaint(response):
    told = response.json()
    return told["answers"][0]["error"] if "answers" in told else told["error"]


def test_nonsense_is_refused_in_words_and_never_with_a_fault_of_the_server(server, digits):
    images, classes = digits
    for content in (b"nothing", b"\x93NUMPY\x01\x00junk", _png(images[0])[:40], _npy(images[:, :3])):
        told = server.post("/predict", content=content)
        assert told.status_code == 422
        assert _complaint(told)
    for answer in (
        server.post("/predict"),
        server.post("/predict", headers={"content-type": "multipart/form-data"}),
        server.post("/predict", data={"a": "b"}, files={"x": ("", b"")}),
        server.get("/predict"),
        server.get("/etc/passwd"),
        server.post("/predict", content=b"\0" * (3 << 20)),
    ):
        assert 400 <= answer.status_code < 500
        assert _complaint(answer)
    both = server.post("/predict", files=[("a", ("bad.png", b"no")), ("b", ("good.png", _png(images[0])))])
    assert both.status_code == 200
    bad, good = both.json()["answers"]
    assert "error" in bad
    assert good["class"] == classes[0]
    assert server.get("/health").status_code == 200


def test_the_page_of_the_server_loads_nothing_from_elsewhere(server):
    page = server.get("/")
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy or "default-src 'self'" in policy
    assert "unsafe" not in policy


def test_a_server_without_a_bundle_says_how_to_write_one(runs):
    said = nas_command("serve", runs("spos"), "--port", "0")
    assert said.code == 2
    assert "export" in said.err
