"""Files from elsewhere: links, bombs, strange names, and what must never get into a file of ours."""

import gzip
import json
import os
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile import NAMES, in_time, survived
from jobs import SMALL, options
from typer.testing import CliRunner

import nas
from nas.__main__ import app
from nas.data import datasets, decode
from nas.errors import ConfigError, DataError, NasError, SpaceError
from nas.evaluate.benchmarks import load_nasbench101, load_nasbench201
from nas.evaluate.calibration import read_calibration
from nas.files.atomic import read_json, read_toml, write_json
from nas.files.folder import check_manifest, check_name
from nas.results.result import (
    describe_architecture,
    graphs_of,
    load_architecture,
    load_result,
    read_architecture,
    read_metrics,
)
from nas.results.run_record import read_run
from nas.run.run_folder import open_folder
from nas.searchers.goals import Goals
from nas.space.latency import LatencyTable
from nas.space.loading import load
from nas.study.storage import JOURNAL, MOST
from nas.study.study import Study

TOY = load("toy")
RESULTS = sorted(path.parent for path in (Path(nas.__file__).parent.parent / "results").glob("*/run.json"))


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run of the smallest kind, made with secrets in the environment."""
    out = tmp_path_factory.mktemp("original") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "DATABASE_URL", "nas_thing"):
            patch.setenv(name, f"hunter2-{name}")
        settings = options(SMALL | {"trials": 2, "pictures": True})
        done = call("search", "--space", "toy", "--method", "random", *settings, "--out", out)
    assert done.exit_code == 0, done.stderr
    (out.parent / "said").write_text(done.output)
    return out


@pytest.fixture
def finished(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


# -- secrets ---------------------------------------------------------------------------------------------


def test_a_run_keeps_nothing_of_the_environment(original):
    files = [path for path in original.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in [*files, original.parent / "said"]:
        content = path.read_bytes()
        assert b"hunter2" not in content, path
        assert b"AWS_SECRET" not in content, path
        assert os.environ["PATH"].encode() not in content, path


# -- links and special files -----------------------------------------------------------------------------


@pytest.fixture
def precious(tmp_path):
    """A file of the user's outside every run."""
    path = tmp_path / "precious"
    path.write_text('{"format": 1}\nhalf a line')
    yield path
    assert path.read_text() == '{"format": 1}\nhalf a line'


def test_a_pipe_is_refused_and_not_waited_for(finished, tmp_path):
    os.mkfifo(finished / "notes")
    with in_time(), pytest.raises(ConfigError, match="notes is neither a file nor a folder"):
        read_run(finished)
    os.mkfifo(tmp_path / "pipe.npz")
    for call_ in (
        lambda: read_json(tmp_path / "pipe.npz"),
        lambda: read_toml(tmp_path / "pipe.npz"),
        lambda: datasets.read(f"npz:{tmp_path / 'pipe.npz'}"),
        lambda: load(f"{tmp_path / 'pipe.npz'}.py:make"),
    ):
        assert isinstance(survived(call_), NasError)


def test_a_manifest_reaches_no_file_outside(finished, precious):
    names = ["../precious", str(precious), "a/../../precious", "n\0"]
    write_json(finished / "manifest.json", {"files": {name: {} for name in names}})
    assert all(line.endswith("outside the folder") for line in check_manifest(finished))
    assert len(check_manifest(finished)) == 4
    (finished / "inner").symlink_to(precious.parent)
    with pytest.raises(ConfigError, match="inner is a symbolic link"):
        check_manifest(finished)


@pytest.mark.parametrize("folder", RESULTS, ids=lambda path: path.name)
def test_committed_results_are_read_as_they_are(folder):
    record = read_run(folder)
    assert Goals.from_dict(record["plan"].get("goals", {"objectives": [["val_acc", True, []]]}))
    if (folder / "architecture.json").exists():
        assert graphs_of(read_architecture(folder)) and read_metrics(folder)
    if (folder / "calibration.json").exists():
        assert read_calibration(folder).chosen


# -- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", ".hidden", "-rf", "a/b", "../x", "/x", "x" * 101, "nul\0", "two\nlines", "🚀"),
        *("a\u202eb", "x.", "x ", "$(id)", "a;b", "a|b", "~", "*", "a:b", "<script>", "\ud800", "'", '"'),
        "\\",
    ],
)
def test_a_name_that_some_system_could_not_hold_is_refused(name):
    with pytest.raises(ConfigError, match=r"name is .*; wanted 1 to 100 letters, digits and _-[+]="):
        check_name(name, "run")


