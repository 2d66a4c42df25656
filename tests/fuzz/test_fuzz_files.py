"""Whatever stands in a file gives its true content or one of the engine's own errors, in time."""

import hashlib
import io
import json
import shutil
import struct
import zipfile

import numpy as np
import pytest
from hostile import fuzzed, json_values, mutated_bytes, mutated_json, slowly, survived, texts
from hypothesis import given
from hypothesis import strategies as st
from jobs import SMALL
from PIL import Image
from safetensors.torch import save

import nas
from nas.data import datasets
from nas.data.arrays import Source
from nas.errors import DataError, NasError
from nas.evaluate.calibration import Calibration, Estimate, chosen_fidelity, read_calibration
from nas.export.inference import Served, pixels_of, read_served
from nas.files.atomic import read_json, write_json
from nas.files.folder import MANIFEST, check_manifest, write_manifest
from nas.results.result import Result, graphs_of, load_architecture, load_result, read_architecture
from nas.results.run_record import read_run
from nas.show.draw import draw_cells
from nas.space.loading import load
from nas.study.storage import JOURNAL
from nas.study.study import Study
from nas.training.checkpoint import Checkpoints, load_tensors, pack, unpack

TOY = load("toy", width=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the smallest kind."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return nas.search("toy", "digits", "random", out=out, settings=SMALL | {"trials": 2}).folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def copy(run, place):
    return shutil.copytree(run, place / "copy")


# -- JSON ------------------------------------------------------------------------------------------------


@fuzzed
@given(data=st.binary(max_size=60) | mutated_bytes(b'{"a": [1, 2.5, null, true], "b": {"c": "\\u00e9"}}'))
def test_any_bytes_are_strict_json_or_refused(place, data):
    (place / "a.json").write_bytes(data)
    value = survived(read_json, place / "a.json")
    if not isinstance(value, NasError):
        write_json(place / "a.json", value)
        assert read_json(place / "a.json") == value


@pytest.mark.parametrize("name", ["run.json", "architecture.json", "metrics.json", MANIFEST])
@slowly
@given(data=st.data())
def test_any_record_of_a_run(run, copy, data, name):
    for other in {name, MANIFEST}:
        shutil.copyfile(run / other, copy / other)
    write_json(copy / name, data.draw(mutated_json(read_json(run / name))))
    survived(check_manifest, copy)
    if name != MANIFEST:
        write_manifest(copy)
    assert isinstance(survived(read_run, copy), dict | NasError)
    assert isinstance(survived(read_served, copy), Served | NasError)
    assert isinstance(survived(load_result, copy), Result | NasError)
    if name == "architecture.json":
        found = survived(read_architecture, copy)
        graphs = found if isinstance(found, NasError) else survived(graphs_of, found)
        if not isinstance(graphs, NasError):
            draw_cells(graphs, title=found["space"])
        survived(load_architecture, copy)
    shutil.copyfile(run / name, copy / name)


ROW = Estimate("epochs=1", "trained", 0.6, 0.2, 0.8, 0.7, 0.1, 0.9, 1.0, 12)
CALIBRATION = Calibration("toy", "digits", "f", 12, 3, 2, 0.4, (ROW,), "epochs=1")


@slowly
@given(data=st.data())
def test_any_calibration(place, data):
    write_json(place / "calibration.json", data.draw(mutated_json(CALIBRATION.to_dict()) | json_values))
    record = survived(read_calibration, place)
    survived(chosen_fidelity, place, space="toy", task="digits")
    if not isinstance(record, NasError):
        assert record.lines()


# -- the journal -----------------------------------------------------------------------------------------


def read_journal(folder, lines):
    (folder / JOURNAL).write_bytes(lines)
    return survived(Study.read, folder, "search", TOY)


@fuzzed
@given(data=st.data())
def test_any_bytes_of_a_journal(run, place, data):
    found = read_journal(place, data.draw(mutated_bytes((run / JOURNAL).read_bytes())))
    assert isinstance(found, list | NasError)


@fuzzed
@given(data=st.data())
def test_any_record_of_a_journal(run, place, data):
    lines = (run / JOURNAL).read_text().splitlines()
    for _ in range(data.draw(st.integers(1, 2))):
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = json.dumps(data.draw(mutated_json(json.loads(lines[number])) | json_values))
    found = read_journal(place, "".join(f"{line}\n" for line in lines).encode())
    assert isinstance(found, list | NasError)


# -- tensors and arrays ----------------------------------------------------------------------------------

STATE = {"step": 3, "best": (0.5, None), "tensors": [np.pi, "x", {1: True}]}


@fuzzed
@given(structure=mutated_json(pack(STATE)[1]) | json_values, digest=st.booleans())
def test_any_structure_of_a_checkpoint(place, structure, digest):
    assert survived(unpack, {}, structure) is not None or structure is None
    folder = place / "checkpoints"
    folder.mkdir(exist_ok=True)
    data = save({}, {"checkpoint": "1", "structure": json.dumps(structure)})
    name = hashlib.sha256(data).hexdigest()[:16] if digest else 16 * "0"
    path = folder / f"step-000000001-{name}.safetensors"
    path.write_bytes(data)
    assert isinstance(survived(Checkpoints(folder).load), tuple | NasError | None)
    path.unlink()


HEADER = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"space": "toy"}}


