"""What goes wrong, as a user sees it: bad input is told in words, and nothing ends or changes silently."""

import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import nas
from nas.__main__ import main

TINY = {
    "epochs": 1,
    "top_k": 1,
    "baselines": False,
    "search_images": 200,
    "retrain": {"epochs": 1},
    "export": False,
    "pictures": False,
}
"""Settings of a search of a second."""


@pytest.fixture
def said(monkeypatch, capsys, tmp_path):
    """Runs `nas ARGUMENTS` in this process; gives the exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nas", *map(str, arguments)])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which the command replaces
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, "".join(capsys.readouterr())

    return run


# -- a user's code that ends the process (94) ---------------------------------------------------------

LEAVING = """
import os, sys
import nas
from torch import nn

class Op(nn.Module):
    def __init__(self, leaves):
        super().__init__()
        self.leaves, self.layer = leaves, nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        if self.leaves and not x.is_meta:
            os._exit(0)
        return self.layer(x)

def make(leaves="forward"):
    def build(choose):
        if leaves == "build":
            os._exit(0)
        op = choose.op("op", {"good": lambda: Op(False), "bad": lambda: Op(True)})
        return nn.Sequential(nn.Conv2d(1, 4, 1), op, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    return nas.Space("leaving", build)
"""


class _Leaving(nn.Module):
    """Calls `leave` in forward where `when` says so."""

    def __init__(self, leave, when):
        super().__init__()
        self.leave, self.when, self.layer = leave, when, nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        if not x.is_meta and self.when():
            self.leave()
        return self.layer(x)


def _space(leave, when, project=None):
    def build(choose):
        options = {"good": partial(nn.Conv2d, 4, 4, 1), "bad": partial(_Leaving, leave, when)}
        op = choose.op("op", options)
        return nn.Sequential(nn.Conv2d(1, 4, 1), op, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

    return nas.Space("leaving", build, **({} if project is None else {"project": project}))


def _raised(code=0):
    raise SystemExit(code)


@pytest.mark.parametrize("leave", [sys.exit, partial(sys.exit, 3), _raised], ids=["0", "3", "raise"])
def test_a_trial_whose_code_ends_the_process_fails_and_the_search_goes_on(tmp_path, leave):
    space = _space(leave, lambda: True)
    result = nas.search(space, "digits", "random", out=tmp_path, settings={**TINY, "trials": 2})
    assert {space.choices(t.genotype)["op"]: t.state for t in result.history} == {
        "good": "done",
        "bad": "failed",
    }
    assert __file__ in next(t.reason for t in result.history if t.state == "failed")


def test_a_last_training_whose_code_ends_the_process_is_an_error_with_the_line(tmp_path):
    told = _Phase()
    space = _space(sys.exit, lambda: told.last)
    one = nas.Space("one", space.build, project=lambda decisions, scores: (1,))
    with pytest.raises(nas.NasError, match="test_faults") as error:
        nas.search(one, "digits", "random", out=tmp_path, settings={**TINY, "trials": 1}, progress=told)
    assert error.value.exit_code != 0


def test_listing_and_projecting_that_end_the_process_are_errors_of_the_space():
    leaving = nas.Space("leaving", lambda choose: sys.exit(0))
    with pytest.raises(nas.SpaceError, match="test_faults"):
        leaving.decisions  # noqa: B018 - listed when it is read
    with pytest.raises(nas.SpaceError, match="test_faults"):
        _space(None, None, project=lambda decisions, scores: _raised()).sample(np.random.default_rng(0))


def test_a_stop_from_the_keyboard_is_still_one(tmp_path):
    def stop():
        raise KeyboardInterrupt

    before = os._exit
    with pytest.raises(KeyboardInterrupt):
        nas.search(_space(stop, lambda: True), "digits", "random", out=tmp_path, settings=TINY)
    assert os._exit is before


def test_os_exit_in_a_users_code_ends_nothing_either(tmp_path):
    (tmp_path / "leaving.py").write_text(LEAVING)
    program = f"""
import nas
try:
    nas.load("leaving.py:make", leaves="build").decisions
except nas.SpaceError as error:
    print(error)
result = nas.search("leaving.py:make", "digits", "random", out="run", settings={ {**TINY, "trials": 2} })
print(sorted(trial.state for trial in result.history))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(nas.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    refused, states = done.stdout.splitlines()
    assert "leaving.py" in refused
    assert states == "['done', 'failed']"


# -- links in somebody's run folder (95) --------------------------------------------------------------

READING = {
    "check": ["check", "{}"],
    "report": ["report", "{}"],
    "draw": ["draw", "{}", "--out", "pictures"],
    "export": ["export", "{}"],
    "predict": ["predict", "{}", "image.png"],
    "serve": ["serve", "{}", "--port", "0"],
    "dashboard": ["dashboard", "{}", "--no-browser", "--port", "0"],
    "retrain": ["retrain", "{}", "--task", "digits", "--out", "longer"],
    "search": ["search", "--space", "toy", "--task", "digits", "--method", "evolution", "--out", "{}"],
}
"""Every command that is given a run's folder."""


@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("file", ["study.log", "extra", "pipe"])
def test_a_link_or_a_pipe_in_a_run_folder_is_refused_by_every_command(copied, said, tmp_path, name, file):
    folder, target = copied("evolution"), tmp_path / "precious"
    target.write_bytes((folder / "study.log").read_bytes() + b"no record\n")
    before = target.read_bytes()
    if file == "pipe":
        os.mkfifo(folder / file)
    else:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(target)
    code, text = said(*(word.format(folder) for word in READING[name]))
    assert (code, file in text) == (2, True), text
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evolution", "precious"]


def test_links_inside_a_run_folder_and_to_it_are_fine(copied, said, tmp_path):
    folder = copied("evolution")
    (folder / "best.png").symlink_to("cells.png")
    (tmp_path / "latest").symlink_to(folder)
    assert said("check", tmp_path / "latest")[0] == 0
    assert nas.load_result(tmp_path / "latest").metrics == nas.load_result(folder).metrics


# -- a database that somebody's run folder names (96) -------------------------------------------------


def _record(folder, **config):
    """Changes settings in run.json, and its checksum, as whoever gives a folder away can."""
    record = json.loads((folder / "run.json").read_text())
    record["config"] |= config
    (folder / "run.json").write_text(json.dumps(record))
    data = (folder / "run.json").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["run.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("finished", [True, False])
def test_a_database_that_a_folder_names_is_never_opened(copied, said, tmp_path, finished, monkeypatch):
    monkeypatch.delenv("NAS_STORAGE", raising=False)
    folder = copied("evolution")
    _record(folder, storage=f"sqlite:///{tmp_path}/theirs.db")
    (folder / "study.log").unlink()
    if finished:
        nas.load_result(folder)
    else:
        (folder / "manifest.json").unlink()
    Image.new("L", (8, 8)).save(tmp_path / "image.png")
    for name in READING.keys() - {
        "search",
        "export",
        "serve",
        "retrain",
        *(["dashboard"] if finished else []),
    }:
        code, text = said(*(word.format(folder) for word in READING[name]))
        assert not list(tmp_path.glob("*.db")), name
        if name in {"report", "dashboard"} and not finished:
            assert (code, "NAS_STORAGE" in text) == (2, True), text
    monkeypatch.setenv("NAS_STORAGE", f"sqlite:///{tmp_path}/theirs.db")
    assert said("report", folder)[0] == 0
    assert (tmp_path / "theirs.db").exists() is not finished


# -- the history of a finished run (99) ---------------------------------------------------------------


def _cut(path, how):
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    damaged = {
        "emptied": b"",
        "cut": data[: len(data) // 2],
        "without its end": b"".join(lines[:-1]),
        "without its middle": b"".join([*lines[:20], *lines[23:]]),
        "garbage": b"garbage\n",
        "a bit": bytes([*data[:700], data[700] ^ 1, *data[701:]]),
    }
    path.unlink()
    if how != "missing":
        path.write_bytes(damaged[how])


@pytest.mark.parametrize(
    "how", ["emptied", "cut", "without its end", "without its middle", "garbage", "a bit", "missing"]
)
def test_a_damaged_history_is_named_and_the_model_still_given(copied, said, caplog, how):
    folder = copied("spos")
    _cut(folder / "study.log", how)
    code, text = said("check", folder)
    assert (code, "study.log" in text) == (2, True), text
    assert nas.load_result(folder).metrics == json.loads((folder / "metrics.json").read_text())
    assert "study.log" in caplog.text


def test_what_a_late_writer_adds_to_a_history_is_no_damage(copied, said, caplog):
    folder = copied("spos")
    with (folder / "study.log").open("ab") as file:
        file.write(b'{"op_code": 2, "worker_id": "late", "study_id": 0, "user_attr": {"late": 1}}\n')
    assert said("check", folder)[0] == 0
    nas.load_result(folder)
    assert not caplog.text


# -- what a re-evaluation has left, lost before the job went on (98) ----------------------------------

COMPARED = {**TINY, "baselines": True, "trials": 3, "top_k": 2, "top_k_epochs": 1, "repeats": 2} | {
    "trial": {"batch": 10, "lr": 0.2}
}


class _Phase:
    """Says whether a job has come to its last training."""

    last = False

    def phase(self, name, total, *, done=0):
        self.last = name == "retrain"

    def advance(self, text, *, done=None): ...
    def note(self, text): ...


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A job that was stopped behind its re-evaluation, and the metrics of its end."""
    folder, told = tmp_path_factory.mktemp("half") / "run", _Phase()
    with pytest.raises(nas.Stopped):
        nas.search(
            "toy",
            "digits",
            "evolution",
            out=folder,
            settings=COMPARED,
            progress=told,
            stop=lambda: told.last,
        )
    whole = shutil.copytree(folder, folder.parent / "whole")
    nas.search("toy", "digits", "evolution", out=whole, settings=COMPARED)
    return folder, whole, _figures(whole)


def _figures(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    return {k: v for k, v in metrics.items() if "seconds" not in k and "latency" not in k}


def _without_rerank(folder):
    lines = (folder / "study.log").read_bytes().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if b"rerank" in line)
    (folder / "study.log").write_bytes(b"".join(lines[:first]))


def _each_hits(change):
    def damage(folder):
        for path in (folder / "checkpoint" / "rerank").glob("scores-*"):
            change(path)

    return damage


LOSSES = {
    "a prediction": lambda folder: next((folder / "checkpoint" / "rerank").glob("scores-*")).unlink(),
    "all predictions": _each_hits(Path.unlink),
    "garbled predictions": _each_hits(lambda path: path.write_bytes(b"garbage")),
    "emptied predictions": _each_hits(lambda path: path.write_bytes(b"")),
    "predictions of other images": _each_hits(lambda path: np.savez(path, hits=np.ones(3, bool))),
    "all checkpoints": lambda folder: shutil.rmtree(folder / "checkpoint"),
    "the trials": _without_rerank,
}


@pytest.mark.parametrize("lost", LOSSES)
def test_what_a_re_evaluation_has_lost_is_done_again(half, tmp_path, lost):
    folder = shutil.copytree(half[0], tmp_path / "run")
    LOSSES[lost](folder)
    nas.search("toy", "digits", "evolution", out=folder, settings=COMPARED)
    assert _figures(folder) == half[2]
    assert "random_p" in half[2]


def _again(folder):
    """The command of such a job."""
    tables = {"retrain.epochs": "1", "trial.batch": "10", "trial.lr": "0.2"}
    settings = {k: str(v).lower() for k, v in COMPARED.items() if k not in ("retrain", "trial")} | tables
    changes = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return ["search", "--space=toy", "--task=digits", "--method=evolution", "--out", folder, *changes]


def test_a_finished_run_without_its_manifest_is_finished_again(half, tmp_path, said):
    folder = shutil.copytree(half[1], tmp_path / "run")
    (folder / "manifest.json").write_text("garbage")
    code, text = said(*_again(folder))
    assert (code, "manifest.json" in text) == (2, True), text
    (folder / "manifest.json").unlink()
    (folder / "baselines.json").unlink()
    code, text = said(*_again(folder))
    assert code == 0, text
    assert _figures(folder) == half[2]
    assert said("check", folder)[0] == 0


def test_a_result_without_figures_of_this_version_is_shown(half, tmp_path, said):
    folder = shutil.copytree(half[1], tmp_path / "run")
    kept = ("test_acc", "random_val_acc", "largest_val_acc", "first_val_acc")
    (folder / "metrics.json").write_text(json.dumps({name: half[2][name] for name in kept}))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["metrics.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    code, text = said(*_again(folder))
    assert code == 0, text
    assert f"{half[2]['test_acc']:.4f}" in text


# -- pictures of more than 8 bits (100) ---------------------------------------------------------------


def _deep(path):
    """A picture of 16 bits a pixel, big endian."""
    pixels = np.linspace(0, 65535, 64).astype(">u2").tobytes()
    Image.frombytes("I;16B", (8, 8), pixels).save(path)
    return path


def test_a_picture_of_16_bits_is_refused_whatever_its_byte_order(runs, said, tmp_path):
    deep = _deep(tmp_path / "deep.tif")
    Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)).save(tmp_path / "deep.png")
    Image.new("L", (8, 8)).save(tmp_path / "good.png")
    code, text = said("predict", runs("evolution"), "good.png", "deep.png", deep)
    assert code == 3
    assert text.count("8 bits") == 2 and "good.png: " in text


@pytest.mark.parametrize("size", ["", "@8"])
def test_a_folder_of_pictures_of_16_bits_is_refused(tmp_path, size):
    for name in ("a/1", "a/2", "b/1", "b/2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _deep(tmp_path / f"{name}.tif")
    with pytest.raises(nas.DataError, match="8 bits" if size else "65535"):
        nas.load_task(f"folder:{tmp_path}{size}")
    pictures = [(Image.open(file), i % 2) for i, file in enumerate(sorted(tmp_path.glob("*/*.tif")))]
    with pytest.raises(nas.DataError, match="65535"):
        nas.task_from_datasets(pictures)


# -- a server that others send to (101) ---------------------------------------------------------------


@pytest.fixture(scope="module")
def served(runs):
    """The port of `nas serve` in a process of its own."""
    pytest.importorskip("fastapi", reason="serving needs the extra `serve`")
    command = [sys.executable, "-m", "nas", "serve", str(runs("evolution")), "--port", "0"]
    home = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(nas.__file__).parent.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | home) as process:
        yield int(re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
        process.terminate()


def _asked(port, host, path="/health", body=None, kind="image/tiff"):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(
            "GET" if body is None else "POST", path, body, {"Host": host, "Content-Type": kind}
        )
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_a_request_to_another_host_is_refused(served):
    for host in (f"127.0.0.1:{served}", "localhost", f"LOCALHOST:{served}", "[::1]", f"[::1]:{served}"):
        assert _asked(served, host)[0] == 200
    for host in ("evil.example", f"evil.example:{served}", "localhost.evil.example", "", "[::1", "10.0.0.1"):
        for path in ("/", "/health", "/openapi.json"):
            status, text = _asked(served, host, path)
            assert (status, "--host" in json.loads(text)["error"]) == (403, True)


def test_connections_without_a_whole_head_are_closed(served):
    """Also one that sends a letter now and then, and one whose first request was a whole one."""
    with contextlib.ExitStack() as at_end:
        first, second, silent = (
            at_end.enter_context(socket.create_connection(("127.0.0.1", served))) for _ in range(3)
        )
        first.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert second.recv(9999).startswith(b"HTTP/1.1 200")
        second.sendall(b"GET /hea")
        waiting, until = [first, second, silent], time.monotonic() + 30
        while waiting and time.monotonic() < until:
            with contextlib.suppress(OSError):
                first.sendall(b"x")
            for one in select.select(waiting, [], [], 0.2)[0]:
                with contextlib.suppress(ConnectionError):
                    while one.recv(9999):
                        pass
                waiting.remove(one)
        assert not waiting
    assert _asked(served, "localhost")[0] == 200


def test_many_large_pictures_in_a_form_are_bounded(served):
    """Each is allowed, 32 of them would take ten seconds."""
    large = io.BytesIO()
    Image.new("L", (6000, 6000)).save(large, "PNG")
    head = b'--X\r\nContent-Disposition: form-data; name="f"; filename="%d.png"\r\n\r\n'
    parts = [head % i + large.getvalue() + b"\r\n" for i in range(32)]
    status, text = _asked(
        served, "localhost", "/predict", b"".join([*parts, b"--X--\r\n"]), "multipart/form-data; boundary=X"
    )
    answers = json.loads(text)["answers"]
    assert status == 200 and len(answers) == 32
    assert ["error" in answer for answer in answers] == [False] * 2 + [True] * 30


def test_a_picture_of_16_bits_is_refused_by_the_server(served, tmp_path):
    status, text = _asked(served, "localhost", "/predict", _deep(tmp_path / "deep.tif").read_bytes())
    assert (status, "8 bits" in text) == (422, True)


# -- which axis is which (107) ------------------------------------------------------------------------

LABELS = np.arange(40) % 2


def test_a_tensor_is_what_it_says_it_is(tmp_path):
    """Also where its last axis is longer than that of the channels of any picture."""
    x = torch.rand(40, 65, 1, 16, generator=torch.Generator().manual_seed(0))
    x[::2] += 1
    task = nas.task_from_arrays(x, LABELS)
    assert task.image_shape == (65, 1, 16)
    assert nas.task_from_datasets(list(zip(x, LABELS.tolist(), strict=True))).image_shape == (65, 1, 16)

    def build(choose):
        options = {"wide": partial(nn.Conv2d, 65, 8, 1), "deep": partial(nn.Conv2d, 65, 8, (1, 3))}
        return nn.Sequential(choose.op("op", options), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

    result = nas.search(nas.Space("s", build), task, "random", out=tmp_path, settings={**TINY, "trials": 1})
    assert result.predict(x).shape == (40,)
    for row in x[:3]:
        assert result.predict(row[None])[0] == result.predict(x)[(x == row).all((1, 2, 3))][0]


def test_an_array_that_looks_like_the_other_order_is_still_told(tmp_path):
    x = np.random.default_rng(0).random((40, 3, 8, 16), np.float32)
    np.savez(tmp_path / "images.npz", x_train=x, y_train=LABELS)
    with pytest.raises(nas.DataError, match="transpose"):
        nas.task_from_arrays(x, LABELS)
    with pytest.raises(nas.DataError, match="transpose"):
        nas.load_task(f"npz:{tmp_path / 'images.npz'}")
    with pytest.raises(nas.DataError, match="transpose"):
        nas.task_from_datasets(list(zip(x, LABELS.tolist(), strict=True)))


# -- tables for an estimator of images (110) ----------------------------------------------------------


class _Frame:
    """What a table with named columns is to others: pandas and polars have this, and more."""

    def __init__(self, values):
        self.values, self.columns, self.shape = (
            values,
            [f"f{i}" for i in range(values.shape[1])],
            values.shape,
        )

    def __array__(self, dtype=None, copy=None):
        return self.values

    def __len__(self):
        return len(self.values)

    def to_numpy(self):
        return self.values


def _classifier():
    settings = {"trials": 1, "top_k": 1, "search_images": 100, "audit": False}
    return nas.ImageClassifier(0.3, space="toy", method="random", settings=settings)


@pytest.mark.parametrize("features", [1, 4, 13, 30, 49, 63, 65])
def test_rows_of_features_are_no_images(features):
    rows = np.random.default_rng(0).random((60, features))
    with pytest.raises(ValueError, match=f"{features} features.*wanted images"):
        _classifier().fit(rows, np.arange(60) % 2)


def test_a_table_with_named_columns_is_told_and_its_pixels_are_taken():
    rows = np.random.default_rng(0).random((60, 64))
    with pytest.raises(ValueError, match="to_numpy"):
        _classifier().fit(_Frame(rows), np.arange(60) % 2)
    fitted = _classifier().fit(_Frame(rows).to_numpy(), np.arange(60) % 2)
    with pytest.raises(ValueError, match="to_numpy"):
        fitted.predict(_Frame(rows))
    assert fitted.predict(rows).shape == (60,)