@pytest.mark.parametrize("name", ["two\nlines", "CON", "x" * 300, ".hidden"])
def test_a_run_with_a_strange_name_is_refused_before_anything_is_written(name, tmp_path):
    with pytest.raises(ConfigError, match="run's name"):
        open_folder(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text", ["x" * 5000, "nul\0", "\ud800", "~nobody-of-that-name/x", "a" * 200 + "/" + "b" * 300]
)
def test_a_text_that_can_be_no_path_is_refused(text):
    for reader in (
        lambda: datasets.read(f"npz:{text}"),
        lambda: datasets.read(f"folder:{text}"),
        lambda: load(f"{text}.py:make"),
        lambda: load(f"{text}:make"),
        lambda: read_json(Path(text)),
        lambda: read_toml(Path(text)),
        lambda: read_run(Path(text)),
        lambda: read_architecture(Path(text)),
        lambda: load_result(text),
        lambda: LatencyTable.read(Path(text)),
        lambda: nas.search("toy", "digits", "guided", settings={"searcher": {"earlier": text}}, out="never"),
        lambda: nas.search(
            "toy", "digits", "random", settings={"fidelity": "auto", "calibration": text}, out="never"
        ),
    ):
        assert isinstance(survived(reader), NasError)
    assert not Path("never").exists()


# -- what is told -------------------------------------------------------------------------------------------


def steers(text):
    """Whether a text holds what a terminal would obey."""
    return not text.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", NAMES)
def test_messages_hold_nothing_that_steers_a_terminal(name, finished, tmp_path):
    data = json.loads((finished / "architecture.json").read_text())
    hostile = tmp_path / "a.json"
    write_json(hostile, data | {"space": f"{name}:make", "choices": {name: name}})
    answers = [
        call("retrain", hostile, "--task", "digits", "--out", tmp_path / "out"),
        call("draw", hostile, "--out", tmp_path / "drawn"),
        call("search", "--space", f"x{name}"),
        call("search", "--task", f"npz:{name}"),
        call("search", "--set", f"{name}=3"),
        call("search", "--out", tmp_path / "o", "--space", "toy", "--set", f"objective={name}"),
        call("draw", name, "--space", "darts"),
    ]
    for done in answers:
        assert not steers(done.output), repr(done.output)
        assert "Traceback" not in done.output
        assert len(done.output) < 5000


# -- pictures and graphs ------------------------------------------------------------------------------------


# -- bombs --------------------------------------------------------------------------------------------------


def sparse(path, size, start=b""):
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
    return path


READERS = {
    "toml": read_toml,
    "json": read_json,
    "latency": LatencyTable.read,
    "architecture": read_architecture,
    "idx": datasets.read_idx,
    "nasbench201": load_nasbench201,
    "nasbench101": load_nasbench101,
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_a_hundred_megabytes_and_more_is_refused_in_little_memory(name, tmp_path):
    path = sparse(tmp_path / "file.json", 3 << 30, b"\0\0\x08\x01\xff\xff\xff\xff" if name == "idx" else b"[")
    tracemalloc.start()
    try:
        with in_time(), pytest.raises(NasError):
            READERS[name](path)
        assert tracemalloc.get_traced_memory()[1] < 150 << 20
    finally:
        tracemalloc.stop()


def test_a_journal_of_one_endless_line_is_refused_in_little_memory(tmp_path):
    sparse(tmp_path / JOURNAL, 1 << 30, b'{"op_code":"')
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'"}\n')
    tracemalloc.start()
    try:
        with in_time(), pytest.raises(ConfigError, match=f"longer than {MOST} bytes"):
            Study.read(tmp_path, "search", TOY)
        assert tracemalloc.get_traced_memory()[1] < 4 * MOST
    finally:
        tracemalloc.stop()


def test_nothing_is_unpacked_to_more_than_was_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "half_of_memory", lambda: 1 << 20)
    bomb = tmp_path / "bomb.npz"
    np.savez_compressed(bomb, x_train=np.zeros((600, 64, 64), np.uint8), y_train=np.zeros(600))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(
        DataError, match=r"its arrays unpack to 2,4.* bytes, but at most 1,048,576 are allowed"
    ):
        datasets.read(f"npz:{bomb}")
    monkeypatch.setattr(datasets, "_MAX_IDX", 1 << 20)
    endless = bytes((0, 0, 8, 1, 255, 255, 255, 255)) + bytes(32 << 20)
    (tmp_path / "images.gz").write_bytes(gzip.compress(endless))
    del endless
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than the 1,048,576 bytes that are allowed"):
            datasets.read_idx(tmp_path / "images.gz")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20  # not unpacked first and refused afterwards
    finally:
        tracemalloc.stop()


def test_members_of_an_archive_are_never_written_to_disk(tmp_path):
    x, y = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y)
    with zipfile.ZipFile(tmp_path / "data.npz", "a") as archive:
        archive.writestr("../escaped.npy", b"x")
        archive.writestr("/tmp/escaped.npy", b"x")
    before = sorted(tmp_path.parent.rglob("*"))
    assert np.array_equal(datasets.read(f"npz:{tmp_path / 'data.npz'}").x_train, x)
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_downloaded_architecture_of_a_billion_cells_is_not_built(tmp_path, monkeypatch):
    monkeypatch.setattr("nas.space.choosers.MAX_QUESTIONS", 1000)
    space = load("nasbench201", width=4, cells=1)
    genotype = (0,) * 6
    data = describe_architecture(space, genotype, {})
    data["settings"]["cells"] = 10**9
    write_json(tmp_path / "architecture.json", data)
    with in_time(), pytest.raises(SpaceError, match="asked more than 1000 times"):
        load_architecture(tmp_path)
