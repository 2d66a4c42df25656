"""The public names, and how fast the command answers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nas

ROOT = Path(nas.__file__).parent.parent


@pytest.mark.parametrize("name", nas.__all__)
def test_every_public_name_is_what_its_home_calls_it(name):
    home = sys.modules[nas._HOME[name]] if getattr(nas, name) is not None else None
    assert getattr(nas, name) is getattr(home, name)


def test_no_module_hides_a_public_name():
    modules = {path.stem for path in (ROOT / "nas").iterdir() if path.name != "__init__.py"}
    assert not modules & set(nas.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        nas.serach  # noqa: B018


def test_help_does_not_wait_for_torch():
    heavy = ("torch", "optuna", "matplotlib", "numpy")
    code = f"import sys, nas.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_thin_and_use_public_names_only(script):
    lines = script.read_text().splitlines()
    assert len(lines) < 80
    assert not [line for line in lines if line.startswith(("from nas.", "import nas."))]


def test_the_scripts_work_together(tmp_path):
    def run(name, *arguments):
        command = [sys.executable, str(ROOT / "scripts" / name), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        )
        return done.stdout

    small = {"trials": 2, "epochs": 1, "search_images": 200, "top_k": 1, "retrain": {"epochs": 1}}
    space = {"space_settings": {"width": 4}}
    found = nas.search("toy", "digits", "random", out=tmp_path / "found", settings=small | space)
    assert str(tmp_path / "pictures" / "cells.png") in run("plot.py", found.folder, tmp_path / "pictures")
    accuracy = float(run("retrain.py", found.folder, "digits", tmp_path / "again"))
    assert accuracy > found.metrics["test_acc"]
