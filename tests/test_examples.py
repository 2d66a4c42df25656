"""The examples run as they stand, the large ones in a tiny version."""

import re
import runpy
import sys
from pathlib import Path

import pytest

import nas

ROOT = Path(nas.__file__).parent.parent
EXAMPLES = ROOT / "examples"
PLUGS = {
    "space": "space mine has 117 architectures",
    "searcher": "best of 5 {",
    "relaxation": "found {",
    "proxy": "best of 20 by spread {",
    "task": "test accuracy ",
}
TOLD = {
    "images_custom_space": "test accuracy 0.",
    "latency_constrained": "measured at the end",
    "resume_on_cluster": "a worker was killed",
}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a program in this process, which has imported everything already, in an empty folder."""

    def run(path, *words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(path), *words])
        monkeypatch.setenv("NAS_EXAMPLE_TINY", "1")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_is_run_here():
    assert {path.stem for path in (EXAMPLES / "plug").glob("*.py")} == PLUGS.keys()
    assert {path.stem for path in EXAMPLES.glob("*.py")} == TOLD.keys()


@pytest.mark.parametrize("name", PLUGS)
def test_a_plug_in_takes_thirty_lines_and_works(name, run):
    path = EXAMPLES / "plug" / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 30
    assert PLUGS[name] in run(path)


@pytest.mark.parametrize("name", TOLD)
def test_an_example_comes_to_its_end(name, run):
    assert TOLD[name] in run(EXAMPLES / f"{name}.py", "out")


def test_the_guide_names_every_plug_in():
    text = (ROOT / "docs" / "plug.md").read_text()
    assert set(re.findall(r"examples/plug/(\w+)\.py", text)) == PLUGS.keys()