@fuzzed
@given(data=st.data())
def test_any_bytes_of_tensors(run, place, data):
    whole = (run / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(data.draw(mutated_bytes(whole[:800]) | mutated_bytes(whole)))
    assert isinstance(survived(load_tensors, place / "model.safetensors"), tuple | NasError)


@pytest.fixture(scope="module")
def images():
    return np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8), np.array([0, 1, 0, 1])


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@fuzzed
@given(data=st.data())
def test_any_bytes_of_arrays(place, images, write, data):
    path = place / "data.npz"
    write(path, x_train=images[0], y_train=images[1])
    path.write_bytes(data.draw(mutated_bytes(path.read_bytes())))
    assert isinstance(survived(datasets.read, f"npz:{path}"), Source | NasError)


descriptions = st.sampled_from(
    ["'<u1'", "'|O'", "'<f8'", "'|S0'", "'<U3'", "[('a', '<f4')]", "'<M8[ns]'", "3", "-" * 3000 + "1"]
)
shapes = st.sampled_from(
    ["()", "(4,)", "(-4,)", "(10**9,)", "(999999999999,)", "(4, 0)", "4", "(2**62, 4)", "'x'", "(True,)"]
)


@fuzzed
@given(
    descr=descriptions | texts,
    shape=shapes | texts,
    order=st.sampled_from(["False", "True", "3"]),
    size=st.integers(0, 40),
)
def test_any_header_of_an_array(place, descr, shape, order, size):
    header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode(
        "latin-1", "replace"
    )
    member = (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", min(len(header), 65_535)) + header[:65_535] + bytes(size)
    )
    with zipfile.ZipFile(place / "h.npz", "w") as archive:
        archive.writestr("x_train.npy", member)
        archive.writestr("y_train.npy", member)
    found = survived(datasets.read, f"npz:{place / 'h.npz'}")
    assert isinstance(found, Source | NasError)
    if isinstance(found, Source):
        survived(nas.task_from_arrays, found.x_train, found.y_train)


@pytest.mark.parametrize("kind", ["png", "gif", "bmp", "tiff", "webp", "jpeg", "ppm"])
@fuzzed
@given(data=st.data())
def test_any_bytes_of_an_image(place, kind, data):
    folder = place / f"images-{kind}" / "a"
    folder.mkdir(parents=True, exist_ok=True)
    valid = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(valid, kind)
    (folder / "changed.png").write_bytes(data.draw(mutated_bytes(valid.getvalue())))
    assert isinstance(survived(datasets.read, f"folder:{folder.parent}"), Source | NasError)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about odd metadata
@pytest.mark.parametrize("kind", ["npy", "png", "gif", "tiff", "webp", "jpeg"])
@fuzzed
@given(data=st.data())
def test_any_bytes_of_an_upload(kind, data):
    valid, pixels = io.BytesIO(), np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    if kind == "npy":
        np.save(valid, pixels)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(valid, kind, **({} if kind == "gif" else {"exif": exif}))
    served = Served("title", ("a", "b"), (3, 8, 8), "uint8")
    found = survived(pixels_of, "upload", data.draw(mutated_bytes(valid.getvalue())), served)
    if isinstance(found, DataError):
        return
    assert found.shape[1:] == (3, 8, 8) and found.min() >= 0 and found.max() <= 1
