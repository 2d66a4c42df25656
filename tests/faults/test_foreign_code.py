"""Nothing that was downloaded is ever run: no format that holds code, no plug-in that was not named."""

import ast
import contextlib
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jobs import SMALL, options
from typer.testing import CliRunner

import nas
from nas.__main__ import app
from nas.errors import ConfigError, DataError, NasError
from nas.files.atomic import write_json
from nas.files.folder import write_manifest
from nas.results.result import graphs_of, load_result, read_architecture
from nas.training.checkpoint import Checkpoints

ROOT = Path(nas.__file__).parent.parent
SOURCES = sorted(path for folder in ("nas", "spaces", "scripts") for path in (ROOT / folder).rglob("*.py"))

RUNS_CODE = {"eval", "exec", "compile", "__import__", "breakpoint"}
UNPICKLES = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"),
    *("yaml", "xml", "lxml", "code", "runpy"),
}
LISTENS_OR_LOADS = {
    *(
        "urllib",
        "http",
        "ftplib",
        "requests",
        "httpx",
        "aiohttp",
        "socketserver",
        "xmlrpc",
        "flask",
        "fastapi",
        "uvicorn",
    ),
    *("telnetlib", "smtplib", "webbrowser", "tarfile"),
}
ALLOWED = {
    "nas/study/workers.py": (
        "imports pickle",
        "imports cloudpickle",
    ),  # what it sends to its own children
    "nas/export/server.py": ("imports fastapi", "imports uvicorn", "calls socket.create_server"),  # a model
    "nas/show/dashboard.py": ("imports socketserver", "calls self.socket.bind"),  # serves a report
    "nas/cli/results.py": ("imports webbrowser",),  # shows the address of the dashboard
}
CALLS = {"load_module", "import_module", "exec_module", "spec_from_file_location"}
MAY_IMPORT_BY_NAME = {
    "nas/__init__.py",  # the public names of the package, from a table in it
    "nas/space/loading.py",  # what a user has named
    "nas/export/verify_worker.py",  # the model.py that was just written, in a process of its own
    "scripts/convert_nasbench201.py",  # the official reader of the table; its header warns
}


def dangers(tree):
    """Every use of what runs, unpickles, downloads or listens in a syntax tree, in words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [str(node.module)]
        else:
            modules = []
        for module in modules:
            if module == "urllib.parse":  # takes texts apart, reaches nothing
                continue
            if module.split(".")[0] in UNPICKLES | LISTENS_OR_LOADS:
                yield f"imports {module}"
        if isinstance(node, ast.Call):
            yield from _dangerous_call(node)


def _dangerous_call(node):
    name = ast.unparse(node.func)
    last = name.split(".")[-1]
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in RUNS_CODE or (last in ("eval", "exec") and node.args):
        yield f"calls {name}"
    if last in CALLS:
        yield f"imports by name: {name}"
    if keywords.get("allow_pickle", "False") != "False" or keywords.get("shell", "False") != "False":
        yield f"{name} with {keywords}"
    if name in (
        "torch.load",
        "torch.hub.load",
        "torch.jit.load",
        "os.system",
        "os.popen",
    ):
        yield f"calls {name}"
    if last in (
        "extractall",
        "unpack_archive",
        "bind",
        "listen",
        "create_server",
        "serve_forever",
        "DataLoader",
    ):
        yield f"calls {name}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_source_holds_nothing_that_runs_what_it_reads(source):
    found = list(dangers(ast.parse(source.read_text(encoding="utf-8"))))
    if str(source.relative_to(ROOT)) in MAY_IMPORT_BY_NAME:
        found = [danger for danger in found if not danger.startswith("imports by name")]
    for place, allowed in ALLOWED.items():
        if str(source.relative_to(ROOT)).startswith(place):
            found = [danger for danger in found if not danger.startswith(allowed)]
    assert not found


# -- pickles in the place of other files -----------------------------------------------------------------


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def payload(tmp_path):
    """A pickle that would leave a trace, and whether it has."""
    trace = tmp_path / "trace"
    data = pickle.dumps(Payload(trace))
    pickle.loads(data)
    assert trace.exists(), "the payload must work"
    trace.unlink()
    yield data
    assert not trace.exists()


def test_a_pickle_for_a_checkpoint_is_refused_even_under_its_right_name(payload, tmp_path):
    name = f"step-000000007-{hashlib.sha256(payload).hexdigest()[:16]}.safetensors"
    (tmp_path / name).write_bytes(payload)
    with pytest.raises(ConfigError, match="is not a safetensors file, or is damaged"):
        Checkpoints(tmp_path).load()


def test_pickles_in_an_array_and_for_an_archive_are_refused(payload, tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x_train=np.array([Payload(tmp_path / "trace")], dtype=object), y_train=np.zeros(1))
    with pytest.raises(DataError, match="Object arrays cannot be loaded"):
        nas.load_task(f"npz:{path}")
    path.write_bytes(payload)
    with pytest.raises(DataError, match=r"is not an \.npz archive"):
        nas.load_task(f"npz:{path}")


# -- plug-ins ----------------------------------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run of the smallest kind."""
    out = tmp_path_factory.mktemp("original") / "run"
    return nas.search("toy", "digits", "random", out=out, settings=SMALL | {"trials": 2}).folder


@pytest.fixture
def finished(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


@pytest.fixture(params=["evil.py:make", "evil:make"])
def downloaded(request, finished, tmp_path, monkeypatch):
    """A run's folder beside a plug-in that every one of its files names; yields whether that has run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    trace = tmp_path / "trace"
    Path("evil.py").write_text(f"open({str(trace)!r}, 'w').close()\nfrom nas.spaces.toy import toy as make\n")
    for name in ("architecture.json", "run.json"):
        data = json.loads((finished / name).read_text())
        if name == "architecture.json":
            data["space"] = request.param
        else:
            data["space"]["origin"] = data["config"]["space"] = data["config"]["method"] = request.param
        write_json(finished / name, data)
    config = f'space = "{request.param}"\ntask = "digits"\n'
    (finished / "config.toml").write_text(config)
    write_manifest(finished)
    yield request.param
    assert not trace.exists(), "the plug-in was run"


COMMANDS = {
    "draw": ("draw", "run", "--out", "drawn"),
    "draw a file": ("draw", "run/architecture.json", "--out", "drawn"),
    "retrain": ("retrain", "run", "--task", "digits", "--out", "again"),
    "retrain with its settings": (
        "retrain",
        "run",
        "--task",
        "digits",
        "--config",
        "run/config.toml",
        "--out",
        "again",
    ),
    "search with its settings": (
        "search",
        "--config",
        "run/config.toml",
        "--method",
        "random",
        "--out",
        "again",
    ),
    "search for it": ("search", "--config", "run/config.toml", "--task", "digits", "--out", "run"),
    "calibrate with its settings": ("calibrate", "--config", "run/config.toml", "--out", "again"),
    "export": ("export", "run"),
    "predict": ("predict", "run", "image.png"),
    "learn from it": (
        *("search", "--space", "toy", "--method", "guided", "--set", "searcher.earlier=run"),
        *("--set", "searcher.init=2", "--trials", "2", *options(SMALL | {"trials": 2}), "--out", "again"),
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_a_plug_in_that_only_a_downloaded_folder_names(command, downloaded):
    if command == "learn from it":  # which takes runs by trials only, and a user's method is by gradients
        record = json.loads(Path("run/run.json").read_text())
        record["config"]["method"] = "random"
        write_json(Path("run/run.json"), record)
        write_manifest(Path("run"))
    done = call(*COMMANDS[command])
    if command.startswith("draw"):
        assert (done.exit_code, Path("drawn/cells.svg").exists()) == (0, True)
    elif command == "learn from it":
        assert done.exit_code == 0, done.stderr
    else:
        assert done.exit_code == 2, done.output
        assert "name it" in done.stderr
        assert not Path("again").exists()


def test_reading_a_downloaded_result_in_python_runs_no_plug_in(downloaded):
    with pytest.raises(ConfigError, match="name it with --space to run it"):
        load_result("run")
    assert graphs_of(read_architecture(Path("run")))
    with contextlib.suppress(NasError):
        nas.retrain("run", "digits", out="again")


@pytest.mark.parametrize("name", ["space", "method"])
def test_a_plug_in_of_a_file_runs_when_it_is_named_again_and_is_announced(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("open('trace', 'w').close()\nraise SystemError('enough')\n")
    Path("c.toml").write_text(f'{name} = "mine.py:make"\n')
    refused = call("search", "--config", "c.toml")
    assert (refused.exit_code, Path("trace").exists()) == (2, False)
    assert f"--{name} mine.py:make" in refused.stderr
    for again in (["--set", f"{name}=mine.py:make"], [f"--{name}", "mine.py:make"]):
        Path("trace").unlink(missing_ok=True)
        done = call("search", "--config", "c.toml", *again)
        assert done.stderr.startswith("running your code: mine.py:make\nerror: ")
        assert Path("trace").exists()


def test_a_module_in_this_folder_is_found_only_for_a_plug_in(tmp_path):
    """A file beside the user must not take the place of an optional library that is not installed."""
    for name in ("torchvision", "optuna_dashboard", "sitecustomize", "cloudpickle"):
        (tmp_path / f"{name}.py").write_text("open('trace', 'w').close()\n")
    command = [sys.executable, "-P", "-c", "from nas.__main__ import main; main()"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "doctor"], cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert not (tmp_path / "trace").exists()
